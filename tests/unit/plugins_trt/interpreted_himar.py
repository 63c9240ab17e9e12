"""Runs plans of Hi-MAR's passes in Triton's interpreter; prints how far they are from PyTorch.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F

from hmar.config import HiMARConfig
from plugins_trt.transformer import aot, kernel
from plugins_trt.transformer.jit import linear
from plugins_trt.transformer.tiles import Tile
from runtime.himar_plan import himar_weights, plan_graph
from tests.denoisers import make_himar
from tests.himar_passes import Pass, make_pass, sizes_of
from tests.kernel_tables import kernel_table
from tests.unit.plugins_trt.interpreted_plans import relative_error, run_plan

CONFIG = HiMARConfig(
    embed_dim=128, encoder_depth=1, decoder_depth=2, encoder_heads=2, decoder_heads=2, mlp_depth=1,
    mlp_width=64, dit_depth=1, dit_width=192, dit_heads=3, pivot_side=4, dense_side=5,
    buffer_size=3, num_classes=5, mlp_ratio=2.0,
)  # fmt: skip
UNITS, TABLE = {unit.name: unit for unit in aot.units()}, kernel_table(aot)
CASES = {
    "pivots, nothing known": Pass("pivot", 2, 0, 1),
    "pivots": Pass("pivot", 3, 2, 2),
    "dense tokens, nothing known": Pass("dense", 1, 0),
    "dense tokens": Pass("dense", 2, 5),
}


def main() -> None:
    model, stored = make_himar(CONFIG)
    sizes = sizes_of(model)
    arrays = himar_weights(sizes, lambda tensor: stored[tensor].numpy())
    weights = {tensor: torch.from_numpy(array) for tensor, array in arrays.items()}
    found: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        feeds, expected = make_pass(model, case)
        outputs = {output: torch.full_like(of, torch.nan).half() for output, of in expected.items()}
        plan = plan_graph(sizes, case.phase, case.images, case.known, case.predicted, TABLE)
        run_plan(plan, UNITS, {**weights, **feeds, **outputs})
        found[name] = {o: relative_error(outputs[o], of) for o, of in expected.items()}
    labels, cond = (
        torch.tensor([5, 0, 3], dtype=torch.int32),
        torch.full((3, 128), torch.nan).half(),
    )
    plan = plan_graph(sizes, "cond", 3, 0, 0, TABLE)
    run_plan(plan, UNITS, {**weights, "label": labels, "cond": cond})
    expected_cond = torch.cat((model.class_emb.weight, model.fake_latent))[labels]
    found["classes"] = {"cond": relative_error(cond, expected_cond)}
    found["gelu"] = {"error": check_gelu()}
    json.dump(found, sys.stdout)


def check_gelu() -> float:
    """Largest error of the epilogue, in units of float16's rounding."""
    x = torch.cat((torch.linspace(-12, 12, 16 * 59), torch.tensor([-6e4, 6e4, 0.0, -0.0] * 4)))
    x = x.half().reshape(-1, 16)
    unit, zeros = torch.eye(16).half(), torch.zeros(16).half()
    tile, out = Tile(rows=16, columns=16, depth=16), torch.full_like(x, torch.nan)
    linear(x, unit, zeros, out, tile=tile, epilogue=kernel.GELU_ERF)
    expected = F.gelu(x.double())
    spacing = torch.clamp(expected.abs(), min=2**-14) * 2**-11
    return float(((out.double() - expected).abs() / spacing).max())


if __name__ == "__main__":
    main()
