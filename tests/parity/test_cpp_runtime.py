"""The C++ runtime against golden traces and the Python runtime, through its C interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.config import SamplingConfig
from runtime.given import KeptTokens
from runtime.pipeline import Pipeline
from tests.cases import draws_of, labels_of, sampling_of
from tests.cpp_build import CppBuild, build_cpp, call
from tests.cpp_runtime import (
    CppSession,
    Library,
    ScaleEvent,
    StatusError,
    onnxruntime_library,
)
from tests.golden_data import Case
from tests.trace_check import compare_trace

TINY = Case("tiny")
EXAMPLES = Path(__file__).resolve().parents[2] / "runtime" / "cpp" / "examples"
SANITIZERS = {
    "address,undefined": "unit_test;himar_test;api_test;gpu_test;gpu_faults_test;engines_test",
    "thread": "api_test;gpu_test",
}
"""And the test programs that they look at."""


@pytest.fixture(scope="module")
def build() -> CppBuild:
    return build_cpp("cpp")


@pytest.fixture(scope="module")
def library(build: CppBuild) -> Library:
    return Library(build.library)


@pytest.fixture(scope="module")
def session(library: Library, tiny_bundle: Path) -> Iterator[CppSession]:
    with CppSession(library, tiny_bundle) as session:
        yield session


@pytest.mark.parametrize("name", TINY.traces)
def test_golden_trace(session: CppSession, name: str) -> None:
    entry, golden = TINY.trace(name)
    ours = session.generate(
        labels_of(entry["call"]),
        sampling=sampling_of(entry["call"]),
        draws=draws_of(entry, golden),
    )
    results = {n: a for n, a in golden.items() if n in ours}
    assert (
        len(results) == len(TINY.config["patch_nums"]) + 1
    )  # tokens of every scale, and the image
    compare_trace(results, ours)


@pytest.mark.parametrize(
    "sampling",
    [
        None,
        SamplingConfig(cfg=4.0, top_k=0, top_p=0.9, mask_schedule=[[], [1, 3], [2, 3, 4], [9, 9]]),
        SamplingConfig(cfg=0.0, top_k=5, top_p=0.0),
        SamplingConfig(cfg=2.0, top_k=0, top_p=1.0, context="prefix"),
        SamplingConfig(cfg=2.0, top_k=30, top_p=0.5, skip_guidance_below=0.0),
    ],
    ids=["published", "masks", "top-k", "prefix", "guided"],
)
def test_same_seed_same_images_as_python(
    session: CppSession, tiny_pipeline: Pipeline, sampling: SamplingConfig | None
) -> None:
    labels, seed, index = [3, -1, 7], 2**64 - 1, [5, 2**40, 0]
    ours = session.generate(labels, seed=seed, image_index=index, sampling=sampling)
    theirs = tiny_pipeline.generate(labels, seed=seed, image_index=index, sampling=sampling)
    np.testing.assert_array_equal(ours["pixels"], theirs)


def test_float16_goes_through_the_trunks_as_in_python(
    library: Library, tiny_fp16_bundle: Path
) -> None:
    with CppSession(library, tiny_fp16_bundle) as session:
        ours = session.generate([3, 9], seed=4)
    with Pipeline.load(tiny_fp16_bundle, "ort-cpu") as pipeline:
        np.testing.assert_array_equal(ours["pixels"], pipeline.generate([3, 9], seed=4))


def test_encoding_and_callbacks(session: CppSession, tiny_pipeline: Pipeline) -> None:
    events = []

    def stop(event: ScaleEvent) -> int:
        events.append((event.scale_idx, event.pn, event.num_images, event.tokens[0]))
        return event.scale_idx == 1

    images = session.generate([1, 2], seed=6)
    tokens = session.encode(images["pixels"])
    for k, expected in enumerate(tiny_pipeline.encode(images["pixels"])):
        np.testing.assert_array_equal(tokens[f"s{k}_tokens"], expected)
    with pytest.raises(StatusError, match="after scale 1 of images 0 to 1") as raised:
        session.generate([1, 2], seed=6, on_scale=stop)
    assert raised.value.status == "HMAR_STOPPED"
    assert events == [(k, k + 1, 2, images[f"s{k}_tokens"][0, 0]) for k in (0, 1)]


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9, 1.0])
def test_known_tokens_as_in_python(
    session: CppSession, tiny_pipeline: Pipeline, share: float
) -> None:
    rng = np.random.default_rng(0)
    tokens, keep = rng.integers(0, 64, (3, 30)), rng.random((3, 30)) < share
    sampling = SamplingConfig(
        cfg=2.0, top_k=40, top_p=0.9, mask_schedule=[[], [1, 3], [2, 3, 4], [4, 4, 8]]
    )
    ours = session.generate([3, 8, -1], seed=2, sampling=sampling, known=(tokens, keep))
    maps, kept = (np.split(values, [1, 5, 14], axis=1) for values in (tokens, keep))
    given = KeptTokens(tokens=maps, kept=kept)
    theirs = tiny_pipeline.generate([3, 8, -1], seed=2, sampling=sampling, given=given)
    np.testing.assert_array_equal(ours["pixels"], theirs)
    for k in range(4):
        np.testing.assert_array_equal(ours[f"s{k}_tokens"][kept[k]], maps[k][kept[k]])


def test_wrong_use_is_answered(library: Library, session: CppSession, tmp_path: Path) -> None:
    with pytest.raises(StatusError, match=r"HMAR_INVALID_BUNDLE: .*no bundle here"):
        CppSession(library, tmp_path)
    with pytest.raises(StatusError, match="HMAR_INVALID_ARGUMENT: label 10 is out of range"):
        session.generate([10])


@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_under_sanitizers(
    sanitizers: str, tiny_bundle: Path, recorded_bundle: Path, engine_bundles: tuple[Path, Path]
) -> None:
    build = build_cpp(
        f"cpp-{sanitizers.replace(',', '-')}",
        f"-DHMAR_SANITIZE={sanitizers}",
        f"-DHMAR_TEST_PROGRAMS={SANITIZERS[sanitizers]}",
        "-DHMAR_TOOLS=OFF",
        "-DCMAKE_BUILD_TYPE=None",  # compiling takes longer than running
        "-DCMAKE_CXX_FLAGS=-O0 -g1",
    )
    build.test(tiny_bundle, recorded_bundle, engine_bundles)


def test_the_installed_library_from_another_project(
    build: CppBuild, session: CppSession, tiny_bundle: Path, tmp_path: Path
) -> None:
    prefix, examples = tmp_path / "prefix", tmp_path / "examples"
    build.install(prefix)
    (library,) = (p for p in prefix.rglob("libhmar_runtime.so*") if not p.is_symlink())
    assert library.stat().st_size < 3e6
    call("cmake", "-S", str(EXAMPLES), "-B", str(examples), f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", str(examples))
    picture = tmp_path / "picture.ppm"
    arguments = (str(tiny_bundle), str(onnxruntime_library()))
    call(str(examples / "picture"), *arguments, "3", str(picture))
    expected = session.generate([3])["pixels"][0]
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), expected)


def test_hmar_generate(
    build: CppBuild, session: CppSession, tiny_bundle: Path, tmp_path: Path
) -> None:
    out, tokens = tmp_path / "out.ppm", tmp_path / "tokens.bin"
    call(
        str(build.generate_tool), "--bundle", str(tiny_bundle), "--labels", "-1,4,2", "--seed", "9",
        "--cfg", "2.5", "--schedule", "none", "--first-index", "3", "--columns", "2",
        "--out", str(out), "--tokens", str(tokens), "--threads", "1",
        "--onnxruntime", str(onnxruntime_library()),
    )  # fmt: skip
    defaults = SamplingConfig(cfg=2.5, top_k=64, top_p=0.96)
    ours = session.generate([-1, 4, 2], seed=9, image_index=[3, 4, 5], sampling=defaults)
    grid = np.asarray(Image.open(out))
    assert grid.shape == (128, 128, 3)
    np.testing.assert_array_equal(grid[:64, 64:], ours["pixels"][1])
    np.testing.assert_array_equal(grid[64:, :64], ours["pixels"][2])
    written = np.fromfile(tokens, np.int32).reshape(3, -1)
    scales = [ours[f"s{k}_tokens"] for k in range(4)]
    np.testing.assert_array_equal(written, np.concatenate(scales, axis=1))
