"""Compiles the transformer's kernels ahead of time, without a GPU, to one fatbinary and its table.

There are kernels for the GPU that their tiles were measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plugins_trt.ahead_of_time import cuda, part
from plugins_trt.ahead_of_time.cuda import CudaUnit, TensorMap
from plugins_trt.ahead_of_time.fatbin import AnyUnit
from plugins_trt.ahead_of_time.lowering import TENSOR_MAP, Unit, run_time_parameters
from plugins_trt.transformer.tiles import (
    ACTIVATE_BLOCK,
    ATTENTION_TILES,
    EMBED_TILE,
    HEAD_DIM,
    LAYERS,
    MANY_PROGRAMS,
    NOISE_BLOCKS,
    NOISE_DEPTH,
    NORM_BLOCKS,
    PLAIN_ATTENTION_TILES,
    PROGRAMS,
    ROW_BLOCK,
    TILES,
    WIDE_ATTENTION_TILES,
    AnyTile,
    AttentionTile,
    Layer,
    NarrowTile,
    WideAttentionTile,
    WideTile,
)

MODULE, DENOISER = "plugins_trt.transformer.kernel", "plugins_trt.transformer.denoiser"
HIMAR = "plugins_trt.transformer.himar"
TOKEN_CHANNELS = 16  # of Hi-MAR
ARCHITECTURE = 90  # that the tiles were measured on
WARPS = cuda.WARPGROUP // 32  # of a warpgroup

EPILOGUES: dict[Layer, str] = {
    "qkv": "plain", "proj": "residual", "fc1": "gelu", "fc2": "residual", "head": "plain",
    "silu": "silu", "ada": "plain", "gelu_erf": "gelu_erf",
}  # fmt: skip
EPILOGUE_CODES = {"plain": 0, "gelu": 1, "residual": 2, "silu": 3, "gelu_erf": 4}  # in kernel.py

ALIGNMENT = 16  # of pointers, in bytes, and of widths and places, in values
PARAMETERS = {
    **dict.fromkeys(
        ("x", "ada", "gain", "offset", "weights", "bias", "residual", "out", "qkv", "next"),
        "*fp16",
    ),
    **dict.fromkeys(("scale_mul", "partials"), "*fp32"),
    "arrivals": "*i32",
    **dict.fromkeys(("rows", "length", "depth", "width", "ada_stride"), "i32"),
    **dict.fromkeys(("scale_at", "shift_at", "gate_at", "next_nbytes"), "i32"),
    "eps": "fp32",
}
DENOISER_PARAMETERS = {
    **PARAMETERS,
    **dict.fromkeys(("cond", "times", "pos"), "*fp16"),
    **dict.fromkeys(("guidance", "noise", "variance"), "*fp32"),
    "timestep": "*i32",
    **dict.fromkeys(("positions", "count"), "i32"),
}
EMBED_PARAMETERS = {**DENOISER_PARAMETERS, "x": "*fp32"}
NOISE_PARAMETERS = {**DENOISER_PARAMETERS, "weights": "*fp32", "bias": "*fp32"}
HEAD_PARAMETERS = {**PARAMETERS, "bias": "*fp32", "out": "*fp32"}
HIMAR_PARAMETERS = {
    **PARAMETERS,
    **dict.fromkeys(("cond", "rows", "buffer", "pivots", "pivot_table", "table"), "*fp16"),
    **dict.fromkeys(("placed", "masked"), "*fp16"),
    "tokens": "*fp32",
    **dict.fromkeys(("label", "known", "source", "predicted"), "*i32"),
    **dict.fromkeys(("known_length", "buffer_size", "num_pivots", "num_tokens"), "i32"),
    **dict.fromkeys(("taken", "first"), "i32"),
}
WIDE_PARAMETERS = (
    "x", "ada", "weights", "bias", "residual", "out", "partials", "arrivals", "rows", "length",
    "depth", "width", "ada_stride", "gate_at",
)  # fmt: skip
NARROW_PARAMETERS = (
    "x", "ada", "weights", "bias", "residual", "out", "next", "rows", "length", "depth", "width",
    "ada_stride", "gate_at", "next_nbytes",
)  # fmt: skip
WIDE_ATTENTION_PARAMETERS = ("qkv", "scale_mul", "out", "length", "width", "images")
NOT_ALIGNED = (
    "rows", "length", "positions", "eps", "known_length", "buffer_size", "num_pivots",
    "num_tokens", "taken", "first",
)  # fmt: skip


def _unit(
    function: str,
    name: str,
    constants: dict[str, int],
    num_warps: int = 4,
    num_stages: int | None = None,
    types: dict[str, str] = PARAMETERS,
    module: str = MODULE,
) -> Unit:
    parameters = run_time_parameters(module, f"{function}_kernel", types)
    return Unit(
        name=f"hmar_{function}_{name}",
        module=module,
        function=f"{function}_kernel",
        parameters=parameters,
        constants=(*constants.items(), ("OVERLAPS", 1)),
        alignments=tuple((p, ALIGNMENT) for p, kind in parameters if _is_aligned(p, kind)),
        num_warps=num_warps,
        num_stages=num_stages,
    )


def _is_aligned(parameter: str, kind: str) -> bool:
    return kind.startswith("*") or parameter not in NOT_ALIGNED


def linear_unit(layer: Layer, tile: AnyTile) -> AnyUnit:
    """One kind of linear layer in one division."""
    if isinstance(tile, WideTile):
        return _wide_unit(layer, tile)
    if isinstance(tile, NarrowTile):
        return _narrow_unit(layer, tile)
    is_head = layer == "head"
    constants = {
        "EPILOGUE": EPILOGUE_CODES[EPILOGUES[layer]],
        "HAS_LOW": int(is_head),
        **tile.constants,
    }
    name = f"{_kind(layer)}_{tile.rows}x{tile.columns}x{tile.depth}_{tile.splits}_{tile.num_stages}"
    types = HEAD_PARAMETERS if is_head else PARAMETERS
    return _unit("linear", name, constants, tile.num_warps, tile.num_stages, types)


def _wide_unit(layer: Layer, tile: WideTile) -> CudaUnit:
    return _cuda_unit(
        layer,
        tile,
        "wide",
        name=f"{tile.cluster}_{tile.splits}" + "_both" * tile.cooperates,
        source="linear.cu",
        parameters=WIDE_PARAMETERS,
        weights_depth=cuda.DEPTH // tile.slices,
        columns=tile.columns,
        warps=3 * WARPS,
    )


def _narrow_unit(layer: Layer, tile: NarrowTile) -> CudaUnit:
    return _cuda_unit(
        layer,
        tile,
        "narrow",
        name=f"{tile.teams}_{tile.splits}_{tile.num_stages}",
        source="narrow.cu",
        parameters=NARROW_PARAMETERS,
        weights_depth=cuda.DEPTH,
        columns=tile.rows,
        warps=tile.teams * tile.warpgroups * WARPS + 1,
    )


def _kind(layer: Layer) -> str:
    return "head" if layer == "head" else EPILOGUES[layer]


def _cuda_unit(
    layer: Layer,
    tile: WideTile | NarrowTile,
    function: str,
    *,
    name: str,
    source: str,
    parameters: tuple[str, ...],
    weights_depth: int,
    columns: int,
    warps: int,
) -> CudaUnit:
    """A linear layer that reads x and weights by tensor maps.

    Args:
        name: what tells it from others of the function with this layer, rows and columns.
        weights_depth: of what one copy brings.
        columns: of its products of warpgroups.
    """
    is_head = layer == "head"
    constants = {"EPILOGUE": EPILOGUE_CODES[EPILOGUES[layer]], "HAS_LOW": int(is_head)}
    types = HEAD_PARAMETERS if is_head else PARAMETERS
    types = {**types, **dict.fromkeys(("x", "weights"), TENSOR_MAP)}
    halves = 2 if is_head else 1
    x = TensorMap(sizes=((halves, "depth"), (1, "rows")), box=(cuda.DEPTH, tile.rows))
    weights = TensorMap(sizes=((1, "width"), (halves, "depth")), box=(64, weights_depth))
    return CudaUnit(
        name=f"hmar_{function}_{_kind(layer)}_{tile.rows}x{tile.columns}_{name}",
        source=f"transformer/csrc/{source}",
        function=f"{function}_kernel",
        parameters=tuple((parameter, types[parameter]) for parameter in parameters),
        constants=(*tile.constants.items(), *constants.items()),
        tensor_maps=(("x", x), ("weights", weights)),
        columns=columns,
        threads=32 * warps,
        shared_bytes=cuda.BARRIERS_BYTES
        + tile.num_stages * (tile.rows + tile.columns) * 2 * cuda.DEPTH,
    )


def attention_unit(tile: AttentionTile, *, has_norm: bool) -> Unit:
    """Attention in one division."""
    name = (
        f"{'norm' if has_norm else 'plain'}_{tile.queries}x{tile.keys}" + "_whole" * tile.is_whole
    )
    constants = {"HAS_NORM": int(has_norm), **tile.constants}
    return _unit("attention", name, constants, tile.num_warps, tile.num_stages)


def wide_attention_unit(tile: WideAttentionTile, *, has_norm: bool) -> CudaUnit:
    """Attention of many rows in one division."""
    types = {**PARAMETERS, "qkv": TENSOR_MAP, "images": "i32"}
    sizes = ((3, "width"), (1, "length"), (1, "images"))
    name = f"{'norm' if has_norm else 'plain'}_{tile.warpgroups}x{tile.num_stages}"
    tiles = tile.warpgroups + 2 * tile.num_stages  # of 64 rows each
    norms = tile.warpgroups * 64 * 4
    return CudaUnit(
        name=f"hmar_wide_attention_{name}",
        source="transformer/csrc/attention.cu",
        function="wide_attention_kernel",
        parameters=tuple((name, types[name]) for name in WIDE_ATTENTION_PARAMETERS),
        constants=(*tile.constants.items(), ("HAS_NORM", int(has_norm))),
        tensor_maps=(("qkv", TensorMap(sizes=sizes, box=(HEAD_DIM, 64, 1))),),
        columns=64,
        threads=tile.warpgroups * cuda.WARPGROUP,
        shared_bytes=cuda.BARRIERS_BYTES + tiles * 64 * HEAD_DIM * 2 + norms,
    )


def units() -> dict[AnyUnit, dict[str, Any]]:
    """All units.

    The table says of each: the parts of a pass that it computes (`uses`, from which width of the
    model on, and from how many rows or tokens on), the number of its programs if it is persistent,
    from how many on it is worth its while, and that its launch has the attribute of programmatic
    stream serialization.
    """
    found: dict[AnyUnit, dict[str, list[tuple[int, int]]]] = {}
    for used_for, unit, width, size in _uses():
        found.setdefault(unit, {}).setdefault(used_for, []).append((width, size))
    return {unit: {"uses": uses, **_launches(unit)} for unit, uses in found.items()}


def _launches(unit: AnyUnit) -> dict[str, Any]:
    if unit.function == "wide_attention_kernel":
        return {"overlaps": True, "from_programs": MANY_PROGRAMS}
    if unit.function == "wide_kernel":
        return {"overlaps": True, "programs": PROGRAMS[dict(unit.constants)["CLUSTER"]]}
    return {"overlaps": True}


def _uses() -> Iterator[tuple[str, AnyUnit, int, int]]:
    for layer in LAYERS:
        for width, by_rows in TILES[layer].items():
            for rows, tile in by_rows.items():
                yield layer, linear_unit(layer, tile), width, rows
    norms = {
        "norm": (0, 0, 1, 4096), "head_norm": (1, 0, 1, 4096), "affine_norm": (0, 1, 1, 2048),
        "layer_norm": (0, 1, 0, 1024),
    }  # fmt: skip
    for norm, (has_low, is_affine, is_modulated, largest) in norms.items():
        for width, values in NORM_BLOCKS.items():
            if values <= largest:
                constants = {"HAS_LOW": has_low, "IS_AFFINE": is_affine}
                constants |= {"IS_MODULATED": is_modulated, "BLOCK": values}
                unit = _unit("normalize", f"{norm}_{values}", constants, values // 256)
                yield norm, unit, width, 0
    for tokens, block in ATTENTION_TILES.items():
        yield "attention", attention_unit(block, has_norm=True), 0, tokens
    for tokens, block in PLAIN_ATTENTION_TILES.items():
        yield "plain_attention", attention_unit(block, has_norm=False), 0, tokens
    for tokens, wide in WIDE_ATTENTION_TILES.items():
        for has_norm, name in enumerate(("wide_plain_attention", "wide_attention")):
            yield name, wide_attention_unit(wide, has_norm=bool(has_norm)), 0, tokens
    yield from _denoiser_uses()
    yield from _himar_uses()


def _denoiser_uses() -> Iterator[tuple[str, Unit, int, int]]:
    def unit(function: str, name: str, types: dict[str, str], warps: int, **of: int) -> Unit:
        return _unit(function, name, of, warps, types=types, module=DENOISER)

    rows, columns = EMBED_TILE
    tile = {"BLOCK_M": rows, "BLOCK_N": columns}
    for denoiser, has_pos in (("mlp", 0), ("dit", 1)):
        of = {"CHANNELS": TOKEN_CHANNELS, "HAS_POS": has_pos, **tile}
        yield f"{denoiser}_embed", unit("embed", denoiser, EMBED_PARAMETERS, 4, **of), 0, 0
    block = ACTIVATE_BLOCK
    activate = unit("activate", str(block), DENOISER_PARAMETERS, 4, BLOCK=block)
    yield "activate", activate, 0, 0
    for halves, guided in ((1, ""), (2, "_guided")):
        for denoiser, blocks in NOISE_BLOCKS.items():
            for width, block in blocks.items():
                of = {"CHANNELS": TOKEN_CHANNELS, "HALVES": halves}
                of |= {"HAS_VARIANCE": int(denoiser == "mlp")}
                of |= {"BLOCK": block, "BLOCK_K": NOISE_DEPTH}
                name = f"{denoiser}{guided}_{block}"
                noise = unit("noise", name, NOISE_PARAMETERS, max(8, block // 128), **of)
                yield f"{denoiser}_noise{guided}", noise, width, 0


def _himar_uses() -> Iterator[tuple[str, Unit, int, int]]:
    def unit(function: str, name: str = "himar", **of: int) -> Unit:
        of |= {"BLOCK": ROW_BLOCK}
        return _unit(function, name, of, types=HIMAR_PARAMETERS, module=HIMAR)

    yield "himar_class", unit("class"), 0, 0
    yield "himar_known", unit("known", CHANNELS=TOKEN_CHANNELS), 0, 0
    yield "himar_fill", unit("fill"), 0, 0
    for has_index, name in enumerate(("all", "some")):
        yield f"himar_take_{name}", unit("take", f"himar_{name}", HAS_INDEX=has_index), 0, 0


if __name__ == "__main__":
    part.main("transformer", units(), __doc__, only=ARCHITECTURE)
