"""Ahead-of-time compilation: equal results, and clear errors where the parts do not fit."""

from __future__ import annotations

import dataclasses
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from plugins_trt.block_sparse_attn.variants import variants

lowering = pytest.importorskip("plugins_trt.ahead_of_time.lowering", reason="no triton")
fatbin = pytest.importorskip("plugins_trt.ahead_of_time.fatbin", reason="no triton")
units = pytest.importorskip("plugins_trt.block_sparse_attn.units", reason="no triton")
aot = pytest.importorskip("plugins_trt.block_sparse_attn.aot", reason="no triton")
part = pytest.importorskip("plugins_trt.ahead_of_time.part", reason="no triton")
sampling = pytest.importorskip("plugins_trt.sampling.aot", reason="no triton")
decoder = pytest.importorskip("plugins_trt.decoder.aot", reason="no triton")
transformer = pytest.importorskip("plugins_trt.transformer.aot", reason="no triton")
cuda = pytest.importorskip("plugins_trt.ahead_of_time.cuda", reason="no triton")

VARIANT = next(v for v in variants() if v.dtype == "float16" and v.qk_l2_norm)
UNIT = units.attention_unit(VARIANT)


@pytest.fixture(scope="module")
def kernel() -> lowering.Kernel:
    return lowering.compile_kernel(UNIT, 80)


def test_compiling_twice_gives_equal_bytes(kernel: lowering.Kernel) -> None:
    assert lowering.compile_kernel(UNIT, 80) == kernel


def test_kernel_carries_its_name_and_figures(kernel: lowering.Kernel) -> None:
    assert f".visible .entry {VARIANT.name}(" in kernel.ptx
    assert kernel.threads == 32 * VARIANT.tile.num_warps
    assert 0 < kernel.shared_bytes <= fatbin.MAX_SHARED_BYTES[80]
    assert ".file" not in kernel.ptx and ".loc" not in kernel.ptx


def test_normalize_keys_kernel() -> None:
    unit = units.normalize_keys_unit("float16", 64)
    kernel = lowering.compile_kernel(unit, 90)
    assert f".visible .entry {unit.name}(" in kernel.ptx and ".target sm_90a" in kernel.ptx


def test_names_of_kernels_are_unique() -> None:
    parts = (sampling, decoder, transformer)
    names = [u.name for u in (*units.all_units(), *(u for p in parts for u in p.units()))]
    assert len(names) == len(set(names))


def test_merged_module_declares_everything_once(kernel: lowering.Kernel) -> None:
    other = lowering.Kernel(ptx=kernel.ptx.replace(UNIT.name, "other"), threads=1, shared_bytes=1)
    merged = lowering.merge_ptx([kernel, other])
    assert re.findall(r"^\.visible \.entry (\w+)", merged, re.MULTILINE) == [UNIT.name, "other"]
    for declaration in (".version", ".target", ".address_size", ".extern .shared"):
        assert merged.count(declaration) == 1
    clash = lowering.Kernel(
        ptx=kernel.ptx.replace(".target sm_80", ".target sm_90"), threads=1, shared_bytes=1
    )
    with pytest.raises(lowering.AheadOfTimeError, match="declarations differ"):
        lowering.merge_ptx([kernel, clash])


def test_merged_module_is_for_the_latest_version_of_ptx(kernel: lowering.Kernel) -> None:
    versions = ["9.0", "10.2", "9.9"]
    kernels = [
        lowering.Kernel(
            ptx=re.sub(r"\.version .*", f".version {version}", kernel.ptx).replace(
                UNIT.name, f"kernel{i}"
            ),
            threads=1,
            shared_bytes=1,
        )
        for i, version in enumerate(versions)
    ]
    assert re.findall(r"^\.version (.*)", lowering.merge_ptx(kernels), re.M) == ["10.2"]


def test_parameters_that_the_launcher_does_not_pass(kernel: lowering.Kernel) -> None:
    (last,) = re.findall(rf"^.*{UNIT.name}_param_\d+\n(?=\))", kernel.ptx, re.MULTILINE)
    with pytest.raises(lowering.AheadOfTimeError, match="the compiler made parameters"):
        lowering.check_parameters(kernel.ptx.replace(last, ""), UNIT.name, UNIT.parameters)


def test_too_much_shared_memory_names_the_kernel() -> None:
    huge, small = (lowering.Kernel(ptx="", threads=128, shared_bytes=n) for n in (200_000, 100))
    kernels = {(86, unit): small for unit in units.all_units()}
    fatbin.check_shared_memory(kernels)
    assert VARIANT.name in aot.header([86], kernels)
    message = rf"{VARIANT.name}: 200000 bytes .* sm_86 has 101376"
    with pytest.raises(lowering.AheadOfTimeError, match=message):
        fatbin.check_shared_memory(kernels | {(86, UNIT): huge})


@pytest.mark.parametrize("arch", ["80,x", "75"])
def test_bad_architectures(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fatbin.parse_args("prog", None, ["--arch", arch, "--out", str(tmp_path)])
    assert "--arch" in capsys.readouterr().err


def test_failing_tool_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(lowering.AheadOfTimeError, match="exit 2"):
        fatbin.run_tool(["ls", "--no-such-option"], tmp_path)


def test_decoder_without_its_architecture_is_an_empty_library(tmp_path: Path) -> None:
    part.build("decoder", decoder.units(), [], tmp_path, fatbinary="not called", jobs=1)
    assert (tmp_path / "decoder.json").read_text() == "{}\n"
    assert (tmp_path / "decoder.fatbin").read_bytes() == b""


CUDA_UNITS = [
    unit
    for units_of_part in (transformer.units(), decoder.units())
    for unit in units_of_part
    if isinstance(unit, cuda.CudaUnit)
]


def compile_apart(unit: cuda.CudaUnit) -> lowering.Kernel:
    """In a process of its own, as a build does it: libraries that other tests loaded, such as
    TensorRT, bring compilers that NVRTC does not get on with."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda.bindings")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(cuda.compile_kernel, unit, 90).result()


@pytest.mark.parametrize("function", ["narrow", "wide", "wide_attention", "wide_conv"])
def test_kernel_in_cuda_joins_one_of_triton(function: str, tmp_path: Path) -> None:
    unit = next(unit for unit in CUDA_UNITS if unit.function == f"{function}_kernel")
    wide = compile_apart(unit)
    assert compile_apart(unit) == wide
    triton = lowering.compile_kernel(units.normalize_keys_unit("float16", 64), 90)
    cubin = fatbin.build_cubin(lowering.merge_ptx([triton, wide]), 90, tmp_path)
    assert unit.name.encode() in cubin.read_bytes()
    log = cubin.with_suffix(".log").read_text()
    # else the assembler waits after every product
    assert "wgmma" not in log, log


@pytest.mark.parametrize("unit", CUDA_UNITS, ids=lambda unit: unit.name)
def test_what_kernels_in_cuda_ask_for(unit: cuda.CudaUnit) -> None:
    assert unit.shared_bytes <= fatbin.MAX_SHARED_BYTES[90]
    columns = "BLOCK_M" if unit.function == "narrow_kernel" else "BLOCK_N"  # of attention 64
    assert unit.columns == dict(unit.constants).get(columns, 64)
    kinds, maps = dict(unit.parameters), dict(unit.tensor_maps)
    assert set(maps) == {name for name, kind in kinds.items() if kind == lowering.TENSOR_MAP}
    for tensor_map in maps.values():
        assert len(tensor_map.sizes) == len(tensor_map.box) and tensor_map.box[0] in (32, 64)
        assert all(name is None or kinds[name] == "i32" for _, name in tensor_map.sizes)


def test_cuda_that_does_not_compile_is_quoted() -> None:
    without = dataclasses.replace(CUDA_UNITS[0], constants=CUDA_UNITS[0].constants[1:])
    missing = CUDA_UNITS[0].constants[0][0]
    with pytest.raises(lowering.AheadOfTimeError, match=f"(?s)COMPILATION.*{missing}"):
        compile_apart(without)
