"""Compiles the sampling kernels ahead of time, without a GPU, to one fatbinary and its table."""

from __future__ import annotations

from plugins_trt.ahead_of_time import part
from plugins_trt.ahead_of_time.lowering import Unit, run_time_parameters
from plugins_trt.sampling.diffusion import COUNTS, WEIGHTS

MODULE, DIFFUSION = "plugins_trt.sampling.kernel", "plugins_trt.sampling.diffusion"

# Items that one program holds, and its warps: the vocabulary; the positions of a scale, with how
# many candidates are compared at once; pixels; blocks of random numbers.
DRAW_WARPS = {512: 4, 2048: 4, 4096: 8, 8192: 8}
VOCAB_STEPS = (1, 4)  # four logits are read at once
SELECT_SIZES = {64: (64, 4), 256: (32, 4), 1024: (16, 8), 4096: (8, 32)}
PIXELS_BLOCK = 1024
DIFFUSION_BLOCK = 128
ALIGNMENT = 16  # of pointers, in bytes

PARAMETERS = {
    **dict.fromkeys(("logits", "confidences", "image"), "*fp32"),
    **dict.fromkeys(("tokens", "candidates", "selected"), "*i32"),
    "token_mask": "*i1",
    "settings": "*fp64",
    **dict.fromkeys(("seed", "images"), "*i64"),
    "pixels": "*u8",
    **dict.fromkeys(
        ("batch", "length", "vocab", "scale_idx", "num_scales", "pass_idx", "is_guided"), "i32"
    ),
    **dict.fromkeys(("num_candidates", "count", "is_first", "num_pixels"), "i32"),
}
DIFFUSION_PARAMETERS = {
    **dict.fromkeys(("state", "first", "noise", "variance", "held_tokens", "temperature"), "*fp32"),
    **dict.fromkeys(("timestep", "positions", "counter"), "*i32"),
    "held": "*i1",
    **dict.fromkeys(("images", "seed"), "*i64"),
    **dict.fromkeys(COUNTS, "i32"),
    **dict.fromkeys(WEIGHTS, "fp32"),
}


def _unit(
    name: str,
    block: int,
    num_warps: int,
    module: str = MODULE,
    aligned: tuple[str, ...] = (),
    suffix: str = "",
    **constants: int,
) -> Unit:
    function = f"{name}_kernel"
    types = PARAMETERS if module == MODULE else DIFFUSION_PARAMETERS
    return Unit(
        name=f"hmar_{name}_{block}{suffix}",
        module=module,
        function=function,
        parameters=run_time_parameters(module, function, types),
        constants=tuple(constants.items()),
        alignments=tuple((parameter, ALIGNMENT) for parameter in aligned),
        num_warps=num_warps,
        fuses_products=False,  # as NumPy rounds
    )


def draw_unit(block: int, vocab_step: int, num_warps: int) -> Unit:
    """Draws from a vocabulary that is a multiple of `vocab_step`."""
    aligned, suffix = (("logits",), f"_by{vocab_step}") if vocab_step > 1 else ((), "")
    constants = {"BLOCK_V": block, "VOCAB_STEP": vocab_step}
    return _unit("draw", block, num_warps, aligned=aligned, suffix=suffix, **constants)


def units() -> dict[Unit, dict[str, int]]:
    """All units, with the items of one program, and what the vocabulary must be a multiple of."""
    draws = {
        draw_unit(block, step, warps): {"block": block, "step": step}
        for block, warps in DRAW_WARPS.items()
        for step in VOCAB_STEPS
    }
    sizes = {
        **{
            _unit("select", block, warps, BLOCK_L=block, BLOCK_C=compared): block
            for block, (compared, warps) in SELECT_SIZES.items()
        },
        _unit("to_uint8", PIXELS_BLOCK, 4, BLOCK=PIXELS_BLOCK): PIXELS_BLOCK,
        **{
            _unit(name, DIFFUSION_BLOCK, 4, DIFFUSION, BLOCK=DIFFUSION_BLOCK): DIFFUSION_BLOCK
            for name in ("start", "reverse")
        },
    }
    return {**draws, **{unit: {"block": block} for unit, block in sizes.items()}}


if __name__ == "__main__":
    part.main("sampling", units(), __doc__)
