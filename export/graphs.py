"""Every graph of the catalogue, put together from traced pieces and the shared weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.assemble import Assembly, input_names
from export.builder import Builder, Values
from export.pieces import Pieces, trace_decoder, trace_encoder
from export.steps import StepSpec
from export.tensors import BLOCK_LINEARS, area_matrix, bicubic_matrix
from export.weights import WeightsFile
from hmar.config import HMARConfig
from hmar.quant import phi_indices
from plugins_trt.block_sparse_attn.spec import Pattern


class GraphBuilder(Builder):
    """Builds the graph of one StepSpec after the other."""

    def __init__(self, model: HMARConfig, pieces: Pieces, weights: WeightsFile, opset: int) -> None:
        super().__init__(weights, opset)
        self.model, self.pieces = model, pieces
        self.phi_index = phi_indices(model.num_scales, pieces.tokenizer.num_phi)

    # --- conditioning and inputs ---

    def _cond(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        cond, act = asm.call(
            self.pieces.class_embedding,
            "class",
            label=inputs["label"],
            class_emb=asm.weight("class_emb"),
        )
        shared = self._modulation(asm, act, "shared_ada") if self.model.shared_aln else None
        results = [cond]
        for spec in step.outputs[1:]:
            group, branch = spec.name.split("_")
            if group == "head":
                results.append(self._modulation(asm, act, f"{branch}_head.ada"))
                continue
            rows = [
                self._block_modulation(asm, act, shared, f"{branch}_blocks.{i}.ada")
                for i in range(int(spec.shape[1]))
            ]
            results += asm.op("Concat", *rows, name=spec.name, axis=1)
        return results

    def _modulation(self, asm: Assembly, act: ir.Value, name: str) -> ir.Value:
        weight, bias = asm.weight(f"{name}.weight"), asm.weight(f"{name}.bias")
        return asm.call(self.pieces.modulation, name, act=act, weight=weight, bias=bias)[0]

    def _block_modulation(
        self, asm: Assembly, act: ir.Value, shared: ir.Value | None, name: str
    ) -> ir.Value:
        if shared is None:
            return self._modulation(asm, act, name)
        return asm.call(
            self.pieces.shared_modulation, name, shared=shared, own=asm.weight(f"{name}.own")
        )[0]

    def _pos(self, asm: Assembly, positions: slice) -> ir.Value:
        """Rows of the position table, as a view of the shared weights."""
        name = f"pos.{positions.start}.{positions.stop}"
        if name not in self.weights.entries:
            self.weights.view_rows(name, "pos", positions.start, positions.stop)
        return asm.weight(name)

    def _first(self, asm: Assembly, cond: ir.Value) -> ir.Value:
        return asm.call(
            self.pieces.embed_first, "embed_first", cond=cond, pos=self._pos(asm, slice(0, 1))
        )[0]

    def _embedded(
        self, asm: Assembly, inputs: Values, pos: ir.Value, prefix: str = "embed"
    ) -> ir.Value:
        """Embedded input of a pass; a masked one if there is a token mask."""
        word_embed = asm.weight("word_embed.weight")
        if "token_mask" not in inputs:
            return asm.call(
                self.pieces.embed_ns, prefix, x_f32=inputs["map"], word_embed=word_embed, pos=pos
            )[0]
        operands = {
            "x_f32": inputs["map"],
            "h_f32": inputs["h"],
            "token_mask": inputs["token_mask"],
            "mask_embed": asm.weight("mask_embed"),
        }
        return asm.call(self.pieces.embed_mask, prefix, **operands, word_embed=word_embed, pos=pos)[
            0
        ]

    def _embed_first(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        return [self._first(asm, inputs["cond"])]

    def _embed_ns(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        (pos,) = asm.op("Gather", asm.weight("pos"), inputs["positions"], name="pos", axis=0)
        return [self._embedded(asm, inputs, pos)]

    _embed_mask = _embed_ns

    # --- transformer passes ---

    def _trunk(
        self,
        asm: Assembly,
        branch: str,
        x: ir.Value,
        inputs: Values,
        cu_seqlens: ir.Value,
        pattern: Pattern = "block_diagonal",
    ) -> ir.Value:
        """Logits of one pass over embedded tokens."""
        block = self.pieces.block(pattern)
        for group, layers in (("base", self.model.base_layers), (branch, self.model.branch_layers)):
            if not layers:
                continue
            split = asm.op(
                "Split",
                inputs[f"ada_{group}"],
                name=f"{branch}/ada_{group}",
                results=layers,
                num_outputs=layers,
                axis=1,
            )
            for i, ada in enumerate(split):
                name = f"{group}_blocks.{i}"
                bindings = {
                    "x": x,
                    "ada": ada,
                    "cu_seqlens": cu_seqlens,
                    **self._block_weights(asm, name),
                }
                (x,) = asm.call(block, f"{branch}/{name}", **bindings)
        head = f"{branch}_head"
        weights = {
            "weight_f32": asm.weight(f"{head}.weight"),
            "bias_f32": asm.weight(f"{head}.bias"),
        }
        return asm.call(self.pieces.head, head, x=x, ada=inputs[f"head_{branch}"], **weights)[0]

    def _block_weights(self, asm: Assembly, name: str) -> Values:
        values = {}
        for linear in ("qkv", *BLOCK_LINEARS):
            values[f"{linear}_weight"] = asm.weight(f"{name}.{linear}.weight")
            values[f"{linear}_bias"] = asm.weight(f"{name}.{linear}.bias")
        if self.model.attn_l2_norm:
            values["scale_mul"] = asm.weight(f"{name}.scale_mul")
        return values

    def _ns_trunk(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        return [self._trunk(asm, "ns", inputs["x"], inputs, inputs["cu_seqlens"])]

    def _mask_trunk(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        return [self._trunk(asm, "mask", inputs["x"], inputs, inputs["cu_seqlens"])]

    def _ns(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        return [self._step(asm, "ns", step, inputs)]

    def _mask(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        return [self._step(asm, "mask", step, inputs)]

    def _step(self, asm: Assembly, branch: str, step: StepSpec, inputs: Values) -> ir.Value:
        """A trunk fixed to one scale: its tokens are one block, its positions a slice of `pos`."""
        assert step.scale_idx is not None and step.pn is not None
        if step.scale_idx == 0:
            x = self._first(asm, inputs["cond"])
        else:
            x = self._embedded(
                asm, inputs, self._pos(asm, self.model.scale_slices()[step.scale_idx])
            )
        cu_seqlens = asm.constant(np.array([0, step.pn**2], np.int32))
        return self._trunk(asm, branch, x, inputs, cu_seqlens)

    def _ns_prefix(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        """All scales so far in one sequence, each attending to itself and all earlier ones."""
        zero, one = (asm.constant(np.array([i], np.int64)) for i in (0, 1))
        (length,) = asm.op("Shape", inputs["map"], name="length", start=1, end=2)
        (stop,) = asm.op("Add", length, one, name="stop")
        # Slices rather than views: TensorRT refuses two weights that start at the same address.
        (pos_first,) = asm.op("Slice", asm.weight("pos"), zero, one, zero, name="pos_first")
        (pos_rest,) = asm.op("Slice", asm.weight("pos"), one, stop, zero, name="pos_rest")
        (first,) = asm.call(
            self.pieces.embed_first, "embed_first", cond=inputs["cond"], pos=pos_first
        )
        (x,) = asm.op("Concat", first, self._embedded(asm, inputs, pos_rest), name="x", axis=1)
        return [self._trunk(asm, "ns", x, inputs, inputs["cu_seqlens"], "block_causal")]

    # --- quantizer ---

    def _phi(self, asm: Assembly, scale_idx: int) -> Values:
        j = self.phi_index[scale_idx]
        return {
            "codebook": asm.weight("codebook"),
            "phi_weight": asm.weight(f"phi.{j}.weight"),
            "phi_bias": asm.weight(f"phi.{j}.bias"),
        }

    def _grids(self, asm: Assembly, scale_idx: int, reduced: int) -> Values:
        """Matrices that enlarge this scale's map and reduce the full one to a side of `reduced`.

        None at the last scale.
        """
        if self._is_last(scale_idx):
            return {}
        side, pn = self.model.patch_nums[-1], self.model.patch_nums[scale_idx]
        return {
            "up": asm.constant(bicubic_matrix(side, pn)),
            "down": asm.constant(area_matrix(side, reduced)),
        }

    def _is_last(self, scale_idx: int) -> bool:
        return scale_idx == self.model.num_scales - 1

    def _quantize(
        self, asm: Assembly, scale_idx: int, tokens: ir.Value, f_hat: ir.Value
    ) -> list[ir.Value]:
        next_pn = self.model.patch_nums[min(scale_idx + 1, self.model.num_scales - 1)]
        operands = {
            "tokens": tokens,
            "f_hat": f_hat,
            **self._phi(asm, scale_idx),
            **self._grids(asm, scale_idx, next_pn),
        }
        return asm.call(
            self.pieces.quantize(self._is_last(scale_idx)), f"quant.{scale_idx}", **operands
        )

    def _own(self, asm: Assembly, scale_idx: int, tokens: ir.Value) -> ir.Value:
        grids = self._grids(asm, scale_idx, self.model.patch_nums[scale_idx])
        operands = {"tokens": tokens, **self._phi(asm, scale_idx), **grids}
        return asm.call(
            self.pieces.mask_input(self._is_last(scale_idx)), f"mask_input.{scale_idx}", **operands
        )[0]

    def _quant(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        assert step.scale_idx is not None
        return self._quantize(asm, step.scale_idx, inputs["tokens"], inputs["f_hat"])

    def _mask_input(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        assert step.scale_idx is not None
        return [self._own(asm, step.scale_idx, inputs["tokens"])]

    # --- whole pyramid ---

    def _score(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        """Both heads over the packed pyramid of given tokens; each scale attends within itself."""
        tokens, S = inputs["tokens"], self.model.num_scales
        scale_tokens = self._per_scale(asm, tokens)
        f_hat = asm.constant(np.zeros((1, 1, 1, 1), np.float32))
        maps, own = [], []
        for k in range(S):
            if k > 0 and self.model.has_mask_branch:
                own.append(self._own(asm, k, scale_tokens[k]))
            if k + 1 < S:
                f_hat, next_map = self._quantize(asm, k, scale_tokens[k], f_hat)
                maps.append(next_map)
        first = self._first(asm, inputs["cond"])
        pos = self._pos(asm, slice(1, self.model.seq_len))
        lengths = [pn * pn for pn in self.model.patch_nums]
        cu_seqlens = asm.constant(np.cumsum([0, *lengths], dtype=np.int32))
        operands = {"map": asm.op("Concat", *maps, name="maps", axis=1)[0]}
        results = self._scored(asm, "ns", tokens, first, operands, pos, inputs, cu_seqlens)
        results.append(operands["map"])
        if self.model.has_mask_branch:
            one, end = (asm.constant(np.array([i], np.int64)) for i in (1, self.model.seq_len))
            operands["h"] = asm.op("Concat", *own, name="own", axis=1)[0]
            operands["token_mask"] = asm.op(
                "Slice", inputs["token_mask"], one, end, one, name="token_mask_rest"
            )[0]
            results += self._scored(asm, "mask", tokens, first, operands, pos, inputs, cu_seqlens)
            results.append(operands["h"])
        return results

    def _scored(
        self,
        asm: Assembly,
        branch: str,
        tokens: ir.Value,
        first: ir.Value,
        operands: Values,
        pos: ir.Value,
        inputs: Values,
        cu_seqlens: ir.Value,
    ) -> list[ir.Value]:
        rest = self._embedded(asm, operands, pos, f"{branch}/embed")
        (x,) = asm.op("Concat", first, rest, name=f"{branch}/x", axis=1)
        logits = self._trunk(asm, branch, x, inputs, cu_seqlens)
        (log_prob,) = asm.call(
            self.pieces.log_prob, f"{branch}/log_prob", logits=logits, tokens=tokens
        )
        return [log_prob, logits]

    def _per_scale(self, asm: Assembly, tokens_BL: ir.Value) -> list[ir.Value]:
        """Token maps (B, pn, pn) of all scales."""
        lengths = asm.constant(np.array([pn * pn for pn in self.model.patch_nums], np.int64))
        split = asm.op(
            "Split", tokens_BL, lengths, name="scales", results=self.model.num_scales, axis=1
        )
        return [
            asm.op(
                "Reshape", flat, asm.constant(np.array([0, pn, pn], np.int64)), name=f"tokens.{k}"
            )[0]
            for k, (flat, pn) in enumerate(zip(split, self.model.patch_nums, strict=True))
        ]

    # --- images ---

    def _decode(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        decoder = trace_decoder(
            self.pieces.tokenizer, self.pieces.side, self.pieces.dtype, self.opset
        )
        return self._call_network(asm, decoder, "decode", inputs["f_hat"])

    def _encode(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        encoder = trace_encoder(self.pieces.tokenizer, self.pieces.side, self.opset)
        (rest,) = self._call_network(asm, encoder, "encode", inputs["image"])
        f_hat = asm.constant(np.zeros((1, 1, 1, 1), np.float32))
        tokens = []
        for k, pn in enumerate(self.model.patch_nums):
            operands = {"rest": rest, "f_hat": f_hat, "codebook_norm": asm.weight("codebook.norm")}
            operands |= {**self._phi(asm, k), **self._grids(asm, k, pn)}
            scale_tokens, rest, f_hat = asm.call(
                self.pieces.quantize_rest(self._is_last(k)), f"quant.{k}", **operands
            )
            tokens.append(scale_tokens)
        return [asm.op("Concat", *tokens, name="all_tokens", axis=1)[0], f_hat]

    def _call_network(
        self, asm: Assembly, piece: ir.Graph, prefix: str, operand: ir.Value
    ) -> list[ir.Value]:
        weights = {n: asm.weight(n) for n in input_names(piece) if n != "operand"}
        return asm.call(piece, prefix, operand=operand, **weights)
