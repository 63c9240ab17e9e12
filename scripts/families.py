"""Options that belong to one of the model families."""

from __future__ import annotations

import argparse
from typing import Any

from runtime.bundle import Family

NAMES: dict[Family, str] = {"hmar": "HMAR", "himar": "Hi-MAR"}
OPTIONS: dict[Family, dict[str, Any]] = {
    "hmar": {
        "top_k": None,
        "top_p": None,
        "schedule": "default",
        "context": "scale",
        "trace_logits": False,
        "strip": None,
        "animate": None,
    },
    "himar": {
        "num_iter": None,
        "re_cfg": None,
        "cfg_schedule": None,
        "temperature": None,
        "diffusion_steps": None,
        "cond": None,
        "small_out": None,
    },
}
"""By family, the options that the other one does not have, with their defaults."""


def check_options(args: argparse.Namespace, family: Family) -> None:
    """Raises ValueError if an option was given that a bundle's family does not have."""
    for other in OPTIONS.keys() - {family}:
        given = [
            f"--{name.replace('_', '-')}"
            for name, default in OPTIONS[other].items()
            if getattr(args, name, default) != default
        ]
        if given:
            raise ValueError(
                f"{', '.join(given)}: an option of {NAMES[other]}; this bundle is of "
                f"{NAMES[family]}, see --help"
            )
