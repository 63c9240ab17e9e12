"""What a stage needs to go on: weights, averages and optimiser moments, in small files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hmar.training.errors import StateError

MAX_FILE_BYTES = 15 * 2**20
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(
    folder: Path,
    stage: str,
    step: int,
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes `<stage>-NN.safetensors` of at most 15 MiB: float32 weights, the rest in 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{stage}-[0-9][0-9].safetensors"):
        stale.unlink()
    shards = list(_shards(_tensors(model, ema, optimizer)))
    for i, shard in enumerate(shards):
        metadata = {"stage": stage, "step": str(step), "files": str(len(shards))}
        safetensors.torch.save_file(shard, folder / f"{stage}-{i:02d}.safetensors", metadata)


def load_state(
    folder: Path, stage: str, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Restores what `save_state` wrote, in place, and returns the step.

    Raises:
        StateError: files are missing, or their tensors are not those of this model.
    """
    paths = sorted(folder.glob(f"{stage}-[0-9][0-9].safetensors"))
    if not paths:
        raise StateError(
            f"{folder}: no {stage}-NN.safetensors to resume from; leave out --resume to start anew"
        )
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
        if int(metadata["files"]) != len(paths):
            raise StateError(
                f"{folder}: {len(paths)} files of stage {stage}, {metadata['files']} were written"
            )
    named = _trained(model)
    expected = {f"{kind}/{name}" for kind in ("param", "ema", *MOMENTS) for name in named}
    if expected != tensors.keys():
        odd = sorted(expected ^ tensors.keys())
        raise StateError(
            f"{folder}: the {stage} state is of another model; "
            f"differing tensors: {', '.join(odd[:6])}"
        )
    averaged = dict(ema.named_parameters())
    for name, param in named.items():
        with torch.no_grad():
            param.copy_(tensors[f"param/{name}"])
            averaged[name].copy_(tensors[f"ema/{name}"])
        optimizer.state[param] = {
            "step": torch.tensor(float(metadata["step"]), device=param.device),
            **{key: tensors[f"{key}/{name}"].to(param.device, param.dtype) for key in MOMENTS},
        }
    return int(metadata["step"])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _tensors(
    model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    averaged = dict(ema.named_parameters())
    for name, param in _trained(model).items():
        yield f"param/{name}", param.detach()
        yield f"ema/{name}", averaged[name].detach().half()
        for key in MOMENTS:
            # a phi convolution that no scale uses has no gradient and no moments
            moment = optimizer.state[param].get(key, torch.zeros_like(param))
            yield f"{key}/{name}", moment.bfloat16()


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > MAX_FILE_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.cpu().contiguous()
        size += tensor.nbytes
    yield shard
