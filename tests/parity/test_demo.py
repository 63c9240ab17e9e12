"""The shipped checkpoint from file to picture: what is asked for is what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export import ExportConfig, export_bundle
from runtime.backends.onnx_stages import GraphCutter
from runtime.pipeline import Pipeline
from tests.cpp_build import build_cpp
from tests.cpp_runtime import CppSession, Library

DEMO = Path(__file__).resolve().parents[2] / "demo"
COLORS = {"robot-red": 0, "robot-green": 1, "robot-blue": 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = export_bundle(
        ExportConfig(),
        [DEMO / "hmar.safetensors"],
        DEMO / "tokenizer.safetensors",
        tmp_path_factory.mktemp("demo") / "bundle",
        class_names=DEMO / "classes.json",
        sampling=DEMO / "sampling.json",
    )
    assert report.certificate is not None
    assert report.certificate.agreement("argmax") == 1.0
    # one of 2,718 uniforms lies next to the edge of its token's interval
    assert report.certificate.agreement("drawn") > 0.999
    return report.bundle


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle, "ort-cpu")


@pytest.mark.parametrize("name", COLORS)
def test_robots_have_the_colour_of_their_class(pipeline: Pipeline, name: str) -> None:
    images = pipeline.generate([name] * 2, seed=1)
    assert images.shape == (2, 128, 128, 3)
    middle = images[:, 40:90, 50:78].astype(float).mean(axis=(0, 1, 2))  # the robot's face
    assert np.argmax(middle) == COLORS[name], middle


def test_a_picture_survives_the_tokenizer(pipeline: Pipeline) -> None:
    (image,) = pipeline.generate(["robot-yellow"], seed=2)
    tokens = pipeline.encode(image[None])
    f_hat = pipeline.runner.run("encode", {"image": image[None].transpose(0, 3, 1, 2) / 255})[
        "f_hat"
    ]
    decoded = pipeline.runner.numpy(pipeline.runner.run("decode", {"f_hat": f_hat})["image"])[0]
    error = np.mean((decoded.transpose(1, 2, 0) - image / 255) ** 2)
    assert -10 * np.log10(error) > 28, "PSNR in dB"
    assert [t.shape[1] for t in tokens] == [pn * pn for pn in pipeline.manifest.hmar.patch_nums]


def test_the_right_class_explains_a_picture_best(pipeline: Pipeline) -> None:
    images = pipeline.generate(["cat", "robot-blue"], seed=3)
    tokens = pipeline.encode(images)
    right = pipeline.score(tokens, ["cat", "robot-blue"]).ns_log_prob.sum(axis=1)
    wrong = pipeline.score(tokens, ["robot-blue", "cat"]).ns_log_prob.sum(axis=1)
    assert (right > wrong).all(), (right, wrong)


def test_the_cpp_runtime_draws_the_same_picture(pipeline: Pipeline, bundle: Path) -> None:
    label = pipeline.class_names.index("robot-red")
    with CppSession(Library(build_cpp("cpp").library), bundle) as session:
        ours = session.generate([label], seed=1)
    expected = pipeline.generate([label], seed=1)
    np.testing.assert_array_equal(ours["pixels"], expected)


def test_the_decoder_can_be_cut_between_its_blocks(bundle: Path) -> None:
    cutter = GraphCutter.open(bundle / "graphs/decode.onnx")
    parts = cutter.cut(cutter.whole(), 999)
    assert all(len(part.stage.inputs) == len(part.stage.outputs) == 1 for part in parts)
    # 10 residual blocks, 3 of attention, 3 of upsampling, 2 convolutions before and 1 after
    assert len(parts) == 19
