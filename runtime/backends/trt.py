"""TensorRT engines of a bundle: values stay on the GPU until they are asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from typing import Any

import numpy as np

from plugins_trt.loader import PluginError, open_library
from runtime.backends.base import StepRunner
from runtime.backends.captured_runs import CapturedRuns
from runtime.backends.cuda import CudaDevice, Device
from runtime.backends.denoise_loop import DenoiseLoops, modulated_sizes
from runtime.backends.device_values import BufferPool, DeviceValue, Memory
from runtime.backends.diffusion_kernels import WORDS, CudaDiffusionKernels, DiffusionKernels
from runtime.backends.generation import Generations
from runtime.backends.kernel_engines import kernel_engines
from runtime.backends.kernel_library import KernelLibrary
from runtime.backends.sampling_kernels import CudaSamplingKernels, SamplingKernels
from runtime.backends.shared_graphs import has_shared_graphs, run_by_shared_graphs
from runtime.backends.trt_engine import Engine
from runtime.backends.trt_folder import find_folder, import_library, load_engines, powers_of_two
from runtime.bundle import STORED_AS, Bundle, Manifest, TensorSpec
from runtime.config import BackendConfig, SamplingConfig
from runtime.denoising import Denoising
from runtime.engine_manifest import EngineFolder
from runtime.engine_plan import (
    HALVED,
    Dims,
    batches_up_to,
    bind,
    is_within,
    listed,
    nbytes,
    pad_rows,
    resolve,
    rows,
    select_profile,
    with_totals,
)
from runtime.errors import (
    BackendUnavailableError,
    DeviceMemoryError,
    EngineIncompatibleError,
)

logger = logging.getLogger(__name__)


class TensorRTRunner(StepRunner):
    """Runs each graph on the smallest profile of its engine that fits.

    A batch smaller than the profile's is padded with rows that nobody reads. Transformer passes of
    all scales, and Hi-MAR's of all steps but the first, go through the generic graphs, unless there
    is an engine of the step's own graph. Scratch memory is shared by all engines; inputs and
    outputs lie in a pool of buffers. With kernels, whole generations of HMAR are CUDA graphs, and
    the denoising of every step of Hi-MAR is one.

    Args:
        batches: numbers of images that the engines were built for and that are used, ascending.
            Scratch memory is that of the largest one.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Mapping[str, Engine],
        device: Device,
        batches: Sequence[int],
        kernels: SamplingKernels | None = None,
        diffusion: DiffusionKernels | None = None,
    ) -> None:
        super().__init__(manifest)
        self.max_batch = self._max_batch = max(batches)
        self._engines, self._device, self._pool = dict(engines), device, BufferPool(device)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], DeviceValue] = {}
        self._kept = BufferPool(device)
        self._activations = self._kept.take(_scratch_nbytes(engines, self._max_batch) or 1)
        self._captured: CapturedRuns | None = CapturedRuns(
            device, self._activations.address, self._max_batch
        )
        self._generations = (
            None
            if kernels is None
            else Generations(self.in_pool, kernels, device, batches, self._out_of_memory)
        )
        self._loops = (
            None
            if diffusion is None
            else DenoiseLoops(
                self.in_pool, diffusion, device, batches, modulated_sizes(manifest, engines)
            )
        )

    def in_pool(self, pool: BufferPool) -> TensorRTRunner:
        """The same engines, with inputs and outputs in another pool; its runs can be captured."""
        other = copy(self)
        other._pool, other._captured = pool, None
        return other

    @classmethod
    def load(cls, bundle: Bundle, config: BackendConfig) -> TensorRTRunner:
        """Loads the engines of a bundle that were built for this GPU and TensorRT.

        Without engines, or without TensorRT, it takes the plugin library's kernels alone, if they
        run all that a generation takes, with batches that are powers of two.

        Raises:
            BackendUnavailableError: TensorRT, cuda.bindings, a GPU or the plugin is missing.
            EngineIncompatibleError: there are no engines that fit, or a plan is damaged.
            DeviceMemoryError: the engines do not fit into the GPU's memory.
            BackendError: TensorRT or CUDA fails.
        """
        with ExitStack() as undo:
            library = import_library(bundle, config)
            device = CudaDevice()
            undo.callback(device.close)
            found = find_folder(library, bundle, config, device.gpu)
            engines: dict[str, Engine] = {}
            batches = (
                powers_of_two(config.max_batch)
                if found is None
                else batches_up_to(found[1].manifest.batches, config.max_batch)
            )
            try:
                for graph, kernels in kernel_engines(bundle, config, device, batches):
                    engines[graph] = kernels
                    undo.callback(kernels.close)
                if found is not None:
                    for graph, engine in load_engines(
                        *found, bundle, config, device.gpu, leave_out=engines
                    ):
                        engines[graph] = engine
                        undo.callback(engine.close)
                runner = cls(
                    bundle.manifest, engines, device, batches, *_load_sampling(bundle, device)
                )
            except DeviceMemoryError as error:
                budget = _budget(engines, batches[-1], 0, device)
                raise _does_not_fit(found and found[1], error, budget, batches[-1]) from error
            undo.pop_all()
            return runner

    @property
    def name(self) -> str:
        return "trt"

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        spec, engine = self.manifest.graphs[graph], self._engines.get(graph)
        if engine is None:
            if has_shared_graphs(spec):
                return run_by_shared_graphs(self.manifest, graph, feeds, self._run, self._constant)
            raise EngineIncompatibleError(
                f"graph {graph}: no engine of it is loaded, there are {sorted(self._engines)}; "
                f"build one with scripts/build_engines.py, or run it elsewhere, such as "
                f'placement={{"{spec.kind}": "ort-cpu"}}'
            )
        dims = bind(spec.inputs, {name: value.shape for name, value in feeds.items()})
        profile = select_profile(engine.profiles, dims, self._max_batch)
        if profile is None:
            raise EngineIncompatibleError(
                f"engine {graph}: no profile for {dims}, there are {listed(engine.profiles)}; "
                "build engines for this batch with scripts/build_engines.py --batch, and with "
                "--guidance any for passes that are not guided as by default"
            )
        sizes = with_totals({**dims, **engine.profiles[profile]})
        try:
            outputs = {o.name: self._pool.take(nbytes(o, sizes)) for o in spec.outputs}
            self._execute(graph, engine, profile, feeds, sizes, outputs)
        except DeviceMemoryError as error:
            taken = engine.profiles[profile]
            batch = taken["B"] if "B" in taken else rows(taken) // 2
            raise self._out_of_memory(f"engine {graph} of {taken}", batch, error) from error
        return [
            DeviceValue(o.dtype, resolve(o, with_totals(dims)), outputs[o.name])
            for o in spec.outputs
        ]

    def _execute(
        self,
        graph: str,
        engine: Engine,
        profile: int,
        feeds: Mapping[str, Any],
        sizes: Dims,
        outputs: Mapping[str, Memory],
    ) -> None:
        """A run of an engine, as a CUDA graph where that is faster and can be."""
        specs = {spec.name: spec for spec in self.manifest.graphs[graph].inputs}
        if self._captured is not None and engine.has_many_launches:

            def write(name: str, target: Memory) -> None:
                self._write(target, specs[name], feeds[name], sizes)

            spec = self.manifest.graphs[graph]
            self._captured.run(graph, spec, engine, profile, write, outputs)
            return
        inputs = {name: self._on_device(spec, feeds[name], sizes) for name, spec in specs.items()}
        engine.execute(
            profile,
            {name: resolve(spec, sizes) for name, spec in specs.items()},
            {name: buffer.address for name, buffer in {**inputs, **outputs}.items()},
            self._activations.address,
            self._device.stream,
        )

    def _on_device(self, spec: TensorSpec, value: Any, sizes: Dims) -> Memory:
        """A buffer that holds an input of a profile's size."""
        wanted = nbytes(spec, sizes)
        if isinstance(value, DeviceValue):
            # the rows of padding of two halves are not all at the end
            is_in_place = spec.shape[0] != HALVED or value.shape[0] == sizes[HALVED]
            if is_in_place and value.buffer.nbytes >= wanted:
                return value.buffer
        buffer = self._pool.take(wanted)
        self._write(buffer, spec, value, sizes)
        return buffer

    def _write(self, target: Memory, spec: TensorSpec, value: Any, sizes: Dims) -> None:
        """Writes an input of a profile's size.

        Rows of padding are like the first, so that they are valid, or zero where the value is on
        the device.
        """
        halves = 2 if spec.shape[0] == HALVED else 1
        if not isinstance(value, DeviceValue):
            if spec.dtype == "bfloat16" and value.dtype != np.uint16:
                raise ValueError(f"input {spec.name} is bfloat16: give its bits as uint16")
            value = value.astype(STORED_AS[spec.dtype], copy=False)
            value = pad_rows(value, resolve(spec, sizes)[0], halves)
            self._device.upload(target.address, value)
            return
        room, part = nbytes(spec, sizes) // halves, value.nbytes // halves
        for half in range(halves):
            place = target.address + half * room
            self._device.copy(place, value.buffer.address + half * part, part)
            if part < room:
                self._device.zero(place + part, room - part)

    def _constant(self, array: np.ndarray) -> DeviceValue:
        """A value that is uploaded once, to memory that no captured graph writes to."""
        key = array.dtype.name, array.shape, array.tobytes()
        if key not in self._constants:
            value = DeviceValue.empty(array.dtype.name, array.shape, self._kept)
            self._device.upload(value.buffer.address, array)
            self._constants[key] = value
        return self._constants[key]

    def generate(
        self, labels: Sequence[int], images: Sequence[int], seed: int, sampling: SamplingConfig
    ) -> np.ndarray | None:
        if self._generations is None:
            return None
        return self._generations(labels, images, seed, sampling)

    def denoise(
        self, step: Denoising, head_cond: Any, images: Sequence[int], seed: int
    ) -> np.ndarray | None:
        if self._loops is None or not isinstance(head_cond, DeviceValue):
            return None
        return self._loops(step, head_cond, images, seed)

    def _out_of_memory(self, what: str, batch: int, error: Exception) -> DeviceMemoryError:
        batches = {p["B"] for e in self._engines.values() for p in e.profiles if "B" in p}
        smaller = max((b for b in batches if b < batch), default=None)
        advice = (
            f"load the pipeline with max_batch={smaller}"
            if smaller
            else f"build engines for batches below {batch} (scripts/build_engines.py --batch)"
        )
        buffers = self._pool.nbytes + (self._captured.nbytes if self._captured is not None else 0)
        budget = _budget(self._engines, self._max_batch, buffers, self._device)
        return DeviceMemoryError(
            f"{what}: no room for its inputs and outputs: {error}; {budget}; {advice}, "
            "or free the GPU's memory",
            smaller,
        )

    def numpy(self, value: Any) -> np.ndarray:
        return value.numpy(self._device) if isinstance(value, DeviceValue) else value

    def mark(self) -> Any:
        return self._device.record()

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        return self._device.elapsed_ms(start, stop)

    def report_layers(self, graph: str, report: Callable[[str, float], None]) -> None:
        """Times the layers of a graph from now on, see `Engine.report_layers`."""
        self._engines[graph].report_layers(report)

    def close(self) -> None:
        if self._generations is not None:
            self._generations.close()
            self._generations = None
        if self._loops is not None:
            self._loops.close()
            self._loops = None
        if self._captured is not None:
            self._captured.close()
            self._captured = None
        if self._engines:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
            self._pool.close()
            self._kept.close()
            self._device.close()


def _does_not_fit(
    folder: EngineFolder | None, error: DeviceMemoryError, budget: str, batch: int
) -> DeviceMemoryError:
    advice = f"free the GPU's memory, load the pipeline with max_batch below {batch}"
    if folder is None:
        return DeviceMemoryError(f"{error}; {budget}; {advice}")
    plans = sum(entry.nbytes for entry in folder.manifest.engines.values())
    return DeviceMemoryError(
        f"{folder.folder.name}: {error}; {budget}, all plans have {plans / 1e6:.0f} MB; {advice}, "
        "or build engines for smaller batches (scripts/build_engines.py --batch)"
    )


def _scratch_nbytes(engines: Mapping[str, Engine], max_batch: int) -> int:
    """Scratch memory that any profile for up to this many images needs."""
    return max(
        (
            nbytes
            for engine in engines.values()
            for profile, nbytes in zip(engine.profiles, engine.activation_nbytes, strict=True)
            if is_within(profile, max_batch)
        ),
        default=0,
    )


def _budget(engines: Mapping[str, Engine], max_batch: int, buffers: int, device: Device) -> str:
    """What this process's engines take of the device's memory, and what is free."""
    weights = sum(e.plan_nbytes for e in engines.values())
    scratch = _scratch_nbytes(engines, max_batch)
    free, total = device.memory()
    return (
        f"loaded are {weights / 1e6:.0f} MB of weights, {scratch / 1e6:.0f} MB of activations and "
        f"{buffers / 1e6:.0f} MB of buffers, free are {free / 1e6:.0f} of {total / 1e6:.0f} MB"
    )


def _load_sampling(
    bundle: Bundle, device: CudaDevice
) -> tuple[SamplingKernels | None, DiffusionKernels | None]:
    """What the bundle's family samples with on the device."""
    try:
        kernels = KernelLibrary(open_library("trt").path, "sampling", device)
    except (PluginError, BackendUnavailableError) as error:
        logger.warning("sampling on the host, and no CUDA graphs: %s", error)
        return None, None
    if bundle.manifest.family == "hmar":
        return CudaSamplingKernels(kernels, device.stream), None
    if channels := bundle.manifest.himar.token_channels % WORDS:
        logger.warning("sampling on the host, and no CUDA graphs: %d channels", channels)
        return None, None
    return None, CudaDiffusionKernels(kernels, device.stream)
