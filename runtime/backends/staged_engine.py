"""Engines of a graph's stages, run one after another as the engine of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from runtime.backends.trt_engine import Engine
from runtime.engine_plan import Dims, resolve, with_totals
from runtime.stages import Stage, align, lay_out_arena


class StagedEngine:
    """What passes between stages lies in the scratch memory, behind that of the stages themselves.

    So it takes no memory of its own, and addresses stay the same from call to call.
    """

    def __init__(self, engines: Sequence[Engine], stages: Sequence[Stage]) -> None:
        self._engines, self._stages = tuple(engines), tuple(stages)
        scratch = zip(*(engine.activation_nbytes for engine in engines), strict=True)
        self._scratch = [align(max(nbytes)) for nbytes in scratch]
        self._arenas = [lay_out_arena(stages, with_totals(p)) for p in self.profiles]
        self._shapes = [
            [{spec.name: resolve(spec, with_totals(p)) for spec in s.inputs} for s in stages]
            for p in self.profiles
        ]

    @property
    def profiles(self) -> Sequence[Dims]:
        return self._engines[0].profiles

    @property
    def plan_nbytes(self) -> int:
        return sum(engine.plan_nbytes for engine in self._engines)

    @property
    def activation_nbytes(self) -> Sequence[int]:
        return [s + arena.nbytes for s, arena in zip(self._scratch, self._arenas, strict=True)]

    @property
    def has_many_launches(self) -> bool:
        return False

    def execute(
        self,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        activations: int,
        stream: int,
    ) -> None:
        between = activations + self._scratch[profile]
        places = {name: between + at for name, at in self._arenas[profile].offsets.items()}
        places.update(addresses)
        for engine, stage, inputs in zip(
            self._engines, self._stages, self._shapes[profile], strict=True
        ):
            bound = {spec.name: places[spec.name] for spec in (*stage.inputs, *stage.outputs)}
            engine.execute(profile, inputs, bound, activations, stream)

    def report_layers(self, report: Callable[[str, float], None]) -> None:
        for engine in self._engines:
            engine.report_layers(report)

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
