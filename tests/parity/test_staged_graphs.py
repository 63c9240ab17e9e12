"""Cuts of exported decoders and encoders, and engines of their stages built without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.backends.onnx_stages import PRODUCTS, GraphCutter
from runtime.backends.trt_library import import_tensorrt
from runtime.bundle import Bundle
from runtime.engine_cache import build_engines
from runtime.engine_plan import EngineOptions
from runtime.engine_target import choose_target
from tests.tensorrt_build import rtx_version

LEVELS, BLOCKS = 5, 2  # resolutions of the tokenizer, residual blocks of an encoder's level


def products(cutter: GraphCutter, count: int) -> list[int]:
    """Convolutions and matrix products of every part."""
    parts = cutter.cut(cutter.whole(), count)
    nodes = [cutter.extract(part).graph.node for part in parts]
    return [sum(node.op_type in PRODUCTS for node in part) for part in nodes]


def open_graph(bundle: Bundle, graph: str) -> GraphCutter:
    return GraphCutter.open(bundle.path(bundle.manifest.graphs[graph]))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_decoder_is_cut_at_every_block(precision: str, request: pytest.FixtureRequest) -> None:
    fixture = {"fp32": "tiny_bundle", "fp16": "tiny_fp16_bundle"}[precision]
    cutter = open_graph(Bundle.open(request.getfixturevalue(fixture)), "decode")
    residual, attention = 2 + LEVELS * (BLOCKS + 1), 1 + BLOCKS + 1
    single = 2 + LEVELS - 1 + 1  # before the blocks, upsampling, at the end
    shortcuts = 2  # where the width changes from one level to the next
    found = products(cutter, 999)
    assert len(found) == residual + attention + single
    assert sorted(found) == [
        *(1 for _ in range(single)),
        *(2 for _ in range(residual - shortcuts)),
        *(3 for _ in range(shortcuts)),
        *(4 for _ in range(attention)),
    ]


@pytest.mark.parametrize(
    ("graph", "count"), [("decode", 2), ("decode", 8), ("encode", 2), ("encode", 5)]
)
def test_stages_are_of_nearly_equal_size(tiny_bundle: Path, graph: str, count: int) -> None:
    found = products(open_graph(Bundle.open(tiny_bundle), graph), count)
    assert len(found) == count
    # the quantizer at the end of the encoder cannot be cut
    assert max(found[:-1]) <= sum(found) / count + 4


@pytest.mark.trt
@pytest.mark.skipif(
    (rtx_version() or (0,)) < (1, 7), reason="needs TensorRT-RTX 1.7, which builds without GPU"
)
def test_engines_of_stages(tiny_fp16_bundle: Path, tmp_path: Path) -> None:
    for path in tiny_fp16_bundle.iterdir():
        (tmp_path / path.name).symlink_to(path)
    bundle = Bundle.open(tmp_path)
    others = {spec.kind for spec in bundle.manifest.graphs.values()} - {"decode"}
    options = EngineOptions(batches=(1, 3), leave_out=tuple(sorted(others)), stages={"decode": 3})
    library = import_tensorrt("tensorrt_rtx")
    target = choose_target(library, ("sm86",), None, attention="function")
    engines = build_engines(bundle, target, options).engines
    (entry,) = engines.manifest.engines.values()
    assert [len(engines.read_plan("decode", i)) for i in range(3)] == [
        plan.nbytes for plan in entry.plans
    ]
    assert entry.nbytes < 1.5 * bundle.manifest.weights.nbytes  # a weight is in one of them
    assert not build_engines(bundle, target, options).built
