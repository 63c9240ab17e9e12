"""Layer times of an engine: gathered, sorted, exported; with engines that need no GPU."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import GraphSpec, TensorSpec
from runtime.engine_manifest import (
    ENGINES_FILE,
    FORMAT_VERSION,
    EngineEntry,
    EngineFolder,
    EngineManifest,
    PlanEntry,
)
from scripts.layer_times import LayerTimes, table
from scripts.profile_step import choose_sizes, listing, profiles_of, random_feeds
from tests.unit.runtime.manifests import manifest

ROOT = Path(__file__).resolve().parents[3]
PROFILES = ({"N": 2, "l": 1}, {"N": 2, "l": 4}, {"N": 16, "l": 4})


@pytest.fixture
def folder(tmp_path: Path) -> EngineFolder:
    """Engines of a bundle, as far as `engines.json` goes."""
    (tmp_path / "manifest.json").write_text(manifest().to_json())
    plan = PlanEntry(file="trunk.plan", sha256="0", nbytes=1, stage=None, activation_nbytes=None)
    entry = EngineEntry(
        graph_sha256="0" * 64, key="k", attention=None, profiles=PROFILES, plans=(plan,),
        why_staged="", build_seconds=1.0,
    )  # fmt: skip
    engines = EngineManifest(
        format_version=FORMAT_VERSION, library="tensorrt_rtx", library_version="1.7.1",
        gpus=("sm90",), attention="function body", precision="fp32", layout="profiles",
        batches=(1, 8), stages={}, workspace_bytes=None, weights_sha256="0" * 64,
        engines={"ns1": entry, "decode": dataclasses.replace(entry, profiles=({"B": 1},))},
    )  # fmt: skip
    place = tmp_path / "engines" / "sm90_rtx1.7.1_fp32"
    place.mkdir(parents=True)
    (place / ENGINES_FILE).write_text(engines.to_json())
    return EngineFolder.open(place)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/profile_step.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def times_of(*runs: dict[str, float]) -> LayerTimes:
    times = LayerTimes()
    for layers in runs:
        times.begin_run()
        for name, ms in layers.items():
            times.report(name, ms)
    return times


def test_export_has_the_fields_of_trtexec() -> None:
    times = times_of({"norm": 1, "matmul": 2}, {"norm": 2, "matmul": 4}, {"norm": 6, "matmul": 9})
    times.report("norm", 1.0)  # a second layer of that name in the last run
    assert times.export() == [
        {"count": 3},
        {"name": "norm", "timeMs": 10, "averageMs": 10 / 3, "medianMs": 2, "percentage": 40},
        {"name": "matmul", "timeMs": 15, "averageMs": 5, "medianMs": 4, "percentage": 60},
    ]


def test_a_layer_that_runs_now_and_then() -> None:
    _, always, sometimes = times_of({"a": 1}, {"a": 1, "b": 2}).export()
    assert (always["averageMs"], sometimes["averageMs"], sometimes["medianMs"]) == (1, 1, 1)


def test_table_begins_with_the_slowest() -> None:
    text = table(times_of({"norm": 1, "matmul": 3}).export(), top=1)
    head, layer, foot = text.splitlines()
    assert head.split()[-1] == "layer"
    assert layer.split() == ["3.0000", "3.0000", "75.0%", "matmul"]
    assert foot.split(maxsplit=1) == ["4.0000", "ms a run, 1 runs, 1 of 2 layers"]


def test_listing_needs_no_gpu(folder: EngineFolder) -> None:
    done = run("--bundle", folder.folder.parent.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == listing([folder])
    assert "  ns1: N=2,l=1  N=2,l=4  N=16,l=4" in done.stdout and "  decode: B=1" in done.stdout


def test_what_cannot_be_profiled(folder: EngineFolder) -> None:
    bundle = folder.folder.parent.parent
    assert "there is no engine of it, but of" in run("--bundle", bundle, "--graph", "no").stderr
    done = run("--bundle", bundle, "--graph", "ns1")
    assert done.returncode == 1, "there is no GPU, or these are no engines for it"
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    (folder.folder / ENGINES_FILE).unlink()
    assert "has no engines; build them with" in run("--bundle", bundle).stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, 0), ("N=2,l=4", 1), ("l=4, N=16", 2), ("l=1", 0)],
)
def test_sizes(folder: EngineFolder, text: str | None, expected: int) -> None:
    found = profiles_of("ns1", [folder, folder])
    assert found == list(PROFILES)
    assert choose_sizes(text, "ns1", found) == PROFILES[expected]


@pytest.mark.parametrize(("text", "count"), [("l=4", 2), ("l=9", 0), ("B=1", 0), ("twelve", 0)])
def test_sizes_that_do_not_tell(text: str, count: int) -> None:
    with pytest.raises(ValueError, match=rf"{count} profiles of ns1 fit; there are N=2,l=1 "):
        choose_sizes(text, "ns1", PROFILES)


def test_inputs_are_valid_indices() -> None:
    tensors = (
        TensorSpec("x", "float16", ("N", "l", 8)),
        TensorSpec("cu_seqlens", "int32", ("blocks_plus_1",)),
        TensorSpec("token_mask", "bool", ("N", "l")),
        TensorSpec("ada", "bfloat16", ("N", 3)),
    )
    spec = GraphSpec(kind="ns_trunk", inputs=tensors, outputs=(), file="f", sha256="0", nbytes=1)
    feeds = random_feeds(spec, {"N": 2, "l": 4, "blocks_plus_1": 2})
    assert {n: (v.shape, v.dtype.name) for n, v in feeds.items()} == {
        "x": ((2, 4, 8), "float16"),
        "cu_seqlens": ((2,), "int32"),
        "token_mask": ((2, 4), "bool"),
        "ada": ((2, 3), "uint16"),
    }
    np.testing.assert_array_equal(feeds["cu_seqlens"], [0, 4])
    assert feeds["x"].std() > 0
