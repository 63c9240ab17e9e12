"""Recordings of generations: what a replay of them makes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins_trt.loader import package_version
from runtime.backends.device_values import BufferPool
from runtime.backends.generation import Generation, Inputs, Plan
from runtime.backends.kernel_engines import planned_engines
from runtime.backends.recordings import Library, make_recordings, recordings_folder
from runtime.backends.sampling_kernels import CudaSamplingKernels
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig, SamplingConfig
from runtime.engine_plan import EngineOptions
from runtime.errors import BackendUnavailableError, EngineIncompatibleError
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_pipeline import HiMARPipeline
from runtime.pipeline import HMARPipeline, Pipeline
from runtime.recording import INDEX_FILE, GenerationPlan, Launch, Pointer, RecordingEntry, Run
from runtime.recording_reader import RecordingFolder, check_recording, parse_recording
from scripts import build_engines
from tests.host_device import HostDevice
from tests.host_engines import make_engines
from tests.host_library import GPU, HostLibrary
from tests.recorded import BATCHES, linked_bundle, quick_bundle, record_on_host, samplings
from tests.replay import Replay, ReplayRunner


@pytest.fixture(scope="module")
def bundle(recorded_bundle: Path) -> Bundle:
    return Bundle.open(recorded_bundle)


@pytest.fixture(scope="module")
def library(bundle: Bundle) -> HostLibrary:
    return HostLibrary(bundle)


@pytest.fixture(scope="module")
def settings(bundle: Bundle) -> list[SamplingConfig]:
    return samplings(bundle)


@pytest.fixture(scope="module")
def folder(bundle: Bundle) -> RecordingFolder:
    return RecordingFolder.open(recordings_folder(bundle, GPU))


@pytest.fixture(scope="module")
def engines(bundle: Bundle, library: HostLibrary) -> Iterator[tuple[dict[str, Any], HostDevice]]:
    device = HostDevice()
    config = BackendConfig(name="trt", decoder="kernels", transformer="kernels")
    engines = dict(planned_engines(bundle, config, device, BATCHES, library.parts.__getitem__))
    yield engines, device
    for engine in engines.values():
        engine.close()


def inputs_of(bundle: Bundle, batch: int, sampling: SamplingConfig) -> dict[str, np.ndarray]:
    """Inputs of a full batch but for one row of padding, if there is room."""
    none, count = bundle.manifest.hmar.num_classes, max(1, batch - 1)
    labels = [3, 7, 1][:count] + [none] * (2 * batch - count)
    return {
        "labels": np.array(labels, np.int32),
        "images": np.array([5, 2**63 + 1, 0][:batch], np.uint64),
        "seed": np.array([2**64 - 7], np.uint64),
        "settings": np.array([sampling.cfg, sampling.top_k, sampling.top_p]),
    }


@pytest.mark.parametrize("case", range(3), ids=["published", "no masks", "guided masks"])
@pytest.mark.parametrize("batch", BATCHES, ids=lambda b: f"B{b}")
def test_a_replay_is_the_generation(
    bundle: Bundle,
    library: HostLibrary,
    folder: RecordingFolder,
    engines: tuple[dict[str, Any], HostDevice],
    settings: list[SamplingConfig],
    batch: int,
    case: int,
) -> None:
    sampling, model = settings[case], bundle.manifest.hmar
    entry = folder.index.recordings[BATCHES.index(batch) * len(settings) + case]
    replay = Replay(bundle, folder, folder.recording(entry), library)
    values = inputs_of(bundle, batch, sampling)
    replay.write(**values)
    replay.run()

    (engines_by_graph, device), plan = engines, Plan.of(sampling, model, batch)
    runner, pool = (
        TensorRTRunner(bundle.manifest, engines_by_graph, device, (batch,)),
        BufferPool(device),
    )
    kernels = CudaSamplingKernels(library.parts["sampling"], device.stream)
    inputs = Inputs.empty(batch, pool)
    for name, array in values.items():
        device.upload(getattr(inputs, name).buffer.address, array)
    in_pool = runner.in_pool(pool)
    generation = Generation(plan, in_pool, kernels, device, pool, pool, inputs, _fail)
    pixels = generation()

    recording, side = replay.recording, model.image_side_px
    np.testing.assert_array_equal(
        replay.read(recording.outputs["pixels"], "uint8", batch, side, side, 3), pixels
    )
    np.testing.assert_array_equal(
        replay.read(recording.outputs["image"], "float32", batch, 3, side, side),
        generation.image.numpy(device),
    )
    assert np.ptp(pixels) > 0
    for k, (tokens, pn) in enumerate(zip(generation.tokens, model.patch_nums, strict=True)):
        place = recording.outputs[f"s{k}_tokens"]
        np.testing.assert_array_equal(
            replay.read(place, "int32", batch, pn * pn), tokens.numpy(device)
        )
    # memory is that of the runner: what the pools hold, and scratch memory
    assert recording.scratch_nbytes + recording.constants.nbytes <= 1.1 * sum(
        map(len, device.blocks.values())
    )
    if batch > 1 or case > 0:
        return
    # a further run, after other inputs, finds what it needs as the first did
    replay.write(**{**values, "seed": np.array([3], np.uint64)})
    replay.run()
    replay.write(**values)
    replay.run()
    np.testing.assert_array_equal(
        replay.read(recording.outputs["pixels"], "uint8", *pixels.shape), pixels
    )


@pytest.mark.parametrize("knows_scratch", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("has_kernels", [True, False], ids=["decoder", "all graphs"])
def test_what_has_no_kernels_runs_by_engines(
    bundle: Bundle, tiny_bundle: Path, tmp_path: Path, has_kernels: bool, knows_scratch: bool
) -> None:
    """The decoder, or everything but the sampling; batches are padded to those of the engines."""
    # in float16 tokens depend on how ONNX Runtime rounds
    own = linked_bundle(tmp_path / "bundle", bundle.folder if has_kernels else tiny_bundle)
    library = HostLibrary(own, has_layers=has_kernels)
    if has_kernels:
        del library.tables["decoder"]
    sampling, model = SamplingConfig.defaults(own.manifest), own.manifest.hmar
    options = EngineOptions(batches=(2,))
    engines = make_engines(own, GPU, options, knows_scratch=knows_scratch)
    made = make_recordings(own, GPU, (1,), [sampling], library=library.library, engines=engines)
    entry = made.index.recordings[0]  # and steps
    recording = RecordingFolder.open(made.folder).recording(entry)
    runs = [o for o in recording.operations if isinstance(o, Run)]
    assert all((run.scratch is None) != knows_scratch for run in runs)
    assert len(runs) == 1 if has_kernels else len(runs) > 10
    replay = Replay(own, made, recording, library)
    values = inputs_of(own, 1, sampling)
    replay.write(**values)
    replay.run()
    assert replay.engines.runs == len(runs)
    with Pipeline.load(own.folder, "ort-cpu", threads=1) as pipeline:
        assert isinstance(pipeline, HMARPipeline)
        tokens: list[np.ndarray] = []
        image = pipeline.generate(
            [3], seed=2**64 - 7, image_index=[5], on_scale=lambda e: tokens.append(e.tokens)
        )
    if not has_kernels:  # which round as they do
        for k, expected in enumerate(tokens):
            place = recording.outputs[f"s{k}_tokens"]
            ours = replay.read(place, "int32", *expected.reshape(1, -1).shape)
            np.testing.assert_array_equal(ours, expected.reshape(1, -1))
        side = model.image_side_px
        pixels = replay.read(recording.outputs["pixels"], "uint8", 1, side, side, 3)
        assert np.abs(pixels.astype(int) - image).max() <= 1
    same = make_recordings(own, GPU, (1,), [sampling], library=library.library, engines=engines)
    assert same.index == made.index
    with pytest.raises(BackendUnavailableError, match=r"has no (decoder|glue|transformer) kernels"):
        make_recordings(own, GPU, (1,), [sampling], library=library.library)


@pytest.mark.parametrize("has_kernels", [True, False], ids=["kernels", "engines"])
def test_hmar_step_by_step(
    bundle: Bundle, tiny_bundle: Path, tmp_path: Path, has_kernels: bool
) -> None:
    """As for callbacks and editing; other schedules than those of whole generations, too."""
    own = linked_bundle(tmp_path / "bundle", bundle.folder if has_kernels else tiny_bundle)
    library = HostLibrary(own, has_layers=has_kernels)
    engines = None if has_kernels else make_engines(own, GPU, EngineOptions(batches=(3,)))
    published = SamplingConfig.defaults(own.manifest)
    made = make_recordings(own, GPU, (3,), [published], library=library.library, engines=engines)
    runner = ReplayRunner(own, RecordingFolder.open(made.folder), library)
    sampling = samplings(own)[3]
    assert sampling.mask_schedule != published.mask_schedule
    with (
        HMARPipeline(runner, max_batch=3) as pipeline,
        Pipeline.load(own.folder, "ort-cpu", threads=1) as reference,
    ):
        assert isinstance(reference, HMARPipeline)
        tokens: list[list[np.ndarray]] = []
        for p in (pipeline, reference):
            tokens.append([])
            p.generate(
                [3, 1], seed=5, sampling=sampling, on_scale=lambda e: tokens[-1].append(e.tokens)
            )
        if not has_kernels:
            for ours, theirs in zip(*tokens, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert {made.index.recordings[i].plan.of for i in runner.used} == {"graph"}


@pytest.mark.parametrize("count", [2, 3], ids=["padded", "whole"])
def test_himar_by_replays(tiny_himar_bundle: Path, tmp_path: Path, count: int) -> None:
    own = quick_bundle(linked_bundle(tmp_path / "bundle", tiny_himar_bundle))
    library, settings = HostLibrary(own), [HiMARSamplingConfig.defaults(own.manifest)]
    engines = make_engines(own, GPU, EngineOptions(batches=(3,)))
    made = make_recordings(own, GPU, (3,), settings, library=library.library, engines=engines)
    plans = [entry.plan for entry in made.index.recordings]
    assert {plan.of for plan in plans} == {"graph", "sampling"}
    assert len(set(map(str, plans))) == len(plans)
    runner = ReplayRunner(own, RecordingFolder.open(made.folder), library)
    labels, index = [3, 7, -1][:count], [0, 5, (1 << 40) + 2][:count]
    with (
        HiMARPipeline(runner, max_batch=3) as pipeline,
        Pipeline.load(own.folder, "ort-cpu", threads=1) as reference,
    ):
        assert isinstance(reference, HiMARPipeline)
        ours, ref = (
            p.generate_tokens(labels, seed=9, image_index=index, sampling=settings[0])
            for p in (pipeline, reference)
        )
        np.testing.assert_allclose(ours.pivots, ref.pivots, atol=2e-4)
        np.testing.assert_allclose(ours.dense, ref.dense, atol=2e-4)
        for name in ("decode", "decode_small"):
            tokens = ours.dense if name == "decode" else ours.pivots
            pixels = [getattr(p, name)(tokens).astype(int) for p in (pipeline, reference)]
            assert np.abs(pixels[0] - pixels[1]).max() <= 1
        images = reference.decode(ref.dense)
        np.testing.assert_allclose(pipeline.encode(images), reference.encode(images), atol=2e-4)
    assert runner.used == set(range(len(plans)))


def _fail(what: str, batch: int, error: Exception) -> Any:
    raise AssertionError(what) from error


def test_weights_are_on_disk_once(bundle: Bundle, folder: RecordingFolder) -> None:
    pieces = [piece for contents in folder.index.weights for piece in contents.pieces]
    verbatim = sum(p.nbytes for p in pieces if p.source == "weights")
    prepared = sum(p.nbytes for p in pieces if p.source == "data")
    transformer = folder.index.weights[2]
    # all of the transformer but the heads is read from the bundle's file
    assert [p.source for p in transformer.pieces].count("data") == 2
    assert verbatim > 0
    assert folder.index.data_file.nbytes < prepared + (1 << 18)


def test_what_fits_is_kept(
    bundle: Bundle, library: HostLibrary, folder: RecordingFolder, tmp_path: Path
) -> None:
    own = linked_bundle(tmp_path / "bundle", bundle.folder)
    published = [SamplingConfig.defaults(bundle.manifest)]
    made = record_on_host(own, library, published)
    recorded, others = made.index.recordings, folder.index.recordings[:: len(samplings(own))]
    assert [entry.sha256 for entry in recorded] == [entry.sha256 for entry in others]
    assert made.index.runtime_version == package_version()
    before = (made.folder / INDEX_FILE).stat().st_mtime_ns
    assert record_on_host(own, library, published).index == made.index
    assert (made.folder / INDEX_FILE).stat().st_mtime_ns == before
    assert record_on_host(own, library, published, force=True).index == made.index
    assert (made.folder / INDEX_FILE).stat().st_mtime_ns > before
    # more of them: all are made anew
    assert len(record_on_host(own, library, samplings(own)).index.recordings) == 12


def test_other_bundles_are_refused(bundle: Bundle, library: HostLibrary, tmp_path: Path) -> None:
    own = linked_bundle(tmp_path / "bundle", bundle.folder)
    published = [SamplingConfig.defaults(bundle.manifest)]
    fp32 = Bundle(own.folder, dataclasses.replace(own.manifest, precision="fp32"))
    with pytest.raises(BackendUnavailableError, match="compute in float16"):
        make_recordings(fp32, GPU, (1,), published, library=library.library)
    assert not list((own.folder / "engines").glob("*"))  # nor parts of them


def test_what_has_changed_is_named(
    bundle: Bundle, folder: RecordingFolder, library: HostLibrary
) -> None:
    assert folder.mismatches(bundle, library.library.digests) == ()
    weights = dataclasses.replace(bundle.manifest.weights, sha256="0" * 64)
    other = Bundle(bundle.folder, dataclasses.replace(bundle.manifest, weights=weights, graphs={}))
    reasons = folder.mismatches(other, {**library.library.digests, "glue": "1"})
    assert len(reasons) == 3 and "kernels of glue" in reasons[2]


Tamper = Callable[[dict[str, Any]], None]


def first_launch(recording: dict[str, Any]) -> list[Any]:
    return next(o for o in recording["operations"] if o[0] == 0)


def set_pointer(recording: dict[str, Any], value: list[int]) -> None:
    launch = first_launch(recording)
    launch[next(i for i, a in enumerate(launch) if isinstance(a, list))] = value


TAMPERINGS: dict[str, Tamper] = {
    "kernel": lambda r: first_launch(r).__setitem__(1, len(r["kernels"])),
    "grid": lambda r: first_launch(r).__setitem__(3, 0),
    "kind": lambda r: first_launch(r).__setitem__(0, 4),
    "plan": lambda r: r["operations"].append([3, 0, 0, None, [], []]),
    "pointer": lambda r: set_pointer(r, [0, r["scratch_nbytes"]]),
    "negative": lambda r: set_pointer(r, [0, -1]),
    "buffer": lambda r: set_pointer(r, [9, 0]),
    "pixels": lambda r: r["outputs"]["pixels"].__setitem__(2, r["scratch_nbytes"] + 1),
    "purpose": lambda r: r["plan"].__setitem__("of", "score"),
    "field": lambda r: r.pop("outputs"),
    "unknown field": lambda r: r.__setitem__("more", 1),
    "constants": lambda r: r["constants"]["zeros"].append([r["constants"]["nbytes"], 1]),
    "copy": lambda r: r["operations"].append([1, [0, 0], [0, 0], r["scratch_nbytes"] + 1]),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_recording_is_refused(folder: RecordingFolder, name: str) -> None:
    entry = folder.index.recordings[0]
    data = json.loads((folder.folder / entry.file).read_text())
    TAMPERINGS[name](data)
    with pytest.raises((ValueError, TypeError)):
        check_recording(parse_recording(data), folder.index)


def test_damaged_files_are_refused(folder: RecordingFolder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder.folder, copy)
    entry: RecordingEntry = folder.index.recordings[0]
    text = (copy / entry.file).read_text()
    (copy / entry.file).write_text(text.replace("[0,", "[1,", 1))
    with pytest.raises(EngineIncompatibleError, match="sha256"):
        RecordingFolder.open(copy).recording(entry)
    index = (copy / INDEX_FILE).read_text()
    for wrong, message in (
        (index[:-40], "no recording that this release reads"),
        (index.replace('"format_version": 2', '"format_version": 1'), "format version 1"),
        (index.replace(f'"file":"{entry.file}"', '"file":"../x"'), "outside the folder"),
    ):
        assert wrong != index
        (copy / INDEX_FILE).write_text(wrong)
        with pytest.raises(EngineIncompatibleError, match=message):
            RecordingFolder.open(copy)


def test_every_pointer_is_within_what_was_allocated(folder: RecordingFolder) -> None:
    recording = folder.recording(folder.index.recordings[0])
    launches = [o for o in recording.operations if isinstance(o, Launch)]
    pointers = {a for launch in launches for a in launch.arguments if isinstance(a, Pointer)}
    assert {p.buffer for p in pointers} == {-1, 0, 1, 2, 3, 4}


def test_build_engines_records(
    bundle: Bundle,
    library: HostLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = linked_bundle(tmp_path / "bundle", bundle.folder)
    monkeypatch.setattr(Library, "built", lambda gpu, multiprocessors: library.library)
    monkeypatch.setattr(build_engines, "need_no_engines", lambda *_: True)
    command = ["build_engines.py", "--bundle", str(own.folder), "--batch", "1,2"]
    command += ["--gpu", GPU, "--only-recordings"]
    monkeypatch.setattr(sys, "argv", [*command, "--record-schedules", "default,fast"])
    build_engines.main()
    index = RecordingFolder.open(recordings_folder(own, GPU)).index
    assert f"{len(index.recordings)}, by kernels," in capsys.readouterr().out
    plans = [entry.plan for entry in index.recordings if isinstance(entry.plan, GenerationPlan)]
    assert [plan.batch for plan in plans] == [1, 1, 2, 2]
    assert [plan.schedule is None for plan in plans] == [False, True] * 2
    monkeypatch.setattr(sys, "argv", [*command, "--record-schedules", "slow"])
    with pytest.raises(ValueError, match="schedule 'slow' is no name"):
        build_engines.main()
    monkeypatch.setattr(sys, "argv", [*command, "--record-schedules", "off"])
    with pytest.raises(ValueError, match="--only-recordings: nothing to record"):
        build_engines.main()


def test_build_engines_without_tensorrt(
    bundle: Bundle,
    library: HostLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What kernels run needs none; what they do not run does."""
    own = linked_bundle(tmp_path / "bundle", bundle.folder)

    def no_tensorrt(flavour: str | None) -> None:
        raise BackendUnavailableError("TensorRT is not installed")

    kinds = {spec.kind for spec in own.manifest.graphs.values()} - {"encode"}
    monkeypatch.setattr(build_engines, "import_tensorrt", no_tensorrt)
    monkeypatch.setattr(build_engines, "kinds_with_kernels", lambda *_: set(kinds))
    monkeypatch.setattr(build_engines, "need_no_engines", lambda *_: True)
    monkeypatch.setattr(Library, "built", lambda gpu, multiprocessors: library.library)
    command = ["build_engines.py", "--bundle", str(own.folder), "--batch", "1", "--gpu", GPU]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(BackendUnavailableError, match="TensorRT is not installed"):
        build_engines.main()
    monkeypatch.setattr(sys, "argv", [*command, "--leave-out", "encode"])
    build_engines.main()
    said = capsys.readouterr().out
    assert "none to build, so that it does not matter: TensorRT is not installed" in said
    assert ", by kernels," in said and recordings_folder(own, GPU).is_dir()
