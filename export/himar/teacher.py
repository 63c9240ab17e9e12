"""One reference generation of Hi-MAR: inputs and expected outputs of every graph.

All numbers are float32. Every graph is given the reference's state, so that no error hides or
causes a later one. The diffusion starts at three quarters of the time axis and takes few steps: an
earlier start multiplies the error of the first predicted noise by some hundreds.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from export.himar.feeds import Tensors, dense_feeds, pivot_feeds, predicted
from export.himar.generation import PivotState
from export.ladder import Arrays
from hmar.diffusion import diffusion_schedule
from hmar.diffusion_head import Denoiser, guided_noise
from hmar.himar import HiMAR, Phase, take
from hmar.himar_reference import draw_orders, generate, guided_rows
from hmar.himar_schedule import HiMARSampling, Step, plan
from hmar.kl_vae import KLVAE, gaussian
from hmar.quant import flatten_map
from runtime.bundle import GraphSpec

SEED = 20250611
SAMPLING = HiMARSampling(cfg=2.5, re_cfg=2.7, pivot_respacing="2,1,1,0", dense_respacing="1,1,1,0")
TIMESTEP, WEIGHT = 400, 1.75  # of single calls of a denoiser
MODULATED_STEPS = 100  # as published, and as engines are built for


class TeacherRun:
    """Feeds and references by graph, computed from one recorded generation."""

    def __init__(
        self,
        model: HiMAR,
        vae: KLVAE,
        cond_BD: Tensor,
        labels: tuple[int, ...],
        sampling: HiMARSampling,
    ) -> None:
        """Runs the reference.

        Args:
            cond_BD: class embeddings, or other vectors in their place.
            labels: the classes of these rows; empty where they are vectors.
        """
        self.model, self.vae, self.config = model, vae, model.config
        self.cond_BD, self.labels, self.sampling = cond_BD, labels, sampling
        rng = np.random.RandomState(SEED)
        self.orders_BS = draw_orders(rng, len(cond_BD), self.config)
        P = self.config.num_pivots
        self.order_BP, self.order_BN = self.orders_BS[:, :P], self.orders_BS[:, P:] - P
        self.seen: dict[str, list[Tensor]] = defaultdict(list)
        generate(model, vae, cond_BD, self.orders_BS, sampling, self.noise, self._record)

    def _record(self, name: str, value: Tensor) -> None:
        self.seen[name].append(value)

    def noise(self, phase: Phase, step: int, positions_Bn: Tensor, draw: int) -> Tensor:
        """The numbers of `hmar.himar_reference.Noise`."""
        shape = (*positions_Bn.shape, self.config.token_channels)
        return _normal(shape, 1 + (phase == "dense"), step, draw)

    def pivot_state(self, step_idx: int) -> PivotState:
        """The reference's state before a step of the pivot phase."""
        step, B = self._pivot_plan()[step_idx], len(self.cond_BD)
        known = torch.zeros(B, self.config.num_pivots, 1, dtype=torch.bool)
        known = known.scatter(1, self.order_BP[:, step.unknown :, None], True)
        return PivotState(
            step_idx=step_idx,
            pivots=self.seen["p1.tokens"][step_idx],
            small_z=torch.where(known, self.small_z_BPD, 0.0),
        )

    @property
    def label_N(self) -> Tensor:
        """Labels for the graph `cond`: of the images that have one, then no class."""
        return torch.tensor([*self.labels, self.config.num_classes], dtype=torch.int32)

    @property
    def results(self) -> Tensors:
        """What a generation by graphs must come to."""
        tokens = {"pivots": self.seen["p1.tokens"][-1], "dense": self.seen["p2.tokens"][-1]}
        return {**tokens, "image": _unit(self.seen["image"][0])}

    @property
    def small_z_BPD(self) -> Tensor:
        """Of every pivot the z of the step that predicted it."""
        return self.seen["small_z"][0][: len(self.cond_BD)]

    @torch.inference_mode()
    def case(self, spec: GraphSpec) -> tuple[Arrays, Arrays]:
        """Inputs and expected outputs of one graph, by name."""
        feeds, expected = getattr(self, f"_{spec.kind}")(spec.step_idx)
        return arrays(feeds), arrays(expected)

    def _pivot_plan(self) -> list[Step]:
        steps, sampling = self.config.pivot_steps, self.sampling
        return plan(self.config.num_pivots, steps, sampling.re_cfg, sampling.cfg_schedule)

    def _dense_plan(self) -> list[Step]:
        num_iter, sampling = self.sampling.num_iter, self.sampling
        return plan(self.config.num_dense, num_iter, sampling.cfg, sampling.cfg_schedule)

    # --- one method per kind of graph: (inputs, expected outputs) ---

    def _cond(self, step_idx: None) -> tuple[Tensors, Tensors]:
        """Rows of the run that have a class, and the one without."""
        rows = self.cond_BD[: len(self.labels)]
        return {"label": self.label_N}, {"cond": torch.cat((rows, self.model.fake_latent))}

    def _pivot(self, step_idx: int | None) -> tuple[Tensors, Tensors]:
        """The graph for any step but the first is given the last one."""
        steps, cond_ND = self._pivot_plan(), self._rows(self.sampling.re_cfg)
        step_idx = len(steps) - 1 if step_idx is None else step_idx
        step = steps[step_idx]
        tokens = self.seen["p1.tokens"][step_idx]
        feeds = pivot_feeds(cond_ND, tokens, self.order_BP, step, self.config.num_tokens)
        z = take(self.seen["p1.z"][step_idx], feeds["predicted"])
        return feeds, {"z": z, "head_cond": self.model.pivot_denoiser.cond(z)}

    def _dense(self, step_idx: int | None) -> tuple[Tensors, Tensors]:
        """The graph for any number of known tokens is given the last step.

        Where that is the first one too, it is given a little more than half of the tokens.
        """
        N, cond_ND = self.config.num_dense, self._rows(self.sampling.cfg)
        if step_idx is None and self.sampling.num_iter > 1:
            step_idx = self.sampling.num_iter - 1
        if step_idx is None:
            known_BK = self.order_BN[:, : N // 2 + 1].sort(dim=1).values
            tokens = self.seen["p2.tokens"][-1]
            feeds = dense_feeds(cond_ND, self.small_z_BPD, tokens, known_BK)
            z = self._dense_z(feeds)
        else:
            step = self._dense_plan()[step_idx]
            known_BK = self.order_BN[:, step.unknown :].sort(dim=1).values
            tokens = self.seen["p2.tokens"][step_idx]
            feeds = dense_feeds(cond_ND, self.small_z_BPD, tokens, known_BK)
            z = self.seen["p2.z"][step_idx]
        return feeds, {"head_cond": self.model.dense_denoiser.cond(z)}

    def _dense_z(self, feeds: Tensors) -> Tensor:
        P, rows = self.config.num_pivots, len(feeds["cond"])
        known = torch.cat((torch.arange(P).expand(rows, -1), feeds["known"] + P), dim=1)
        z = self.model("dense", feeds["cond"], feeds["small_z"], feeds["dense"], known)
        return z[:, P:]

    def _denoise_pivot(self, step_idx: None) -> tuple[Tensors, Tensors]:
        return self._guided(*self._pivot_states())

    def _denoise_pivot_unguided(self, step_idx: None) -> tuple[Tensors, Tensors]:
        return self._unguided(*self._pivot_states())

    def _modulate_pivot(self, step_idx: None) -> tuple[Tensors, Tensors]:
        """For as many time steps as a sampling has by default."""
        denoiser, z = self.model.pivot_denoiser, self._pivot_states()[-1]
        timesteps = torch.arange(0, 1000, 1000 // MODULATED_STEPS)
        cond = denoiser.cond(z)
        y = denoiser.time(timesteps)[:, None] + cond
        layers = [*denoiser.res_blocks, denoiser.final_layer]
        modulation = torch.cat([layer.adaLN_modulation(y) for layer in layers], dim=-1)
        return {"timestep": timesteps, "head_cond": cond}, {"modulation": modulation}

    def _denoise_pivot_modulated(self, step_idx: None) -> tuple[Tensors, Tensors]:
        feeds, expected = self._denoise_pivot(None)
        at = TIMESTEP * MODULATED_STEPS // 1000
        modulation = self._modulate_pivot(None)[1]["modulation"][at]
        given = {name: feeds[name] for name in ("x", "scale")}
        return {**given, "modulation": modulation}, expected

    def _denoise_dense(self, step_idx: None) -> tuple[Tensors, Tensors]:
        return self._guided(*self._dense_states())

    def _denoise_dense_unguided(self, step_idx: None) -> tuple[Tensors, Tensors]:
        return self._unguided(*self._dense_states())

    def _pivot_states(self) -> tuple[Denoiser, Tensor, Tensor]:
        """Pivots of the last step, noised, and conditions of two rows per image.

        In the second half they are those of the step before, without a class where the run was
        guided.
        """
        positions, B = predicted(self.order_BP, self._pivot_plan()[-1]), len(self.cond_BD)
        before, last = self.seen["p1.z"][-2:]
        z = torch.cat((take(last[:B], positions), take(before[-B:], positions)))
        return self.model.pivot_denoiser, take(self.seen["p1.tokens"][-1], positions), z

    def _dense_states(self) -> tuple[Denoiser, Tensor, Tensor]:
        """Dense tokens of the last step; see `_pivot_states`."""
        steps, B = self.seen["p2.z"], len(self.cond_BD)
        z = torch.cat((steps[-1][:B], steps[max(len(steps) - 2, 0)][-B:]))
        return self.model.dense_denoiser, self.seen["p2.tokens"][-1], z

    def _guided(
        self, denoiser: Denoiser, tokens_BnC: Tensor, z_RnD: Tensor
    ) -> tuple[Tensors, Tensors]:
        x, time, cond = self._call(denoiser, tokens_BnC, z_RnD)
        feeds = {"x": x, "timestep": torch.tensor([TIMESTEP]), "head_cond": cond}
        out = guided_noise(denoiser, x, time, cond, WEIGHT)
        return {**feeds, "scale": torch.tensor([WEIGHT])}, self._values(out)

    def _unguided(
        self, denoiser: Denoiser, tokens_BnC: Tensor, z_RnD: Tensor
    ) -> tuple[Tensors, Tensors]:
        x, time, cond = self._call(denoiser, tokens_BnC, z_RnD[: len(tokens_BnC)])
        feeds = {"x": x, "timestep": torch.tensor([TIMESTEP]), "head_cond": cond}
        return feeds, self._values(denoiser(x, time, cond))

    def _call(
        self, denoiser: Denoiser, tokens_BnC: Tensor, z_RnD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """State, time embedding and embedded conditions of a call."""
        noise = _normal(tuple(tokens_BnC.shape), 3)
        x = diffusion_schedule("").noised(TIMESTEP, tokens_BnC, noise)
        return x, denoiser.time(torch.tensor([TIMESTEP])), denoiser.cond(z_RnD)

    def _values(self, out: Tensor) -> Tensors:
        names = ("noise", "variance")
        parts = out.split(self.config.token_channels, dim=-1)
        return dict(zip(names, parts, strict=False))

    def _decode(self, step_idx: None) -> tuple[Tensors, Tensors]:
        return {"tokens": self.seen["p2.tokens"][-1]}, {"image": _unit(self.seen["image"][0])}

    def _decode_pivot(self, step_idx: None) -> tuple[Tensors, Tensors]:
        image = _unit(self.seen["small_image"][0])
        return {"tokens": self.seen["p1.tokens"][-1]}, {"image": image}

    def _encode(self, step_idx: None) -> tuple[Tensors, Tensors]:
        image, scale = _unit(self.seen["image"][0]).clamp(0, 1), self.vae.config.latent_scale
        mean, std = (flatten_map(x * scale) for x in gaussian(self.vae.moments(image * 2 - 1)))
        return {"image": image}, {"tokens": mean, "std": std}

    def _rows(self, cfg: float) -> Tensor:
        return guided_rows(self.model, self.cond_BD, cfg)


def condition_vectors(count: int, width: int) -> Tensor:
    """Vectors (count, width) for a model that is conditioned by some."""
    return _normal((count, width), 0)


def _normal(shape: tuple[int, ...], *key: int) -> Tensor:
    """Standard normal numbers that depend on their key alone."""
    rng = np.random.default_rng((SEED, *key))
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


def _unit(image: Tensor) -> Tensor:
    """An image in [-1, 1] as one in [0, 1]."""
    return image / 2 + 0.5


def arrays(tensors: Tensors) -> Arrays:
    """The same as NumPy arrays."""
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
