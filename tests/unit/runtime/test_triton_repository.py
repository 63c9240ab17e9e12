"""A repository for Triton Inference Server: its configuration, and its model without the server."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.pipeline import Pipeline
from runtime.triton_repository import TritonConfig, write_repository

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = ROOT / "build" / "headers" / "tritonclient" / "grpc" / "model_config_pb2.py"


@dataclass
class Tensor:
    """As in the server's triton_python_backend_utils."""

    name: str
    values: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.values


def request(labels: list[int], indices: list[int]) -> dict[str, Tensor]:
    return {
        "label": Tensor("label", np.array(labels, np.int32)[:, None]),
        "image_index": Tensor("image_index", np.array(indices, np.uint64)[:, None]),
    }


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TritonConfig(name="tiny", backend="ort-cpu", max_batch=3, seed=2**63)
    out = tmp_path_factory.mktemp("repository")
    assert write_repository(Bundle.open(tiny_bundle), out, config) == out / "tiny"
    return out


@pytest.fixture
def model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    utils = SimpleNamespace(
        Tensor=Tensor,
        TritonError=str,
        InferenceResponse=lambda output_tensors, error=None: (output_tensors, error),
        get_input_tensor_by_name=lambda request, name: request[name],
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.delitem(sys.modules, "runtime.triton_model", raising=False)
    model = load(repository / "tiny" / "1" / "model.py").TritonPythonModel()
    sampling = {"cfg": 2, "top_k": 9, "top_p": 0.9, "mask_schedule": [[1], [1, 3], [9], [16]]}
    parameters = {"backend": "ort-cpu", "seed": str(2**63), "sampling": json.dumps(sampling)}
    config = {
        "max_batch_size": 3,
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(repository / "tiny"),
            "model_version": "1",
        }
    )
    yield model
    model.finalize()
    sys.modules.pop("runtime.triton_model")


def test_the_configuration_follows_the_schema(repository: Path, tiny_bundle: Path) -> None:
    if not SCHEMA.is_file():
        pytest.skip("no schema of Triton's configurations: python scripts/fetch_headers.py")
    from google.protobuf import text_format

    schema = load(SCHEMA)
    text = (repository / "tiny" / "config.pbtxt").read_text()
    config = text_format.Parse(text, schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 3)
    assert [(i.name, i.data_type, i.dims) for i in config.input] == [
        ("label", schema.TYPE_INT32, [1]),
        ("image_index", schema.TYPE_UINT64, [1]),
    ]
    assert [(o.name, o.data_type, o.dims) for o in config.output] == [
        ("image", schema.TYPE_UINT8, [64, 64, 3])
    ]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [(g.count, g.kind) for g in config.instance_group] == [
        (1, schema.ModelInstanceGroup.KIND_CPU)
    ]
    sampling = json.loads(config.parameters["sampling"].string_value)
    published = Bundle.open(tiny_bundle).manifest.sampling
    assert sampling == {
        "cfg": published.cfg,
        "top_k": published.top_k,
        "top_p": published.top_p,
        "mask_schedule": [list(entry) for entry in published.mask_schedule],
    }
    assert int(config.parameters["seed"].string_value) == 2**63


def test_requests_of_a_batch_are_answered_one_by_one(model: Any, tiny_pipeline: Pipeline) -> None:
    requests = [request([3, -1], [7, 2**63]), request([10], [0]), request([5, 6], [1, 0])]
    first, wrong, last = model.execute(requests)
    expected = tiny_pipeline.generate(
        [3, -1, 5, 6], seed=2**63, image_index=[7, 2**63, 1, 0], sampling=model.sampling
    )
    for (tensors, error), images in ((first, expected[:2]), (last, expected[2:])):
        assert error is None
        np.testing.assert_array_equal(tensors[0].values, images)
    assert wrong == ([], "label 10 is out of range: 0..9, or -1 = unconditional")


def test_failures_of_the_runtime_are_answers(model: Any) -> None:
    model.pipeline.close()
    ((tensors, error),) = model.execute([request([1], [0])])
    assert tensors == []
    assert "this pipeline is closed" in error


def test_the_repository_is_complete_and_not_overwritten(
    repository: Path, tiny_bundle: Path
) -> None:
    Bundle.open(repository / "tiny" / "1" / "bundle").check_files(weights=False)
    with pytest.raises(ValueError, match="tiny exists already; remove it"):
        write_repository(Bundle.open(tiny_bundle), repository, TritonConfig(name="tiny"))
    assert [path.name for path in repository.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name must be of letters"),
        ({"name": ""}, "name must be of letters"),
        ({"backend": "cuda"}, "backend must be one of"),
        ({"max_batch": 0}, "max_batch must be >= 1"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us >= 0"),
        ({"seed": 2**64}, "seed must be in"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TritonConfig(**changes)


def test_the_script(tiny_bundle: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/export_triton.py", "--bundle", tiny_bundle, "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'hmar'}: serve it with tritonserver")
    assert 'backend: "python"' in (tmp_path / "hmar" / "config.pbtxt").read_text()
