"""Where graphs are cut, and when: with small graphs, and builds that say what can run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from runtime.backends.onnx_stages import GraphCutter
from runtime.backends.trt_build import BuildJob, BuildReport
from runtime.bundle import Bundle, TensorSpec
from runtime.engine_cache import build_engines
from runtime.engine_manifest import find_engines
from runtime.engine_plan import EngineOptions
from runtime.engine_target import Target
from runtime.errors import EngineBuildError
from tests.unit.runtime.manifests import manifest

ROOT = Path(__file__).resolve().parents[3]
C, BLOCKS = 4, 3
HERE = Target(flavour="tensorrt_rtx", version="1.4.0", gpus=("sm90",), is_for_this_gpu=True)


def residual_chain() -> onnx.ModelProto:
    """f_hat (N, C) through residual blocks of two products; weights of a block are transposed."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(C, C)).astype(np.float32) for i in range(2 * BLOCKS)}
    nodes, x = [], "f_hat"
    for i in range(BLOCKS):
        y = f"y{i}" if i + 1 < BLOCKS else "image"
        nodes += [
            helper.make_node("Transpose", [f"w{2 * i}"], [f"t{i}"], perm=[1, 0]),
            helper.make_node("MatMul", [x, f"t{i}"], [f"h{i}"]),
            helper.make_node("Tanh", [f"h{i}"], [f"g{i}"]),
            helper.make_node("MatMul", [f"g{i}", f"w{2 * i + 1}"], [f"o{i}"]),
            helper.make_node("Add", [x, f"o{i}"], [y]),
        ]
        x = y
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", C]) for n in ("f_hat", x)]
    initializers = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "decode", sides[:1], sides[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def cutter() -> GraphCutter:
    return GraphCutter(residual_chain())


def outputs(cutter: GraphCutter, count: int) -> list[list[str]]:
    return [[o.name for o in p.stage.outputs] for p in cutter.cut(cutter.whole(), count)]


def test_cuts_are_where_one_tensor_passes(cutter: GraphCutter) -> None:
    assert outputs(cutter, 3) == outputs(cutter, 99) == [["y0"], ["y1"], ["image"]]
    assert outputs(cutter, 1) == [["image"]]
    assert len(outputs(cutter, 2)) == 2
    first = cutter.cut(cutter.whole(), 3)[0].stage
    assert first.inputs == (TensorSpec("f_hat", "float32", ("N", C)),)
    assert first.outputs == (TensorSpec("y0", "float32", ("N", C)),)


def test_a_block_is_cut_where_several_tensors_pass(cutter: GraphCutter) -> None:
    block = cutter.cut(cutter.whole(), 3)[1]
    first, second = cutter.cut(block, 2)
    assert [o.name for o in first.stage.outputs] == ["h1"]
    assert [i.name for i in second.stage.inputs] == ["y0", "h1"]
    # down to single nodes, and no further
    parts = [block]
    while len(finer := [half for part in parts for half in cutter.cut(part, 2)]) > len(parts):
        parts = finer
    assert [part.stop - part.start for part in parts] == [1] * 4


@pytest.mark.parametrize("count", [1, 2, 3, 99])
def test_stages_compute_what_the_graph_does(cutter: GraphCutter, count: int) -> None:
    x = np.random.default_rng(1).normal(size=(5, C)).astype(np.float32)
    (expected,) = ReferenceEvaluator(residual_chain()).run(None, {"f_hat": x})
    values = {"f_hat": x}
    for part in cutter.cut(cutter.whole(), count):
        model = cutter.extract(part)
        onnx.checker.check_model(model, full_check=True)
        feeds = {i.name: values[i.name] for i in part.stage.inputs}
        results = ReferenceEvaluator(model).run(None, feeds)
        values |= zip((o.name for o in part.stage.outputs), results, strict=True)
    np.testing.assert_array_equal(values["image"], expected)


class LimitedGpu:
    """Builds anything; parts of more nodes than the limit cannot run."""

    def __init__(self, limit: int) -> None:
        self.limit, self.jobs = limit, list[BuildJob]()

    def __call__(self, job: BuildJob) -> BuildReport:
        self.jobs.append(job)
        Path(job.plan).write_text(job.graph)
        runs = None
        if job.try_context:
            nodes = onnx.load(job.part or job.graph).graph.node
            runs = sum(node.op_type != "Transpose" for node in nodes) <= self.limit
        return BuildReport(
            error="",
            messages=() if runs else ("no cubin for sm90",),
            layers={},
            activation_nbytes=(1000,),
            seconds=0.1,
            makes_context=runs,
        )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    shape = ("N", C)
    graphs = dict(manifest().graphs)
    graphs["decode"] = dataclasses.replace(
        graphs["decode"],
        inputs=(TensorSpec("f_hat", "float32", shape),),
        outputs=(TensorSpec("image", "float32", shape),),
    )
    (tmp_path / "graphs").mkdir()
    onnx.save(residual_chain(), tmp_path / "graphs/decode.onnx")
    return Bundle(tmp_path, manifest(graphs=graphs))


@pytest.mark.parametrize(("limit", "stages"), [(12, 1), (4, 3), (2, 9)])
def test_what_cannot_run_is_cut_until_it_can(bundle: Bundle, limit: int, stages: int) -> None:
    builder = LimitedGpu(limit)
    report = build_engines(bundle, HERE, EngineOptions(), build=builder)
    entry = report.engines.manifest.engines["decode"]
    assert len(entry.plans) == stages
    assert {job.try_context for job in builder.jobs if "decode" not in job.graph} == {False}
    found = find_engines(bundle, "tensorrt_rtx", "1.4.0", "sm90")
    assert found == report.engines  # as read back
    assert not build_engines(bundle, HERE, EngineOptions(), build=builder).built
    files = {p.name for p in found.folder.glob("decode*")}
    assert files == {plan.file for plan in entry.plans}
    assert entry.activation_nbytes is not None
    if stages == 1:
        assert entry.why_staged == "" and entry.plans[0].stage is None
        return
    assert "no execution context" in entry.why_staged and "no cubin" in entry.why_staged
    assert f"decode in {stages} (no execution context" in report.summary()
    first, last = entry.plans[0].stage, entry.plans[-1].stage
    assert first is not None and [i.name for i in first.inputs] == ["f_hat"]
    assert last is not None and [o.name for o in last.outputs] == ["image"]
    assert entry.activation_nbytes[0] > 1024  # scratch, and what passes between


def test_what_cannot_run_in_single_nodes_is_named(bundle: Bundle) -> None:
    builder = LimitedGpu(0)
    with pytest.raises(EngineBuildError, match=r"what computes h0 alone \(no cubin.*--leave-out"):
        build_engines(bundle, HERE, EngineOptions(), build=builder)
    assert len(builder.jobs) < 12  # not every part of the graph is tried


def test_stages_as_asked_for(bundle: Bundle) -> None:
    elsewhere = dataclasses.replace(HERE, gpus=("sm86",), is_for_this_gpu=False)
    builder = LimitedGpu(0)
    options = EngineOptions(stages={"decode": 3})
    report = build_engines(bundle, elsewhere, options, build=builder)
    entry = report.engines.manifest.engines["decode"]
    assert entry.why_staged == "3 stages were asked for"
    assert [plan.file for plan in entry.plans] == [f"decode.{i:02d}.plan" for i in range(3)]
    assert not any(job.try_context for job in builder.jobs)
    # more, where some of them cannot run
    report = build_engines(bundle, HERE, options, build=LimitedGpu(2))
    entry = report.engines.manifest.engines["decode"]
    assert entry.why_staged == "3 stages were asked for, 6 more were needed to run here"
    # 1 = whole, even where it cannot run
    whole = EngineOptions(stages={"decode": 1})
    report = build_engines(bundle, HERE, whole, build=builder, force=True)
    assert len(report.engines.manifest.engines["decode"].plans) == 1


@pytest.mark.parametrize("stages", [{"ns_trunk": 2}, {"decode": 0}])
def test_stages_that_cannot_be(stages: dict) -> None:
    with pytest.raises(ValueError, match="stages"):
        EngineOptions(stages=stages)


def test_cutting_without_onnx_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from runtime.engine_stages import _open\n"
        "from runtime.errors import BackendUnavailableError\n"
        "try: _open(Path('decode.onnx'))\n"
        "except BackendUnavailableError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert "decode.onnx" in done.stdout and "pip install onnx" in done.stdout
