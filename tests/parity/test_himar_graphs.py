"""Hi-MAR's exported graphs on ONNX Runtime against the golden generations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.himar_golden import HiMARCase
from tests.himar_graphs import Graphs, generation_arrays
from tests.tensorrt_build import build_engine, rtx_version


@pytest.fixture(scope="module")
def graphs(tiny_himar_bundle: Path) -> Graphs:
    return Graphs(tiny_himar_bundle)


@pytest.mark.parametrize("name", ["linear", "nocfg", "constant"])
def test_generation(graphs: Graphs, name: str) -> None:
    case = HiMARCase(f"tiny_a.{name}")
    ours = generation_arrays(case, graphs)
    for array in ("p1.tokens", "small_z", "p2.tokens"):
        case.check(array, ours[array])


def test_image(graphs: Graphs) -> None:
    golden = HiMARCase("tiny_a.iter1").arrays
    tokens = np.ascontiguousarray(golden["p2.tokens"][-1])
    (image,) = graphs.run("decode", tokens=torch.from_numpy(tokens))
    expected = golden["image"] / 2 + 0.5
    assert np.abs(image.numpy() - expected).max() < 5e-5


@pytest.mark.trt
@pytest.mark.skipif(
    (rtx_version() or (0,)) < (1, 7), reason="needs TensorRT-RTX 1.7, which builds without GPU"
)
@pytest.mark.parametrize(
    "name",
    [
        "cond",
        "pivot_00",
        "pivot_05",
        "dense_00",
        "dense_02",
        "dense",
        "denoise_pivot",
        "denoise_dense",
        "denoise_dense_unguided",
    ],
)
def test_tensorrt_builds_an_engine(graphs: Graphs, name: str, tmp_path: Path) -> None:
    sizes = {"B": 2, "N": 4, "2B": 4, "n": 3, "known": 5}
    profile = {s.name: [sizes.get(d, d) for d in s.shape] for s in graphs.steps[name].inputs}
    report = build_engine(
        graphs.path(name), tmp_path, library=None, profiles=[profile], arches=[86]
    )
    assert report.plan, report.messages
