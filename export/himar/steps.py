"""Catalogue of Hi-MAR's graphs: per kind and step, the names, dtypes and shapes of inputs, outputs.

The number of known tokens follows from the plan of a phase, so every step has static shapes but for
the batch. The steps of the dense phase are those of the bundle's own `num_iter`. Beside them, the
graphs `pivot` and `dense` without a step take any number of known tokens from 1: with `dense_00`,
which takes none, `dense` runs any other `num_iter`, and an engine of a phase holds its weights once
for all steps after the first. Symbolic dimensions: `B` images; `N` rows of the batch (B, or 2B with
the conditional half first); `n` pivots predicted in a step; `known` tokens. Positions count from 0
in each grid; those in `source` run over both grids, pivots first.

A denoiser is there twice, from the same weights: with guidance inside, on conditions of 2B rows,
and unguided, on B rows. The guided one of the pivots is there in two parts, too: `modulate_pivot`
makes the modulations of its layers, from more than half of its weights, for all `T` time steps of a
sampling at once, and `denoise_pivot_modulated` takes those of one. Where a model is conditioned by
vectors, these are the `cond` of a step as they come, and the graph `cond` holds the one row without
condition.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.step import DTYPE_NAMES, Step
from hmar.config import HiMARConfig, KLVAEConfig
from hmar.himar_schedule import plan
from runtime.bundle import Kind, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec(Step):
    """One graph to build.

    Attributes:
        known: tokens of the phase's grid that are known before the step; "known" = any number.
    """

    known: int | str = 0

    @property
    def name(self) -> str:
        return self.kind if self.step_idx is None else f"{self.kind}_{self.step_idx:02d}"


class Catalogue:
    """The graphs of one model, in the order in which a generation uses them."""

    def __init__(self, model: HiMARConfig, vae: KLVAEConfig, precision: str, num_iter: int) -> None:
        self.model, self.num_iter = model, num_iter
        self.act = DTYPE_NAMES[precision]
        self.cell_px = vae.downsampling

    def steps(self) -> list[StepSpec]:
        """All graphs of the bundle."""
        P, N = self.model.num_pivots, self.model.num_dense
        # guidance strengths are inputs: a plan's counts do not depend on them
        pivot_plan = plan(P, self.model.pivot_steps, 1.0, "constant")
        dense_plan = plan(N, self.num_iter, 1.0, "constant")
        return [
            self._cond(),
            *(
                self._pivot(s, P - step.unknown, step.unknown - step.remaining)
                for s, step in enumerate(pivot_plan)
            ),
            self._pivot(None, "known", "n"),
            *self._denoisers("denoise_pivot", "n", self.model.mlp_width),
            *self._modulated_denoiser(),
            *(self._dense(k, N - step.unknown) for k, step in enumerate(dense_plan)),
            self._dense(None, "known"),
            *self._denoisers("denoise_dense", N, self.model.dit_width),
            self._decode("decode_pivot", self.model.pivot_side),
            self._decode("decode", self.model.dense_side),
            self._encode(),
        ]

    def _tokens(self, name: str, rows: str, length: int | str) -> TensorSpec:
        return TensorSpec(name, "float32", (rows, length, self.model.token_channels))

    def _hidden(self, name: str, length: int | str) -> TensorSpec:
        return TensorSpec(name, self.act, ("N", length, self.model.embed_dim))

    @property
    def _cond_rows(self) -> TensorSpec:
        return TensorSpec("cond", self.act, ("N", self.model.embed_dim))

    @property
    def _source(self) -> TensorSpec:
        """Per position its row among the known tokens, ascending; -1 = unknown."""
        return TensorSpec("source", "int32", ("N", self.model.num_tokens))

    def _cond(self) -> StepSpec:
        label = TensorSpec("label", "int32", ("N",))  # num_classes = no class
        return StepSpec(kind="cond", inputs=(label,), outputs=(self._cond_rows,))

    def _pivot(self, step_idx: int | None, known: int | str, predicted: int | str) -> StepSpec:
        P = self.model.num_pivots
        given = (
            self._tokens("pivots", "N", P),
            TensorSpec("known", "int32", ("N", known)),
        )
        return StepSpec(
            kind="pivot",
            step_idx=step_idx,
            known=known,
            inputs=(
                self._cond_rows,
                *(given if known else ()),
                self._source,
                TensorSpec("predicted", "int32", ("N", predicted)),
            ),
            outputs=(
                self._hidden("z", predicted),
                TensorSpec("head_cond", self.act, ("N", predicted, self.model.mlp_width)),
            ),
        )

    def _dense(self, step_idx: int | None, known: int | str) -> StepSpec:
        N = self.model.num_dense
        given = (
            self._tokens("dense", "N", N),
            TensorSpec("known", "int32", ("N", known)),
        )
        return StepSpec(
            kind="dense",
            step_idx=step_idx,
            known=known,
            inputs=(
                self._cond_rows,
                self._hidden("small_z", self.model.num_pivots),
                *(given if known else ()),
                self._source,
            ),
            outputs=(TensorSpec("head_cond", self.act, ("N", N, self.model.dit_width)),),
        )

    def _denoisers(self, kind: Kind, length: int | str, width: int) -> tuple[StepSpec, StepSpec]:
        """A denoiser with guidance, and the same without."""
        state = (self._tokens("x", "B", length), TensorSpec("timestep", "int32", (1,)))
        scale = TensorSpec("scale", "float32", (1,))
        names = ("noise", "variance") if kind == "denoise_pivot" else ("noise",)
        outputs = tuple(self._tokens(name, "B", length) for name in names)

        def cond(rows: str) -> TensorSpec:
            return TensorSpec("head_cond", self.act, (rows, length, width))

        unguided: Kind = f"{kind}_unguided"  # type: ignore[assignment]
        return (
            StepSpec(kind=kind, inputs=(*state, cond("2B"), scale), outputs=outputs),
            StepSpec(kind=unguided, inputs=(*state, cond("B")), outputs=outputs),
        )

    def _modulated_denoiser(self) -> tuple[StepSpec, StepSpec]:
        """The pivots' guided denoiser in two parts, the first for all time steps at once."""
        width, vectors = self.model.mlp_width, 3 * self.model.mlp_depth + 2
        head_cond = TensorSpec("head_cond", self.act, ("N", "n", width))

        def modulation(*rows: str) -> TensorSpec:
            return TensorSpec("modulation", self.act, (*rows, "n", vectors * width))

        return (
            StepSpec(
                kind="modulate_pivot",
                inputs=(TensorSpec("timestep", "int32", ("T",)), head_cond),
                outputs=(modulation("T", "N"),),
            ),
            StepSpec(
                kind="denoise_pivot_modulated",
                inputs=(
                    self._tokens("x", "B", "n"),
                    modulation("2B"),
                    TensorSpec("scale", "float32", (1,)),
                ),
                outputs=tuple(self._tokens(name, "B", "n") for name in ("noise", "variance")),
            ),
        )

    def _image(self, side: int) -> TensorSpec:
        return TensorSpec("image", "float32", ("B", 3, side * self.cell_px, side * self.cell_px))

    def _decode(self, kind: Kind, side: int) -> StepSpec:
        tokens = self._tokens("tokens", "B", side * side)
        return StepSpec(kind=kind, inputs=(tokens,), outputs=(self._image(side),))

    def _encode(self) -> StepSpec:
        """Mean of the tokens, and their standard deviation."""
        N = self.model.num_dense
        return StepSpec(
            kind="encode",
            inputs=(self._image(self.model.dense_side),),
            outputs=(self._tokens("tokens", "B", N), self._tokens("std", "B", N)),
        )
