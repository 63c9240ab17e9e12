"""What the pipelines of both model families share: loading, labels, splitting, closing."""

from __future__ import annotations

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

import numpy as np

from runtime.backends.base import StepRunner
from runtime.backends.placement import load_runner
from runtime.bundle import Bundle, Kind, Manifest
from runtime.config import AttentionKind, BackendConfig, BackendName, KernelUse
from runtime.errors import PipelineUseError
from runtime.trajectory import Cancel, Record

NO_CLASS = -1

Sampling = TypeVar("Sampling")
Draws = TypeVar("Draws")


class Pipeline(ABC, Generic[Sampling, Draws]):
    """Images from a bundle. Use it as a context manager, or call `close`.

    `load` gives the pipeline of the bundle's family, an `HMARPipeline` or a `HiMARPipeline`. It
    belongs to the process that loads it. A call that fails or is interrupted leaves it usable.
    """

    def __init__(self, runner: StepRunner, max_batch: int, class_names: Sequence[str] = ()) -> None:
        self.runner, self.max_batch = runner, min(max_batch, runner.max_batch or max_batch)
        self.class_names = tuple(class_names)
        self._process, self._is_closed = os.getpid(), False

    @classmethod
    def load(
        cls,
        bundle: Path | str,
        backend: BackendName = "auto",
        *,
        threads: int = 0,
        max_batch: int = 8,
        check_weights: bool = True,
        attention: AttentionKind = "function",
        placement: Mapping[Kind, BackendName] | None = None,
        engines: Path | None = None,
        decoder: KernelUse = "auto",
        transformer: KernelUse = "auto",
        denoisers: KernelUse = "auto",
        nvtx: bool = False,
    ) -> Pipeline[Any, Any]:
        """Opens a bundle after checking its files against the manifest.

        Args:
            bundle: the bundle folder.
            backend, threads, max_batch, check_weights, attention, placement, engines, decoder,
                transformer, denoisers, nvtx: see `BackendConfig`.

        Raises:
            BundleError: the folder is no bundle, or a file is missing or altered.
            BackendError: the backend is not available or cannot run the bundle.
        """
        config = BackendConfig(
            name=backend,
            threads=threads,
            max_batch=max_batch,
            check_weights=check_weights,
            placement=placement or {},
            engines=engines,
            attention=attention,
            decoder=decoder,
            transformer=transformer,
            denoisers=denoisers,
            nvtx=nvtx,
        )
        opened = Bundle.open(bundle)
        opened.check_files(weights=config.check_weights)
        return cls.of(load_runner(opened, config), config.max_batch, opened.class_names())

    @staticmethod
    def of(
        runner: StepRunner, max_batch: int, class_names: Sequence[str] = ()
    ) -> Pipeline[Any, Any]:
        """The pipeline of a runner's bundle."""
        # they import this class
        from runtime.himar_pipeline import HiMARPipeline
        from runtime.pipeline import HMARPipeline

        family: type[Pipeline[Any, Any]] = (
            HMARPipeline if runner.manifest.family == "hmar" else HiMARPipeline
        )
        return family(runner, max_batch, class_names)

    @property
    def manifest(self) -> Manifest:
        return self.runner.manifest

    @property
    @abstractmethod
    def defaults(self) -> Sampling:
        """The settings that the model was published with."""

    @abstractmethod
    def generate(
        self,
        labels: Sequence[int | str],
        *,
        seed: int = 0,
        image_index: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        draws: Draws | None = None,
        cancel: Cancel = lambda: False,
        trace: Record | None = None,
    ) -> np.ndarray:
        """Images of the given classes, (B, H, W, 3) uint8.

        Args:
            labels: one class per image: 0..num_classes - 1, -1 = unconditional, or a name from
                `class_names`.
            seed: 0 .. 2^64 - 1.
            image_index: names each image's random numbers, together with the seed; default
                0, 1, 2, ….
            sampling: default: the published settings.
            draws: replaces the seed, for verification.
            cancel: True ends the generation.
            trace: receives intermediate results, see `runtime.trace.Trace`.
        """

    def _encoded(self, images: np.ndarray) -> np.ndarray:
        """The `tokens` of the `encode` graph for images (B, H, W, 3) uint8, after checking them."""
        self._check_usable()
        side = self.manifest.model.image_side_px
        if images.ndim != 4 or images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"images must be (B, {side}, {side}, 3) uint8, got {images.shape} {images.dtype}"
            )
        values = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
        graph = self.manifest.graph("encode")
        parts = [
            self.runner.numpy(self.runner.run(graph, {"image": values[part]})["tokens"])
            for part in self._parts(len(images))
        ]
        return np.concatenate(parts)

    def _indices(self, image_index: Sequence[int] | None, count: int) -> list[int]:
        """What names each image's random numbers, after checking it."""
        indices = list(range(count)) if image_index is None else list(image_index)
        if len(indices) != count:
            raise ValueError(f"image_index has {len(indices)} entries for {count} labels")
        if any(not 0 <= i < 1 << 64 for i in indices):
            raise ValueError(f"image_index must be in 0..2^64-1, got {indices}")
        return indices

    def _rows(self, labels: Sequence[int | str]) -> list[int]:
        """Rows of the class embedding, after checking the labels."""
        if len(labels) == 0:
            raise ValueError("labels is empty; give one class per image")
        return [self._row(label) for label in labels]

    def _row(self, label: int | str) -> int:
        classes = self.manifest.model.num_classes
        if isinstance(label, str) and self.class_names:
            if label not in self.class_names:
                close = difflib.get_close_matches(label, self.class_names) or self.class_names[:20]
                raise ValueError(f"class {label!r} is unknown; try {', '.join(close)}")
            return self.class_names.index(label)
        is_number = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
        if not is_number or not NO_CLASS <= int(label) < classes:
            hint = "" if self.class_names else " (this bundle has no class names)"
            raise ValueError(
                f"label {label!r} is out of range: 0..{classes - 1}, or -1 for unconditional{hint}"
            )
        return classes if label == NO_CLASS else int(label)

    def _parts(self, count: int) -> list[slice]:
        return [slice(i, min(i + self.max_batch, count)) for i in range(0, count, self.max_batch)]

    def _check_usable(self) -> None:
        if self._is_closed:
            raise PipelineUseError("this pipeline is closed; load it again with Pipeline.load")
        if os.getpid() != self._process:
            raise PipelineUseError(
                f"this pipeline belongs to process {self._process}, which loaded it, this is "
                f"{os.getpid()}: threads and GPU contexts do not survive a fork; call "
                'Pipeline.load in each process, on a GPU one started with the method "spawn"'
            )

    def close(self) -> None:
        """Frees the backend's resources, which a fork of the process leaves alone."""
        if not self._is_closed and os.getpid() == self._process:
            self.runner.close()
        self._is_closed = True

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Pipeline cannot be pickled or copied, since it holds sessions or engines of its "
            "process; hand on the bundle's path, and call Pipeline.load there"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
