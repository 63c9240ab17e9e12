"""Catalogue of graphs: per kind and scale, the names, dtypes and shapes of inputs and outputs.

Symbolic dimensions: `B` images; `N` rows of the guided batch (conditional half first, 2B in all, or
fewer where guidance is off); `l` tokens of the present scale; `T` tokens of all scales so far.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.step import DTYPE_NAMES, Step
from hmar.config import HMARConfig, TokenizerConfig
from runtime.bundle import DtypeName, Kind, TensorSpec

Spec = TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec(Step):
    """One graph to build.

    Attributes:
        pn: side of the token map at its scale.
    """

    pn: int | None = None

    @property
    def name(self) -> str:
        return (
            self.kind
            if self.scale_idx is None
            else f"{self.kind}_s{self.scale_idx:02d}_pn{self.pn:02d}"
        )


class Catalogue:
    """The graphs of one model, in the order in which a generation uses them."""

    def __init__(self, model: HMARConfig, tokenizer: TokenizerConfig, precision: str) -> None:
        self.model = model
        self.act: DtypeName = DTYPE_NAMES[precision]
        self.side_px = model.patch_nums[-1] * tokenizer.downsampling
        self.branches = ("ns", "mask") if model.has_mask_branch else ("ns",)

    def steps(self) -> list[StepSpec]:
        """All graphs of the bundle."""
        scales = list(enumerate(self.model.patch_nums))
        last = len(scales) - 1
        steps = [
            self._cond(),
            self._embed_first(),
            self._embed("ns"),
            self._trunk("ns"),
            self._prefix(),
        ]
        if "mask" in self.branches:
            steps += [self._embed("mask"), self._trunk("mask")]
        for k, pn in scales:
            steps.append(self._ns(k, pn))
            if k > 0 and "mask" in self.branches:
                steps += [self._mask_input(k, pn), self._mask(k, pn)]
            steps.append(self._quant(k, pn, None if k == last else scales[k + 1][1]))
        return [*steps, self._decode(), self._encode(), self._score()]

    def modulation(self, branch: str, rows: str = "N") -> tuple[Spec, ...]:
        """Outputs of `cond` that one branch takes."""
        layers = {"base": self.model.base_layers, branch: self.model.branch_layers}
        width = 6 * self.model.embed_dim
        ada = tuple(
            Spec(f"ada_{group}", self.act, (rows, n, width)) for group, n in layers.items() if n
        )
        return (*ada, Spec(f"head_{branch}", self.act, (rows, 1, 2 * self.model.embed_dim)))

    def _map(self, rows: str, length: int | str, name: str = "map") -> Spec:
        return Spec(name, "float32", (rows, length, self.model.latent_channels))

    def _x(self, length: int | str) -> Spec:
        return Spec("x", self.act, ("N", length, self.model.embed_dim))

    def _logits(self, rows: str, length: int | str, name: str = "logits") -> Spec:
        return Spec(name, "float32", (rows, length, self.model.vocab_size))

    def _f_hat(self, name: str = "f_hat") -> Spec:
        side = self.model.patch_nums[-1]
        return Spec(name, "float32", ("B", self.model.latent_channels, side, side))

    @property
    def _cond_rows(self) -> Spec:
        return Spec("cond", self.act, ("N", self.model.embed_dim))

    def _cond(self) -> StepSpec:
        outputs = {s.name: s for branch in self.branches for s in self.modulation(branch)}
        return StepSpec(
            kind="cond",
            inputs=(Spec("label", "int32", ("N",)),),
            outputs=(self._cond_rows, *outputs.values()),
        )

    def _embed_first(self) -> StepSpec:
        return StepSpec(kind="embed_first", inputs=(self._cond_rows,), outputs=(self._x(1),))

    def _mask_operands(self, length: int | str) -> tuple[Spec, ...]:
        return (
            self._map("N", length),
            self._map("N", length, "h"),
            Spec("token_mask", "bool", ("N", length)),
        )

    def _embed(self, branch: str) -> StepSpec:
        operands = (self._map("N", "l"),) if branch == "ns" else self._mask_operands("l")
        kind: Kind = "embed_ns" if branch == "ns" else "embed_mask"
        return StepSpec(
            kind=kind,
            inputs=(*operands, Spec("positions", "int32", ("l",))),
            outputs=(self._x("l"),),
        )

    def _trunk(self, branch: str) -> StepSpec:
        kind: Kind = "ns_trunk" if branch == "ns" else "mask_trunk"
        inputs = (
            self._x("l"),
            *self.modulation(branch),
            Spec("cu_seqlens", "int32", ("blocks_plus_1",)),
        )
        return StepSpec(kind=kind, inputs=inputs, outputs=(self._logits("N", "l"),))

    def _prefix(self) -> StepSpec:
        inputs = (
            self._cond_rows,
            self._map("N", "T_minus_1"),
            *self.modulation("ns"),
            Spec("cu_seqlens", "int32", ("blocks_plus_1",)),
        )
        return StepSpec(kind="ns_prefix", inputs=inputs, outputs=(self._logits("N", "T"),))

    def _ns(self, k: int, pn: int) -> StepSpec:
        operand = self._cond_rows if k == 0 else self._map("N", pn * pn)
        inputs = (operand, *self.modulation("ns"))
        return StepSpec(
            kind="ns", scale_idx=k, pn=pn, inputs=inputs, outputs=(self._logits("N", pn * pn),)
        )

    def _mask(self, k: int, pn: int) -> StepSpec:
        inputs = (*self._mask_operands(pn * pn), *self.modulation("mask"))
        return StepSpec(
            kind="mask", scale_idx=k, pn=pn, inputs=inputs, outputs=(self._logits("N", pn * pn),)
        )

    def _mask_input(self, k: int, pn: int) -> StepSpec:
        inputs = (Spec("tokens", "int32", ("B", pn, pn)),)
        return StepSpec(
            kind="mask_input",
            scale_idx=k,
            pn=pn,
            inputs=inputs,
            outputs=(self._map("B", pn * pn, "h"),),
        )

    def _quant(self, k: int, pn: int, next_pn: int | None) -> StepSpec:
        inputs = (Spec("tokens", "int32", ("B", pn, pn)), self._f_hat())
        outputs = (self._f_hat("f_hat_out"),) + (
            (self._map("B", next_pn * next_pn),) if next_pn else ()
        )
        return StepSpec(kind="quant", scale_idx=k, pn=pn, inputs=inputs, outputs=outputs)

    def _image(self) -> Spec:
        return Spec("image", "float32", ("B", 3, self.side_px, self.side_px))

    def _decode(self) -> StepSpec:
        return StepSpec(kind="decode", inputs=(self._f_hat(),), outputs=(self._image(),))

    def _encode(self) -> StepSpec:
        tokens = Spec("tokens", "int32", ("B", self.model.seq_len))
        return StepSpec(kind="encode", inputs=(self._image(),), outputs=(tokens, self._f_hat()))

    def _score(self) -> StepSpec:
        L = self.model.seq_len
        rows = {s.name: s for branch in self.branches for s in self.modulation(branch)}
        inputs: list[Spec] = [Spec("tokens", "int32", ("N", L))]
        outputs = [
            Spec("ns_log_prob", "float32", ("N", L)),
            self._logits("N", L, "ns_logits"),
            self._map("N", L - 1),
        ]
        if "mask" in self.branches:
            inputs.append(Spec("token_mask", "bool", ("N", L)))
            outputs += [
                Spec("mask_log_prob", "float32", ("N", L)),
                self._logits("N", L, "mask_logits"),
                self._map("N", L - 1, "h"),
            ]
        return StepSpec(
            kind="score", inputs=(*inputs, self._cond_rows, *rows.values()), outputs=tuple(outputs)
        )
