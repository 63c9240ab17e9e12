"""From a kernel in CUDA C++ to PTX, without a GPU, by NVRTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins_trt.ahead_of_time.lowering import AheadOfTimeError, Kernel, check_parameters

PLUGINS = Path(__file__).resolve().parents[1]
INCLUDES = PLUGINS / "ahead_of_time" / "csrc"
HEADERS = ("hopper.cuh",)
PTX_VERSION = "9.0"  # that the kernels need; NVRTC names its own, which ptxas may not know

# of hopper.cuh
WARPGROUP = 128  # threads
DEPTH = 64  # of a stage, in float16 values
BARRIERS_BYTES = 2048  # of shared memory before the stages, with what aligns them


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMap:
    """How the copy engine reads a contiguous float16 array, whose address a launch is given.

    Rows of a box lie swizzled in shared memory; what is outside the array is read as zeros.

    Attributes:
        sizes: of the array's dimensions, innermost first, each a factor and the parameter that it
            is a multiple of, or None.
        box: of one copy, in values; of the innermost dimension 64 or 32, the swizzle's span.
    """

    sizes: tuple[tuple[int, str | None], ...]
    box: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaUnit:
    """One kernel to compile; attributes as of `lowering.Unit`, and further ones.

    Attributes:
        source: path below `plugins_trt`; it defines the kernel NAME.
        tensor_maps: those parameters that are tensor maps.
        columns: of the products of warpgroups (`wgmma.h`) in it.
        threads, shared_bytes: as of `lowering.Kernel`.
    """

    name: str
    source: str
    function: str
    parameters: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...] = ()
    tensor_maps: tuple[tuple[str, TensorMap], ...]
    columns: int
    threads: int = 3 * WARPGROUP
    shared_bytes: int

    @property
    def text(self) -> str:
        """All that the kernel is made from."""
        files = [PLUGINS / self.source, *(INCLUDES / name for name in HEADERS)]
        return "\n".join([*(file.read_text("utf-8") for file in files), wgmma(self.columns)])


def wgmma(columns: int) -> str:
    """The header of products of warpgroups: 64 rows, so many columns, a depth of 16.

    PTX ISA 9.0, section 9.7.15.5.1; operands are tiles in shared memory, x also in registers.
    """
    count = columns // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    values = ", ".join(f'"+f"(acc[{i}])' for i in range(count))
    a, b, accumulates, is_transposed, x_is = (f"%{count + i}" for i in range(5))
    x = ", ".join(f"%{count + i}" for i in range(4))
    of_registers, by = f"%{count + 4}", f"%{count + 5}"
    instruction = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.f16.f16"
    return f"""#pragma once
// acc = x * w, or acc += x * w; the tile w lies row after row (IS_TRANSPOSED), else column after
// column, the tile x row after row, or column after column (X_IS_TRANSPOSED).
template <int COLUMNS, int IS_TRANSPOSED, int X_IS_TRANSPOSED = 0>
DEVICE void wgmma(float (&acc)[COLUMNS / 2], u64 x, u64 w, bool accumulates) {{
  static_assert(COLUMNS == {columns}, "this header is of other products");
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, {accumulates}, 0;\\n"
      "{instruction} "
      "{{{registers}}}, "
      "{a}, {b}, p, 1, 1, {x_is}, {is_transposed};\\n}}"
      : {values}
      : "l"(x), "l"(w), "r"(int(accumulates)), "n"(IS_TRANSPOSED),
        "n"(X_IS_TRANSPOSED));
}}

// acc += x * w, with x in registers: two values in each, of columns 2 t and 2 t + 1 of rows g and
// g + 8, then of columns 8 more, for thread t of those that share rows.
template <int COLUMNS, int IS_TRANSPOSED>
DEVICE void wgmma_by(float (&acc)[COLUMNS / 2], const u32* x, u64 w) {{
  static_assert(COLUMNS == {columns}, "this header is of other products");
  asm volatile(
      "{instruction} "
      "{{{registers}}}, "
      "{{{x}}}, {of_registers}, 1, 1, 1, {by};"
      : {values}
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(w), "n"(IS_TRANSPOSED));
}}
"""


def compiler_version() -> tuple[int, int]:
    """Of NVRTC.

    Raises:
        AheadOfTimeError: it is not installed.
    """
    _, major, minor = _import_nvrtc().nvrtcVersion()
    return major, minor


def _import_nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError) as error:
        raise AheadOfTimeError(
            f"kernels in CUDA C++ need NVRTC and its bindings ({error}): "
            "pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error
    return nvrtc


def compile_kernel(unit: CudaUnit, arch: int) -> Kernel:
    """PTX of one unit for one compute capability.

    Raises:
        AheadOfTimeError: the source does not compile, or takes other parameters; no NVRTC.
    """
    nvrtc = _import_nvrtc()

    def call(function: str, *arguments: object) -> tuple[object, ...]:
        status, *results = getattr(nvrtc, function)(*arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise AheadOfTimeError(f"{unit.name}: {function}: {status.name}\n{log()}")
        return tuple(results)

    def log() -> str:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        text = bytearray(size)
        nvrtc.nvrtcGetProgramLog(program, text)
        return text.rstrip(b"\0").decode()

    path = PLUGINS / unit.source
    headers = [*((INCLUDES / name).read_bytes() for name in HEADERS), wgmma(unit.columns).encode()]
    names = [*(name.encode() for name in HEADERS), b"wgmma.h"]
    (program,) = call(
        "nvrtcCreateProgram", path.read_bytes(), path.name.encode(), len(headers), headers, names
    )
    macros = [f"-D{key}={value}" for key, value in (("NAME", unit.name), *unit.constants)]
    options = [f"--gpu-architecture=compute_{arch}a", "--std=c++17", *macros]
    call("nvrtcCompileProgram", program, len(options), [option.encode() for option in options])
    (size,) = call("nvrtcGetPTXSize", program)
    ptx = bytearray(size)
    call("nvrtcGetPTX", program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    text = _tidy(ptx.rstrip(b"\0").decode())
    check_parameters(text, unit.name, unit.parameters, pointer=".u64")
    return Kernel(ptx=text, threads=unit.threads, shared_bytes=unit.shared_bytes)


def _tidy(ptx: str) -> str:
    """Without constants of namespace scope, which NVRTC keeps though nothing refers to them, and
    for the version of PTX that is needed."""
    ptx = re.sub(r"^\.global .*;\n", "", ptx, flags=re.MULTILINE)
    return re.sub(r"^\.version .*", f".version {PTX_VERSION}", ptx, flags=re.MULTILINE)
