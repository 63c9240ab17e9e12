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
from runtime.errors import BackendUnavailableError, EngineIncompatibleError
from runtime.recording import (
    INDEX_FILE,
    Launch,
    Pointer,
    RecordingEntry,
    RecordingFolder,
    check_recording,
    parse_recording,
)
from scripts import build_engines
from tests.host_device import HostDevice
from tests.host_library import GPU, HostLibrary
from tests.recorded import BATCHES, linked_bundle, record_on_host, samplings
from tests.replay import Replay
from tests.unit.runtime.manifests import himar_manifest


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
    entry = folder.index.generations[BATCHES.index(batch) * len(settings) + case]
    replay = Replay(bundle, folder, folder.generation(entry), library)
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
    generation = Generation(plan, runner.in_pool(pool), kernels, device, pool, inputs, _fail)
    pixels = generation()

    recording, side = replay.recording, model.image_side_px
    np.testing.assert_array_equal(
        replay.read(recording.pixels, "uint8", batch, side, side, 3), pixels
    )
    np.testing.assert_array_equal(
        replay.read(recording.image, "float32", batch, 3, side, side),
        generation.image.numpy(device),
    )
    assert np.ptp(pixels) > 0
    for place, tokens, pn in zip(
        recording.tokens, generation.tokens, model.patch_nums, strict=True
    ):
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
    np.testing.assert_array_equal(replay.read(recording.pixels, "uint8", *pixels.shape), pixels)


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
    recorded, others = made.index.generations, folder.index.generations[:: len(samplings(own))]
    assert [entry.sha256 for entry in recorded] == [entry.sha256 for entry in others]
    assert made.index.runtime_version == package_version()
    before = (made.folder / INDEX_FILE).stat().st_mtime_ns
    assert record_on_host(own, library, published).index == made.index
    assert (made.folder / INDEX_FILE).stat().st_mtime_ns == before
    assert record_on_host(own, library, published, force=True).index == made.index
    assert (made.folder / INDEX_FILE).stat().st_mtime_ns > before
    # more of them: all are made anew
    assert len(record_on_host(own, library, samplings(own)).index.generations) == 12


def test_other_bundles_are_refused(bundle: Bundle, library: HostLibrary, tmp_path: Path) -> None:
    own = linked_bundle(tmp_path / "bundle", bundle.folder)
    published = [SamplingConfig.defaults(bundle.manifest)]
    fp32 = Bundle(own.folder, dataclasses.replace(own.manifest, precision="fp32"))
    himar = Bundle(own.folder, himar_manifest(precision="fp16"))
    for other, message in ((fp32, "compute in float16"), (himar, "another family")):
        with pytest.raises(BackendUnavailableError, match=message):
            make_recordings(other, GPU, (1,), published, library=library.library)
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
    "kind": lambda r: first_launch(r).__setitem__(0, 3),
    "pointer": lambda r: set_pointer(r, [0, r["scratch_nbytes"]]),
    "negative": lambda r: set_pointer(r, [0, -1]),
    "buffer": lambda r: set_pointer(r, [9, 0]),
    "pixels": lambda r: r["pixels"].__setitem__(2, r["scratch_nbytes"] + 1),
    "input": lambda r: r["inputs"].pop("seed"),
    "field": lambda r: r.pop("tokens"),
    "unknown field": lambda r: r.__setitem__("more", 1),
    "constants": lambda r: r["constants"]["zeros"].append([r["constants"]["nbytes"], 1]),
    "copy": lambda r: r["operations"].append([1, [0, 0], [0, 0], r["scratch_nbytes"] + 1]),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_recording_is_refused(folder: RecordingFolder, name: str) -> None:
    entry = folder.index.generations[0]
    data = json.loads((folder.folder / entry.file).read_text())
    TAMPERINGS[name](data)
    with pytest.raises((ValueError, TypeError)):
        check_recording(parse_recording(data), [c.nbytes for c in folder.index.weights])


def test_damaged_files_are_refused(folder: RecordingFolder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder.folder, copy)
    entry: RecordingEntry = folder.index.generations[0]
    text = (copy / entry.file).read_text()
    (copy / entry.file).write_text(text.replace("[0,", "[1,", 1))
    with pytest.raises(EngineIncompatibleError, match="sha256"):
        RecordingFolder.open(copy).generation(entry)
    index = (copy / INDEX_FILE).read_text()
    for wrong, message in (
        (index[:-40], "no recording that this release reads"),
        (index.replace('"format_version": 1', '"format_version": 2'), "format version 2"),
        (index.replace(f'"file":"{entry.file}"', '"file":"../x"'), "outside the folder"),
    ):
        assert wrong != index
        (copy / INDEX_FILE).write_text(wrong)
        with pytest.raises(EngineIncompatibleError, match=message):
            RecordingFolder.open(copy)


def test_every_pointer_is_within_what_was_allocated(folder: RecordingFolder) -> None:
    recording = folder.generation(folder.index.generations[0])
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
    monkeypatch.setattr(Library, "built", lambda gpu: library.library)
    command = ["build_engines.py", "--bundle", str(own.folder), "--batch", "1,2"]
    command += ["--gpu", GPU, "--only-recordings"]
    monkeypatch.setattr(sys, "argv", [*command, "--record-schedules", "default,fast"])
    build_engines.main()
    assert "4 generations" in capsys.readouterr().out
    index = RecordingFolder.open(recordings_folder(own, GPU)).index
    plans = [entry.plan for entry in index.generations]
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
    monkeypatch.setattr(Library, "built", lambda gpu: library.library)
    command = ["build_engines.py", "--bundle", str(own.folder), "--batch", "1", "--gpu", GPU]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(BackendUnavailableError, match="TensorRT is not installed"):
        build_engines.main()
    monkeypatch.setattr(sys, "argv", [*command, "--leave-out", "encode"])
    build_engines.main()
    said = capsys.readouterr().out
    assert "none to build, so that it does not matter: TensorRT is not installed" in said
    assert "1 generations" in said and recordings_folder(own, GPU).is_dir()
