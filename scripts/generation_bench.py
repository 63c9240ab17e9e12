"""What `scripts/bench.py` measures of every backend, and of PyTorch."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from runtime.bundle import Kind, Manifest
from runtime.config import BACKENDS, BackendName
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from runtime.pipeline_base import NO_CLASS
from runtime.timing import Span
from scripts.ceilings import Ceilings, measure_host_ceilings
from scripts.family_work import planned_steps, step_work
from scripts.generation_times import (
    Effort,
    Row,
    Sampling,
    achieved,
    time_generations,
    time_parts,
)
from scripts.generation_work import total
from scripts.machine import device_bytes, host_bytes

HOST, GPU = "CPU", "GPU"
MEASURED = tuple(name for name in BACKENDS if name != "auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """What to measure.

    Attributes:
        batches: numbers of images.
        backends: to measure one after the other, each at all batches.
        sampling: settings of every generation.
        checkpoint: transformer and tokenizer files for PyTorch, None = leave it out.
        placement, engines: for the backend trt, see `BackendConfig`.
        threads, nvtx: see `BackendConfig`.
    """

    bundle: Path
    batches: tuple[int, ...]
    backends: tuple[BackendName, ...]
    sampling: Sampling
    effort: Effort
    checkpoint: tuple[Sequence[Path], Path] | None = None
    placement: Mapping[Kind, BackendName] = field(default_factory=dict)
    engines: Path | None = None
    threads: int = 0
    nvtx: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.backends) - set(MEASURED):
            raise ValueError(f"backends are {', '.join(MEASURED)}, got {sorted(unknown)}")


class Bench:
    """Measures one contestant after the other.

    Attributes:
        ceilings: by device, of those that something has run on; None = cannot be measured.
        spans: of the last generation that each backend did step by step, by title.
    """

    def __init__(self, manifest: Manifest, config: BenchConfig) -> None:
        self.manifest, self.config = manifest, config
        self.ceilings: dict[str, Ceilings | None] = {}
        self.spans: dict[str, Sequence[Span]] = {}
        self.steps = tuple(planned_steps(manifest, config.sampling))
        self.calls = Counter(self.steps)

    def labels(self, batch: int) -> list[int]:
        classes = self.manifest.model.num_classes
        return [i % classes if classes else NO_CLASS for i in range(batch)]

    def ceilings_of(self, device: str) -> Ceilings | None:
        """Measured when first asked for; of a GPU by PyTorch, where that is there."""
        if device not in self.ceilings:
            self.ceilings[device] = (
                measure_host_ceilings() if device == HOST else _gpu_ceilings(self.manifest)
            )
        return self.ceilings[device]

    def image_flops(self) -> dict[str, int]:
        """Operations of one image, by part of the model."""
        flops: dict[str, int] = defaultdict(int)
        for step, count in self.calls.items():
            for part, work in step_work(self.manifest, step, 1).items():
                flops[part] += work.flops * count
        return dict(flops)

    def rows(self) -> Iterator[Row]:
        """One row per contestant and batch, or one that says why there is none."""
        for backend in self.config.backends:
            try:
                yield from self._backend_rows(backend)
            except DeployError as error:
                yield {"what": backend, "error": str(error)}
        if self.config.checkpoint is not None:
            yield from self._torch_rows(*self.config.checkpoint)

    def _backend_rows(self, backend: BackendName) -> Iterator[Row]:
        # before the memory in use is read: measuring makes a CUDA context
        ceilings = self.ceilings_of(HOST if backend == "ort-cpu" else GPU)
        config, start, used = self.config, time.perf_counter(), _memory()
        with Pipeline.load(
            config.bundle,
            backend,
            threads=config.threads,
            max_batch=max(config.batches),
            placement=config.placement if backend == "trt" else None,
            engines=config.engines,
            nvtx=config.nvtx,
        ) as pipeline:
            loaded = {"what": pipeline.runner.name, "load_s": time.perf_counter() - start}
            generate = partial(pipeline.generate, sampling=self.config.sampling)
            for batch in self.config.batches:
                if batch > pipeline.max_batch:
                    reason = f"the backend takes {pipeline.max_batch} images at a time"
                    yield {**loaded, "batch": batch, "error": reason}
                    continue
                row = loaded | self._timed(generate, batch, ceilings, used)
                row["parts"], spans = time_parts(
                    pipeline, self.labels(batch), self.config.sampling, self.config.effort, ceilings
                )
                self.spans[f"{loaded['what']}, batch {batch}"] = spans
                yield row

    def _torch_rows(self, ckpt: Sequence[Path], vae: Path) -> Iterator[Row]:
        try:
            import torch
        except ImportError as error:
            yield {"what": "torch", "error": f"{error}: pip install torch"}
            return
        from scripts.generation_rivals import RIVALS
        from scripts.torch_rivals import load_rival

        has_gpu = torch.cuda.is_available()
        ceilings = self.ceilings_of(GPU if has_gpu else HOST)
        start, used = time.perf_counter(), _memory()
        rival = load_rival(
            self.config.sampling,
            ckpt,
            vae,
            "cuda" if has_gpu else "cpu",
            self.manifest.precision if has_gpu else "fp32",
        )
        load_s = time.perf_counter() - start
        for name in RIVALS:
            if name == "torch compiled":
                if rival.compile is None:
                    return
                if not has_gpu:
                    yield {"what": name, "error": "CUDA graphs need a CUDA GPU"}
                    return
                rival.compile()
            for batch in self.config.batches:
                what = {"what": name, "load_s": load_s}
                try:
                    yield what | self._timed(rival.generate, batch, ceilings, used)
                except torch.OutOfMemoryError:
                    yield {**what, "batch": batch, "error": "out of memory"}

    def _timed(
        self,
        generate: Callable[[Sequence[int]], object],
        batch: int,
        ceilings: Ceilings | None,
        used: tuple[int, int | None],
    ) -> Row:
        row = time_generations(generate, self.labels(batch), self.config.effort)
        work = total(
            part * count
            for step, count in self.calls.items()
            for part in step_work(self.manifest, step, batch).values()
        )
        host, device = _memory()
        return {
            **row,
            **achieved(work, row["median_ms"], ceilings),
            "host_mb": (host - used[0]) / 1e6,
            "device_mb": None if device is None or used[1] is None else (device - used[1]) / 1e6,
        }


def _memory() -> tuple[int, int | None]:
    """Memory in use on the host and on the GPU, in bytes."""
    return host_bytes(), device_bytes()


def _gpu_ceilings(manifest: Manifest) -> Ceilings | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    from scripts.generation_rivals import DTYPES
    from scripts.gpu_timing import measure_ceilings

    ceilings = measure_ceilings(dtype=DTYPES[manifest.precision])
    torch.cuda.empty_cache()
    return ceilings
