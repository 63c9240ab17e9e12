"""The C++ runtime's Hi-MAR against golden generations and the Python runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import MANIFEST_FILE, Bundle
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_pipeline import HiMARPipeline
from runtime.himar_trajectory import to_map
from runtime.low_resolution import SMALL_SIDE_PX
from runtime.pipeline import Pipeline
from scripts.himar_case import CaseDraws, case_sampling
from tests.cpp_build import build_cpp
from tests.cpp_himar import PHASES, CppHimarSession, StepEvent
from tests.cpp_runtime import CppSession, Library, StatusError
from tests.himar_golden import HiMARCase
from tests.recorded import linked_bundle

QUICK = HiMARSamplingConfig(
    num_iter=2, pivot_diffusion_steps="2,1,0,0", dense_diffusion_steps="2,1,0,0"
)


@pytest.fixture(scope="module")
def session(tiny_himar_bundle: Path) -> Iterator[CppHimarSession]:
    library = Library(build_cpp("cpp").library)
    with CppHimarSession(library, tiny_himar_bundle, max_batch=3) as session:
        yield session


@pytest.fixture(scope="module")
def pipeline(tiny_himar_bundle: Path) -> Iterator[HiMARPipeline]:
    with Pipeline.load(tiny_himar_bundle, "ort-cpu", threads=1) as pipeline:
        assert isinstance(pipeline, HiMARPipeline)
        yield pipeline


@pytest.mark.parametrize("name", ["linear", "iter1", "only_cfg", "unlabelled"])
def test_golden_generation(session: CppHimarSession, pipeline: HiMARPipeline, name: str) -> None:
    case = HiMARCase(f"tiny_a.{name}")
    call, sampling, model = case.json["sampler"], case_sampling(case.json), pipeline.manifest.himar
    labels = call["labels"] or [-1] * call["bsz"]
    draws = CaseDraws(case.json["noise_seed"], sampling, model, len(labels), slice(None))
    ours = session.generate(labels, sampling=sampling, draws=draws)
    case.check("small_tokens", to_map(ours["pivots"], model.pivot_side))
    if name == "iter1":  # the suite's folder has the images of this one
        case.check("dense_tokens", to_map(ours["dense"], model.dense_side))
        case.check("image", 2 * ours["image"] - 1)


@pytest.mark.parametrize("changes", [{}, {"num_iter": 5}, {"cfg": 1.0, "temperature": 0.5}])
def test_same_seed_same_tokens_as_python(
    session: CppHimarSession, pipeline: HiMARPipeline, changes: dict[str, float]
) -> None:
    sampling = HiMARSamplingConfig(**{**vars_of(QUICK), **changes})
    labels, seed, index = [3, -1, 7, 0], 2**64 - 1, [5, 2**40, 0, 1]
    ours = session.generate(labels, seed=seed, image_index=index, sampling=sampling)
    theirs = pipeline.generate_tokens(labels, seed=seed, image_index=index, sampling=sampling)
    np.testing.assert_allclose(ours["pivots"], theirs.pivots, atol=2e-4)
    np.testing.assert_allclose(ours["dense"], theirs.dense, atol=2e-4)
    for pixels, expected in (
        (ours["pixels"], pipeline.decode(theirs.dense)),
        (ours["small_pixels"], pipeline.decode_small(theirs.pivots)),
    ):
        assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_float16_goes_through_the_graphs_of_many_steps_as_in_python(
    tiny_himar_fp16_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    spoil_step_graphs(linked_bundle(folder, tiny_himar_fp16_bundle))
    with CppHimarSession(Library(build_cpp("cpp").library), folder) as session:
        ours = session.generate([3, -1], seed=5, sampling=QUICK)
    with Pipeline.load(folder, "ort-cpu", threads=1) as pipeline:
        assert isinstance(pipeline, HiMARPipeline)
        theirs = pipeline.generate_tokens([3, -1], seed=5, sampling=QUICK)
    np.testing.assert_allclose(ours["pivots"], theirs.pivots, atol=2e-4)
    np.testing.assert_allclose(ours["dense"], theirs.dense, atol=2e-4)


def spoil_step_graphs(bundle: Bundle) -> None:
    """No graph of a later step can be loaded; the manifest agrees with what is there."""
    data = b"no graph"
    stored = json.loads((bundle.folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    for graph in stored["graphs"].values():
        if graph["kind"] in ("pivot", "dense") and graph["step_idx"]:
            graph |= {"sha256": hashlib.sha256(data).hexdigest(), "nbytes": len(data)}
            path = bundle.folder / graph["file"]
            path.unlink()
            path.write_bytes(data)
    (bundle.folder / MANIFEST_FILE).unlink()
    (bundle.folder / MANIFEST_FILE).write_text(json.dumps(stored), encoding="utf-8")


def vars_of(config: HiMARSamplingConfig) -> dict[str, float | str]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_class_vectors_are_as_good_as_classes(session: CppHimarSession) -> None:
    vectors = HiMARCase("tiny_a.linear").model.cond([3, 7]).numpy()
    by_label = session.generate([3, 7], sampling=QUICK)
    by_vector = session.generate(cond=vectors, sampling=QUICK)
    np.testing.assert_array_equal(by_label["dense"], by_vector["dense"])


def test_pictures_have_the_tokens_of_python(
    session: CppHimarSession, pipeline: HiMARPipeline
) -> None:
    side = session.info.image_side_px
    images = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    ours = session.encode(images)  # in two parts
    np.testing.assert_allclose(ours, pipeline.encode(images), atol=2e-4)
    assert ours.std(axis=(1, 2)).min() > 0
    with pytest.raises(StatusError, match=r"HMAR_INVALID_ARGUMENT: pixels: expected a multiple of"):
        session.encode(images[:, :-1])
    with pytest.raises(StatusError, match="HMAR_UNSUPPORTED: this needs a bundle of HMAR; this"):
        CppSession.encode(session, images)


def test_callbacks(session: CppHimarSession) -> None:
    events = []

    def stop(event: StepEvent) -> int:
        phase = PHASES[event.phase]
        events.append((phase, event.step_idx, event.num_images))
        return phase == "dense"

    with pytest.raises(StatusError, match=r"HMAR_STOPPED: .* after step 0 of images 0 to 1"):
        session.generate([1, 2], sampling=QUICK, on_step=stop)
    steps = 4 * session.info.pivot_side
    assert events == [*(("pivot", s, 2) for s in range(steps)), ("dense", 0, 2)]
    assert SMALL_SIDE_PX == 64  # HMAR_HIMAR_SMALL_SIDE_PX


def test_wrong_use_is_answered(session: CppHimarSession) -> None:
    for changes, message in (
        ({"labels": [10]}, "label 10 is out of range"),
        ({"cond": np.full((1, session.info.embed_dim), np.nan)}, r"cond\[0\] is not finite"),
    ):
        with pytest.raises(StatusError, match=f"HMAR_INVALID_ARGUMENT: {message}"):
            session.generate(sampling=QUICK, **changes)
    with pytest.raises(StatusError, match="HMAR_UNSUPPORTED: this needs a bundle of HMAR; this"):
        CppSession.generate(session, [1])
