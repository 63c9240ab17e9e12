"""The C++ runtime by recordings that run TensorRT engines; GPU and TensorRT are stand-ins."""

from __future__ import annotations

import ctypes
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.recordings import recordings_folder
from runtime.bundle import Bundle
from runtime.config import SamplingConfig
from runtime.draws import ArgmaxDraws
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_pipeline import HiMARPipeline
from runtime.pipeline import HMARPipeline, Pipeline
from runtime.recording import INDEX_FILE
from runtime.recording_reader import RecordingFolder
from tests.cpp_build import CppBuild, build_cpp, call
from tests.cpp_gpu import FakeGpu
from tests.cpp_himar import CppHimarSession
from tests.cpp_runtime import CppSession, Library, StatusError
from tests.host_engines import HostEngines
from tests.host_library import GPU
from tests.recorded import engine_library, make_engine_bundle


@dataclass(frozen=True, slots=True)
class Recorded:
    """A bundle with recordings that run engines, on the stand-ins."""

    bundle: Bundle
    folder: RecordingFolder
    gpu: FakeGpu
    tensorrt: Path
    functions: ctypes.CDLL
    engines: HostEngines

    def opened(self, build: CppBuild, **options: Any) -> Any:
        """A session of the bundle's family; its options are those of `CppSession`."""
        session = CppSession if self.bundle.manifest.family == "hmar" else CppHimarSession
        given = {"backend": "gpu", "plugins": self.gpu.plugins, "tensorrt": self.tensorrt}
        return session(Library(build.library), self.bundle.folder, **{**given, **options})

    def check(self) -> None:
        """Raises what went wrong where the runtime does not see it."""
        if self.gpu.failure is not None:
            raise self.gpu.failure
        assert self.gpu.live == 0 and self.gpu.violations == 0
        assert self.functions.fake_tensorrt_live() == 0


@pytest.fixture(scope="module")
def build() -> CppBuild:
    return build_cpp("cpp")


def recorded(build: CppBuild, folder: Path, *, has_layers: bool) -> Recorded:
    bundle = Bundle.open(folder)
    recordings = RecordingFolder.open(recordings_folder(bundle, GPU))
    gpu = FakeGpu(build, engine_library(bundle, has_layers=has_layers))
    host, tensorrt = HostEngines(bundle), build.fake_tensorrt
    return Recorded(bundle, recordings, gpu, tensorrt, gpu.run_engines(tensorrt, host), host)


@pytest.fixture(scope="module", params=[True, False], ids=["decoder", "all graphs"])
def hmar(
    request: pytest.FixtureRequest,
    build: CppBuild,
    tiny_bundle: Path,
    tiny_fp16_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Recorded]:
    """What runs by engines is the name; files of this bundle may be changed."""
    folder = tmp_path_factory.mktemp("engines") / "bundle"
    bundle = tiny_fp16_bundle if request.param else tiny_bundle
    make_engine_bundle(folder, bundle, has_layers=request.param)
    made = recorded(build, folder, has_layers=request.param)
    yield made
    made.gpu.close()


@pytest.fixture(scope="module")
def himar(build: CppBuild, engine_bundles: tuple[Path, Path]) -> Iterator[Recorded]:
    made = recorded(build, engine_bundles[1], has_layers=False)
    yield made
    made.gpu.close()


@pytest.mark.parametrize("count", [1, 2], ids=["whole", "padded"])
def test_hmar_by_engines(build: CppBuild, hmar: Recorded, count: int) -> None:
    labels, index = [3, -1][:count], [5, 2**63][:count]
    with hmar.opened(build) as session:
        before = hmar.engines.runs
        ours = [session.generate(labels, seed=7, image_index=index) for _ in range(2)]
        assert hmar.engines.runs >= before + 2
    hmar.check()
    np.testing.assert_array_equal(ours[0]["pixels"], ours[1]["pixels"])
    assert np.ptp(ours[0]["pixels"]) > 0
    if "decoder" in hmar.gpu.parts or "transformer" in hmar.gpu.parts:
        return  # these kernels round otherwise
    tokens: list[np.ndarray] = []
    with Pipeline.load(hmar.bundle.folder, "ort-cpu", threads=1) as pipeline:
        assert isinstance(pipeline, HMARPipeline)
        pixels = pipeline.generate(
            labels, seed=7, image_index=index, on_scale=lambda e: tokens.append(e.tokens)
        )
    for k, expected in enumerate(tokens):
        np.testing.assert_array_equal(ours[0][f"s{k}_tokens"], expected.reshape(count, -1))
    assert np.abs(ours[0]["pixels"].astype(int) - pixels).max() <= 1


def test_hmar_step_by_step(build: CppBuild, hmar: Recorded) -> None:
    """What no whole generation serves, by recordings of steps."""
    bundle = hmar.bundle
    defaults = SamplingConfig.defaults(bundle.manifest)
    others = dataclasses.replace(defaults, mask_schedule=((1,), (1, 1), (2, 3, 4), ()))
    with hmar.opened(build) as session, CppSession(Library(build.library), bundle.folder) as ort:
        before = hmar.engines.runs
        scales: list[int] = []
        seen = session.generate([3, -1], seed=2, on_scale=lambda e: scales.append(e.scale_idx) or 0)
        assert scales == [0, 1, 2, 3] and hmar.engines.runs > before
        images = seen["pixels"]
        known = np.concatenate([seen[f"s{k}_tokens"] for k in range(4)], axis=1)
        keep = np.random.default_rng(0).random(known.shape) < 0.5
        results = [
            [
                s.generate([3, -1], seed=2, on_scale=lambda e: 0),
                s.generate([1, 2, 3, 4], seed=4, sampling=others),
                s.generate([5, 6], seed=1, known=(known, keep)),
                s.generate([7], draws=ArgmaxDraws()),
            ]
            for s in (session, ort)
        ]
        with pytest.raises(StatusError, match="may guide other passes"):
            session.generate([1], sampling=dataclasses.replace(defaults, skip_guidance_below=0.0))
        tokens = [s.encode(images) for s in (session, ort)]
    hmar.check()
    if bundle.manifest.precision == "fp16":
        return  # these kernels round otherwise
    for ours, theirs in (*zip(*results, strict=True), tokens):
        for k in range(4):
            np.testing.assert_array_equal(ours[f"s{k}_tokens"], theirs[f"s{k}_tokens"])
        if "pixels" in ours:
            assert np.abs(ours["pixels"].astype(int) - theirs["pixels"]).max() <= 1
    edited = np.concatenate([results[0][2][f"s{k}_tokens"] for k in range(4)], axis=1)
    np.testing.assert_array_equal(edited[keep], known[keep])
    assert (edited != known).any()


@pytest.mark.parametrize("count", [1, 2, 4], ids=["whole", "padded", "split"])
def test_himar_by_engines(build: CppBuild, himar: Recorded, count: int) -> None:
    labels, index = [3, 7, -1, 0][:count], [0, 5, (1 << 40) + 2, 1][:count]
    steps: list[int] = []
    with himar.opened(build) as session:
        assert session.backend.startswith("gpu (")
        ours = session.generate(
            labels, seed=9, image_index=index, on_step=lambda e: steps.append(e.step_idx) or 0
        )
        cond = HiMARSamplingConfig.defaults(himar.bundle.manifest)
        with pytest.raises(StatusError, match="no recording has these settings") as raised:
            session.generate(labels, sampling=HiMARSamplingConfig(num_iter=3, cfg=cond.cfg))
        assert raised.value.status == "HMAR_UNSUPPORTED"
    himar.check()
    assert len(steps) == (16 + 4) * (2 if count == 4 else 1)
    with Pipeline.load(himar.bundle.folder, "ort-cpu", threads=1) as pipeline:
        assert isinstance(pipeline, HiMARPipeline)
        theirs = pipeline.generate_tokens(labels, seed=9, image_index=index)
        pixels = pipeline.decode(theirs.dense), pipeline.decode_small(theirs.pivots)
    np.testing.assert_allclose(ours["pivots"], theirs.pivots, atol=2e-4)
    np.testing.assert_allclose(ours["dense"], theirs.dense, atol=2e-4)
    for name, expected in zip(("pixels", "small_pixels"), pixels, strict=True):
        assert np.abs(ours[name].astype(int) - expected).max() <= 1


def test_what_no_recording_of_himar_serves_runs_on_onnxruntime(
    build: CppBuild, himar: Recorded
) -> None:
    library, other = (
        Library(build.library),
        HiMARSamplingConfig(pivot_diffusion_steps="2,2,0,0", dense_diffusion_steps="2,1,0,0"),
    )
    with CppHimarSession(library, himar.bundle.folder) as session:
        expected = session.generate([4], seed=1, sampling=other)["pixels"]
        images = np.zeros((1, *expected.shape[1:]), np.uint8)
        dense = session.encode(images)
    with himar.opened(build, backend="auto") as session:
        assert session.backend.startswith("gpu")
        np.testing.assert_array_equal(
            session.generate([4], seed=1, sampling=other)["pixels"], expected
        )
        np.testing.assert_array_equal(session.encode(images), dense)
    himar.check()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("createInferRuntime", "HMAR_BACKEND_UNAVAILABLE: backend gpu: .*: no runtime"),
        ("deserializeCudaEngine", r"cannot load this plan .*\(made for another device\)"),
        ("createExecutionContext", "HMAR_BACKEND_FAILED: engine .*: no context"),
        ("setOptimizationProfileAsync", r"HMAR_BACKEND_FAILED: engine .*: no profile \d"),
        ("setTensorAddress", "HMAR_BACKEND_FAILED: engine .*: no output"),
        ("enqueueV3", "HMAR_BACKEND_FAILED: engine .*: cannot run"),
    ],
)
def test_failing_functions(build: CppBuild, hmar: Recorded, function: str, message: str) -> None:
    hmar.functions.fake_tensorrt_fail(function.encode())

    def generate() -> np.ndarray:
        with hmar.opened(build) as session:
            try:
                return session.generate([1])["pixels"]
            except StatusError:
                hmar.functions.fake_tensorrt_fail(None)
                session.generate([1])  # what failed once may be asked for again
                raise

    try:
        with pytest.raises(StatusError, match=message):
            generate()
    finally:
        hmar.functions.fake_tensorrt_fail(None)
    hmar.check()
    generate()


def test_what_does_not_fit(build: CppBuild, hmar: Recorded, tmp_path: Path) -> None:
    index_file = hmar.folder.folder / INDEX_FILE
    original = index_file.read_text(encoding="utf-8")

    def refused(message: str, *, tensorrt: Path | None = hmar.tensorrt) -> None:
        with (
            pytest.raises(StatusError, match=message),
            hmar.opened(build, tensorrt=tensorrt) as session,
        ):
            session.generate([1])
        hmar.check()

    refused("TensorRT cannot be loaded .* install tensorrt 10", tensorrt=tmp_path / "libnvinfer.so")
    refused("has no getInferLib", tensorrt=hmar.gpu.plugins)
    engines = json.loads(original)["engines"]
    changes = {
        "is version 10.* the engines are for tensorrt 10.13": {"library_version": "10.13.0.1"},
        "was built with the headers of 10": {"library_version": "11.0.0.1"},
        "are for tensorrt_rtx 1.7": {"library": "tensorrt_rtx", "library_version": "1.7.1.116"},
        "library 'nvinfer', expected": {"library": "nvinfer"},
        "is not in the folder": {"folder": "../elsewhere"},
    }
    try:
        for message, change in changes.items():
            changed = json.loads(original) | {"engines": engines | change}
            index_file.write_text(json.dumps(changed), encoding="utf-8")
            refused(message)
        rows = json.loads(original)
        plans = [entry["plan"] for entry in rows["recordings"]]
        decode = next(plan for plan in plans if plan.get("graph") == "decode")
        decode["outputs"]["image"][0] += 1
        index_file.write_text(json.dumps(rows), encoding="utf-8")
        refused("image has other rows")
        plugin = json.loads(original) | {"engines": engines | {"needs_plugin": True}}
        index_file.write_text(json.dumps(plugin), encoding="utf-8")
        hmar.functions.fake_tensorrt_fail(b"loadLibrary,deserializeCudaEngine")
        refused(r"cannot load this plan .*did not take the attention plugin .*\(no such library\)")
        hmar.functions.fake_tensorrt_fail(None)
        with hmar.opened(build):
            assert hmar.functions.fake_tensorrt_plugins() == str(hmar.gpu.plugins).encode()
    finally:
        hmar.functions.fake_tensorrt_fail(None)
        index_file.write_text(original, encoding="utf-8")
    for plan in (hmar.folder.folder.parent / engines["folder"]).glob("*.plan"):
        plan.write_bytes(plan.read_bytes().replace(b"graph", b"grapf"))
    refused("HMAR_CHECKSUM_MISMATCH: .*plan: cut short or altered")
    for plan in (hmar.folder.folder.parent / engines["folder"]).glob("*.plan"):
        plan.write_bytes(plan.read_bytes().replace(b"grapf", b"graph"))


def test_hmar_generate_by_engines(build: CppBuild, hmar: Recorded, tmp_path: Path) -> None:
    out = tmp_path / "out.ppm"
    printed = call(
        str(build.generate_tool), "--bundle", str(hmar.bundle.folder), "--labels", "1",
        "--out", str(out), "--backend", "gpu", "--plugins", str(hmar.gpu.plugins),
        "--tensorrt", str(hmar.tensorrt),
        env={
            "LD_LIBRARY_PATH": str(build.folder),
            "LD_PRELOAD": str(build.folder / "libcuda.so.1"),
            "HMAR_TEST_RECORDED": str(hmar.bundle.folder),
        },
    )  # fmt: skip
    assert "on gpu (Fake GPU, sm90)" in printed
    assert out.read_bytes().startswith(b"P6\n64 64\n255\n")
