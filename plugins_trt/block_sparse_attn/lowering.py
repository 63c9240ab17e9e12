"""From the Triton kernels to PTX, without a GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from triton import knobs
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from plugins_trt.block_sparse_attn import kernel
from plugins_trt.block_sparse_attn.variants import (
    NORMALIZE_BLOCK,
    NORMALIZE_WARPS,
    Dtype,
    Norm,
    Variant,
    variants,
)

TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PTX_TYPES = {"i32": ".u32", "i64": ".u64", "fp32": ".f32"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Of the kernels' parameters: `*` is a pointer to the unit's dtype. bsa.h promises that these
# pointers, and the strides in bytes, are multiples of ALIGN_BYTES.
PARAMETERS = {
    **dict.fromkeys(("q", "k", "v", "o", "normalized_k"), "*"),
    "cu_seqlens": "*i32",
    "scale_mul": "*fp32",
    "stride_b": "i64",
    **dict.fromkeys(("stride_t", "stride_h", "length", "heads", "num_blocks"), "i32"),
    "sm_scale": "fp32",
    "is_causal": "i32",
}
ALIGNED_POINTERS = ("q", "k", "v", "o", "normalized_k")
ALIGNED_STRIDES = ("stride_b", "stride_t", "stride_h")
ALIGN_BYTES = 16

# Appended to the kernels' own parameters by the compiler.
SCRATCH_PARAMETERS = ("global_scratch", "profile_scratch")

FunctionName = Literal["block_sparse_attention_kernel", "normalize_keys_kernel"]


class AheadOfTimeError(Exception):
    """The kernels cannot be compiled to something that the launcher can run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One kernel to compile.

    Attributes:
        name: of the compiled kernel.
        function: of kernel.py.
        dtype: of queries, keys and values.
        constants: the function's compile-time parameters.
        num_warps: warps of one program.
        num_stages: as in `Tile`, None for the compiler's default.
        max_registers: as in `Tile`.
    """

    name: str
    function: FunctionName
    dtype: Dtype
    constants: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int | None = None
    max_registers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One compiled unit: PTX and what the compiler says about it."""

    ptx: str
    threads: int
    shared_bytes: int


def attention_unit(variant: Variant) -> Unit:
    """The attention kernel of a variant."""
    tile = variant.tile
    return Unit(
        name=variant.name,
        function="block_sparse_attention_kernel",
        dtype=variant.dtype,
        constants=(
            ("HEAD_DIM", variant.head_dim),
            ("NORM", variant.norm.value),
            ("BLOCK_M", tile.block_m),
            ("BLOCK_N", tile.block_n),
        ),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=tile.max_registers,
    )


def normalize_keys_unit(dtype: Dtype, head_dim: int) -> Unit:
    """The kernel that normalises keys beforehand."""
    return Unit(
        name=f"bsa_normalize_keys_{dtype}_d{head_dim}",
        function="normalize_keys_kernel",
        dtype=dtype,
        constants=(("HEAD_DIM", head_dim), ("BLOCK_N", NORMALIZE_BLOCK)),
        num_warps=NORMALIZE_WARPS,
    )


def normalize_keys_sizes() -> tuple[tuple[Dtype, int], ...]:
    """Dtypes and head dimensions for which some variant has its keys normalised beforehand."""
    return tuple(
        dict.fromkeys((v.dtype, v.head_dim) for v in variants() if v.norm is Norm.BEFOREHAND)
    )


def all_units() -> tuple[Unit, ...]:
    """Everything that the fatbinary holds, for one architecture."""
    return (
        *(attention_unit(variant) for variant in variants()),
        *(normalize_keys_unit(*size) for size in normalize_keys_sizes()),
    )


def run_time_parameters(function: FunctionName) -> dict[str, str]:
    """Names and types (as in PARAMETERS) of what a kernel takes at run time, in order."""
    names = [p.name for p in getattr(kernel, function).params if not p.is_constexpr]
    unknown = set(names) - set(PARAMETERS)
    if unknown:
        raise AheadOfTimeError(
            f"{function}: no type is known for {sorted(unknown)}; known: {sorted(PARAMETERS)}"
        )
    return {name: PARAMETERS[name] for name in names}


def source(unit: Unit) -> ASTSource:
    """The function with the types, constants and alignments of a unit."""
    function, parameters = getattr(kernel, unit.function), run_time_parameters(unit.function)
    types = {
        p.name: "constexpr"
        if p.is_constexpr
        else re.sub(r"^\*$", f"*{TRITON_TYPES[unit.dtype]}", parameters[p.name])
        for p in function.params
    }
    order = list(types)
    divisors = dict.fromkeys(ALIGNED_POINTERS, ALIGN_BYTES) | dict.fromkeys(
        ALIGNED_STRIDES, ALIGN_BYTES // ITEM_BYTES[unit.dtype]
    )
    alignments = {
        (order.index(name),): [["tt.divisibility", divisor]]
        for name, divisor in divisors.items()
        if name in order
    }
    return ASTSource(function, types, dict(unit.constants), alignments)


def compile_kernel(unit: Unit, arch: int) -> Kernel:
    """PTX of one unit for one compute capability, such as 90."""
    knobs.compilation.disable_line_info = True  # it would hold paths of this machine
    src, target = source(unit), GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    options = backend.parse_options(
        {
            "num_warps": unit.num_warps,
            "num_stages": unit.num_stages,
            "maxnreg": unit.max_registers,
            "enable_fp_fusion": True,  # the default changes with Triton 3.10
        }
    )
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module: Any = src.make_ir(
        target,
        options,
        backend.get_codegen_implementation(options),
        backend.get_module_map(),
        context,
    )
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, src.language)
    del stages["cubin"]  # made of all kernels at once
    metadata: dict[str, Any] = {}
    for lower in stages.values():
        module = lower(module, metadata)
    if metadata["global_scratch_size"] or metadata["profile_scratch_size"]:
        raise AheadOfTimeError(
            f"{unit.name}, sm_{arch}: wants scratch memory, which the launcher does not allocate"
        )
    ptx = module.replace(metadata["name"], unit.name)
    check_parameters(ptx, unit)
    (threads,) = re.findall(r"^\.reqntid (\d+)", ptx, re.MULTILINE)
    return Kernel(ptx=ptx, threads=int(threads), shared_bytes=metadata["shared"])


def check_parameters(ptx: str, unit: Unit) -> None:
    """Raises AheadOfTimeError unless the entry takes the parameters that the launcher will pass."""
    (entry,) = re.findall(r"^\.visible \.entry \w+\((.*?)\)", ptx, re.MULTILINE | re.DOTALL)
    found = [line.split()[1:] for line in entry.strip().splitlines()]
    got = [words[0] + " .ptr" * (".ptr" in words) for words in found]
    expected = [
        ".u64 .ptr" if kind.startswith("*") else PTX_TYPES[kind]
        for kind in run_time_parameters(unit.function).values()
    ] + [".u64 .ptr"] * len(SCRATCH_PARAMETERS)
    if got != expected:
        raise AheadOfTimeError(
            f"{unit.name}: the compiler made parameters {got}, the launcher passes {expected}"
        )


def merge_ptx(kernels: Sequence[Kernel]) -> str:
    """One module with all entries; declarations that they share are written once."""
    declarations: dict[str, str] = {}
    bodies = []
    for compiled in kernels:
        head, entry = compiled.ptx.split("\n.visible .entry ", 1)
        for line in head.splitlines():
            if not line.startswith("."):
                continue
            # `.target sm_80`, or `.extern .shared .align 16 .b8 global_smem[];`
            words = line.split("=")[0].split("[")[0].split()
            name = words[-1] if line.endswith(";") else words[0]
            if declarations.setdefault(name, line) != line:
                raise AheadOfTimeError(
                    f"declarations differ between kernels of one architecture: "
                    f"{declarations[name]!r} and {line!r}"
                )
        bodies.append(f".visible .entry {entry.rstrip()}\n")
    return "\n".join([*declarations.values(), "", *bodies])
