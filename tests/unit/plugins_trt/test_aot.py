"""Ahead-of-time compilation: equal results, and clear errors where the parts do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plugins_trt.block_sparse_attn.variants import variants

aot = pytest.importorskip("plugins_trt.block_sparse_attn.aot", reason="no triton")
HALF = next(v for v in variants() if v.dtype == "float16" and v.qk_l2_norm)


@pytest.fixture(scope="module")
def kernel() -> aot.Kernel:
    return aot.compile_kernel(HALF, 80)


def test_compiling_twice_gives_equal_bytes(kernel: aot.Kernel) -> None:
    assert aot.compile_kernel(HALF, 80) == kernel


def test_ampere_and_ada_differ_in_ptxas_only(kernel: aot.Kernel) -> None:
    assert set(aot.LOWERED_AS.values()) == {80}
    for arch in aot.LOWERED_AS:
        other = aot.compile_kernel(HALF, arch)
        assert other.ptx.replace(f".target sm_{arch}", ".target sm_80") == kernel.ptx
        assert (other.threads, other.shared_bytes) == (kernel.threads, kernel.shared_bytes)


def test_kernel_carries_its_name_and_figures(kernel: aot.Kernel) -> None:
    assert f".visible .entry {HALF.name}(" in kernel.ptx
    assert kernel.threads == 32 * HALF.tile.num_warps
    assert 0 < kernel.shared_bytes <= aot.MAX_SHARED_BYTES[80]
    assert ".file" not in kernel.ptx and ".loc" not in kernel.ptx


def test_merged_module_declares_everything_once(kernel: aot.Kernel) -> None:
    other = aot.Kernel(ptx=kernel.ptx.replace(HALF.name, "other"), threads=1, shared_bytes=1)
    merged = aot.merge_ptx([kernel, other])
    assert re.findall(r"^\.visible \.entry (\w+)", merged, re.MULTILINE) == [HALF.name, "other"]
    for declaration in (".version", ".target", ".address_size", ".extern .shared"):
        assert merged.count(declaration) == 1
    clash = aot.Kernel(
        ptx=kernel.ptx.replace(".target sm_80", ".target sm_90"), threads=1, shared_bytes=1
    )
    with pytest.raises(aot.AheadOfTimeError, match="declarations differ"):
        aot.merge_ptx([kernel, clash])


def test_parameters_that_the_launcher_does_not_pass(kernel: aot.Kernel) -> None:
    last = f"\t.param .u64 .ptr .global .align 1 {HALF.name}_param_15\n"
    assert last in kernel.ptx
    with pytest.raises(aot.AheadOfTimeError, match="the compiler made parameters"):
        aot.check_parameters(kernel.ptx.replace(last, ""), HALF)


def test_too_much_shared_memory_names_the_kernel() -> None:
    huge, small = (aot.Kernel(ptx="", threads=128, shared_bytes=n) for n in (200_000, 100))
    with pytest.raises(
        aot.AheadOfTimeError, match=rf"{HALF.name}: 200000 bytes .* sm_86 has 101376"
    ):
        aot.header([86], {(80, v): small for v in variants()} | {(80, HALF): huge})


@pytest.mark.parametrize("arch", ["80,x", "75"])
def test_bad_architectures(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        aot.parse_args(["--arch", arch, "--out", str(tmp_path)])
    assert "--arch" in capsys.readouterr().err


def test_failing_tool_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(aot.AheadOfTimeError, match="exit 2"):
        aot.run_tool(["ls", "--no-such-option"], tmp_path)
