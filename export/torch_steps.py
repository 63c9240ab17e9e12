"""Transformer passes in PyTorch at the bundle's precision: the modules of the graphs, run directly.

The baseline for half precision: what the rounding alone costs, before any runtime has its say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export import modules
from export.tensors import BLOCK_LINEARS
from export.weights import WeightsFile
from hmar.config import HMARConfig
from plugins_trt.block_sparse_attn.spec import Attributes


class TorchSteps:
    """Runs `cond`, `ns` and `mask` steps from the tensors of a weights file."""

    def __init__(self, model: HMARConfig, weights: WeightsFile) -> None:
        self.model, self.weights = model, weights
        attributes = Attributes(sm_scale=model.attn_scale, qk_l2_norm=model.attn_l2_norm)
        self.block = modules.Block(model.num_heads, model.head_dim, attributes, model.norm_eps)

    def _tensor(self, name: str) -> Tensor:
        entry = self.weights.entries[name]
        if entry.load is None:
            raise ValueError(f"{name} is a view")
        return entry.load().detach().to(entry.dtype)

    def _linear(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")

    @torch.inference_mode()
    def logits(
        self, branch: str, operands: dict[str, Tensor], label_N: Tensor, positions: slice
    ) -> Tensor:
        """Raw logits (N, l, V) of one pass.

        Args:
            operands: `map`, and for the masked branch `h` and `token_mask`; empty at scale 0.
            label_N: class of every row; the last class is "no class".
            positions: of the scale in the packed pyramid.
        """
        cond, act = modules.ClassEmbedding()(label_N, self._tensor("class_emb"))
        pos = self._tensor("pos")[positions]
        if not operands:
            x = modules.EmbedFirst()(cond, pos)
        elif branch == "ns":
            x = modules.EmbedNs()(operands["map"], self._tensor("word_embed.weight"), pos)
        else:
            tensors = (self._tensor("word_embed.weight"), self._tensor("mask_embed"), pos)
            x = modules.EmbedMask()(
                operands["map"], operands["h"], operands["token_mask"], *tensors
            )
        shared = (
            modules.Modulation()(act, *self._linear("shared_ada"))
            if self.model.shared_aln
            else None
        )
        cu_seqlens = torch.tensor([0, x.shape[1]], dtype=torch.int32)
        for group, layers in (("base", self.model.base_layers), (branch, self.model.branch_layers)):
            for i in range(layers):
                x = self._run_block(f"{group}_blocks.{i}", x, act, shared, cu_seqlens)
        ada = modules.Modulation()(act, *self._linear(f"{branch}_head.ada"))
        return modules.Head(self.model.norm_eps)(x, ada, *self._linear(f"{branch}_head"))

    def _run_block(
        self, name: str, x: Tensor, act: Tensor, shared: Tensor | None, cu_seqlens: Tensor
    ) -> Tensor:
        if shared is None:
            ada = modules.Modulation()(act, *self._linear(f"{name}.ada"))
        else:
            ada = modules.SharedModulation()(shared, self._tensor(f"{name}.ada.own"))
        scale_mul = self._tensor(f"{name}.scale_mul") if self.model.attn_l2_norm else None
        linears = [
            tensor
            for linear in ("qkv", *BLOCK_LINEARS)
            for tensor in self._linear(f"{name}.{linear}")
        ]
        return self.block(x, ada, cu_seqlens, scale_mul, *linears)
