"""From a Triton kernel to PTX, without a GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from triton import knobs
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

TENSOR_MAP = "tensor_map"  # the type of a parameter: 128 bytes, aligned to 64
PTX_TYPES = {"i32": ".u32", "i64": ".u64", "fp32": ".f32", TENSOR_MAP: ".align 64 .b8 [128]"}

# Appended to the kernels' own parameters by Triton.
SCRATCH_PARAMETERS = ("global_scratch", "profile_scratch")


class AheadOfTimeError(Exception):
    """The kernels cannot be compiled to something that the launcher can run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One kernel to compile.

    Attributes:
        name: of the compiled kernel.
        module, function: where the Triton kernel is defined.
        parameters: names and types of what it takes at run time, in order; a type is one of
            PTX_TYPES, or `*` and the type that is pointed to.
        constants: its compile-time parameters.
        alignments: divisors of parameters, bytes for pointers.
        num_warps: warps of one program.
        num_stages: steps of a loop whose loads are in flight, None for the compiler's default.
        max_registers: of a thread, None for the compiler's choice.
        fuses_products: a product and a sum may become one operation, which rounds once.
    """

    name: str
    module: str
    function: str
    parameters: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...] = ()
    alignments: tuple[tuple[str, int], ...] = ()
    num_warps: int
    num_stages: int | None = None
    max_registers: int | None = None
    fuses_products: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One compiled unit: PTX, and what one program needs.

    Attributes:
        threads: of the program.
        shared_bytes: of shared memory.
    """

    ptx: str
    threads: int
    shared_bytes: int


def run_time_parameters(
    module: str, function: str, types: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Names and types of what a kernel takes at run time, in order.

    Raises:
        AheadOfTimeError: `types` lacks one.
    """
    names = [p.name for p in _function(module, function).params if not p.is_constexpr]
    if unknown := set(names) - set(types):
        raise AheadOfTimeError(
            f"{function}: no type is known for {sorted(unknown)}; known: {sorted(types)}"
        )
    return tuple((name, types[name]) for name in names)


def _function(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def source(unit: Unit) -> ASTSource:
    """The function with the types, constants and alignments of a unit."""
    function, types = _function(unit.module, unit.function), dict(unit.parameters)
    order = [p.name for p in function.params]
    signature = {p.name: "constexpr" if p.is_constexpr else types[p.name] for p in function.params}
    alignments = {
        (order.index(name),): [["tt.divisibility", divisor]] for name, divisor in unit.alignments
    }
    return ASTSource(function, signature, dict(unit.constants), alignments)


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
            "enable_fp_fusion": unit.fuses_products,
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
    scratch = [(name, "*i8") for name in SCRATCH_PARAMETERS]
    check_parameters(ptx, unit.name, (*unit.parameters, *scratch))
    (threads,) = re.findall(r"^\.reqntid (\d+)", ptx, re.MULTILINE)
    return Kernel(ptx=ptx, threads=int(threads), shared_bytes=metadata["shared"])


def check_parameters(
    ptx: str, name: str, parameters: Sequence[tuple[str, str]], pointer: str = ".u64 .ptr"
) -> None:
    """Raises AheadOfTimeError unless the entry takes the parameters that the launcher will pass.

    Args:
        pointer: how the compiler declares one.
    """
    (entry,) = re.findall(r"^\.visible \.entry \w+\((.*?)\)", ptx, re.MULTILINE | re.DOTALL)
    got = [_declared(line) for line in entry.strip().splitlines()]
    expected = [pointer if kind.startswith("*") else PTX_TYPES[kind] for _, kind in parameters]
    if got != expected:
        raise AheadOfTimeError(
            f"{name}: the compiler made parameters {got}, the launcher passes {expected}"
        )


def _declared(parameter: str) -> str:
    """The type of a parameter, without its name and what Triton says of pointers."""
    _, *words, name = parameter.rstrip(",").split()
    if words[0] != ".align":
        return words[0] + " .ptr" * (".ptr" in words)
    return " ".join([*words, name[name.find("[") :]])


def merge_ptx(kernels: Sequence[Kernel]) -> str:
    """One module with all entries, for the latest version of PTX that one of them is for;
    declarations that they share are written once."""
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
            if name == ".version":
                line = max(line, declarations.get(name, line), key=_version)
                declarations[name] = line
            if declarations.setdefault(name, line) != line:
                raise AheadOfTimeError(
                    f"declarations differ between kernels of one architecture: "
                    f"{declarations[name]!r} and {line!r}"
                )
        bodies.append(f".visible .entry {entry.rstrip()}\n")
    return "\n".join([*declarations.values(), "", *bodies])


def _version(line: str) -> tuple[int, ...]:
    return tuple(map(int, line.split()[1].split(".")))
