"""From units to one fatbinary with the kernels of all architectures.

Every kernel becomes PTX, all PTX of one architecture one cubin, and all cubins one fatbinary. Equal
input gives equal bytes; what was compiled before is taken from `cache/` in the same folder.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import triton
from triton.backends.nvidia.compiler import get_ptxas

from plugins_trt.ahead_of_time import ARCHITECTURES, cuda, lowering
from plugins_trt.ahead_of_time.cuda import CudaUnit
from plugins_trt.ahead_of_time.lowering import AheadOfTimeError, Kernel, Unit

logger = logging.getLogger(__name__)

# PTX made for 8.0 serves all of 8.x, which the compiler treats alike: ptxas tells them apart.
LOWERED_AS = {86: 80, 89: 80}

# Shared memory that one program may have.
MAX_SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}

AnyUnit = Unit | CudaUnit
Kernels = Mapping[tuple[int, AnyUnit], Kernel]  # by architecture and unit


def lowered_as(arch: int) -> int:
    """Architecture whose PTX serves this one."""
    return LOWERED_AS.get(arch, arch)


def target_of(arch: int) -> str:
    """Target of ptxas. Hopper's tensor cores need sm_90a; for later ones the suffix would only
    exclude other minor versions."""
    return f"sm_{arch}a" if arch == 90 else f"sm_{arch}"


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def compile_cached(unit: AnyUnit, arch: int, folder: Path) -> Kernel:
    """PTX of a unit for a compute capability, from the cache where it holds the kernel."""
    path = folder / f"{digest(*_made_from(unit, arch), unit, arch)}.json"
    if not path.exists():
        kernel = _compile(unit, arch)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(kernel)))
        partial.rename(path)
    return Kernel(**json.loads(path.read_text()))


def _compile(unit: AnyUnit, arch: int) -> Kernel:
    if isinstance(unit, CudaUnit):
        return cuda.compile_kernel(unit, arch)
    return lowering.compile_kernel(unit, arch)


def _made_from(unit: AnyUnit, arch: int) -> tuple[object, ...]:
    """Compilers and source of a unit."""
    if isinstance(unit, CudaUnit):
        return cuda.compiler_version(), inspect.getsource(cuda), unit.text
    compiler = inspect.getsource(lowering.compile_kernel)
    return triton.__version__, get_ptxas(arch).version, compiler, lowering.source(unit).hash()


def build_cubin(ptx: str, arch: int, folder: Path) -> Path:
    """Path of the cubin of a PTX module; beside it a `.log` of what ptxas says."""
    ptxas = get_ptxas(arch)
    target = target_of(arch)
    ptx = re.sub(r"^\.target \w+", f".target {target}", ptx, flags=re.MULTILINE)
    key = digest(ptx, ptxas.version, target)
    cubin, text = folder / f"{key}.cubin", folder / f"{key}.ptx"
    if not cubin.exists():
        text.write_text(ptx)
        partial = cubin.with_suffix(".partial")
        said = run_tool(
            [ptxas.path, "-v", f"--gpu-name={target}", text.name, "-o", partial.name], folder
        )
        cubin.with_suffix(".log").write_text(said)
        partial.rename(cubin)
    return cubin


def link_fatbin(cubins: Mapping[int, Path], fatbin: Path, fatbinary: str) -> None:
    """Gathers the cubins of all architectures in one compressed file."""
    images = [
        f"--image3=kind=elf,sm={target_of(arch).removeprefix('sm_')},file={cubin.name}"
        for arch, cubin in cubins.items()
    ]
    folder = next(iter(cubins.values())).parent
    run_tool([fatbinary, "-64", "--compress-all", f"--create={fatbin.name}", *images], folder)
    (folder / fatbin.name).replace(fatbin)


def run_tool(command: Sequence[str], folder: Path) -> str:
    """What a tool printed; it runs in the folder, so that its output knows no other path."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AheadOfTimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout + done.stderr


def build_fatbin(
    units: Sequence[AnyUnit], arches: Sequence[int], fatbin: Path, *, fatbinary: str, jobs: int
) -> Kernels:
    """Compiles all units for all architectures, and writes the fatbinary.

    Args:
        arches: compute capabilities, such as 80 and 90.
        fatbin: file to write; its folder is made if need be.
        fatbinary: the program of that name from a CUDA toolkit.
        jobs: processes to use.

    Raises:
        AheadOfTimeError: the compiler's output does not fit a launcher, or a tool failed.
    """
    began = time.perf_counter()
    cache = fatbin.parent / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    # spawned: the compiler's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        kernels, assembling = compile_all(pool, units, arches, cache)
        cubins = {arch: assembling[arch].result() for arch in arches}
    for arch, cubin in cubins.items():
        _log_remarks(arch, cubin.with_suffix(".log").read_text())
    link_fatbin(cubins, fatbin, fatbinary)
    logger.info(
        "%s: %d kernels for %d architectures, %.1f MiB, %.0f s",
        fatbin,
        len(units),
        len(arches),
        fatbin.stat().st_size / 2**20,
        time.perf_counter() - began,
    )
    by_arch = {(arch, unit): kernels[lowered_as(arch), unit] for arch in arches for unit in units}
    check_shared_memory(by_arch)
    return by_arch


def check_shared_memory(kernels: Kernels) -> None:
    """Raises AheadOfTimeError if a kernel wants more than its architecture has."""
    for (arch, unit), kernel in kernels.items():
        if kernel.shared_bytes > MAX_SHARED_BYTES[arch]:
            raise AheadOfTimeError(
                f"{unit.name}: {kernel.shared_bytes} bytes of shared memory, sm_{arch} has "
                f"{MAX_SHARED_BYTES[arch]}; give the kernel smaller tiles or fewer stages"
            )


def compile_all(
    pool: Executor, units: Sequence[AnyUnit], arches: Sequence[int], cache: Path
) -> tuple[Kernels, dict[int, Future[Path]]]:
    """PTX of all kernels by `lowered_as` and unit, and the cubins by architecture, on their way."""
    wanted = {(lowered_as(arch), unit): None for arch in arches for unit in units}
    pending = {pool.submit(compile_cached, u, front, cache): (front, u) for front, u in wanted}
    kernels: dict[tuple[int, AnyUnit], Kernel] = {}
    assembling: dict[int, Future[Path]] = {}
    for done in as_completed(pending):
        front, unit = pending[done]
        kernels[front, unit] = done.result()
        logger.info("[%d/%d] sm_%d %s", len(kernels), len(wanted), front, unit.name)
        if all((front, u) in kernels for u in units):
            ptx = lowering.merge_ptx([kernels[front, u] for u in units])
            for arch in arches:
                if lowered_as(arch) == front:
                    assembling[arch] = pool.submit(build_cubin, ptx, arch, cache)
    return kernels, assembling


def _log_remarks(arch: int, said: str) -> None:
    """What makes kernels slower than they could be."""
    for line in said.splitlines():
        if "wgmma" in line:  # products that wait for each other
            logger.info("sm_%d %s", arch, line)
    spills = re.findall(r"Function properties for (\w+)\n.*?(\d+) bytes spill stores", said)
    for name, spilled in spills:
        if int(spilled):
            logger.info("sm_%d %s: %s bytes of registers spilled", arch, name, spilled)


def find_fatbinary() -> str:
    """Path of the CUDA toolkit's `fatbinary`.

    Raises:
        AheadOfTimeError: there is none.
    """
    nvcc = shutil.which("nvcc")
    places = [Path("/usr/local/cuda/bin")] + ([Path(nvcc).resolve().parent] if nvcc else [])
    found = shutil.which("fatbinary") or shutil.which("fatbinary", path=":".join(map(str, places)))
    if found is None:
        raise AheadOfTimeError(
            "fatbinary: not on PATH; it comes with the CUDA toolkit "
            "(or: pip install nvidia-cuda-nvcc); else name it with --fatbinary"
        )
    return found


def parse_args(
    prog: str, description: str | None, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """What the command line of a build says."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=description,
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
