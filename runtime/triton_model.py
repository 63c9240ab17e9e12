"""What Triton Inference Server's Python backend runs; see `runtime.triton_repository`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # only there within the server

from runtime.config import SamplingConfig
from runtime.errors import DeployError
from runtime.pipeline import Pipeline

NO_CLASS = -1  # as in `Pipeline.generate`


class TritonPythonModel:
    """One instance of the model. Images of all requests of a batch are generated together."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the bundle beside the model file.

        Args:
            args: `model_config` (JSON), `model_repository` (the model's folder), `model_version`.
        """
        config = json.loads(args["model_config"])
        parameters = {name: p["string_value"] for name, p in config["parameters"].items()}
        self.pipeline = Pipeline.load(
            Path(args["model_repository"]) / args["model_version"] / "bundle",
            parameters["backend"],
            max_batch=config["max_batch_size"],
        )
        self.sampling = SamplingConfig(**json.loads(parameters["sampling"]))
        self.seed = int(parameters["seed"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request; a request with a wrong label is answered with an error."""
        answers: list[Any] = [None] * len(requests)
        labels: dict[int, np.ndarray] = {}
        indices: dict[int, np.ndarray] = {}
        for i, request in enumerate(requests):
            label_B, index_B = (_column(request, name) for name in ("label", "image_index"))
            if wrong := self._wrong_labels(label_B):
                answers[i] = _failure(wrong)
            else:
                labels[i], indices[i] = label_B, index_B
        if labels:
            for i, answer in zip(labels, self._generate(labels, indices), strict=True):
                answers[i] = answer
        return answers

    def finalize(self) -> None:
        """Frees the backend's resources."""
        self.pipeline.close()

    def _generate(
        self, labels: Mapping[int, np.ndarray], indices: Mapping[int, np.ndarray]
    ) -> list[Any]:
        try:
            images = self.pipeline.generate(
                np.concatenate([*labels.values()]).tolist(),
                seed=self.seed,
                image_index=np.concatenate([*indices.values()]).tolist(),
                sampling=self.sampling,
            )
        except DeployError as error:
            return [_failure(str(error)) for _ in labels]
        ends = np.cumsum([len(label_B) for label_B in labels.values()])[:-1]
        return [
            pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("image", part)])
            for part in np.split(images, ends)
        ]

    def _wrong_labels(self, label_B: np.ndarray) -> str | None:
        classes = self.pipeline.manifest.hmar.num_classes
        wrong = label_B[(label_B < NO_CLASS) | (label_B >= classes)]
        if not len(wrong):
            return None
        return f"label {wrong[0]} is out of range: 0..{classes - 1}, or {NO_CLASS} = unconditional"


def _column(request: Any, name: str) -> np.ndarray:
    """Values of an input (B, 1)."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[:, 0]


def _failure(message: str) -> Any:
    error = pb_utils.TritonError(message)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)
