"""The HMAR transformer: a shared base, a next-scale branch and a masked branch.

HMAR (arXiv:2506.04421). A pass sees the tokens of one scale only: its input is the running
reconstruction at that scale's size (Markovian), so there is no key-value cache. Parameter names are
those of the published checkpoints.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hmar.config import HMARConfig
from hmar.layers import AdaLinear, Block, HeadNorm, KVCache

Branch = Literal["ns", "mask"]


class HMAR(nn.Module):
    """Next-scale and masked prediction of token maps.

    Shapes: N rows (images, or the guided batch with the conditional half first), l tokens of the
    present scale, C width, Cvae latent channels, V vocabulary.
    """

    def __init__(self, config: HMARConfig) -> None:
        super().__init__()
        self.config = config
        C = config.embed_dim
        self.class_emb = nn.Embedding(config.num_classes + 1, C)  # the last row is "no class"
        self.pos_start = nn.Parameter(torch.zeros(1, 1, C))
        self.pos_1LC = nn.Parameter(torch.zeros(1, config.seq_len, C))
        self.lvl_embed = nn.Embedding(config.num_scales, C)
        self.word_embed = nn.Linear(config.latent_channels, C, bias=False)
        self.word_embed_bias = nn.Parameter(torch.zeros(C))
        if config.shared_aln:
            self.shared_ada_lin = AdaLinear(C, 6)
        self.base_blocks = nn.ModuleList(Block(config) for _ in range(config.base_layers))
        self.ns_blocks = nn.ModuleList(Block(config) for _ in range(config.branch_layers))
        self.ns_head_nm = HeadNorm(config)
        self.ns_head = nn.Linear(C, config.vocab_size)
        if config.has_mask_branch:
            self.mask_embed = nn.Embedding(1, C)
            self.mask_blocks = nn.ModuleList(Block(config) for _ in range(config.branch_layers))
            self.mask_head_nm = HeadNorm(config)
            self.mask_head = nn.Linear(C, config.vocab_size)

    def cond(self, label_N: Tensor) -> Tensor:
        """Class embeddings (N, C) of labels 0..num_classes (the last one: no class)."""
        return self.class_emb(label_N)

    def lvl_pos(self) -> Tensor:
        """Scale embedding plus position embedding of the whole pyramid, (L, C)."""
        lengths = torch.tensor(
            [pn * pn for pn in self.config.patch_nums], device=self.pos_1LC.device
        )
        return self.lvl_embed.weight.repeat_interleave(lengths, dim=0) + self.pos_1LC[0]

    def first_input(self, cond_NC: Tensor) -> Tensor:
        """Transformer input of scale 0, (N, 1, C)."""
        return cond_NC[:, None] + self.pos_start + self.lvl_pos()[None, :1]

    def ns_input(self, map_Nlc: Tensor, positions: slice) -> Tensor:
        """Input of the next-scale pass: embedded latent map (N, l, Cvae) -> (N, l, C)."""
        return self.word_embed(map_Nlc) + self.word_embed_bias + self.lvl_pos()[positions]

    def mask_input(
        self, f_hat_Nlc: Tensor, h_Nlc: Tensor, token_mask_Nl: Tensor, positions: slice
    ) -> Tensor:
        """Input of a masked pass, (N, l, C).

        Args:
            f_hat_Nlc: reconstruction of the earlier scales at this scale's size.
            h_Nlc: this scale's present tokens, through phi, at this scale's size.
            token_mask_Nl: boolean, True where a token is to be predicted again.
        """
        h = torch.where(token_mask_Nl[..., None], self.mask_embed.weight[0], self.word_embed(h_Nlc))
        return self.word_embed(f_hat_Nlc) + h + self.word_embed_bias + self.lvl_pos()[positions]

    def blocks(self, branch: Branch) -> list[Block]:
        """Blocks of one pass, in order: the base, then the branch."""
        return [*self.base_blocks, *(self.ns_blocks if branch == "ns" else self.mask_blocks)]

    def modulation(self, cond_NC: Tensor, branch: Branch) -> list[Tensor]:
        """Modulation vectors of every block of a pass, each (N, 1, 6, C)."""
        cond = cond_NC
        if self.config.shared_aln:
            cond = self.shared_ada_lin(cond_NC).view(cond_NC.shape[0], 1, 6, -1)
        return [block.modulation(cond) for block in self.blocks(branch)]

    def head(self, x_NlC: Tensor, cond_NC: Tensor, branch: Branch) -> Tensor:
        """Logits (N, l, V) of one branch's head."""
        if branch == "ns":
            return self.ns_head(self.ns_head_nm(x_NlC, cond_NC))
        return self.mask_head(self.mask_head_nm(x_NlC, cond_NC))

    def forward(
        self,
        x_NlC: Tensor,
        cond_NC: Tensor,
        branch: Branch,
        attn_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Raw logits (N, l, V) of one pass.

        Args:
            x_NlC: embedded input, from `first_input`, `ns_input` or `mask_input`.
            cond_NC: class embeddings.
            branch: which blocks and head follow the base.
            attn_mask: boolean (l, l), True = attend; None lets all l tokens see each other.
            cache: keys and values of earlier scales by block number, extended in place.
        """
        for i, (block, ada) in enumerate(
            zip(self.blocks(branch), self.modulation(cond_NC, branch), strict=True)
        ):
            x_NlC, kv = block(x_NlC, ada, attn_mask, None if cache is None else cache.get(i))
            if cache is not None:
                cache[i] = kv
        return self.head(x_NlC, cond_NC, branch)
