"""The sampling of a Hi-MAR step on a device: all calls of a denoiser as one CUDA graph."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from runtime.backends.base import StepRunner
from runtime.backends.cuda import Device
from runtime.backends.device_values import BufferPool, DeviceValue, capture
from runtime.backends.diffusion_kernels import WORDS, DiffusionKernels
from runtime.backends.trt_engine import Engine
from runtime.bundle import Kind, Manifest
from runtime.denoising import Denoising
from runtime.diffusion import DiffusionSchedule
from runtime.normals import NOISE, second_word

logger = logging.getLogger(__name__)

MAX_GRAPHS = 16
MODULATED: tuple[Kind, Kind] = ("modulate_pivot", "denoise_pivot_modulated")
"""The parts of the pivots' guided denoiser."""

Call = Callable[[int], dict[str, Any]]
"""Number of the call in a sampling -> results of the denoiser."""


class LoopPlan(NamedTuple):
    """What decides which work a sampling consists of; all else is read from the device."""

    kind: Kind
    batch: int
    length: int
    timesteps: tuple[int, ...]
    has_held: bool
    is_modulated: bool

    @classmethod
    def of(
        cls,
        kind: Kind,
        batch: int,
        length: int,
        timesteps: tuple[int, ...],
        *,
        has_held: bool,
        modulated: Collection[tuple[int, int]],
    ) -> LoopPlan:
        """The plan of a sampling, its denoiser in two parts where there are engines for that."""
        in_two_parts = (len(timesteps), 2 * batch) in modulated
        is_modulated = in_two_parts and kind == "denoise_pivot"
        return cls(kind, batch, length, timesteps, has_held, is_modulated)


def modulated_sizes(manifest: Manifest, engines: Mapping[str, Engine]) -> set[tuple[int, int]]:
    """Diffusion steps of the pivots, and rows, that there are engines for modulations of.

    Args:
        engines: by graph.
    """
    kinds = {manifest.graphs[name].kind: engine for name, engine in engines.items()}
    if not kinds.keys() >= set(MODULATED):
        return set()
    return {(profile["T"], profile["N"]) for profile in kinds[MODULATED[0]].profiles}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopInputs:
    """What a sampling reads from the device: written before, unchanged while it runs."""

    head_cond: DeviceValue
    scale: DeviceValue
    held_tokens: DeviceValue
    held: DeviceValue
    positions: DeviceValue
    images: DeviceValue
    seed: DeviceValue
    counter: DeviceValue
    temperature: DeviceValue


class DenoiseLoop:
    """The work of one plan, captured once and replayed.

    Attributes:
        inputs: to be written before a run.
        tokens: (B, n, C) float32, the states, and after a run its result.

    Args:
        runner: keeps what it returns on `device`, in `results`, which later samplings write to.
        pool: of what this one keeps.
    """

    def __init__(
        self,
        plan: LoopPlan,
        schedule: DiffusionSchedule,
        runner: StepRunner,
        kernels: DiffusionKernels,
        device: Device,
        results: BufferPool,
        pool: BufferPool,
    ) -> None:
        self._plan, self._schedule = plan, schedule
        self._runner, self._kernels, self._device = runner, kernels, device
        manifest, B, n = runner.manifest, plan.batch, plan.length
        self._name = manifest.graph(plan.kind)
        self._channels = manifest.himar.token_channels
        specs = {spec.name: spec for spec in manifest.graphs[self._name].inputs}
        cond = specs["head_cond"]
        self._is_guided = "scale" in specs
        new = DeviceValue.empty
        tokens = B, n, self._channels
        self.inputs = LoopInputs(
            head_cond=new(cond.dtype, ((1 + self._is_guided) * B, n, int(cond.shape[2])), pool),
            scale=new("float32", (1,), pool),
            held_tokens=new("float32", tokens, pool),
            held=new("bool", (B, n), pool),
            positions=new("int32", (B, n), pool),
            images=new("int64", (B,), pool),
            seed=new("int64", (1,), pool),
            counter=new("int32", (1,), pool),
            temperature=new("float32", (1,), pool),
        )
        for field in fields(LoopInputs):  # rows of padding stay zero
            value: DeviceValue = getattr(self.inputs, field.name)
            device.zero(value.buffer.address, value.buffer.nbytes)
        self.tokens, self._first = new("float32", tokens, pool), new("float32", tokens, pool)
        self._timestep = new("int32", (1,), pool)
        # in the order in which they are visited
        self._timesteps = new("int32", (schedule.num_steps,), pool)
        visited = np.array(schedule.timesteps[::-1], np.int32)
        device.upload(self._timesteps.buffer.address, visited)
        start = time.perf_counter()
        self._graph = capture(device, results, self._enqueue)
        logger.info(
            "%s, batch %d, %d tokens: %d steps captured, %.2f s",
            *(self._name, B, n, schedule.num_steps, time.perf_counter() - start),
        )

    def __call__(self) -> np.ndarray:
        """Tokens (B, n, C) of the present inputs."""
        self._graph.launch()
        return self.tokens.numpy(self._device)

    def close(self) -> None:
        self._graph.close()

    def _enqueue(self) -> None:
        schedule = self._schedule
        self._kernels.start(**self._arguments(), **self._before(schedule.num_steps - 1))
        call = self._modulated() if self._plan.is_modulated else self._whole()
        for j, i in enumerate(reversed(range(schedule.num_steps))):
            results = call(j)
            variance = results.get("variance")
            upper, lower = schedule.fixed_log_variance, schedule.fixed_log_variance
            if variance is not None:
                upper, lower = schedule.log_betas, schedule.posterior_log_variance
            A = float(schedule.signal[i])
            self._kernels.reverse(
                **self._arguments(),
                **self._before(i - 1),
                noise=results["noise"].buffer.address,
                variance=0 if variance is None else variance.buffer.address,
                temperature=self.inputs.temperature.buffer.address,
                draw=j + 1 if i > 0 else 0,
                has_variance=variance is not None,
                x0_from_state=math.sqrt(1 / A),
                x0_from_noise=math.sqrt(1 / A - 1),
                mean_x0=float(schedule.mean_x0[i]),
                mean_x=float(schedule.mean_x[i]),
                log_upper=float(upper[i]),
                log_lower=float(lower[i]),
            )

    def _whole(self) -> Call:
        """The denoiser's graph, which reads the time step from the device."""
        feeds = {
            "x": self.tokens,
            "timestep": self._timestep,
            "head_cond": self.inputs.head_cond,
        }
        if self._is_guided:
            feeds["scale"] = self.inputs.scale
        return lambda j: self._runner.run(self._name, feeds)

    def _modulated(self) -> Call:
        """The denoiser in two parts, after running the first for all time steps."""
        modulate, name = (self._runner.manifest.graph(kind) for kind in MODULATED)
        feeds = {"timestep": self._timesteps, "head_cond": self.inputs.head_cond}
        modulation_T2BnM = self._runner.run(modulate, feeds)["modulation"]
        state = {"x": self.tokens, "scale": self.inputs.scale}
        return lambda j: self._runner.run(name, {**state, "modulation": modulation_T2BnM[j]})

    def _arguments(self) -> dict[str, Any]:
        """What both kernels take."""
        shared = ("held_tokens", "held", "positions", "images", "seed", "counter")
        return {
            "state": self.tokens.buffer.address,
            "first": self._first.buffer.address,
            "timestep": self._timestep.buffer.address,
            **{name: getattr(self.inputs, name).buffer.address for name in shared},
            "batch": self._plan.batch,
            "length": self._plan.length,
            "groups": self._channels // WORDS,
        }

    def _before(self, i: int) -> dict[str, Any]:
        """What prepares the call of step i; -1 = there is none any more, and nothing is held."""
        A = float(self._schedule.signal[max(i, 0)])
        return {
            "next_timestep": self._schedule.timesteps[max(i, 0)],
            "has_held": self._plan.has_held and i >= 0,
            "held_signal": math.sqrt(A),
            "held_noise": math.sqrt(1 - A),
        }


class DenoiseLoops:
    """Samplings by plan; the least recently used goes when there are too many.

    Args:
        runner: makes the runner that works in a pool.
        batches: sizes that there are engines for, ascending.
        modulated: diffusion steps and rows that there are engines for, of the pivots' denoiser in
            two parts.
    """

    def __init__(
        self,
        runner: Callable[[BufferPool], StepRunner],
        kernels: DiffusionKernels,
        device: Device,
        batches: Sequence[int],
        modulated: Collection[tuple[int, int]],
    ) -> None:
        self._modulated = frozenset(modulated)
        self._kernels, self._device, self._batches = kernels, device, tuple(batches)
        # a replayed graph writes its results where they were when it was captured
        self._kept, self._results = BufferPool(device), BufferPool(device)
        self._runner = runner(self._results)
        self._made: OrderedDict[LoopPlan, DenoiseLoop] = OrderedDict()

    def __call__(
        self, step: Denoising, head_cond: DeviceValue, images: Sequence[int], seed: int
    ) -> np.ndarray:
        """Tokens (B, n, C) float32, as of `StepRunner.denoise`."""
        B, n = step.positions.shape
        batch = next(b for b in self._batches if b >= B)
        plan = LoopPlan.of(
            step.kind,
            batch,
            n,
            step.schedule.timesteps,
            has_held=step.held is not None,
            modulated=self._modulated,
        )
        loop = self._made.get(plan)
        if loop is None:
            while len(self._made) >= MAX_GRAPHS:
                self._made.popitem(last=False)[1].close()
            loop = DenoiseLoop(
                plan,
                step.schedule,
                self._runner,
                self._kernels,
                self._device,
                self._results,
                self._kept,
            )
            self._made[plan] = loop
        self._made.move_to_end(plan)
        self._fill(loop.inputs, step, head_cond, images, seed)
        return loop()[:B]

    def _fill(
        self,
        inputs: LoopInputs,
        step: Denoising,
        head_cond: DeviceValue,
        images: Sequence[int],
        seed: int,
    ) -> None:
        """Writes the inputs of the images; what is in rows of padding does not matter."""
        arrays = {
            "scale": np.array([step.weight], np.float32),
            "positions": step.positions.astype(np.int32),
            "images": np.array(images, np.uint64).view(np.int64),
            "seed": np.array([seed], np.uint64).view(np.int64),
            "counter": np.array([second_word(NOISE[step.phase], step.step_idx, 0)], np.int32),
            "temperature": np.array([step.temperature], np.float32),
        }
        if step.held is not None:
            arrays |= {"held": step.held.mask, "held_tokens": step.held.tokens}
        for name, array in arrays.items():
            target: DeviceValue = getattr(inputs, name)
            self._device.upload(target.buffer.address, np.ascontiguousarray(array))
        copy_halves(self._device, inputs.head_cond, head_cond, 1 + step.is_guided)

    def close(self) -> None:
        for loop in self._made.values():
            loop.close()
        self._made.clear()
        self._kept.close()
        self._results.close()


def copy_halves(device: Device, target: DeviceValue, source: DeviceValue, halves: int) -> None:
    """Copies the first rows of every half."""
    for half in range(halves):
        device.copy(
            target.buffer.address + half * (target.nbytes // halves),
            source.buffer.address + half * (source.nbytes // halves),
            source.nbytes // halves,
        )
