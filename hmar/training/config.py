"""Sizes of the demo models and settings of the training stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hmar.config import HMARConfig, TokenizerConfig
from hmar.training.parts import CLASS_NAMES

StageName = Literal["tokenizer", "next-scale", "masked"]

DEMO_TOKENIZER = TokenizerConfig(
    vocab_size=2048,
    latent_channels=32,
    base_channels=64,
    channel_mult=(1, 1, 1, 2),
    num_res_blocks=1,
)
# One modulation projection for all blocks: with 13 classes, one per block would be mostly idle.
DEMO_HMAR = HMARConfig(
    depth=9,
    branch_layers=2,
    embed_dim=192,
    num_heads=3,
    num_classes=13,
    vocab_size=2048,
    shared_aln=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """Optimisation of one stage; a run ends after `steps` or `minutes`, whichever comes first.

    Attributes:
        steps: optimiser steps of this run.
        minutes: wall-clock limit of this run, compilation included; None = no limit.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        beta2: second-moment decay of AdamW.
        weight_decay: on matrices and convolutions only.
        warmup_steps: linear warm-up, counted over all runs of the stage.
        cooldown: final fraction of this run over which the learning rate falls linearly to zero.
        ema_decay: per step, of the averaged weights that are published.
        grad_clip: largest gradient norm.
        log_every: steps between two progress lines.
        seed: of pictures, labels and masks, together with the step at which a run starts.
        device: torch device.
        is_compiled: compile the networks; off is quicker for a few steps.
    """

    steps: int
    minutes: float | None = None
    batch_size: int
    lr: float
    beta2: float = 0.99
    weight_decay: float = 0.0
    warmup_steps: int = 200
    cooldown: float = 0.0
    ema_decay: float = 0.999
    grad_clip: float = 1.0
    log_every: int = 50
    seed: int = 0
    device: str = "cuda"
    is_compiled: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}"
            )
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown is a fraction of the run, 0..1, got {self.cooldown}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the tokenizer's losses, beside the mean absolute error.

    Attributes:
        edge: mean absolute error of horizontal and vertical differences, over three resolutions.
        ssim: one minus structural similarity.
        commitment: pull of the encoder towards the codes.
        restart_every: steps between two replacements of unused codes; they stop with the cooldown.
        restart_below: a code is unused below this fraction of the mean usage.
    """

    edge: float = 1.0
    ssim: float = 0.3
    commitment: float = 0.25
    restart_every: int = 100
    restart_below: float = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerLossConfig:
    """What the transformer stages see and how their losses are weighted.

    Attributes:
        label_dropout: share of pictures trained with "no class".
        weight_peak: patch number with the largest scale weight.
        weight_sigma: width of the scale weights, in log patch numbers.
        noise_share: share of pictures whose tokens are partly replaced, so that finer scales learn
            to correct wrong choices.
        noise_max: largest share of replaced tokens in such a picture.
        class_weights: how often every class is drawn, relative to the others; None = equally.
    """

    label_dropout: float = 0.1
    weight_peak: float = 12.0
    weight_sigma: float = 1.0
    noise_share: float = 0.5
    noise_max: float = 0.2
    class_weights: tuple[float, ...] | None = None


# Robots differ in colour only; the other classes have more parts to learn and came out smeared
# when all were drawn equally.
DEMO_TRANSFORMER_LOSSES = TransformerLossConfig(
    class_weights=tuple(1.0 if name.startswith("robot-") else 3.0 for name in CLASS_NAMES)
)

STAGE_DEFAULTS: dict[StageName, LoopConfig] = {
    "tokenizer": LoopConfig(steps=40_000, batch_size=96, lr=6e-4, ema_decay=0.995, log_every=200),
    "next-scale": LoopConfig(
        steps=60_000,
        batch_size=256,
        warmup_steps=500,
        lr=1.2e-3,
        log_every=200,
        beta2=0.98,
        weight_decay=0.02,
    ),
    "masked": LoopConfig(
        steps=10_000,
        batch_size=256,
        warmup_steps=100,
        lr=6e-4,
        ema_decay=0.995,
        beta2=0.98,
        weight_decay=0.02,
    ),
}
