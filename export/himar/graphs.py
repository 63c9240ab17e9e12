"""Every graph of Hi-MAR's catalogue, put together from traced pieces and the shared weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from export.assemble import Assembly, input_names
from export.builder import Builder, Values
from export.himar.pieces import Pieces
from export.himar.steps import StepSpec
from export.himar.tensors import DIT_LINEARS, LINEARS
from export.weights import WeightsFile
from hmar.himar import Phase

FOLDED = ("norm1.weight", "norm1.bias", "gate1", "norm2.weight", "norm2.bias", "gate2")


class GraphBuilder(Builder):
    """Builds the graph of one StepSpec after the other."""

    def __init__(self, pieces: Pieces, weights: WeightsFile) -> None:
        super().__init__(weights, pieces.opset)
        self.model, self.pieces = pieces.model, pieces

    def _cond(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        return asm.op("Gather", asm.weight("cond_rows"), inputs["label"], name="cond", axis=0)

    # --- encoder and decoder ---

    def _pivot(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        parts = []
        if step.known:
            parts.append(self._known(asm, "pivot", inputs["pivots"], inputs["known"]))
        x = self._transformed(asm, "pivot", parts, inputs)
        z = self._take(asm, x, inputs["predicted"], self.model.buffer_size, "predicted_rows")
        (pos,) = asm.op("Gather", asm.weight("pivot.z"), inputs["predicted"], name="z_pos", axis=0)
        (z,) = asm.op("Add", self._norm(asm, "decoder_norm", z), pos, name="z")
        return [z, self._linear(asm, "mlp.cond", z)]

    def _dense(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        pivots = self._linear(asm, "cond_z_proj", inputs["small_z"])
        parts = asm.op("Add", pivots, asm.weight("dense.encoder_pivots"), name="pivots")
        if step.known:
            parts.append(self._known(asm, "dense", inputs["dense"], inputs["known"]))
        x = self._transformed(asm, "dense", parts, inputs)
        start = self.model.buffer_size + self.model.num_pivots
        rows = self._slice(asm, x, start, start + self.model.num_dense, "dense_rows")
        z = self._norm(asm, "decoder_norm", rows)
        (z,) = asm.op("Add", z, asm.weight("dense.z"), name="z")
        return [self._linear(asm, "dit.cond", z)]

    def _known(self, asm: Assembly, phase: Phase, tokens: ir.Value, known: ir.Value) -> ir.Value:
        """Embedded known tokens of the phase's own grid, (N, known, D)."""
        linear, table = (
            ("cond_proj", "pivot.encoder_pivots")
            if phase == "pivot"
            else ("z_proj", "dense.encoder_dense")
        )
        x = self._linear(asm, linear, self._take(asm, tokens, known, 0, "known_tokens"))
        (pos,) = asm.op("Gather", asm.weight(table), known, name="known_pos", axis=0)
        return asm.op("Add", x, pos, name="known_x")[0]

    def _transformed(
        self, asm: Assembly, phase: Phase, parts: list[ir.Value], inputs: Values
    ) -> ir.Value:
        """Output of the decoder's blocks, (N, buffer + S, D), from the embedded known tokens."""
        cond = self._unsqueeze(asm, inputs["cond"], 1, "cond_row")
        (buffer,) = asm.op("Add", cond, asm.weight(f"{phase}.encoder_buffer"), name="buffer")
        (x,) = asm.op("Concat", buffer, *parts, name="encoder_x", axis=1)
        x = self._norm(asm, "z_proj_ln", x)
        for i in range(self.model.encoder_depth):
            x = self._block(asm, phase, f"encoder_blocks.{i}", self.model.encoder_heads, x)
        x = self._linear(asm, "decoder_embed", self._norm(asm, "encoder_norm", x))
        x = self._filled(asm, phase, x, inputs["source"])
        for i in range(self.model.decoder_depth):
            x = self._block(asm, phase, f"decoder_blocks.{i}", self.model.decoder_heads, x)
        return x

    def _filled(self, asm: Assembly, phase: Phase, x: ir.Value, source: ir.Value) -> ir.Value:
        """Input of the decoder's blocks: rows in their places, mask tokens where none is known."""
        buffer_size = self.model.buffer_size
        buffer = self._slice(asm, x, 0, buffer_size, "buffer_rows")
        pos = asm.weight(f"{phase}.decoder_buffer")
        (buffer,) = asm.op("Add", buffer, pos, name="decoder_buffer")
        # -1, an unknown position, takes the last row of the buffer, and is then masked
        rows = self._take(asm, x, source, buffer_size, "rows")
        (rows,) = asm.op("Add", rows, asm.weight(f"{phase}.decoder_tokens"), name="placed_rows")
        (unknown,) = asm.op("Less", source, asm.constant(np.array([0], np.int32)), name="unknown")
        unknown = self._unsqueeze(asm, unknown, -1, "unknown_rows")
        masked = asm.weight(f"{phase}.decoder_masked")
        (tokens,) = asm.op("Where", unknown, masked, rows, name="decoder_tokens")
        return asm.op("Concat", buffer, tokens, name="decoder_x", axis=1)[0]

    def _block(
        self, asm: Assembly, phase: Phase, name: str, num_heads: int, x: ir.Value
    ) -> ir.Value:
        bindings = {part.replace(".", "_"): asm.weight(f"{name}.{phase}.{part}") for part in FOLDED}
        bindings |= self._weights_and_biases(asm, name, LINEARS)
        return asm.call(self.pieces.block(num_heads), name, x=x, **bindings)[0]

    # --- denoisers ---

    def _modulate_pivot(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        act = self._act(asm, "mlp", inputs["timestep"], inputs["head_cond"], axes=(1, 2))
        parts = self._modulations(asm, act)
        return asm.op("Concat", *parts, name="modulation", axis=-1)

    def _denoise_pivot(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        x = self._state(asm, "mlp", inputs)
        if "modulation" in inputs:
            W, depth = self.model.mlp_width, self.model.mlp_depth
            sizes = asm.constant(np.array([*[3 * W] * depth, 2 * W], np.int64))
            parts = asm.op(
                "Split", inputs["modulation"], sizes, name="ada", results=depth + 1, axis=-1
            )
        else:
            parts = self._modulations(
                asm, self._act(asm, "mlp", inputs["timestep"], inputs["head_cond"])
            )
        *blocks, last = parts
        for i, ada in enumerate(blocks):
            name = f"mlp.blocks.{i}"
            bindings = self._weights_and_biases(asm, name, ("fc1", "fc2"))
            for part in ("weight", "bias"):
                bindings[f"norm_{part}"] = asm.weight(f"{name}.norm.{part}")
            (x,) = asm.call(self.pieces.res_block, name, x=x, ada=ada, **bindings)
        out = self._final(asm, "mlp", x, last)
        if "scale" not in inputs:
            return self._halves(asm, out, 2, "values")
        cond, uncond = self._halves(asm, out, 0, "rows")
        noise, variance = self._halves(asm, cond, 2, "cond")
        unguided = self._halves(asm, uncond, 2, "uncond")[0]
        return [self._guided(asm, noise, unguided, inputs["scale"]), variance]

    def _denoise_dense(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        x = self._state(asm, "dit", inputs)
        act = self._act(asm, "dit", inputs["timestep"], inputs["head_cond"])
        for i in range(self.model.dit_depth):
            name = f"dit.blocks.{i}"
            bindings = self._weights_and_biases(asm, name, DIT_LINEARS)
            (x,) = asm.call(self.pieces.dit_block, name, x=x, act=act, **bindings)
        out = self._final(asm, "dit", x, self._linear(asm, "dit.final.ada", act))
        if "scale" not in inputs:
            return [out]
        cond, uncond = self._halves(asm, out, 0, "rows")
        return [self._guided(asm, cond, uncond, inputs["scale"])]

    _denoise_pivot_unguided = _denoise_pivot
    _denoise_pivot_modulated = _denoise_pivot
    _denoise_dense_unguided = _denoise_dense

    def _state(self, asm: Assembly, name: str, inputs: Values) -> ir.Value:
        """Embedded state of all rows."""
        x = self._linear(asm, f"{name}.input", inputs["x"])
        if name == "dit":
            (x,) = asm.op("Add", x, asm.weight("dit.pos"), name="dit.x")
        if "scale" in inputs:
            (x,) = asm.op("Concat", x, x, name=f"{name}.both", axis=0)
        return x

    def _act(
        self,
        asm: Assembly,
        name: str,
        timestep: ir.Value,
        head_cond: ir.Value,
        axes: tuple[int, ...] = (),
    ) -> ir.Value:
        """SiLU of time and condition, for the modulations; `axes` are new ones after the time's."""
        table = asm.weight(f"{name}.time")
        (time,) = asm.op("Gather", table, timestep, name=f"{name}.time_row", axis=0)
        for axis in axes:
            time = self._unsqueeze(asm, time, axis, f"{name}.time_{axis}")
        (y,) = asm.op("Add", head_cond, time, name=f"{name}.y")
        (sigmoid,) = asm.op("Sigmoid", y, name=f"{name}.sigmoid")
        return asm.op("Mul", y, sigmoid, name=f"{name}.act")[0]

    def _modulations(self, asm: Assembly, act: ir.Value) -> list[ir.Value]:
        """Of every block of the pivots' denoiser, and of its last layer."""
        names = [*(f"mlp.blocks.{i}" for i in range(self.model.mlp_depth)), "mlp.final"]
        return [self._linear(asm, f"{name}.ada", act) for name in names]

    def _final(self, asm: Assembly, name: str, x: ir.Value, ada: ir.Value) -> ir.Value:
        """Noise of every channel, and in the pivots' denoiser a variance value, float32."""
        bindings = {
            f"{part}_f32": asm.weight(f"{name}.final.{part}") for part in ("weight", "bias")
        }
        return asm.call(self.pieces.final(name), f"{name}.final", x=x, ada=ada, **bindings)[0]

    def _guided(self, asm: Assembly, cond: ir.Value, uncond: ir.Value, scale: ir.Value) -> ir.Value:
        """`uncond + scale * (cond - uncond)`."""
        (difference,) = asm.op("Sub", cond, uncond, name="difference")
        (scaled,) = asm.op("Mul", scale, difference, name="scaled")
        return asm.op("Add", uncond, scaled, name="guided")[0]

    # --- autoencoder ---

    def _decode_pivot(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        decoder = self.pieces.decode(self.model.pivot_side)
        return self._network(asm, decoder, "decode", inputs["tokens"])

    def _decode(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        decoder = self.pieces.decode(self.model.dense_side)
        return self._network(asm, decoder, "decode", inputs["tokens"])

    def _encode(self, asm: Assembly, step: StepSpec, inputs: Values) -> list[ir.Value]:
        return self._network(asm, self.pieces.encode, "encode", inputs["image"])

    def _network(
        self, asm: Assembly, piece: ir.Graph, prefix: str, operand: ir.Value
    ) -> list[ir.Value]:
        weights = {n: asm.weight(n) for n in input_names(piece) if n != "operand"}
        return asm.call(piece, prefix, operand=operand, **weights)

    # --- parts of parts ---

    def _weights_and_biases(self, asm: Assembly, name: str, linears: Iterable[str]) -> Values:
        return {
            f"{linear}_{part}": asm.weight(f"{name}.{linear}.{part}")
            for linear in linears
            for part in ("weight", "bias")
        }

    def _linear(self, asm: Assembly, name: str, x: ir.Value) -> ir.Value:
        """A linear layer, in the dtype of its weights."""
        weight = asm.weight(f"{name}.weight")
        (x,) = asm.op("CastLike", x, weight, name=f"{name}_x")
        (product,) = asm.op("MatMul", x, weight, name=f"{name}_product")
        return asm.op("Add", product, asm.weight(f"{name}.bias"), name=f"{name}_y")[0]

    def _norm(self, asm: Assembly, name: str, x: ir.Value) -> ir.Value:
        weights = {part: asm.weight(f"{name}.{part}") for part in ("weight", "bias")}
        return asm.call(self.pieces.norm, name, x=x, **weights)[0]

    def _take(
        self, asm: Assembly, x: ir.Value, index: ir.Value, offset: int, name: str
    ) -> ir.Value:
        """Rows `index + offset` (N, k) of every sequence, (N, k, D)."""
        (wide,) = asm.op("Cast", index, name=f"{name}_i64", to=int(ir.DataType.INT64))
        shift = asm.constant(np.array([offset], np.int64))
        (moved,) = asm.op("Add", wide, shift, name=f"{name}_moved")
        indices = self._unsqueeze(asm, moved, -1, f"{name}_index")
        return asm.op("GatherND", x, indices, name=name, batch_dims=1)[0]

    def _unsqueeze(self, asm: Assembly, x: ir.Value, axis: int, name: str) -> ir.Value:
        return asm.op("Unsqueeze", x, asm.constant(np.array([axis], np.int64)), name=name)[0]

    def _slice(self, asm: Assembly, x: ir.Value, start: int, stop: int, name: str) -> ir.Value:
        """Positions start..stop-1 of every sequence."""
        bounds = (asm.constant(np.array([i], np.int64)) for i in (start, stop, 1))
        return asm.op("Slice", x, *bounds, name=name)[0]

    def _halves(self, asm: Assembly, x: ir.Value, axis: int, name: str) -> list[ir.Value]:
        return asm.op("Split", x, name=f"{name}_halves", results=2, num_outputs=2, axis=axis)
