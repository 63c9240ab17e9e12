"""Whole generations on a device, each a single CUDA graph from labels to pixels."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime import sampler
from runtime.backends.base import StepRunner
from runtime.backends.cuda import Device
from runtime.backends.device_values import BufferPool, DeviceValue, Memory, capture
from runtime.backends.sampling_kernels import SamplingKernels
from runtime.bundle import Kind, ModelSpec
from runtime.config import SamplingConfig
from runtime.errors import DeviceMemoryError
from runtime.schedule import Schedule, masked_counts

logger = logging.getLogger(__name__)

MAX_GRAPHS = 8
OutOfMemory = Callable[[str, int, Exception], DeviceMemoryError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What decides which work a generation consists of; all else is read from the device.

    Attributes:
        batch: rows of images.
        schedule: of the masked passes.
        is_guided: whether the next-scale pass of each scale has the unconditional half.
        is_mask_guided: whether masked passes have it.
    """

    batch: int
    schedule: Schedule | None
    is_guided: tuple[bool, ...]
    is_mask_guided: bool

    @classmethod
    def of(cls, sampling: SamplingConfig, model: ModelSpec, batch: int) -> Plan:
        S, floor = len(model.patch_nums), sampling.skip_guidance_below
        return cls(
            batch=batch,
            schedule=sampling.checked(model),
            is_guided=tuple(sampler.guidance(sampling.cfg, k, S) >= floor for k in range(S)),
            is_mask_guided=sampler.masked_guidance(sampling.cfg) >= floor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a generation reads from the device: written before, unchanged while it runs."""

    labels: DeviceValue
    images: DeviceValue
    seed: DeviceValue
    settings: DeviceValue

    @classmethod
    def empty(cls, batch: int, pool: BufferPool) -> Inputs:
        """Room for the inputs of so many images, in both halves."""
        return cls(
            labels=DeviceValue.empty("int32", (2 * batch,), pool),
            images=DeviceValue.empty("int64", (batch,), pool),
            seed=DeviceValue.empty("int64", (1,), pool),
            settings=DeviceValue.empty("float64", (3,), pool),
        )


class Generation:
    """The work of one plan, captured once and replayed.

    Attributes:
        pixels: (B, H, W, 3) uint8 of the latest run.
        image: the same as (B, 3, H, W) float32 in [0, 1], until its memory is used again.
        tokens: (B, pn * pn) int32 of every scale.

    Args:
        runner: keeps what it returns on `device`, in `results`.
        results: what a run needs, which other generations write to.
        pool: of what this one keeps.
        out_of_memory: the error of what there is no room for, given its batch and the reason.
    """

    def __init__(
        self,
        plan: Plan,
        runner: StepRunner,
        kernels: SamplingKernels,
        device: Device,
        results: BufferPool,
        pool: BufferPool,
        inputs: Inputs,
        out_of_memory: OutOfMemory,
    ) -> None:
        self._out_of_memory = out_of_memory
        self._plan, self._runner, self._kernels = plan, runner, kernels
        self._device, self._results, self._inputs = device, results, inputs
        self._model = runner.manifest.hmar
        side = self._model.image_side_px
        self.pixels = self._new("uint8", plan.batch, side, side, 3, pool=pool)
        P = self._model.patch_nums[-1]
        self._zeros = self._new("float32", plan.batch, self._model.latent_channels, P, P, pool=pool)
        self.tokens = [
            self._new("int32", plan.batch, pn * pn, pool=pool) for pn in self._model.patch_nums
        ]
        device.zero(self._zeros.buffer.address, self._zeros.buffer.nbytes)
        start = time.perf_counter()
        self._graph = capture(device, results, self._enqueue)
        logger.info("%s: captured, %.2f s", plan, time.perf_counter() - start)

    def __call__(self) -> np.ndarray:
        """Images (B, H, W, 3) uint8 of the present inputs."""
        self._graph.launch()
        return self.pixels.numpy(self._device)

    def close(self) -> None:
        self._graph.close()

    def _new(self, dtype: str, *shape: int, pool: BufferPool | None = None) -> DeviceValue:
        try:
            return DeviceValue.empty(dtype, shape, pool or self._results)
        except DeviceMemoryError as error:
            batch = self._plan.batch
            raise self._out_of_memory(f"generation of {batch} images", batch, error) from error

    def _enqueue(self) -> None:
        manifest, B = self._runner.manifest, self._plan.batch
        both = self._runner.run(manifest.graph("cond"), {"label": self._inputs.labels})
        cond = {2: both, 1: {name: v.reshaped(B, *v.shape[1:]) for name, v in both.items()}}
        f_hat, map_B = self._zeros, None
        for k, pn in enumerate(self._model.patch_nums):
            self._predict(k, pn, cond, map_B)
            feeds = {"tokens": self.tokens[k].reshaped(B, pn, pn), "f_hat": f_hat}
            results = self._runner.run(manifest.graph("quant", k), feeds)
            f_hat, map_B = results["f_hat_out"], results.get("map")
        image = self._runner.run(manifest.graph("decode"), {"f_hat": f_hat})["image"]
        self.image = replace(image, buffer=Memory(image.buffer.address, image.buffer.nbytes))
        self._kernels.to_uint8(
            image=image.buffer.address,
            pixels=self.pixels.buffer.address,
            batch=B,
            side=self._model.image_side_px,
        )

    def _predict(
        self, k: int, pn: int, cond: dict[int, dict[str, DeviceValue]], map_B: DeviceValue | None
    ) -> None:
        """Writes the tokens of one scale: the next-scale pass, then its masked passes."""
        B, l = self._plan.batch, pn * pn
        halves = 1 + self._plan.is_guided[k]
        tokens, confidences = self.tokens[k], self._new("float32", B, l)
        operands = {} if map_B is None else {"map": map_B}
        logits = self._logits("ns", k, operands, cond, halves)
        self._draw(k, 0, logits, tokens, confidences, None, halves)
        entry = self._plan.schedule[k] if self._plan.schedule is not None else ()
        candidates, num_candidates = self._new("int32", B, l), l
        halves = 1 + self._plan.is_mask_guided
        for j, count in enumerate(masked_counts(entry, l), start=1):
            selected, token_mask = self._new("int32", B, l), self._new("bool", B, l)
            self._kernels.select(
                confidences=confidences.buffer.address,
                candidates=candidates.buffer.address,
                selected=selected.buffer.address,
                token_mask=token_mask.buffer.address,
                batch=B,
                length=l,
                num_candidates=num_candidates,
                count=count,
                is_first=j == 1,
            )
            graph = self._runner.manifest.graph("mask_input", k)
            h = self._runner.run(graph, {"tokens": tokens.reshaped(B, pn, pn)})["h"]
            masked = {**operands, "h": h, "token_mask": token_mask}
            logits = self._logits("mask", k, masked, cond, halves)
            self._draw(k, j, logits, tokens, confidences, token_mask, halves)
            candidates, num_candidates = selected, count

    def _logits(
        self,
        kind: Kind,
        k: int,
        operands: dict[str, DeviceValue],
        cond: dict[int, dict[str, DeviceValue]],
        halves: int,
    ) -> DeviceValue:
        graph = self._runner.manifest.graph(kind, k)
        feeds = {name: self._repeated(value, halves) for name, value in operands.items()}
        wanted = {i.name for i in self._runner.manifest.graphs[graph].inputs}
        feeds |= {name: value for name, value in cond[halves].items() if name in wanted}
        return self._runner.run(graph, feeds)["logits"]

    def _repeated(self, value: DeviceValue, halves: int) -> DeviceValue:
        """The same input for each half of the guided batch."""
        if halves == 1:
            return value
        repeated = self._new(value.dtype, halves * value.shape[0], *value.shape[1:])
        for half in range(halves):
            target = repeated.buffer.address + half * value.nbytes
            self._device.copy(target, value.buffer.address, value.nbytes)
        return repeated

    def _draw(
        self,
        k: int,
        pass_idx: int,
        logits: DeviceValue,
        tokens: DeviceValue,
        confidences: DeviceValue,
        token_mask: DeviceValue | None,
        halves: int,
    ) -> None:
        self._kernels.draw(
            logits=logits.buffer.address,
            tokens=tokens.buffer.address,
            confidences=confidences.buffer.address,
            token_mask=0 if token_mask is None else token_mask.buffer.address,
            settings=self._inputs.settings.buffer.address,
            seed=self._inputs.seed.buffer.address,
            images=self._inputs.images.buffer.address,
            batch=self._plan.batch,
            length=tokens.shape[1],
            vocab=self._model.vocab_size,
            scale_idx=k,
            num_scales=len(self._model.patch_nums),
            pass_idx=pass_idx,
            is_guided=halves == 2,
        )


class Generations:
    """Generations by plan; the least recently used goes when there are too many.

    Args:
        runner: makes the runner that works in a pool.
        batches: sizes that there are engines for, ascending.
        out_of_memory: as of `Generation`.
    """

    def __init__(
        self,
        runner: Callable[[BufferPool], StepRunner],
        kernels: SamplingKernels,
        device: Device,
        batches: Sequence[int],
        out_of_memory: OutOfMemory,
    ) -> None:
        self._kernels, self._device, self._batches = kernels, device, tuple(batches)
        self._out_of_memory = out_of_memory
        # a replayed graph writes its results where they were when it was captured
        self._kept, self._results = BufferPool(device), BufferPool(device)
        self._runner = runner(self._results)
        self._inputs: dict[int, Inputs] = {}
        self._made: OrderedDict[Plan, Generation] = OrderedDict()

    def __call__(
        self, labels: Sequence[int], images: Sequence[int], seed: int, sampling: SamplingConfig
    ) -> np.ndarray:
        """Images (B, H, W, 3) uint8.

        Args:
            labels: classes 0..num_classes - 1, or num_classes = no class; at most as many as the
                largest of `batches`.
            images, seed: name the random numbers, see `runtime.philox`.
        """
        batch = next(b for b in self._batches if b >= len(labels))
        plan = Plan.of(sampling, self._runner.manifest.hmar, batch)
        inputs = self._fill(batch, labels, images, seed, sampling)
        generation = self._made.get(plan)
        if generation is None:
            generation = Generation(
                plan,
                self._runner,
                self._kernels,
                self._device,
                self._results,
                self._kept,
                inputs,
                self._out_of_memory,
            )
            while len(self._made) >= MAX_GRAPHS:
                self._made.popitem(last=False)[1].close()
            self._made[plan] = generation
        self._made.move_to_end(plan)
        return generation()[: len(labels)]

    def tokens(self) -> list[np.ndarray]:
        """Tokens (B, pn * pn) int32 of every scale, of the latest call; with rows of padding."""
        latest = next(reversed(self._made.values()))
        return [tokens.numpy(self._device) for tokens in latest.tokens]

    def _fill(
        self,
        batch: int,
        labels: Sequence[int],
        images: Sequence[int],
        seed: int,
        sampling: SamplingConfig,
    ) -> Inputs:
        """Writes the inputs; rows of padding are unconditional."""
        none, padding = self._runner.manifest.hmar.num_classes, batch - len(labels)
        arrays: dict[str, np.ndarray] = {
            "labels": np.array([*labels, *([none] * (padding + batch))], np.int32),
            "images": np.array([*images, *([0] * padding)], np.uint64).view(np.int64),
            "seed": np.array([seed], np.uint64).view(np.int64),
            "settings": np.array([sampling.cfg, sampling.top_k, sampling.top_p], np.float64),
        }
        if batch not in self._inputs:
            self._inputs[batch] = Inputs.empty(batch, self._kept)
        inputs = self._inputs[batch]
        for name, array in arrays.items():
            self._device.upload(getattr(inputs, name).buffer.address, array)
        return inputs

    def close(self) -> None:
        for generation in self._made.values():
            generation.close()
        self._made.clear()
        self._kept.close()
        self._results.close()
