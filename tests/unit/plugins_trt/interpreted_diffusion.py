"""Runs the diffusion kernels in Triton's interpreter; prints what differs from the NumPy rule.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugins_trt.sampling.diffusion import reverse_kernel, start_kernel
from runtime.normals import NOISE, second_word
from tests.host_device import HostDiffusionKernels

BLOCK, B, N, C = 32, 2, 5, 8
SEED, IMAGES = (1 << 63) + 12345, [7, (1 << 40) + 3]
WEIGHTS = {
    "x0_from_state": 1.7, "x0_from_noise": 1.3, "mean_x0": 0.4, "mean_x": 0.6,
    "log_upper": -1.5, "log_lower": -2.5, "held_signal": 0.8, "held_noise": 0.6,
}  # fmt: skip
HELD_WEIGHTS = {name: WEIGHTS[name] for name in ("held_signal", "held_noise")}


def arrays(step: int) -> dict[str, Tensor]:
    """Memory of a sampling of dense tokens."""
    rng = np.random.default_rng(0)
    floats = ("state", "first", "noise", "variance", "held_tokens")
    signed = [v - (1 << 64) if v >> 63 else v for v in (SEED, *IMAGES)]
    return {
        **{n: torch.from_numpy(rng.standard_normal((B, N, C)).astype(np.float32)) for n in floats},
        "held": torch.from_numpy(rng.random((B, N)) < 0.5),
        "positions": torch.from_numpy(rng.integers(0, 256, (B, N)).astype(np.int32)),
        "images": torch.tensor(signed[1:]),
        "seed": torch.tensor(signed[:1]),
        "counter": torch.tensor([second_word(NOISE["dense"], step, 0)], dtype=torch.int32),
        "temperature": torch.tensor([0.9]),
        "timestep": torch.tensor([-1], dtype=torch.int32),
    }


def differences(kernel: Any, rule: Any, names: tuple[str, ...], **given: Any) -> list[str]:
    """Arrays that the kernel and the rule leave with other values."""
    ours, theirs = ({n: t.clone() for n, t in arrays(step=3).items()} for _ in range(2))
    sizes = {"batch": B, "length": N, "groups": C // 4, **given}
    grid = (-(-B * N * C // 4 // BLOCK),)
    flags = {
        name: int(value) if isinstance(value, bool) else value for name, value in sizes.items()
    }
    kernel[grid](**{name: ours[name] for name in names}, **flags, BLOCK=BLOCK)
    rule(**{name: theirs[name].data_ptr() for name in names}, **sizes)
    return [
        f"{name}: {(ours[name] - theirs[name]).abs().max()}"
        for name in ("state", "first", "timestep")
        if not torch.allclose(ours[name].float(), theirs[name].float(), rtol=2e-6, atol=2e-6)
    ]


def main() -> None:
    rule, shared = HostDiffusionKernels(), arrays(0).keys()
    start = tuple(shared - {"noise", "variance", "temperature"})
    found: Mapping[str, list[str]] = {
        **{
            f"start-{'held' if has_held else 'free'}": differences(
                start_kernel, rule.start, start, next_timestep=77, has_held=has_held, **HELD_WEIGHTS
            )
            for has_held in (False, True)
        },
        **{
            f"reverse-draw{draw}-{'held' if has_held else 'free'}-"
            f"{'learned' if has_variance else 'fixed'}": differences(
                reverse_kernel, rule.reverse, tuple(shared), draw=draw, next_timestep=55,
                has_held=has_held, has_variance=has_variance, **WEIGHTS,
            )
            for draw in (0, 4)
            for has_held in (False, True)
            for has_variance in (False, True)
        },
    }  # fmt: skip
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
