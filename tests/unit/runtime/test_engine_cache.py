"""Engine folders with plans that are just bytes: what is built, kept, refused and explained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.backends.trt_build import BuildJob, BuildReport
from runtime.bundle import Bundle, FileSpec, Manifest
from runtime.engine_cache import TIMING_CACHE, EngineReport, build_engines
from runtime.engine_manifest import ENGINES, ENGINES_FILE, FUNCTION_BODY, find_engines
from runtime.engine_plan import EngineOptions
from runtime.engine_target import Target
from runtime.errors import EngineBuildError, EngineIncompatibleError
from tests.unit.runtime.manifests import manifest

TARGET = Target(flavour="tensorrt_rtx", version="1.7.1", gpus=("sm80", "sm89"), is_named=True)
OPTIONS = EngineOptions(batches=(1, 8), layout="per-scale")
OTHER_WEIGHTS = FileSpec(file="graphs/weights.bin", sha256="1" * 64, nbytes=64)
FOLDER = "sm80-sm89_rtx1.7.1_fp32_per-scale"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path, manifest())


class FakeBuild:
    """Writes the job's graph as the plan; keeps the jobs."""

    def __init__(self, plugin_layers: int = 0, fail_at: str = "") -> None:
        self.jobs: list[BuildJob] = []
        self.plugin_layers, self.fail_at = plugin_layers, fail_at

    def __call__(self, job: BuildJob) -> BuildReport:
        self.jobs.append(job)
        if self.fail_at and self.fail_at in job.graph:
            raise EngineBuildError(f"{job.graph}: no engine can be built")
        Path(job.plan).write_text(job.graph)
        layers = {"PLUGIN_V3": self.plugin_layers} if job.plugin else {}
        return BuildReport(
            error="", messages=(), layers=layers, activation_nbytes=(1000, 2000), seconds=0.1
        )


def build(bundle: Bundle, target: Target = TARGET, **changes: object) -> EngineReport:
    arguments = {"options": OPTIONS, "build": FakeBuild(), **changes}
    return build_engines(bundle, target, **arguments)  # type: ignore[arg-type]


def test_engines_are_built_once(bundle: Bundle) -> None:
    first = FakeBuild()
    report = build(bundle, build=first)
    assert report.engines.folder == bundle.folder / ENGINES / FOLDER
    assert len(report.built) == len(first.jobs) == 8
    assert {job.targets for job in first.jobs} == {("sm80", "sm89")}
    cond = next(job for job in first.jobs if "cond" in job.graph)
    assert cond.profiles == ({"label": (2,)}, {"label": (16,)})
    assert "built        8 of 8 engines" in report.summary()
    again = FakeBuild()
    report = build(bundle, build=again)
    assert not again.jobs and not report.built
    assert "8 up to date" in report.summary()
    # nothing else is left in the folder
    assert [p.name for p in (bundle.folder / ENGINES).iterdir()] == [FOLDER]


def test_the_manifest_reads_back(bundle: Bundle) -> None:
    report = build(bundle)
    found = find_engines(bundle, "tensorrt_rtx", "1.7.1", "sm89")
    assert found == report.engines
    assert found.read_plan("cond") == str(bundle.folder / "graphs/cond.onnx").encode()


def test_nothing_to_build_is_a_folder_that_says_so(bundle: Bundle) -> None:
    kinds = {spec.kind for spec in bundle.manifest.graphs.values()}
    options = dataclasses.replace(OPTIONS, leave_out=tuple(sorted(kinds)))
    report = build_engines(bundle, TARGET, options, build=FakeBuild(), jobs=2)
    assert not report.built and "0 engines" in report.summary()
    found = find_engines(bundle, "tensorrt_rtx", "1.7.1", "sm89")
    assert found.manifest.engines == {} and found.manifest.batches == (1, 8)


CHANGES: dict[str, tuple[Callable[[Bundle], Bundle], Target, EngineOptions, str]] = {
    "batches": (
        lambda b: b,
        TARGET,
        dataclasses.replace(OPTIONS, batches=(1,)),
        "batches: found 1, 8, needed 1",
    ),
    "attention": (
        lambda b: b,
        dataclasses.replace(TARGET, attention="plugin 0.1.0"),
        OPTIONS,
        "attention: found function body, needed plugin 0.1.0",
    ),
    "workspace": (
        lambda b: b,
        TARGET,
        dataclasses.replace(OPTIONS, workspace_bytes=1 << 29),
        "workspace: found no limit, needed 512 MiB",
    ),
    "stages": (
        lambda b: b,
        TARGET,
        dataclasses.replace(OPTIONS, stages={"decode": 1}),
        "stages: found as few as can run, needed decode=1",
    ),
    "weights": (
        lambda b: Bundle(b.folder, manifest(weights=OTHER_WEIGHTS)),
        TARGET,
        OPTIONS,
        "weights: found sha256 000000000000…, needed sha256 111111111111…",
    ),
    "graph": (
        lambda b: Bundle(b.folder, _with_graph_changed(b)),
        TARGET,
        OPTIONS,
        "decode: the graph has changed",
    ),
    "rows": (
        lambda b: b,
        TARGET,
        dataclasses.replace(OPTIONS, guidance="any"),
        "ns0: found 2 profiles, needed 4",
    ),
}


def _with_graph_changed(bundle: Bundle) -> Manifest:
    graphs = dict(bundle.manifest.graphs)
    graphs["decode"] = dataclasses.replace(graphs["decode"], sha256="2" * 64)
    return manifest(graphs=graphs)


@pytest.mark.parametrize("name", CHANGES)
def test_a_mismatch_is_explained_and_rebuilt_only_when_asked(bundle: Bundle, name: str) -> None:
    change, target, options, message = CHANGES[name]
    build(bundle)
    changed, builder = change(bundle), FakeBuild()
    with pytest.raises(EngineIncompatibleError, match="--force") as caught:
        build_engines(changed, target, options, build=builder)
    assert message in str(caught.value) and any(message in r for r in caught.value.reasons)
    assert not builder.jobs
    report = build_engines(changed, target, options, build=builder, force=True)
    assert len(report.built) == len(builder.jobs) == 8
    assert not build_engines(changed, target, options, build=builder).built


def test_a_failed_build_leaves_what_was_there(bundle: Bundle) -> None:
    with pytest.raises(EngineBuildError):
        build(bundle, build=FakeBuild(fail_at="decode"))
    assert not list((bundle.folder / ENGINES).iterdir())
    build(bundle)
    with pytest.raises(EngineBuildError):
        build(bundle, build=FakeBuild(fail_at="decode"), force=True)
    assert not build(bundle).built


@pytest.mark.parametrize("jobs", [1, 3])
def test_builds_at_a_time_give_the_same_manifest(bundle: Bundle, jobs: int) -> None:
    report = build(bundle, jobs=jobs)
    assert list(report.engines.manifest.engines) == list(bundle.manifest.graphs)
    with pytest.raises(EngineBuildError):
        build(bundle, build=FakeBuild(fail_at="decode"), force=True, jobs=jobs)
    with pytest.raises(ValueError, match="jobs must be"):
        build(bundle, jobs=0)


def test_a_folder_that_cannot_be_written(bundle: Bundle) -> None:
    (bundle.folder / ENGINES).write_text("a file in the way")
    with pytest.raises(EngineBuildError, match="cannot be written: File exists"):
        build(bundle)


def test_the_timing_cache_outlives_a_rebuild(bundle: Bundle) -> None:
    folder = build(bundle).engines.folder
    (folder / TIMING_CACHE).write_bytes(b"timings")
    seen = []

    def keeps(job: BuildJob) -> BuildReport:
        assert job.timing_cache is not None
        seen.append(Path(job.timing_cache).read_bytes())
        return FakeBuild()(job)

    build(bundle, build=keeps, force=True)
    assert seen == [b"timings"] * 8
    assert (folder / TIMING_CACHE).read_bytes() == b"timings"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b"x" + p.read_bytes()[1:]), "damaged: sha256"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "damaged: .* bytes"),
        (lambda p: p.unlink(), "cannot be read"),
    ],
    ids=("altered", "cut", "missing"),
)
def test_a_damaged_plan_is_an_error(
    bundle: Bundle, damage: Callable[[Path], None], message: str
) -> None:
    report = build(bundle)
    damage(report.engines.folder / "decode.plan")
    with pytest.raises(EngineIncompatibleError, match=f"decode.plan: {message}.*--force"):
        report.engines.read_plan("decode")
    with pytest.raises(EngineIncompatibleError, match=message):
        build(bundle)


@pytest.mark.parametrize("text", ["", "{}", '{"format_version": 99}', "[]"])
def test_an_unreadable_manifest_is_an_error(bundle: Bundle, text: str) -> None:
    folder = build(bundle).engines.folder
    (folder / ENGINES_FILE).write_text(text)
    with pytest.raises(EngineIncompatibleError, match="no manifest of engines"):
        build(bundle)
    with pytest.raises(EngineIncompatibleError, match="no manifest of engines"):
        find_engines(bundle, "tensorrt_rtx", "1.7.1", "sm80")


def test_plans_outside_the_folder_are_refused(bundle: Bundle) -> None:
    folder = build(bundle).engines.folder
    data = json.loads((folder / ENGINES_FILE).read_text())
    data["engines"]["decode"]["plans"][0]["file"] = "../../decode.plan"
    (folder / ENGINES_FILE).write_text(json.dumps(data))
    with pytest.raises(EngineIncompatibleError, match="outside the folder"):
        find_engines(bundle, "tensorrt_rtx", "1.7.1", "sm80")


def test_why_no_engines_fit(bundle: Bundle) -> None:
    with pytest.raises(EngineIncompatibleError, match=r"there are none.*build_engines.py"):
        find_engines(bundle, "tensorrt_rtx", "1.7.1", "sm80")
    build(bundle)
    with pytest.raises(EngineIncompatibleError, match="built for sm80, sm89, this GPU is sm90"):
        find_engines(bundle, "tensorrt_rtx", "1.7.1", "sm90")
    with pytest.raises(
        EngineIncompatibleError,
        match=r"built with tensorrt_rtx 1\.7\.1, here is tensorrt_rtx 1\.4\.0",
    ):
        find_engines(bundle, "tensorrt_rtx", "1.4.0", "sm80")
    changed = Bundle(bundle.folder, _with_graph_changed(bundle))
    with pytest.raises(EngineIncompatibleError, match=r"other graphs .*\(decode\)"):
        find_engines(changed, "tensorrt_rtx", "1.7.1", "sm80")


def test_scale_generic_engines_are_preferred(bundle: Bundle) -> None:
    build(bundle)
    build(bundle, options=EngineOptions())
    found = find_engines(bundle, "tensorrt_rtx", "1.7.1", "sm80")
    assert found.manifest.layout == "profiles"
    one = find_engines(bundle, "tensorrt_rtx", "1.7.1", "sm80", bundle.folder / ENGINES / FOLDER)
    assert one.manifest.layout == "per-scale"


def test_the_manifest_says_which_engines_use_the_plugin(bundle: Bundle) -> None:
    target = dataclasses.replace(
        TARGET, attention="plugin 0.1.0", plugin=Path("libhmar_plugins.so")
    )
    builder = FakeBuild(plugin_layers=3)
    engines = build(bundle, target, build=builder).engines.manifest.engines
    with_plugin = {Path(job.graph).stem for job in builder.jobs if job.plugin}
    assert with_plugin == {"ns_s0", "ns_s1", "mask_s1"}
    assert engines["ns1"].attention == engines["mask1"].attention == "plugin 0.1.0"
    assert engines["decode"].attention is None
    # a parser that does not take the plugin
    engines = build(bundle, target, force=True).engines.manifest.engines
    assert engines["ns1"].attention == FUNCTION_BODY
    with pytest.raises(EngineBuildError, match="did not take the attention plugin"):
        build(bundle, target, force=True, require_plugin=True)
