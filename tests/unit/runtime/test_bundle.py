"""The manifest round-trips, and every way to break a bundle has its own message."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from runtime.bundle import Bundle, Kind, parse_manifest
from runtime.errors import ChecksumError, ManifestError
from runtime.pipeline import Pipeline
from tests.unit.runtime.manifests import himar_manifest, manifest

ROOT = Path(__file__).resolve().parents[3]


def edited(change: Callable[[dict[str, Any]], None]) -> str:
    data = json.loads(manifest().to_json())
    change(data)
    return json.dumps(data)


def test_round_trip() -> None:
    original = manifest()
    assert parse_manifest(original.to_json(), "m") == original


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=2), "format version 2, this release reads version 1"),
        (lambda d: d.pop("format_version"), "format version None"),
        (lambda d: d.update(colour="red"), r"unknown fields \['colour'\]"),
        (lambda d: d["model"].pop("depth"), r"model: missing fields \['depth'\]"),
        (lambda d: d.update(graphs=[]), "graphs: expected an object, got list"),
        (lambda d: d["graphs"]["cond"].update(file="../evil.onnx"), "leaves the bundle"),
        (lambda d: d["graphs"]["cond"].update(file="/etc/passwd"), "leaves the bundle"),
        (lambda d: d["weights"].update(file="graphs/../../w.bin"), "leaves the bundle"),
        (lambda d: d["weights"].update(file="C:\\w.bin"), "leaves the bundle"),
        (lambda d: d["graphs"]["cond"].update(kind="magic"), "unknown kind 'magic'"),
        (lambda d: d["tensors"]["w"].update(offset=32), "outside the weights file"),
        (lambda d: d["tensors"]["w"].update(dtype="float8"), "float8"),
        (lambda d: d.update(family="diffusion"), "family"),
        (lambda d: d.update(precision="int4"), "precision"),
    ],
)
def test_bad_manifest(change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(edited(change), "manifest.json")


def test_latent_scale_of_earlier_bundles_is_the_published_one() -> None:
    data = json.loads(himar_manifest().to_json())
    del data["model"]["latent_scale"]
    assert parse_manifest(json.dumps(data), "m").himar.latent_scale == 0.2325


@pytest.mark.parametrize("scale", [0, -0.2325, None, "0.2325", float("nan"), float("inf")])
def test_latent_scale_is_a_positive_number(scale: object) -> None:
    data = json.loads(himar_manifest().to_json())
    data["model"]["latent_scale"] = scale
    with pytest.raises(ManifestError, match=r"latent_scale is .*must be a positive number"):
        parse_manifest(json.dumps(data), "m")


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_not_a_manifest(text: str) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(text, "manifest.json")


def test_no_bundle_here(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no bundle here .* scripts/export.py"):
        Bundle.open(tmp_path)


def test_asking_for_a_graph_that_is_not_there() -> None:
    with pytest.raises(ManifestError, match="no 'encode' graph"):
        manifest().graph("encode")


@pytest.fixture
def copied_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_an_intact_bundle_passes(copied_bundle: Path) -> None:
    seen: list[str] = []
    Bundle.open(copied_bundle).check_files(progress=seen.append)
    assert "graphs/weights.bin" in seen and "certificate.json" in seen


@pytest.mark.parametrize("file", ["graphs/decode.onnx", "graphs/weights.bin", "certificate.json"])
def test_altered_file(copied_bundle: Path, file: str) -> None:
    flip_bit(copied_bundle / file)
    with pytest.raises(ChecksumError, match=rf"{file}: altered .*export the bundle again"):
        Pipeline.load(copied_bundle, "ort-cpu")


@pytest.mark.parametrize("file", ["graphs/ns_s01_pn02.onnx", "graphs/weights.bin"])
def test_missing_file(copied_bundle: Path, file: str) -> None:
    (copied_bundle / file).unlink()
    with pytest.raises(ChecksumError, match=rf"{file}: missing"):
        Pipeline.load(copied_bundle, "ort-cpu")


def test_truncated_weights_are_seen_without_hashing(copied_bundle: Path) -> None:
    path = copied_bundle / "graphs/weights.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ChecksumError, match="bytes, the manifest says"):
        Pipeline.load(copied_bundle, "ort-cpu", check_weights=False)


def test_the_cpp_runtime_knows_the_same_kinds() -> None:
    source = (ROOT / "runtime" / "cpp" / "src" / "manifest.cpp").read_text()
    (listed,) = re.findall(r"kKinds = \{([^}]*)\}", source)
    assert set(re.findall(r'"(\w+)"', listed)) == set(get_args(Kind))


def test_families_have_their_own_models() -> None:
    original = himar_manifest()
    parsed = parse_manifest(original.to_json(), "m")
    assert parsed == original
    assert parsed.himar.num_pivots == 16
    assert parsed.graph("dense", step_idx=0) == "dense_00"
    with pytest.raises(ManifestError, match=r"needs a bundle of HMAR.*'himar'"):
        _ = parsed.hmar
    with pytest.raises(ManifestError, match=r"needs a bundle of Hi-MAR.*'hmar'"):
        _ = manifest().himar
    with pytest.raises(ManifestError, match="no 'dense' graph for step 7"):
        parsed.graph("dense", step_idx=7)
