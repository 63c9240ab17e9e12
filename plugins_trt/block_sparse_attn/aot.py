"""Compiles the kernel ahead of time, without a GPU, to one fatbinary and the launcher's table.

Every variant becomes PTX, all PTX of one architecture one cubin, and all cubins one `bsa.fatbin`.
`bsa_kernels.h` beside it says what the fatbinary holds and how its kernels are called; parameters,
threads and shared memory in it are the compiler's own figures. Equal input gives equal bytes; what
was compiled before is taken from `cache/` in the same folder.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import logging
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend

from plugins_trt.block_sparse_attn import spec
from plugins_trt.block_sparse_attn.kernel import block_sparse_attention_kernel
from plugins_trt.block_sparse_attn.variants import ARCHITECTURES, HEAD_DIMS, Variant, variants

logger = logging.getLogger(__name__)

FATBIN_FILE, HEADER_FILE = "bsa.fatbin", "bsa_kernels.h"

TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
C_TYPES = {"i32": "int32_t", "i64": "int64_t", "fp32": "float"}
PTX_TYPES = {"i32": ".u32", "i64": ".u64", "fp32": ".f32"}

# Of the kernel's parameters: `*` is a pointer to the variant's dtype. bsa.h promises that these
# pointers, and the strides in bytes, are multiples of ALIGN_BYTES.
PARAMETERS = {
    **dict.fromkeys(("q", "k", "v", "o"), "*"),
    "cu_seqlens": "*i32",
    "scale_mul": "*fp32",
    "stride_b": "i64",
    **dict.fromkeys(("stride_t", "stride_h", "length", "heads", "num_blocks"), "i32"),
    "sm_scale": "fp32",
    "is_causal": "i32",
}
ALIGNED_POINTERS = ("q", "k", "v", "o")
ALIGNED_STRIDES = ("stride_b", "stride_t", "stride_h")
ALIGN_BYTES = 16

# The compiler lowers compute capabilities 8.x alike: only ptxas tells them apart.
LOWERED_AS = {86: 80, 89: 80}

# Shared memory that one program may have.
MAX_SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}

# Appended to the kernel's own parameters by the compiler.
SCRATCH_PARAMETERS = ("global_scratch", "profile_scratch")


class AheadOfTimeError(Exception):
    """The kernel cannot be compiled to something that the launcher can run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One compiled variant: PTX and what the compiler says about it."""

    ptx: str
    threads: int
    shared_bytes: int


def signature(variant: Variant) -> dict[str, str]:
    """Triton types of the parameters, in the kernel's order; compile-time ones are `constexpr`."""
    types = {}
    for parameter in block_sparse_attention_kernel.params:
        name = parameter.name
        if parameter.is_constexpr:
            types[name] = "constexpr"
        elif name in PARAMETERS:
            kind = PARAMETERS[name]
            types[name] = f"*{TRITON_TYPES[variant.dtype]}" if kind == "*" else kind
        else:
            raise AheadOfTimeError(
                f"kernel.py: parameter {name} has no type here; known: {sorted(PARAMETERS)}"
            )
    return types


def source(variant: Variant) -> ASTSource:
    """The kernel with the types, constants and alignments of a variant."""
    types = signature(variant)
    divisors = dict.fromkeys(ALIGNED_POINTERS, ALIGN_BYTES) | dict.fromkeys(
        ALIGNED_STRIDES, ALIGN_BYTES // ITEM_BYTES[variant.dtype]
    )
    order = list(types)
    return ASTSource(
        block_sparse_attention_kernel,
        types,
        {
            "HEAD_DIM": variant.head_dim,
            "QK_L2_NORM": variant.qk_l2_norm,
            "BLOCK_M": variant.tile.block_m,
            "BLOCK_N": variant.tile.block_n,
        },
        {(order.index(name),): [["tt.divisibility", d]] for name, d in divisors.items()},
    )


def compile_kernel(variant: Variant, arch: int) -> Kernel:
    """PTX of one variant for one compute capability, such as 90; its entry is `variant.name`."""
    knobs.compilation.disable_line_info = True  # it would hold paths of this machine
    src, target = source(variant), GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    options = backend.parse_options(
        {"num_warps": variant.tile.num_warps, "num_stages": variant.tile.num_stages}
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
    del stages["cubin"]  # done once per architecture, see build_cubin
    metadata: dict[str, Any] = {}
    for lower in stages.values():
        module = lower(module, metadata)
    if metadata["global_scratch_size"] or metadata["profile_scratch_size"]:
        raise AheadOfTimeError(
            f"{variant.name}, sm_{arch}: wants scratch memory, which the launcher does not allocate"
        )
    ptx = module.replace(metadata["name"], variant.name)
    check_parameters(ptx, variant)
    return Kernel(ptx=ptx, threads=threads_of(ptx), shared_bytes=metadata["shared"])


def threads_of(ptx: str) -> int:
    """Threads of one program, as the entry requires them."""
    (threads,) = re.findall(r"^\.reqntid (\d+)", ptx, re.MULTILINE)
    return int(threads)


def check_parameters(ptx: str, variant: Variant) -> None:
    """Raises AheadOfTimeError unless the entry takes the parameters that the launcher will pass."""
    (entry,) = re.findall(r"^\.visible \.entry \w+\((.*?)\)", ptx, re.MULTILINE | re.DOTALL)
    found = [line.split()[1:] for line in entry.strip().splitlines()]
    got = [types[0] + " .ptr" * (".ptr" in types) for types in found]
    expected = [
        ".u64 .ptr" if kind.startswith("*") else PTX_TYPES[kind]
        for kind in signature(variant).values()
        if kind != "constexpr"
    ] + [".u64 .ptr"] * len(SCRATCH_PARAMETERS)
    if got != expected:
        raise AheadOfTimeError(
            f"{variant.name}: the compiler made parameters {got}, the launcher passes {expected}"
        )


def merge_ptx(kernels: Sequence[Kernel]) -> str:
    """One module with all entries; declarations that they share are written once."""
    declarations: dict[str, str] = {}
    bodies = []
    for kernel in kernels:
        head, entry = kernel.ptx.split("\n.visible .entry ", 1)
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


def target_of(arch: int) -> str:
    """Target of ptxas. Hopper's tensor cores need sm_90a; for later ones the suffix would only
    exclude other minor versions."""
    return f"sm_{arch}a" if arch == 90 else f"sm_{arch}"


def build_cubin(ptx: str, arch: int, folder: Path) -> Path:
    """Path of the cubin of a PTX module; beside it a `.log` of what ptxas says."""
    ptxas = get_ptxas(arch)
    target = target_of(arch)
    ptx = re.sub(r"^\.target \w+", f".target {target}", ptx, flags=re.MULTILINE)
    key = digest(ptx, ptxas.version, target)
    cubin, report = folder / f"{key}.cubin", folder / f"{key}.log"
    if not cubin.exists():
        text, partial = folder / f"{key}.ptx", folder / f"{key}.cubin.partial"
        text.write_text(ptx)
        report.write_text(
            run_tool(
                [ptxas.path, "-v", f"--gpu-name={target}", text.name, "-o", partial.name], folder
            )
        )
        partial.rename(cubin)
    return cubin


def link_fatbin(cubins: dict[int, Path], fatbin: Path, fatbinary: str) -> None:
    """Gathers the cubins of all architectures in one compressed file."""
    images = [
        f"--image3=kind=elf,sm={target_of(arch).removeprefix('sm_')},file={cubin.name}"
        for arch, cubin in cubins.items()
    ]
    folder = next(iter(cubins.values())).parent
    run_tool([fatbinary, "-64", "--compress-all", f"--create={FATBIN_FILE}", *images], folder)
    (folder / FATBIN_FILE).replace(fatbin)


def run_tool(command: Sequence[str], folder: Path) -> str:
    """What a tool printed; it runs in the folder, so that its output knows no other path."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AheadOfTimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout + done.stderr


def header(arches: Sequence[int], kernels: dict[tuple[int, Variant], Kernel]) -> str:
    """The C header that describes the fatbinary; kernels as `lower_all` returns them."""
    some_variant = next(iter(kernels))[1]
    parameters = [
        ("const void*" if kind.startswith("*") else C_TYPES[kind], name)
        for name, kind in signature(some_variant).items()
        if kind != "constexpr"
    ] + [("const void*", name) for name in SCRATCH_PARAMETERS]
    rows = [_row(arch, v, kernels[lowered_as(arch), v]) for arch in arches for v in variants()]
    patterns = ", ".join(f'"{pattern}"' for pattern in spec.PATTERNS)
    return HEADER.format(
        op_name=spec.OP_NAME,
        plugin_namespace=spec.PLUGIN_NAMESPACE,
        plugin_version=spec.PLUGIN_VERSION,
        architectures=",".join(map(str, arches)),
        align_bytes=ALIGN_BYTES,
        head_dims=", ".join(map(str, HEAD_DIMS)),
        patterns=patterns,
        parameters=" \\\n".join(f"    PARAMETER({kind}, {name})" for kind, name in parameters),
        rows="\n".join(rows),
    )


HEADER = """\
// Generated by plugins_trt.block_sparse_attn.aot; do not edit.
#pragma once

#include "bsa.h"

#define BSA_OP_NAME "{op_name}"
#define BSA_PLUGIN_NAMESPACE "{plugin_namespace}"
#define BSA_PLUGIN_VERSION "{plugin_version}"
#define BSA_ARCHITECTURES "{architectures}"
#define BSA_ALIGN_BYTES {align_bytes}
#define BSA_HEAD_DIMS {head_dims}
#define BSA_HEAD_DIMS_TEXT "{head_dims}"

// Names of the bsa_pattern values, in their order.
#define BSA_PATTERNS {patterns}

// Parameters of every kernel, in order: PARAMETER(type, name).
#define BSA_KERNEL_PARAMETERS(PARAMETER) \\
{parameters}

typedef struct {{
    int32_t arch;
    const char* name;
    bsa_dtype dtype;
    int32_t head_dim, qk_l2_norm, block_m, threads, shared_bytes;
    int32_t min_programs, min_block;
}} bsa_kernel;

// By architecture; within it in the order in which a call tries them, see variants.py.
static const bsa_kernel BSA_KERNELS[] = {{
{rows}
}};
"""


def _row(arch: int, variant: Variant, kernel: Kernel) -> str:
    if kernel.shared_bytes > MAX_SHARED_BYTES[arch]:
        raise AheadOfTimeError(
            f"{variant.name}: {kernel.shared_bytes} bytes of shared memory, sm_{arch} has "
            f"{MAX_SHARED_BYTES[arch]}; give the variant smaller tiles or fewer stages"
        )
    tile = variant.tile
    return (
        f'    {{{arch}, "{variant.name}", BSA_{variant.dtype.upper()}, {variant.head_dim}, '
        f"{int(variant.qk_l2_norm)}, {tile.block_m}, {kernel.threads}, {kernel.shared_bytes}, "
        f"{tile.min_programs}, {tile.min_block}}},"
    )


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def compile_cached(variant: Variant, arch: int, folder: Path) -> Kernel:
    """As `compile_kernel`, from the cache where it holds the kernel."""
    tools = triton.__version__, get_ptxas(arch).version, inspect.getsource(compile_kernel)
    key = digest(*tools, source(variant).hash(), variant, arch)
    path = folder / f"{key}.json"
    if not path.exists():
        kernel = compile_kernel(variant, arch)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(kernel)))
        partial.rename(path)
    return Kernel(**json.loads(path.read_text()))


def build(arches: Sequence[int], out: Path, *, fatbinary: str, jobs: int) -> None:
    """Writes the fatbinary and its header.

    Args:
        arches: compute capabilities, such as 80 and 90.
        out: folder, made if need be.
        fatbinary: the program of that name from a CUDA toolkit.
        jobs: processes to use.

    Raises:
        AheadOfTimeError: the compiler's output does not fit the launcher, or a tool failed.
    """
    began = time.perf_counter()
    cache = out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    # spawned: the compiler's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        kernels, assembling = lower_all(pool, arches, cache)
        cubins = {arch: assembling[arch].result() for arch in arches}
    (out / HEADER_FILE).write_text(header(arches, kernels))
    for arch, cubin in cubins.items():
        _log_spills(arch, cubin.with_suffix(".log").read_text())
    link_fatbin(cubins, out / FATBIN_FILE, fatbinary)
    logger.info(
        "%s: %d kernels for %d architectures, %.1f MiB, %.0f s",
        out / FATBIN_FILE,
        len(variants()),
        len(arches),
        (out / FATBIN_FILE).stat().st_size / 2**20,
        time.perf_counter() - began,
    )


def lowered_as(arch: int) -> int:
    """Architecture whose PTX serves this one."""
    return LOWERED_AS.get(arch, arch)


def lower_all(
    pool: Executor, arches: Sequence[int], cache: Path
) -> tuple[dict[tuple[int, Variant], Kernel], dict[int, Future[Path]]]:
    """PTX of all variants by `lowered_as`, and cubins by architecture, on their way."""
    wanted = {(lowered_as(arch), variant): None for arch in arches for variant in variants()}
    pending = {pool.submit(compile_cached, v, arch, cache): (arch, v) for arch, v in wanted}
    kernels: dict[tuple[int, Variant], Kernel] = {}
    assembling: dict[int, Future[Path]] = {}
    for done in as_completed(pending):
        front, variant = pending[done]
        kernels[front, variant] = done.result()
        logger.info("[%d/%d] sm_%d %s", len(kernels), len(wanted), front, variant.name)
        if all((front, v) in kernels for v in variants()):
            ptx = merge_ptx([kernels[front, v] for v in variants()])
            for arch in arches:
                if lowered_as(arch) == front:
                    assembling[arch] = pool.submit(build_cubin, ptx, arch, cache)
    return kernels, assembling


def _log_spills(arch: int, report: str) -> None:
    for name, spilled in re.findall(
        r"Function properties for (\w+)\n.*?(\d+) bytes spill stores", report
    ):
        if int(spilled):
            logger.info("sm_%d %s: %s bytes of registers spilled", arch, name, spilled)


def find_fatbinary() -> str:
    """Path of the CUDA toolkit's `fatbinary`.

    Raises:
        AheadOfTimeError: there is none.
    """
    found = shutil.which("fatbinary") or shutil.which("/usr/local/cuda/bin/fatbinary")
    if found is None:
        raise AheadOfTimeError(
            "fatbinary: not on PATH; it comes with the CUDA toolkit "
            "(or: pip install nvidia-cuda-nvcc); else name it with --fatbinary"
        )
    return found


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m plugins_trt.block_sparse_attn.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch",
        default=",".join(map(str, ARCHITECTURES)),
        help="compute capabilities, with commas (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--fatbinary", help="the CUDA toolkit's fatbinary (default: from PATH)")
    parser.add_argument("--jobs", type=int, default=cpu_count(), help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        args.arch = sorted({int(arch) for arch in args.arch.split(",")})
    except ValueError:
        parser.error(f"--arch: expected numbers such as 80,90, got {args.arch!r}")
    unknown = set(args.arch) - set(ARCHITECTURES)
    if unknown:
        parser.error(f"--arch: {sorted(unknown)} not among {ARCHITECTURES}")
    return args


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(args.arch, args.out, fatbinary=args.fatbinary or find_fatbinary(), jobs=args.jobs)


if __name__ == "__main__":
    main()
