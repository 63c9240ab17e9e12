"""ONNX Runtime, on the CPU or a CUDA device."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from plugins_trt.loader import Library, PluginError, open_library, register_ort
from runtime.backends.base import StepRunner
from runtime.backends.shared_graphs import has_shared_graphs, run_by_shared_graphs
from runtime.bundle import STORED_AS, Bundle, DtypeName
from runtime.config import BackendConfig, BackendName
from runtime.errors import BackendError, BackendUnavailableError, DeviceMemoryError

logger = logging.getLogger(__name__)

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
DEVICES = {"ort-cpu": "cpu", "ort-cuda": "cuda"}
CUDA_OPTIONS = {
    # float32 means float32: TF32 products would change tokens
    "use_tf32": "0",
    # the default measures algorithms, so that two sessions may sum in different orders
    "cudnn_conv_algo_search": "HEURISTIC",
    # each session has an arena of its own, which by default grows in powers of two
    "arena_extend_strategy": "kSameAsRequested",
}
BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
OUT_OF_MEMORY = "Failed to allocate memory"  # in messages of ONNX Runtime's arenas


def import_onnxruntime() -> ModuleType:
    """The onnxruntime package.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            "ONNX Runtime is not installed: pip install onnxruntime (or onnxruntime-gpu for CUDA)"
        ) from error
    return onnxruntime


def choose_backend(name: BackendName) -> BackendName:
    """The backend named; "auto" is `ort-cuda` where this ONNX Runtime offers it, else `ort-cpu`."""
    if name != "auto":
        return name
    available = import_onnxruntime().get_available_providers()
    chosen: BackendName = "ort-cuda" if PROVIDERS["ort-cuda"] in available else "ort-cpu"
    logger.info("backend auto: %s", chosen)
    return chosen


class OnnxRuntimeRunner(StepRunner):
    """One session per graph, made when it is first used; all share one copy of the weights.

    The weights file is memory-mapped, or copied to the GPU, and its tensors are given to every
    session as initializers. A session uses them in place where they are on the device that it plans
    them for, and otherwise reads its own from the file. ONNX Runtime's own repacked copies are
    switched off: they would cost one copy of the weights per graph.

    Outputs are bound to the device and fed on from there; NumPy arrays are copied to it when they
    are fed.

    The CPU provider computes float16 graphs in float32, from a float32 copy of the weights per
    session. There, the transformer passes of all scales go through the two scale-generic trunks,
    and all steps of a Hi-MAR phase but the first through one graph.
    """

    def __init__(self, bundle: Bundle, config: BackendConfig) -> None:
        super().__init__(bundle.manifest)
        self._ort = import_onnxruntime()
        self._name = choose_backend(config.name)
        self._device = DEVICES[self._name]
        provider = PROVIDERS[self._name]
        available = self._ort.get_available_providers()
        if provider not in available:
            raise BackendUnavailableError(
                f"backend {self._name}: this ONNX Runtime offers {available}; "
                "pip install onnxruntime-gpu, or use the backend ort-cpu"
            )
        self._providers: list[Any] = [provider]
        if self._name == "ort-cuda":
            self._providers = [(provider, CUDA_OPTIONS), PROVIDERS["ort-cpu"]]
        self._bundle, self._threads = bundle, config.threads
        self._plugin = self._find_plugin() if config.attention == "plugin" else None
        self._shares_graphs = self.manifest.precision == "fp16" and self._name == "ort-cpu"
        self._sessions: dict[str, Any] = {}
        self._weights = self._map_weights()

    @property
    def name(self) -> str:
        return self._name

    @property
    def loaded(self) -> tuple[str, ...]:
        """Graphs that have a session by now."""
        return tuple(self._sessions)

    def _find_plugin(self) -> Library:
        try:
            library = open_library("ort")
        except PluginError as error:
            raise BackendUnavailableError(
                f'backend {self._name}: attention="plugin": {error}; or use attention="function"'
            ) from error
        if self._name == "ort-cuda" and not library.architectures:
            raise BackendUnavailableError(
                f'backend {self._name}: attention="plugin": {library.path} was built for the CPU '
                'alone; build it where a CUDA toolkit is, or use attention="function"'
            )
        logger.info("backend %s: attention by %s", self._name, library.path)
        return library

    def _map_weights(self) -> dict[str, Any]:
        mapped = np.memmap(self._bundle.path(self.manifest.weights), mode="r")
        weights = {}
        for name, spec in self.manifest.tensors.items():
            dtype = np.dtype(STORED_AS[spec.dtype])
            nbytes = dtype.itemsize * int(np.prod(spec.shape, dtype=np.int64))
            array = mapped[spec.offset : spec.offset + nbytes].view(dtype).reshape(spec.shape)
            weights[name] = self._weight(array, spec.dtype)
        return weights

    def _weight(self, array: np.ndarray, dtype: str) -> Any:
        if self._device == "cpu":
            return self._value(array, dtype)
        values = self._ort.OrtValue
        if not hasattr(values, "from_dlpack"):
            raise BackendUnavailableError(
                f"backend {self._name}: sessions cannot share weights on the GPU in ONNX Runtime "
                f"{self._ort.__version__}; install onnxruntime-gpu 1.31 or newer"
            )
        try:
            if dtype == "bfloat16":
                value = values.ortvalue_from_shape_and_type(array.shape, BFLOAT16, self._device, 0)
                value.update_inplace(array)
            else:
                value = values.ortvalue_from_numpy(array, self._device, 0)
            # the same memory, as a value that does not own it: sessions take no other initializers
            return values.from_dlpack(value)
        except Exception as error:  # ONNX Runtime's errors share no public base class
            if OUT_OF_MEMORY in str(error):
                raise self._out_of_memory("weights", error) from error
            raise BackendUnavailableError(
                f"backend {self._name}: the weights cannot be put on the GPU: {error}; "
                "check that driver, CUDA and cuDNN are those of this onnxruntime-gpu, "
                "or use the backend ort-cpu"
            ) from error

    def _out_of_memory(self, what: str, error: Exception) -> DeviceMemoryError:
        return DeviceMemoryError(
            f"{what}: backend {self._name} is out of memory: {error}; the weights take "
            f"{self.manifest.weights.nbytes / 1e6:.0f} MB, the rest grows with the batch: "
            "load the pipeline with a smaller max_batch, or free memory"
        )

    def _value(self, array: np.ndarray, dtype: str) -> Any:
        if dtype == "bfloat16":
            return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = self._make_session(graph)
        return self._sessions[graph]

    def _make_session(self, graph: str) -> Any:
        start = time.perf_counter()
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.add_session_config_entry("session.disable_prepacking", "1")
        if self._plugin is not None:
            register_ort(options, self._plugin.path)
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        path = self._bundle.path(self.manifest.graphs[graph])
        try:
            session = self._ort.InferenceSession(path, options, providers=self._providers)
        except Exception as error:  # as above
            if OUT_OF_MEMORY in str(error):
                raise self._out_of_memory(f"graph {graph}", error) from error
            raise BackendError(
                f"{path}: backend {self._name} cannot load this graph: {error}{self._hint()}"
            ) from error
        if (runs_on := session.get_providers()[0]) != PROVIDERS[self._name]:
            raise BackendUnavailableError(
                f"backend {self._name}: ONNX Runtime runs {graph} on {runs_on} instead: its log "
                "says which library of CUDA or cuDNN is missing; install it, or use ort-cpu"
            )
        logger.info("session %s: %.2f s", graph, time.perf_counter() - start)
        return session

    def _hint(self) -> str:
        if self.manifest.precision == "bf16" and self._name == "ort-cpu":
            return (
                "; ONNX Runtime's CPU provider lacks bfloat16 kernels: "
                "use a GPU, or export with --precision fp32"
            )
        return ""

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        spec = self.manifest.graphs[graph]
        if self._shares_graphs and has_shared_graphs(spec):
            return run_by_shared_graphs(self.manifest, graph, feeds, self._run)
        session = self._session(graph)
        values = {i.name: self._fed(feeds[i.name], i.dtype) for i in spec.inputs}
        try:
            binding = session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for output in spec.outputs:
                binding.bind_output(output.name, self._device)
            session.run_with_iobinding(binding)
            return binding.get_outputs()
        except Exception as error:  # as above
            if OUT_OF_MEMORY in str(error):
                raise self._out_of_memory(f"graph {graph}", error) from error
            raise BackendError(f"graph {graph}: backend {self._name} failed: {error}") from error

    def _fed(self, value: Any, dtype: DtypeName) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return self._value(np.ascontiguousarray(value, STORED_AS[dtype]), dtype)

    def numpy(self, value: Any) -> np.ndarray:
        return value.numpy() if isinstance(value, self._ort.OrtValue) else value

    def close(self) -> None:
        self._sessions.clear()
        self._weights.clear()
