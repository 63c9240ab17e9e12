"""One graph of a bundle on ONNX Runtime's CPU provider: names, dtypes, shapes, values."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from export.certificate import OutputParity
from export.errors import ParityError
from runtime.bundle import GraphSpec, TensorSpec

Arrays = dict[str, np.ndarray]

# Largest RMS error of an output relative to the RMS of the float32 reference. fp32: another order
# of summation over up to 40 blocks. Half precision: a few units of the format's rounding (2^-11,
# 2^-8).
RMS_LIMIT = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 8e-2}
ENGINE = f"onnxruntime {ort.__version__} CPUExecutionProvider"
ORT_DTYPES = {
    "float32": "float",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int32": "int32",
    "bool": "bool",
}
NUMPY_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int32": np.int32,
    "bool": np.bool_,
}


class MissingKernelError(Exception):
    """The CPU provider has no kernel for an op of a graph in its dtype; the message says which."""


class GraphSession:
    """A graph of a bundle, ready to be run."""

    def __init__(self, path: Path, name: str, spec: GraphSpec) -> None:
        """Loads a graph.

        Raises:
            MissingKernelError: it holds an op that the provider lacks, in bfloat16.
            ParityError: its inputs or outputs are not those of the manifest.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # weights stay in the mapped file
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except ort_errors.NotImplemented as error:
            raise MissingKernelError(str(error).split(":")[-1].strip()) from error
        self.session, self.spec = session, spec
        _check_signature(name, "input", session.get_inputs(), spec.inputs)
        _check_signature(name, "output", session.get_outputs(), spec.outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Outputs by name, from inputs in any dtype of the same kind."""
        values = {}
        for i in self.spec.inputs:
            array = np.ascontiguousarray(feeds[i.name].astype(NUMPY_DTYPES[i.dtype], copy=False))
            values[i.name] = (
                ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), 16)
                if i.dtype == "bfloat16"
                else ort.OrtValue.ortvalue_from_numpy(array)
            )
        results = self.session.run_with_ort_values(None, values)
        return dict(self._arrays(results))

    def _arrays(self, results: list[Any]) -> Iterator[tuple[str, np.ndarray]]:
        for output, value in zip(self.spec.outputs, results, strict=True):
            yield output.name, _bf16(value) if output.dtype == "bfloat16" else value.numpy()


def _bf16(value: Any) -> np.ndarray:
    """Values of an OrtValue in bfloat16, which its own `numpy()` refuses."""
    raw = (ctypes.c_char * value.tensor_size_in_bytes()).from_address(value.data_ptr())
    return np.frombuffer(raw, ml_dtypes.bfloat16).reshape(value.shape()).copy()


def compare_values(
    graph: str, output: str, ref: np.ndarray, out: np.ndarray, limit: float
) -> OutputParity:
    """Error of a float output.

    Raises:
        ParityError: the shapes differ, or the error is beyond the limit.
    """
    check_shape(graph, output, ref, out)
    parity = output_parity(ref, out.astype(np.float32))
    if not (ratio := parity.rms_ratio) <= limit:  # also catches NaN
        what = f"rms error ratio {ratio:.2e}, at most {limit:.0e} is accepted"
        raise parity_error(graph, output, what, ratio, limit)
    return parity


def output_parity(ref: np.ndarray, out: np.ndarray) -> OutputParity:
    """The error of an output."""
    error = out.astype(np.float64) - ref
    scale = max(np.sqrt(np.mean(ref.astype(np.float64) ** 2)), 1e-12)
    return OutputParity(
        rms_ratio=float(np.sqrt(np.mean(error**2)) / scale), max_abs=float(np.abs(error).max())
    )


def check_shape(graph: str, output: str, ref: np.ndarray, out: np.ndarray) -> None:
    """Raises ParityError unless the shapes are equal."""
    if out.shape != ref.shape:
        raise parity_error(graph, output, f"shape {out.shape}, expected {ref.shape}")


def parity_error(
    graph: str, output: str, what: str, ratio: float = float("inf"), limit: float = 0.0
) -> ParityError:
    """The error of a graph's output that is not as in PyTorch."""
    message = (
        f"graph {graph}, {output}: {what}; "
        "the bundle is not usable, please report the model's sizes"
    )
    return ParityError(message, graph=graph, output=output, rms_ratio=ratio, limit=limit)


def _check_signature(name: str, what: str, found: list, wanted: tuple[TensorSpec, ...]) -> None:
    got = [(v.name, v.type, tuple(v.shape)) for v in found]
    want = [(s.name, f"tensor({ORT_DTYPES[s.dtype]})", tuple(s.shape)) for s in wanted]
    if got != want:
        raise parity_error(name, what, f"signature {got}, the manifest says {want}")
