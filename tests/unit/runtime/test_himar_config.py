"""Hi-MAR's sampling settings: what a bundle says, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import ManifestError
from runtime.himar_config import HiMARSamplingConfig
from tests.unit.runtime.manifests import himar_manifest, manifest


def test_defaults_are_the_manifests() -> None:
    config = HiMARSamplingConfig.defaults(himar_manifest())
    assert (config.num_iter, config.cfg, config.re_cfg) == (2, 2.5, 2.7)
    assert (config.pivot_diffusion_steps, config.dense_diffusion_steps) == ("2", "3")
    with pytest.raises(ManifestError, match="Hi-MAR's; this bundle is of family 'hmar'"):
        HiMARSamplingConfig.defaults(manifest())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_iter": 0}, "num_iter must be an integer from 1 to"),
        ({"num_iter": 2.0}, "num_iter must be an integer"),
        ({"num_iter": True}, "num_iter must be an integer"),
        ({"cfg": -1}, "cfg must be a finite number >= 0, got -1"),
        ({"re_cfg": float("nan")}, "re_cfg must be a finite number"),
        ({"temperature": float("inf")}, "temperature must be a finite number"),
        ({"cfg_schedule": "cosine"}, r"cfg_schedule must be one of \('linear', 'constant'\)"),
        ({"pivot_diffusion_steps": "1"}, "at least 2 are needed"),
        ({"dense_diffusion_steps": "2000"}, "from 0 to 1000"),
    ],
)
def test_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiMARSamplingConfig(**setting)
