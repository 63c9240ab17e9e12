"""Single calls and whole samplings of the exported denoisers against the golden arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.denoising import Denoising, Held, sample_tokens
from runtime.diffusion import diffusion_schedule
from runtime.himar_schedule import Phase
from runtime.himar_trajectory import to_map
from tests.himar_golden import HiMARCase

CASE = HiMARCase("tiny_a.modules")
HEADS: dict[Phase, str] = {"pivot": "mlp", "dense": "dit"}
RESPACINGS = {"pivot": "num_sampling_steps", "dense": "dit_steps"}


class Denoisers:
    """The bundle's denoisers, on conditions as the model's heads take them."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.runner = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu", threads=1))

    def weight(self, name: str) -> np.ndarray:
        spec = self.bundle.manifest.tensors[name]
        path = self.bundle.path(self.bundle.manifest.weights)
        return np.fromfile(path, np.float32, int(np.prod(spec.shape)), offset=spec.offset).reshape(
            spec.shape
        )

    def cond(self, phase: Phase, z: np.ndarray) -> np.ndarray:
        """What the step graphs make of z."""
        name = f"{HEADS[phase]}.cond"
        return z @ self.weight(f"{name}.weight") + self.weight(f"{name}.bias")

    def __call__(
        self, phase: Phase, x: np.ndarray, t: int, cond: np.ndarray, weight: float | None
    ) -> list[np.ndarray]:
        """Noise, and variance values of the pivots' denoiser; weight None = no guidance."""
        graph = f"denoise_{phase}" + ("_unguided" if weight is None else "")
        feeds = {"x": x, "timestep": np.array([t]), "head_cond": cond}
        if weight is not None:
            feeds["scale"] = np.array([weight])
        return [self.runner.numpy(value) for value in self.runner.run(graph, feeds).values()]


@pytest.fixture(scope="module")
def denoisers(tiny_himar_bundle: Path) -> Iterator[Denoisers]:
    denoisers = Denoisers(Bundle.open(tiny_himar_bundle))
    yield denoisers
    denoisers.runner.close()


def flat(name: str) -> np.ndarray:
    """A stored input as (B, n, channels)."""
    array = CASE.arrays[name]
    return array[:, None] if array.ndim == 2 else array.reshape(*array.shape[:2], -1).swapaxes(1, 2)


def as_stored(phase: Phase, tokens: np.ndarray) -> np.ndarray:
    return tokens[:, 0] if phase == "pivot" else to_map(tokens, 8)


@pytest.mark.parametrize("phase", HEADS)
def test_single_calls(denoisers: Denoisers, phase: Phase) -> None:
    head = HEADS[phase]
    x, z = flat(f"{head}.x"), flat("mlp.c" if phase == "pivot" else "dit.z")
    cond = denoisers.cond(phase, z)
    rows = [
        np.concatenate(denoisers(phase, x[[i]], t, cond[[i]], None), axis=-1)
        for i, t in enumerate(CASE.arrays[f"{head}.t"].tolist())
    ]
    CASE.check(f"{head}.out", as_stored(phase, np.concatenate(rows)))


@pytest.mark.parametrize("phase", HEADS)
def test_guided_calls(denoisers: Denoisers, phase: Phase) -> None:
    head = HEADS[phase]
    call, half = CASE.json[f"{head}_cfg_call"], len(CASE.arrays[f"{head}.x"]) // 2
    x, z = flat(f"{head}.x")[:half], flat("mlp.c" if phase == "pivot" else "dit.z")
    out = denoisers(phase, x, call["t"], denoisers.cond(phase, z), call["cfg_scale"])
    # the stored second half repeats the noise
    CASE.check(f"{head}.out_cfg", as_stored(phase, np.concatenate(out, axis=-1)), slice(0, half))


@pytest.mark.parametrize("is_guided", [False, True])
@pytest.mark.parametrize("phase", HEADS)
def test_whole_samplings(denoisers: Denoisers, phase: Phase, is_guided: bool) -> None:
    name = f"{HEADS[phase]}_sample" + ("_cfg" if is_guided else "")
    run, weight = CASE.json[name], CASE.json[name]["cfg"] if is_guided else None
    if phase == "pivot":
        B, shape = (3, (3, 16)) if is_guided else (6, (6, 16))
        cond = denoisers.cond(phase, flat("mlp.c"))
        held, calls = None, 1
    else:
        B, shape = 2, (2, 16, 8, 8)
        cond = denoisers.cond(phase, flat("dit.z"))[: 4 if is_guided else 2]
        held, calls = Held(~CASE.arrays["dit.unknown"].reshape(2, -1), flat("dit.tokens")), 2

    def noise(draw: int) -> np.ndarray:
        drawn = CASE.noise(calls * draw, shape).numpy()
        return drawn[:, None] if phase == "pivot" else drawn.reshape(2, 16, -1).swapaxes(1, 2)

    step = Denoising(
        phase=phase,
        step_idx=0,
        positions=np.tile(np.arange(cond.shape[1]), (B, 1)),
        schedule=diffusion_schedule(CASE.json["config"][RESPACINGS[phase]]),
        weight=weight or 1.0,
        is_guided=is_guided,
        temperature=run["temperature"],
        held=held,
    )
    tokens = sample_tokens(step, lambda x, t: denoisers(phase, x, t, cond, weight), noise)
    CASE.check(f"{name}.out", as_stored(phase, tokens), slice(0, B))
