"""Runs a plan of Hi-MAR's decoder in Triton's interpreter; prints how far it is from PyTorch.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys

import torch

from export.himar.modules import Decode
from hmar.config import KLVAEConfig
from hmar.kl_vae import KLVAE
from plugins_trt.decoder import aot
from plugins_trt.decoder.tiles import Convolution, Tile
from runtime.backends.decoder_engine import decoder_weights
from runtime.decoder_plan import DecoderSizes, plan_decoder
from tests.unit.plugins_trt.interpreted_plans import relative_error, run_plan

CONFIG = KLVAEConfig(base_channels=32, channel_mult=(1, 2), num_res_blocks=1)
BATCH, SIDE = 2, 3
TILE = Tile(height=4, width=8, channels=32, depth=32)
CONVOLUTIONS = (
    Convolution(channels=(16, 16), side=1, epilogue="plain"),
    Convolution(channels=(16, 64)),
    Convolution(channels=(64, 64)),
    Convolution(channels=(64, 64), epilogue="residual"),
    Convolution(channels=(64, 192), side=1, epilogue="plain"),
    Convolution(channels=(64, 64), side=1, epilogue="residual"),
    Convolution(channels=(64, 64), upsamples=True),
    Convolution(channels=(64, 32)),
    Convolution(channels=(64, 32), side=1, epilogue="plain"),
    Convolution(channels=(32, 32)),
    Convolution(channels=(32, 32), epilogue="residual"),
    Convolution(channels=(32, 3), epilogue="plain"),
)


@torch.inference_mode()
def check() -> dict[str, float]:
    """The image's relative error, and its greatest value."""
    g = torch.Generator().manual_seed(0)
    vae = KLVAE(CONFIG)
    for name, p in vae.named_parameters():
        std = p[0].numel() ** -0.5 if p.dim() == 4 else 0.1
        p.copy_(torch.randn(p.shape, generator=g) * std + float("norm" in name))
    vae = vae.half().float()
    state = {name: tensor.half().numpy() for name, tensor in vae.state_dict().items()}
    sizes = DecoderSizes(
        family="himar",
        latent_channels=CONFIG.latent_channels,
        latent_side=SIDE,
        widths=(32, 64),
        num_blocks=2,
        latent_scale=CONFIG.latent_scale,
    )
    units = aot.units({conv: {0: TILE} for conv in CONVOLUTIONS})
    table = {
        unit.name: {
            "function": unit.function.removesuffix("_kernel"),
            "constants": dict(unit.constants),
            **needs,
        }
        for unit, needs in units.items()
    }
    plan = plan_decoder(sizes, BATCH, table)
    weights = decoder_weights(plan.weights, state.__getitem__)
    values = {name: torch.from_numpy(array) for name, array in weights.items()}
    tokens = torch.randn((BATCH, SIDE**2, 16), generator=g) * CONFIG.latent_scale
    side_px = SIDE * CONFIG.downsampling
    image = torch.full((BATCH, 3, side_px, side_px), torch.nan)
    by_name = {unit.name: unit for unit in units}
    run_plan(plan, by_name, {**values, "tokens": tokens, "image": image})
    decode = Decode(vae.decoder, vae.post_quant_conv, CONFIG.latent_scale, SIDE, torch.float32)
    expected = decode(tokens)
    return {
        "error": relative_error(image * 2 - 1, expected * 2 - 1),
        "greatest": float(expected.max()),
    }


if __name__ == "__main__":
    json.dump(check(), sys.stdout)
