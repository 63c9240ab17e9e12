"""Initial weights of the transformer."""

from __future__ import annotations

import torch
from torch import nn

from hmar.hmar import HMAR

GAMMA = 0.1  # initial gate of every residual branch


@torch.no_grad()
def init_hmar_(model: HMAR) -> None:
    """Small embeddings, gates near zero and an almost uniform first prediction, in place."""
    C = model.config.embed_dim
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=C**-0.5)
    for position in (model.pos_start, model.pos_1LC):
        nn.init.trunc_normal_(position, std=C**-0.5)
    for name, module in model.named_modules():
        if name.endswith("ada_lin"):
            nn.init.trunc_normal_(module[1].weight, std=0.02)
            if module[1].out_features == 6 * C:
                module[1].bias[: 2 * C] = 0.0 if model.config.shared_aln else GAMMA
    for name, param in model.named_parameters():
        if name.endswith("ada_gss"):
            param.zero_()
            param[:, :, :2] = GAMMA
    for head in (model.ns_head, *([model.mask_head] if model.config.has_mask_branch else [])):
        nn.init.trunc_normal_(head.weight, std=0.1 * C**-0.5)


@torch.no_grad()
def start_mask_branch_(model: HMAR) -> None:
    """Copies the next-scale branch into the masked one, in place."""
    for ours, theirs in (
        (model.mask_blocks, model.ns_blocks),
        (model.mask_head_nm, model.ns_head_nm),
        (model.mask_head, model.ns_head),
    ):
        ours.load_state_dict(theirs.state_dict())
    model.mask_embed.weight.zero_()
