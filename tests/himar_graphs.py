"""Hi-MAR's exported graphs on ONNX Runtime, and a plain loop that generates with them."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from export.config import DTYPES, ExportConfig
from export.himar.graphs import GraphBuilder
from export.himar.pieces import Pieces
from export.himar.steps import Catalogue
from export.himar.tensors import lay_out
from export.weights import WeightsFile
from hmar.diffusion import DiffusionSchedule, diffusion_schedule
from hmar.himar import Phase, put
from hmar.himar_schedule import plan
from hmar.quant import flatten_map
from tests.himar_golden import Arrays, HiMARCase, noise_call, sampling_of


class Graphs:
    """All graphs of a golden case's model, built in a folder."""

    def __init__(self, case: HiMARCase, folder: Path, precision: str = "fp32") -> None:
        model, vae = case.model, case.vae
        config, dtype = ExportConfig(precision=precision), DTYPES[precision]
        self.weights, self.folder = WeightsFile("weights.bin"), folder
        lay_out(self.weights, model, vae, dtype)
        num_iter = case.json["sampler"]["num_iter"]
        steps = Catalogue(model.config, vae.config, precision, num_iter).steps()
        self.steps = {step.name: step for step in steps}
        builder = GraphBuilder(Pieces(model.config, vae.config, dtype, config.opset), self.weights)
        for step in steps:
            ir.save(builder.build(step), self.path(step.name))
        list(self.weights.write(folder / "weights.bin"))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def check(self) -> None:
        """ONNX's checker, and the signatures that the catalogue promises."""
        for name, step in self.steps.items():
            onnx.checker.check_model(self.path(name), full_check=True)
            session = self._session(name)
            assert signature(session.get_inputs()) == declared(step.inputs), name
            assert signature(session.get_outputs()) == declared(step.outputs), name

    def run(self, name: str, **feeds: Tensor) -> list[Tensor]:
        wanted = {spec.name: spec for spec in self.steps[name].inputs}
        assert set(feeds) == set(wanted), f"{name}: {sorted(feeds)} for {sorted(wanted)}"
        values = {
            key: value.numpy().astype(wanted[key].dtype, copy=False) for key, value in feeds.items()
        }
        return [torch.from_numpy(out).float() for out in self._session(name).run(None, values)]

    def _session(self, name: str) -> ort.InferenceSession:
        if name not in self._sessions:
            options = ort.SessionOptions()
            # weights stay in the mapped file
            options.add_session_config_entry("session.disable_prepacking", "1")
            self._sessions[name] = ort.InferenceSession(
                self.path(name), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[name]

    @cached_property
    def _sessions(self) -> dict[str, ort.InferenceSession]:
        return {}


def signature(values: list) -> list[tuple]:
    return [(v.name, v.type.removeprefix("tensor(").rstrip(")"), tuple(v.shape)) for v in values]


def declared(specs: tuple) -> list[tuple]:
    names = {"float32": "float", "float16": "float16", "int32": "int32"}
    return [(s.name, names[s.dtype], tuple(s.shape)) for s in specs]


class Generation:
    """One golden generation by graphs, its arrays under the names of the traces."""

    def __init__(self, case: HiMARCase, graphs: Graphs) -> None:
        self.case, self.graphs, self.config = case, graphs, case.model.config
        self.sampling, self.orders = sampling_of(case), case.tensor("orders").long()
        self.seen: dict[str, list[np.ndarray]] = defaultdict(list)

    def arrays(self) -> Arrays:
        small_z = self._pivots()
        self._dense(small_z)
        stacked = {name: np.stack(values) for name, values in self.seen.items()}
        image = self.graphs.run("decode", tokens=torch.from_numpy(stacked["p2.tokens"][-1]))[0]
        return {**stacked, "small_z": small_z.numpy(), "image_01": image.numpy()}

    def _rows(self, cfg: float) -> Tensor:
        none = self.config.num_classes
        labels = self.case.json["sampler"]["labels"] or [none] * len(self.orders)
        rows = labels if cfg == 1 else [*labels, *[none] * len(labels)]
        return self.graphs.run("cond", label=torch.tensor(rows))[0]

    def _pivots(self) -> Tensor:
        config, B, P = self.config, len(self.orders), self.config.num_pivots
        order, cond = self.orders[:, :P], self._rows(self.sampling.re_cfg)
        halves = len(cond) // B
        schedule = diffusion_schedule(self.sampling.pivot_respacing)
        pivots = torch.zeros(B, P, config.token_channels)
        small_z = torch.zeros(B, P, config.embed_dim)
        self.seen["p1.tokens"].append(pivots.numpy())
        steps = plan(P, config.pivot_steps, self.sampling.re_cfg, self.sampling.cfg_schedule)
        for s, step in enumerate(steps):
            known = order[:, step.unknown :].sort(dim=1).values
            predicted = order[:, step.remaining : step.unknown].sort(dim=1).values
            given = {"pivots": pivots, "known": known} if known.numel() else {}
            feeds = {
                **given,
                "source": source(known, config.num_tokens),
                "predicted": predicted,
            }
            z, head_cond = self.graphs.run(
                f"pivot_{s:02d}",
                cond=cond,
                **{name: torch.cat([value] * halves) for name, value in feeds.items()},
            )
            tokens = self._sampled("pivot", s, schedule, head_cond, step.weight, predicted.shape)
            pivots = put(pivots, predicted, tokens)
            small_z = put(small_z, predicted, z[:B])
            self.seen["p1.tokens"].append(pivots.numpy())
        return torch.cat([small_z] * (1 if self.sampling.cfg == 1 else 2))

    def _dense(self, small_z: Tensor) -> None:
        config, B = self.config, len(self.orders)
        P, N = config.num_pivots, config.num_dense
        order, cond = self.orders[:, P:] - P, self._rows(self.sampling.cfg)
        halves = len(cond) // B
        schedule = diffusion_schedule(self.sampling.dense_respacing)
        dense = torch.zeros(B, N, config.token_channels)
        self.seen["p2.tokens"].append(dense.numpy())
        pivots = torch.arange(P).expand(B, -1)
        steps = plan(N, self.sampling.num_iter, self.sampling.cfg, self.sampling.cfg_schedule)
        for k, step in enumerate(steps):
            known = order[:, step.unknown :].sort(dim=1).values
            given = {"dense": dense, "known": known} if known.numel() else {}
            feeds = {**given, "source": source(torch.cat((pivots, known + P), 1), P + N)}
            (head_cond,) = self.graphs.run(
                f"dense_{k:02d}",
                cond=cond,
                small_z=small_z,
                **{name: torch.cat([value] * halves) for name, value in feeds.items()},
            )
            held = torch.zeros(B, N, 1, dtype=torch.bool).scatter(1, known[..., None], True)
            sampled = self._sampled(
                "dense", k, schedule, head_cond, step.weight, (B, N), (held, dense)
            )
            dense = torch.where(held, dense, sampled)
            self.seen["p2.tokens"].append(dense.numpy())

    def _sampled(
        self,
        phase: Phase,
        step: int,
        schedule: DiffusionSchedule,
        head_cond: Tensor,
        weight: float,
        shape: tuple[int, int],
        held: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        (B, n), C, side = shape, self.config.token_channels, self.config.dense_side

        def noise(draw: int) -> Tensor:
            call = noise_call(self.case, phase, step, draw)
            if phase == "pivot":
                return self.case.noise(call, (B, n, C))
            return flatten_map(self.case.noise(call, (B, C, side, side)))

        first = x = noise(0)
        # without guidance both halves are the same, and the guided noise is theirs
        both = head_cond if len(head_cond) == 2 * B else torch.cat((head_cond, head_cond))
        for j, i in enumerate(reversed(range(schedule.num_steps))):
            if held is not None:
                x = torch.where(held[0], schedule.noised(i, held[1], first), x)
            out = self.graphs.run(
                f"denoise_{phase}",
                x=x,
                timestep=torch.tensor([schedule.timesteps[i]]),
                head_cond=both,
                scale=torch.tensor([weight]),
            )
            x, log_variance = schedule.reverse(i, x, torch.cat(out, dim=-1))
            if i > 0:
                x = x + torch.exp(log_variance / 2) * noise(j + 1) * self.sampling.temperature
        return x


def source(known_BK: Tensor, num_tokens: int) -> Tensor:
    """Per position its row among the known tokens, -1 = unknown."""
    rows = torch.arange(known_BK.shape[1]).expand(known_BK.shape)
    return torch.full((len(known_BK), num_tokens), -1).scatter(1, known_BK, rows)
