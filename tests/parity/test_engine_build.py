"""Engines of an exported bundle, built ahead of time by TensorRT-RTX on a machine without a GPU."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.backends.trt_build import BuildJob, build_engine
from runtime.backends.trt_library import check_targets, import_tensorrt
from runtime.bundle import Bundle
from runtime.engine_cache import EngineReport, build_engines
from runtime.engine_manifest import FUNCTION_BODY
from runtime.engine_plan import EngineOptions
from runtime.engine_target import Target, choose_target, has_kernels
from runtime.errors import EngineBuildError, EngineIncompatibleError
from tests.plugin_build import PluginBuild
from tests.tensorrt_build import rtx_version

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        (rtx_version() or (0,)) < (1, 7), reason="needs TensorRT-RTX 1.7, which builds without GPU"
    ),
]
# the decoder and the encoder take longest and add no kind of input
OPTIONS = EngineOptions(batches=(1, 3), leave_out=("decode", "encode", "mask_trunk"))


@pytest.fixture(scope="module")
def target() -> Target:
    return choose_target(import_tensorrt("tensorrt_rtx"), ("sm86",), None, attention="function")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The tiny bundle with a folder of its own for engines."""
    folder = tmp_path_factory.mktemp("engines")
    for path in tiny_bundle.iterdir():
        if path.name != "engines":
            (folder / path.name).symlink_to(path)
    yield Bundle.open(folder)


@pytest.fixture(scope="module")
def report(bundle: Bundle, target: Target) -> EngineReport:
    return build_engines(bundle, target, OPTIONS, jobs=2)


def test_engines_of_every_other_kind(bundle: Bundle, report: EngineReport) -> None:
    engines = report.engines.manifest.engines
    kinds = {bundle.manifest.graphs[graph].kind for graph in engines}
    assert kinds == {
        *("cond", "embed_first", "embed_ns", "embed_mask"),
        *("ns_trunk", "mask_input", "quant"),
    }
    scales = len(bundle.manifest.hmar.patch_nums)
    assert len(engines["ns_trunk"].profiles) == scales * len(OPTIONS.batches)
    assert engines["ns_trunk"].attention == FUNCTION_BODY and engines["cond"].attention is None
    for graph, entry in engines.items():
        assert len(report.engines.read_plan(graph)) == entry.nbytes > 0


def test_a_second_build_builds_nothing(
    bundle: Bundle, target: Target, report: EngineReport
) -> None:
    assert report.built
    again = build_engines(bundle, target, OPTIONS)
    assert not again.built and again.engines == report.engines


def test_other_profiles_are_refused(bundle: Bundle, target: Target, report: EngineReport) -> None:
    with pytest.raises(EngineIncompatibleError, match=r"batches: found 1, 3, needed 2.*--force"):
        build_engines(bundle, target, dataclasses.replace(OPTIONS, batches=(2,)))


def test_weights_are_in_an_engine_once(bundle: Bundle, target: Target, tmp_path: Path) -> None:
    """Eight profiles of the small `cond` graph are not eight times as large as one."""
    kinds = {spec.kind for spec in bundle.manifest.graphs.values()} - {"cond", "score", "ns_prefix"}
    sizes = []
    for batches in ((1,), (1, 2, 3, 4)):
        folder = tmp_path / str(len(batches))
        folder.mkdir()
        for path in bundle.folder.iterdir():
            if path.name != "engines":
                (folder / path.name).symlink_to(path.resolve())
        options = EngineOptions(batches=batches, leave_out=tuple(sorted(kinds)))
        built = build_engines(Bundle.open(folder), target, options)
        sizes.append(built.engines.manifest.engines["cond"].nbytes)
    assert sizes[1] < 2 * sizes[0]


def test_the_plugin_is_in_the_engine_where_it_is_built(
    tiny_fp16_bundle: Path, plugin_build: PluginBuild, tmp_path: Path
) -> None:
    for path in tiny_fp16_bundle.iterdir():
        (tmp_path / path.name).symlink_to(path)
    bundle = Bundle.open(tmp_path)
    kinds = {spec.kind for spec in bundle.manifest.graphs.values()}
    options = EngineOptions(leave_out=tuple(sorted(kinds - {"mask_trunk", "score", "ns_prefix"})))
    library = import_tensorrt("tensorrt_rtx")
    target = choose_target(
        library, ("sm86",), None, attention="plugin", plugin=plugin_build.library
    )
    built = build_engines(bundle, target, options, require_plugin=True)
    (entry,) = built.engines.manifest.engines.values()
    assert entry.attention == target.attention and entry.attention.startswith("plugin ")
    assert b"block_diagonal" in built.engines.read_plan("mask_trunk")


def test_a_graph_that_is_no_graph(tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"not a graph")
    job = BuildJob(
        flavour="tensorrt_rtx",
        graph=str(graph),
        plan=str(tmp_path / "graph.plan"),
        profiles=(),
        targets=("sm86",),
    )
    with pytest.raises(EngineBuildError, match=r"graph\.onnx: the graph is not accepted"):
        build_engine(job)
    assert not (tmp_path / "graph.plan").exists()


def test_a_shape_that_does_not_fit(bundle: Bundle, tmp_path: Path) -> None:
    job = BuildJob(
        flavour="tensorrt_rtx",
        graph=str(bundle.path(bundle.manifest.graphs["embed_first"])),
        plan=str(tmp_path / "graph.plan"),
        profiles=({"cond": (2, 3)},),
        targets=("sm86",),
    )
    with pytest.raises(EngineBuildError, match=r"no engine can be built .*tensorrt_rtx says: "):
        build_engine(job)


def test_gpus_that_cannot_be_named() -> None:
    library = import_tensorrt("tensorrt_rtx")
    with pytest.raises(EngineBuildError, match="cannot build ahead of time for sm90, only for sm"):
        check_targets(library, ("sm86", "sm90"), None)
    check_targets(library, ("sm90",), "sm90")
    with pytest.raises(ValueError, match="such as sm89, got ada"):
        check_targets(library, ("ada",), None)
    with pytest.raises(EngineBuildError, match=r"no GPU on this machine.*--gpu sm75"):
        choose_target(library, (), None)


def test_kernels_run_on_later_gpus_of_their_generation() -> None:
    assert has_kernels((80, 120), "sm86") and has_kernels((80, 120), "sm120")
    assert not has_kernels((86, 120), "sm80") and not has_kernels((80, 120), "sm90")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "sm90"], "cannot build ahead of time for sm90"),
        (["--batch", "1,x"], "--batch must be numbers"),
        (["--gpu", "sm86", "--max-workspace", "much"], "--max-workspace must be a size"),
        (["--gpu", "sm86", "--leave-out", "decoder"], "no kinds of graph"),
        (["--gpu", "sm86", "--stages", "decode"], "--stages must be such as decode=8"),
        (["--gpu", "sm86", "--library", "tensorrt"], "pip install tensorrt"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_errors_of_the_script(bundle: Bundle, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/build_engines.py", "--bundle", str(bundle.folder), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
