"""Runs plans of Hi-MAR's denoisers in Triton's interpreter; prints how far they are from PyTorch.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import torch

from hmar.config import HiMARConfig
from hmar.diffusion_head import guided_noise
from plugins_trt.ahead_of_time.lowering import Unit
from plugins_trt.transformer import aot
from runtime.bundle import Kind
from runtime.denoiser_plan import DenoiserSizes, denoiser_weights, plan_denoiser
from tests.denoisers import make_denoiser
from tests.kernel_tables import kernel_table
from tests.unit.plugins_trt.interpreted_plans import relative_error, run_plan

CONFIG = HiMARConfig(
    embed_dim=64, encoder_depth=1, decoder_depth=1, encoder_heads=1, decoder_heads=1, mlp_depth=2,
    mlp_width=256, dit_depth=2, dit_width=256, dit_heads=4, dense_side=3, dit_mlp_ratio=2.0,
)  # fmt: skip
TIMESTEPS, WEIGHT = [999, 20, 7], 2.5
UNITS: dict[str, Unit] = {unit.name: unit for unit in aot.units()}
TABLE = kernel_table(aot)


@dataclass(frozen=True)
class Case:
    """A graph for some images and tokens."""

    kind: Kind
    images: int
    length: int


CASES = {
    "pivots": Case("denoise_pivot", 2, 3),
    "pivots, in two parts": Case("denoise_pivot_modulated", 1, 5),
    "pivots, unguided": Case("denoise_pivot_unguided", 1, 1),
    "dense tokens": Case("denoise_dense", 1, 9),
    "dense tokens, unguided": Case("denoise_dense_unguided", 2, 9),
}


def check(case: Case) -> dict[str, float]:
    """Relative errors of the outputs."""
    name = "mlp" if "pivot" in case.kind else "dit"
    denoiser, stored = make_denoiser(CONFIG, name)
    sizes = DenoiserSizes(name=name, width=256, depth=2, hidden=256 if name == "mlp" else 512)
    weights = denoiser_weights(sizes, lambda tensor: stored[tensor].numpy())
    values = {tensor: torch.from_numpy(array) for tensor, array in weights.items()}
    g = torch.Generator().manual_seed(1)
    B, n = case.images, case.length
    halves = 1 if case.kind.endswith("_unguided") else 2
    x = torch.randn((B, n, CONFIG.token_channels), generator=g)
    cond = torch.randn((halves * B, n, 256), generator=g).half()
    noise, variance = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    timestep = torch.tensor(TIMESTEPS, dtype=torch.int32)
    scale = torch.tensor([WEIGHT])
    values |= {"x": x, "head_cond": cond, "timestep": timestep, "scale": scale}
    values |= {"noise": noise, "variance": variance}
    dims = {"B": B, "N": halves * B, "T": len(TIMESTEPS), "n": n}
    step = 0
    if case.kind == "denoise_pivot_modulated":
        step = 1
        shape = (len(TIMESTEPS), halves * B, n, sizes.num_vectors * sizes.width)
        values["modulation"] = torch.full(shape, torch.nan).half()
        run_plan(plan_denoiser(sizes, "modulate_pivot", dims, n, TABLE), UNITS, values)
        values["modulation"] = values["modulation"][step]
    run_plan(plan_denoiser(sizes, case.kind, dims, n, TABLE), UNITS, values)
    time = denoiser.time(timestep[step : step + 1])
    if halves == 2:
        expected = guided_noise(denoiser, x, time, cond.float(), WEIGHT)
    else:
        expected = denoiser(x, time, cond.float())
    channels = CONFIG.token_channels
    errors = {"noise": relative_error(noise, expected[..., :channels])}
    if name == "mlp":
        errors["variance"] = relative_error(variance, expected[..., channels:])
    return errors


if __name__ == "__main__":
    json.dump({name: check(case) for name, case in CASES.items()}, sys.stdout)
