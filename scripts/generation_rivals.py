"""Generation in PyTorch, to compare the runtime with: the reference, and its passes compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hmar.checkpoint import check_pair, load_hmar, load_tokenizer
from hmar.hmar import HMAR
from hmar.reference import ReferenceConfig, generate
from hmar.vae import VQVAE

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RECOMPILES = 128  # a block is compiled for every scale and batch
Rival = Literal["torch eager", "torch compiled"]
RIVALS: tuple[Rival, ...] = ("torch eager", "torch compiled")


@dataclass(frozen=True, slots=True)
class TorchGenerator:
    """The reference generation with random draws; images come back as uint8 on the host."""

    model: HMAR
    tokenizer: VQVAE
    device: torch.device

    @classmethod
    def load(cls, ckpt: Sequence[Path], vae: Path, device: str, precision: str) -> TorchGenerator:
        """Transformer and decoder in a bundle's precision, with float32 logits and quantizer."""
        model = load_hmar(ckpt)
        tokenizer = load_tokenizer(vae, model.config.patch_nums)
        check_pair(model, tokenizer)
        dtype = DTYPES[precision]
        for module in (model, tokenizer.decoder, tokenizer.post_quant_conv):
            module.to(dtype)
        model.word_embed.register_forward_pre_hook(lambda module, args: (args[0].to(dtype),))
        tokenizer.post_quant_conv.register_forward_pre_hook(
            lambda module, args: (args[0].to(dtype),)
        )
        for name, head in model.named_children():
            if name.endswith("_head"):
                head.register_forward_hook(lambda module, args, out: out.float())
        return cls(model.to(device), tokenizer.to(device), torch.device(device))

    def __call__(self, labels: Sequence[int], config: ReferenceConfig) -> Tensor:
        """Images (B, 3, H, W)."""
        with self.device:
            image = generate(self.model, self.tokenizer, labels, config, draw_random)
            return (image * 255).round().to(torch.uint8).cpu()

    def compile(self) -> None:
        """Compiles the blocks, and replays every pass from a CUDA graph of its own."""
        torch._dynamo.config.recompile_limit = RECOMPILES
        for name, blocks in self.model.named_children():
            if name.endswith("_blocks"):
                for block in blocks.children():
                    block.compile(dynamic=False)
        self.model.forward = GraphedForward(self.model.forward)  # type: ignore[method-assign]


def draw_random(name: str, logits_BlV: Tensor) -> Tensor:
    """Tokens by inverse CDF."""
    cdf = logits_BlV.double().softmax(dim=-1).cumsum(dim=-1)
    u = torch.rand(cdf.shape[:-1], dtype=cdf.dtype)[..., None]
    return (cdf > u * cdf[..., -1:]).int().argmax(dim=-1)


class GraphedForward:
    """A forward function whose calls are captured once per shape and branch, then replayed.

    The logits returned are overwritten by the next call of the same shape.
    """

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self._forward = forward
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], Tensor]] = {}

    def __call__(self, x_NlC: Tensor, cond_NC: Tensor, branch: str, cache: None = None) -> Tensor:
        key = (tuple(x_NlC.shape), branch)
        if key not in self._graphs:
            self._graphs[key] = self._capture(x_NlC.clone(), cond_NC.clone(), branch)
        graph, inputs, logits = self._graphs[key]
        for held, given in zip(inputs, (x_NlC, cond_NC), strict=True):
            held.copy_(given)
        graph.replay()
        return logits

    def _capture(
        self, x_NlC: Tensor, cond_NC: Tensor, branch: str
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and settles the choice of kernels
                self._forward(x_NlC, cond_NC, branch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._forward(x_NlC, cond_NC, branch)
        return graph, (x_NlC, cond_NC), logits
