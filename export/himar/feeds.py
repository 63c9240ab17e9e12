"""Inputs of the steps' graphs from the state of a generation; names as in `export.himar.steps`.

B images, N rows (B, or 2B with guidance), K known tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmar.himar_schedule import Step

Tensors = dict[str, Tensor]


def pivot_feeds(
    cond_ND: Tensor, pivots_BPC: Tensor, order_BP: Tensor, step: Step, num_tokens: int
) -> Tensors:
    """Inputs of the graph of a step of the pivot phase."""
    known_BK = order_BP[:, step.unknown :].sort(dim=1).values
    given = {"pivots": pivots_BPC, "known": known_BK} if known_BK.shape[1] else {}
    feeds = {
        **given,
        "source": source(known_BK, num_tokens),
        "predicted": predicted(order_BP, step),
    }
    return {"cond": cond_ND, **_to_rows(feeds, len(cond_ND))}


def dense_feeds(
    cond_ND: Tensor, small_z_BPD: Tensor, dense_BNC: Tensor, known_BK: Tensor
) -> Tensors:
    """Inputs of a graph of the dense phase; known positions count within the dense grid."""
    B, P, N = len(small_z_BPD), small_z_BPD.shape[1], dense_BNC.shape[1]
    given = {"dense": dense_BNC, "known": known_BK} if known_BK.shape[1] else {}
    both_grids = torch.cat((torch.arange(P).expand(B, -1), known_BK + P), dim=1)
    feeds = {**given, "small_z": small_z_BPD, "source": source(both_grids, P + N)}
    return {"cond": cond_ND, **_to_rows(feeds, len(cond_ND))}


def predicted(order_BP: Tensor, step: Step) -> Tensor:
    """Pivots that a step predicts, (B, n), ascending."""
    return order_BP[:, step.remaining : step.unknown].sort(dim=1).values


def source(known_BK: Tensor, num_tokens: int) -> Tensor:
    """Per position its row among the known tokens, (B, num_tokens); -1 = unknown."""
    rows = torch.arange(known_BK.shape[1]).expand(known_BK.shape)
    return torch.full((len(known_BK), num_tokens), -1).scatter(1, known_BK, rows)


def _to_rows(feeds: Tensors, rows: int) -> Tensors:
    """Tensors of B images repeated for N rows."""
    return {name: x.repeat(rows // len(x), *[1] * (x.dim() - 1)) for name, x in feeds.items()}
