"""A bundle with recordings for the stand-ins of `tests.host_library`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from runtime.backends.recorded_work import Settings
from runtime.backends.recordings import make_recordings
from runtime.bundle import MANIFEST_FILE, Bundle
from runtime.config import SamplingConfig
from runtime.engine_manifest import EngineFolder
from runtime.engine_plan import EngineOptions
from runtime.himar_config import HiMARSamplingConfig
from runtime.recording_reader import RecordingFolder
from tests.host_engines import make_engines
from tests.host_library import GPU, HostLibrary

BATCHES = (1, 3)
QUICK = {
    "pivot_diffusion_steps": "2,1,0,0", "dense_diffusion_steps": "2,1,1,0",
    "cfg": 2.5, "re_cfg": 2.7,
}  # fmt: skip


def linked_bundle(folder: Path, bundle: Path) -> Bundle:
    """A bundle of links to the files of another, in folders of its own, and no engines."""
    folder.mkdir()
    for path in sorted(bundle.rglob("*")):
        within = path.relative_to(bundle)
        if within.parts[0] == "engines":
            continue
        if path.is_dir():
            (folder / within).mkdir()
        else:
            (folder / within).symlink_to(path.resolve())
    return Bundle.open(folder)


def quick_bundle(bundle: Bundle) -> Bundle:
    """A Hi-MAR bundle whose defaults are few diffusion steps, guided; its folder is its own."""
    path = bundle.folder / MANIFEST_FILE
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["sampling"] |= QUICK
    path.unlink()
    path.write_text(json.dumps(stored), encoding="utf-8")
    return Bundle.open(bundle.folder)


def samplings(bundle: Bundle) -> list[SamplingConfig]:
    """The bundle's defaults, without masked passes, with guided ones, and more than are kept."""
    published = SamplingConfig.defaults(bundle.manifest)
    schedule = ((1,), (1, 1, 2), (1, 3, 3), (9, 4, 2, 1))
    others = [((1,), (1, n), (), ()) for n in (1, 2, 3)]
    return [
        published,
        dataclasses.replace(published, mask_schedule=None),
        dataclasses.replace(published, mask_schedule=schedule, skip_guidance_below=0.0),
        *(dataclasses.replace(published, mask_schedule=other) for other in others),
    ]


def make_recorded_bundle(folder: Path, bundle: Path) -> Path:
    """A linked bundle with recordings of all these settings."""
    linked = linked_bundle(folder, bundle)
    record_on_host(linked, HostLibrary(linked), samplings(linked))
    return folder


def make_engine_bundle(folder: Path, bundle: Path, *, has_layers: bool = False) -> Path:
    """A linked bundle with recordings of its defaults that run engines; Hi-MAR's are quick ones.

    Args:
        has_layers: of HMAR, whether there are kernels for all graphs but the decoder.
    """
    linked = linked_bundle(folder, bundle)
    is_hmar = linked.manifest.family == "hmar"
    if not is_hmar:
        linked = quick_bundle(linked)
    library = engine_library(linked, has_layers=has_layers)
    options = EngineOptions(batches=BATCHES)
    engines = make_engines(linked, GPU, options, knows_scratch=has_layers or not is_hmar)
    defaults = SamplingConfig.defaults if is_hmar else HiMARSamplingConfig.defaults
    settings = [defaults(linked.manifest)]
    record_on_host(linked, library, settings, engines=engines, has_steps=True)
    return folder


def engine_library(bundle: Bundle, *, has_layers: bool) -> HostLibrary:
    """The kernels of such a bundle."""
    library = HostLibrary(bundle, has_layers=has_layers)
    library.tables.pop("decoder", None)
    return library


def record_on_host(
    bundle: Bundle,
    library: HostLibrary,
    settings: Sequence[Settings],
    *,
    engines: EngineFolder | None = None,
    has_steps: bool = False,
    force: bool = False,
) -> RecordingFolder:
    """Recordings for both batches, and the kernel tables in the folder `tables`."""
    tables = bundle.folder / "tables"
    tables.mkdir(exist_ok=True)
    for part in library.tables:
        (tables / f"{part}.json").write_text(library.text(part), encoding="utf-8")
    return make_recordings(
        bundle,
        GPU,
        BATCHES,
        settings,
        library=library.library,
        engines=engines,
        has_steps=has_steps,
        force=force,
    )
