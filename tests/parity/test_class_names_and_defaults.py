"""Class names and sampling defaults that an export stores, and what the runtime does with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import ExportConfig, ExportError, export_bundle
from runtime.pipeline import Pipeline
from tests.cases import Files, write_files
from tests.golden_data import Case

NAMES = [f"animal {i}" for i in range(9)] + ["cat"]
SAMPLING = {"cfg": 2.5, "top_k": 20, "mask_schedule": [[1], [1, 3], [9], [16]]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("files"), Case("tiny"))


def export(files: Files, folder: Path, names: Any = NAMES, sampling: Any = SAMPLING) -> Path:
    (folder / "names.json").write_text(json.dumps(names))
    (folder / "sampling.json").write_text(json.dumps(sampling))
    return export_bundle(
        ExportConfig(verify=False),
        files.ckpt,
        files.vae,
        folder / "bundle",
        class_names=folder / "names.json",
        sampling=folder / "sampling.json",
    ).bundle


def test_names_are_labels_and_defaults_are_used(files: Files, tmp_path: Path) -> None:
    with Pipeline.load(export(files, tmp_path), "ort-cpu") as pipeline:
        assert pipeline.class_names == tuple(NAMES)
        defaults = pipeline.defaults
        assert (defaults.cfg, defaults.top_k, defaults.top_p) == (2.5, 20, 0.96)
        assert defaults.mask_schedule == ((1,), (1, 3), (9,), (16,))
        by_name = pipeline.generate(["cat", "animal 3", -1])
        np.testing.assert_array_equal(by_name, pipeline.generate([9, 3, -1]))
        with pytest.raises(ValueError, match="class 'cats' is unknown; try cat"):
            pipeline.generate(["cats"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": NAMES[:-1]}, "expected 10 different names, got 9"),
        ({"names": ["cat"] * 10}, r"got 10 \(1 different\)"),
        ({"names": [*NAMES[:-1], "7"]}, "must not be numbers"),
        ({"names": {"0": "cat"}}, "expected a JSON list"),
        ({"sampling": {"temperature": 1}}, r"unknown settings \['temperature'\]"),
        ({"sampling": {"mask_schedule": [[1]]}}, "has 1 entries, the model has 4 scales"),
        ({"sampling": {"cfg": "high"}}, "not sampling settings"),
        ({"sampling": [1]}, "expected a JSON object"),
    ],
)
def test_files_that_do_not_fit(files: Files, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(files, tmp_path, **changes)
    assert not (tmp_path / "bundle").exists()
