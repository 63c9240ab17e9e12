"""A bundle's graph in TensorRT-RTX: the attention op as our plugin, or as its function body.

No GPU is needed to build; the engines are for other machines.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from runtime.bundle import Bundle
from tests.attention_cases import PACKS, make_inputs
from tests.gpu.test_plugin_engine import HEADS, feeds, gqa_model
from tests.plugin_build import PluginBuild
from tests.tensorrt_build import Profile, Report, build_engine, rtx_version

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        (rtx_version() or (0,)) < (1, 7),
        reason="needs TensorRT-RTX 1.7, whose parser maps custom nodes to plugins",
    ),
]

GRAPH = "ns_trunk"
ARCHES = (80, 86, 89, 120)
PRECISIONS = ("fp32", "fp16", "bf16")
# rows of the guided batch, tokens, blocks
PROFILES = ((2, 1, 1), (2, 9, 1), (6, 16, 1), (3, 30, 4))
BundleOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def bundle_of(request: pytest.FixtureRequest) -> BundleOf:
    names = {
        "fp32": "tiny_bundle",
        "fp16": "tiny_fp16_bundle",
        "bf16": "tiny_bf16_bundle",
    }
    return lambda precision: request.getfixturevalue(names[precision])


def profiles(bundle: Path) -> list[Profile]:
    inputs = Bundle.open(bundle).manifest.graphs[GRAPH].inputs
    return [
        {
            spec.name: [
                d
                if isinstance(d, int)
                else {"N": rows, "l": tokens, "blocks_plus_1": blocks + 1}[d]
                for d in spec.shape
            ]
            for spec in inputs
        }
        for rows, tokens, blocks in PROFILES
    ]


def graph_of(bundle: Path) -> Path:
    return bundle / "graphs" / f"{GRAPH}.onnx"


def build(bundle: Path, folder: Path, library: Path | None, graph: Path | None = None) -> Report:
    return build_engine(
        graph or graph_of(bundle),
        folder,
        library=library,
        profiles=profiles(bundle),
        arches=ARCHES,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engine_with_the_plugin(
    bundle_of: BundleOf, precision: str, plugin_build: PluginBuild, tmp_path: Path
) -> None:
    bundle = bundle_of(precision)
    report = build(bundle, tmp_path, plugin_build.library)
    nodes = [n.op_type for n in onnx.load(graph_of(bundle), load_external_data=False).graph.node]
    assert report.layers["PLUGIN_V3"] == nodes.count("BlockSparseAttention") > 0
    assert "SOFTMAX" not in report.layers
    # the plugin's serialised attribute
    assert b"block_diagonal" in report.plan


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engine_of_the_function_body(bundle_of: BundleOf, precision: str, tmp_path: Path) -> None:
    report = build(bundle_of(precision), tmp_path, None)
    assert "PLUGIN_V3" not in report.layers and report.layers["SOFTMAX"] > 0
    assert report.plan and b"block_diagonal" not in report.plan


def test_harness_of_the_gpu_tests(plugin_build: PluginBuild, tmp_path: Path) -> None:
    inputs = make_inputs(PACKS["pyramid"], torch.float16, "block_causal", True, heads=HEADS)
    graph = tmp_path / "gqa.onnx"
    onnx.save(gqa_model(inputs.attributes, torch.float16, packed=True), graph)
    profile = {name: tensor.shape for name, tensor in feeds(inputs, packed=True).items()}
    report = build_engine(
        graph, tmp_path, library=plugin_build.gqa_harness, profiles=[profile], arches=ARCHES
    )
    assert report.plan and report.layers["PLUGIN_V3"] == 1


def test_wrong_attribute_is_named_in_tensorrts_log(
    tiny_fp16_bundle: Path, plugin_build: PluginBuild, tmp_path: Path
) -> None:
    model = onnx.load(graph_of(tiny_fp16_bundle), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "pattern":
                attribute.s = b"causal"
    graph = tmp_path / "wrong.onnx"
    onnx.save(model, graph)
    shutil.copy(tiny_fp16_bundle / "graphs" / "weights.bin", tmp_path)
    report = build(tiny_fp16_bundle, tmp_path, plugin_build.library, graph)
    assert not report.plan
    assert any(
        'attribute pattern must be block_diagonal or block_causal, got "causal"' in message
        for message in report.messages
    )
