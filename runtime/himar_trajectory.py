"""The two phases of Hi-MAR: which graph runs when, and what goes into it. Knows no backend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from runtime.backends.base import StepRunner
from runtime.denoising import Denoising, Held, sample_tokens
from runtime.diffusion import diffusion_schedule
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_draws import HiMARDraws, SeededHiMARDraws
from runtime.himar_schedule import Phase, Step, plan
from runtime.low_resolution import to_small
from runtime.trajectory import Cancel, Record, raise_if_cancelled, to_uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """What a per-step callback receives.

    Attributes:
        phase, step_idx: the step just finished.
        num_steps: of the phase.
        images: positions of these images in the request.
        tokens: of the grid of the phase so far, (B, n, C) float32; pivots not yet known are 0.
        preview: decodes these to uint8 images, takes time only if called: (B, 64, 64, 3) of pivots,
            (B, H, W, 3) of dense tokens. After the last step of the pivots it is the low-resolution
            image.
    """

    phase: Phase
    step_idx: int
    num_steps: int
    images: slice
    tokens: np.ndarray
    preview: Callable[[], np.ndarray]


OnStep = Callable[[StepEvent], None]


def decode(runner: StepRunner, dense_BNC: np.ndarray) -> np.ndarray:
    """Images (B, 3, H, W) float32 of dense tokens; [0, 1] is black to white, more is possible."""
    graph = runner.manifest.graph("decode")
    return runner.numpy(runner.run(graph, {"tokens": dense_BNC})["image"])


def decode_small(runner: StepRunner, pivots_BPC: np.ndarray) -> np.ndarray:
    """Low-resolution images (B, 3, 64, 64) float32 of pivots, as in `decode`."""
    graph = runner.manifest.graph("decode_pivot")
    return to_small(runner.numpy(runner.run(graph, {"tokens": pivots_BPC})["image"]))


class HiMARTrajectory:
    """One generation of a batch that fits the backend.

    Args:
        cond_2BD: what conditions the images, as the step graphs take it; the rows of no condition
            are its second half.
        images: positions of these images in the request, for callbacks.
    """

    def __init__(
        self,
        runner: StepRunner,
        cond_2BD: np.ndarray,
        config: HiMARSamplingConfig,
        draws: HiMARDraws,
        *,
        record: Record | None,
        on_step: OnStep,
        cancel: Cancel,
        images: slice,
    ) -> None:
        self.runner, self.config, self.draws = runner, config, draws
        self.model = runner.manifest.himar
        self.batch = len(cond_2BD) // 2
        self.cond = {1: cond_2BD[: self.batch], 2: cond_2BD}
        self.recorder, self.on_step = record, on_step
        self.check = partial(raise_if_cancelled, cancel, images)
        self.images = images
        self.recorded: dict[str, list[np.ndarray]] = defaultdict(list)

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Pivots (B, P, C) and dense tokens (B, N, C), float32."""
        pivots_BPC, small_z_BPD = self._sample_pivots()
        dense_BNC = self._sample_dense(small_z_BPD)
        self.check()
        if self.recorder is not None:
            for name, values in self.recorded.items():
                self.recorder(name, np.stack(values))
            self.recorder("small_tokens", to_map(pivots_BPC, self.model.pivot_side))
            self.recorder("dense_tokens", to_map(dense_BNC, self.model.dense_side))
        return pivots_BPC, dense_BNC

    def _sample_pivots(self) -> tuple[np.ndarray, np.ndarray]:
        """Pivots (B, P, C), and of each the z (B, P, D) of the step that predicted it."""
        model, config, B, P = self.model, self.config, self.batch, self.model.num_pivots
        order_BP = self.draws.orders("pivot", P)
        halves = 1 + (config.re_cfg != 1)
        pivots_BPC = np.zeros((B, P, model.token_channels), np.float32)
        small_z_BPD: np.ndarray | None = None
        steps = plan(P, model.pivot_steps, config.re_cfg, config.cfg_schedule)
        self._record("p1.tokens", pivots_BPC)
        for s, step in enumerate(steps):
            self.check()
            known_BK, predicted_Bn = _known(order_BP, step), _predicted(order_BP, step)
            source_BS = _source(known_BK, P + model.num_dense)
            self._record("p1.mask", source_BS < 0)
            feeds = {"pivots": pivots_BPC, "known": known_BK} if known_BK.size else {}
            feeds |= {"source": source_BS, "predicted": predicted_Bn}
            results = self._run(self.runner.manifest.graph("pivot", step_idx=s), feeds, halves)
            tokens_BnC = self._denoise(
                Denoising(
                    phase="pivot",
                    step_idx=s,
                    positions=predicted_Bn,
                    schedule=diffusion_schedule(config.pivot_diffusion_steps),
                    weight=step.weight,
                    is_guided=halves == 2,
                    temperature=config.temperature,
                ),
                results["head_cond"],
            )
            z_BnD = self.runner.numpy(results["z"])[:B]
            if small_z_BPD is None:
                small_z_BPD = np.zeros((B, P, z_BnD.shape[-1]), z_BnD.dtype)
            pivots_BPC = pivots_BPC.copy()  # callbacks may keep what they were given
            np.put_along_axis(pivots_BPC, predicted_Bn[..., None], tokens_BnC, axis=1)
            np.put_along_axis(small_z_BPD, predicted_Bn[..., None], z_BnD, axis=1)
            self._record("p1.tokens", pivots_BPC)
            self._report("pivot", s, len(steps), pivots_BPC, decode_small)
        assert small_z_BPD is not None
        return pivots_BPC, small_z_BPD

    def _sample_dense(self, small_z_BPD: np.ndarray) -> np.ndarray:
        """Dense tokens (B, N, C)."""
        model, config, B = self.model, self.config, self.batch
        P, N = model.num_pivots, model.num_dense
        order_BN = self.draws.orders("dense", N)
        halves = 1 + (config.cfg != 1)
        dense_BNC = np.zeros((B, N, model.token_channels), np.float32)
        pivots_BP, positions_BN = (np.tile(np.arange(n), (B, 1)) for n in (P, N))
        steps = plan(N, config.num_iter, config.cfg, config.cfg_schedule)
        self._record("p2.tokens", dense_BNC)
        for k, step in enumerate(steps):
            self.check()
            known_BK = _known(order_BN, step)
            source_BS = _source(np.concatenate((pivots_BP, P + known_BK), axis=1), P + N)
            self._record("p2.mask", source_BS < 0)
            feeds = {"dense": dense_BNC, "known": known_BK} if known_BK.size else {}
            # the pivots' z are those of the conditional half in both halves
            feeds |= {"small_z": small_z_BPD, "source": source_BS}
            results = self._run(self._dense_graph(k), feeds, halves)
            is_known_BN = source_BS[:, P:] >= 0
            sampled_BNC = self._denoise(
                Denoising(
                    phase="dense",
                    step_idx=k,
                    positions=positions_BN,
                    schedule=diffusion_schedule(config.dense_diffusion_steps),
                    weight=step.weight,
                    is_guided=halves == 2,
                    temperature=config.temperature,
                    held=Held(is_known_BN, dense_BNC),
                ),
                results["head_cond"],
            )
            # all that was unknown, also what later steps replace
            dense_BNC = np.where(is_known_BN[..., None], dense_BNC, sampled_BNC)
            self._record("p2.tokens", dense_BNC)
            self._report("dense", k, len(steps), dense_BNC, decode)
        return dense_BNC

    def _dense_graph(self, k: int) -> str:
        """The graph of a step: its own where the bundle has one, else that for any known tokens."""
        has_own = k == 0 or self.config.num_iter == self.model.num_iter
        return self.runner.manifest.graph("dense", step_idx=k if has_own else None)

    def _run(self, graph: str, feeds: dict[str, np.ndarray], halves: int) -> dict[str, Any]:
        """A step graph, with the same input for each half of the guided batch."""
        repeated = {name: np.concatenate((value,) * halves) for name, value in feeds.items()}
        return self.runner.run(graph, {"cond": self.cond[halves], **repeated})

    def _denoise(self, step: Denoising, head_cond: Any) -> np.ndarray:
        """Tokens (B, n, C); at once where the backend can, else one call after the other."""
        draws, runner, channels = self.draws, self.runner, self.model.token_channels
        if isinstance(draws, SeededHiMARDraws):
            done = runner.denoise(step, head_cond, draws.image_index, draws.seed)
            if done is not None:
                return done
        graph = runner.manifest.graph(step.kind)
        given = {"head_cond": head_cond}
        if step.is_guided:
            given["scale"] = np.array([step.weight], np.float32)

        def denoiser(x_BnC: np.ndarray, timestep: int) -> list[np.ndarray]:
            self.check()
            feeds = {"x": x_BnC, "timestep": np.array([timestep], np.int32)}
            return [runner.numpy(value) for value in runner.run(graph, feeds | given).values()]

        def noise(draw: int) -> np.ndarray:
            return draws.noise(step.phase, step.step_idx, draw, step.positions, channels)

        return sample_tokens(step, denoiser, noise)

    def _record(self, name: str, value: np.ndarray) -> None:
        if self.recorder is not None:
            self.recorded[name].append(value)

    def _report(
        self,
        phase: Phase,
        step_idx: int,
        num_steps: int,
        tokens: np.ndarray,
        decoder: Callable[[StepRunner, np.ndarray], np.ndarray],
    ) -> None:
        self.on_step(
            StepEvent(
                phase=phase,
                step_idx=step_idx,
                num_steps=num_steps,
                images=self.images,
                tokens=tokens,
                preview=lambda: to_uint8(decoder(self.runner, tokens)),
            )
        )


def to_map(tokens_BnC: np.ndarray, side: int) -> np.ndarray:
    """(B, side*side, C) -> (B, C, side, side), rows of the map one after the other."""
    B, _, C = tokens_BnC.shape
    return np.ascontiguousarray(tokens_BnC.transpose(0, 2, 1)).reshape(B, C, side, side)


def _known(order_Bn: np.ndarray, step: Step) -> np.ndarray:
    """Known positions before a step, (B, K), ascending."""
    return np.sort(order_Bn[:, step.unknown :], axis=1)


def _predicted(order_Bn: np.ndarray, step: Step) -> np.ndarray:
    """Positions that become known in a step, (B, n), ascending."""
    return np.sort(order_Bn[:, step.remaining : step.unknown], axis=1)


def _source(known_BK: np.ndarray, num_tokens: int) -> np.ndarray:
    """Per position of both grids its row among the known tokens, -1 = unknown."""
    source = np.full((len(known_BK), num_tokens), -1)
    rows = np.broadcast_to(np.arange(known_BK.shape[1]), known_BK.shape)
    np.put_along_axis(source, known_BK, rows, axis=1)
    return source
