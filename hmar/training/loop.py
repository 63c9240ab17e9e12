"""One training run: optimiser, averaged weights, learning rate, limits and progress lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hmar.training.config import LoopConfig, StageName
from hmar.training.errors import DivergedError
from hmar.training.state import load_state, save_state

logger = logging.getLogger(__name__)

Metrics = dict[str, Tensor]


def lr_factor(step: int, progress: float, warmup_steps: int, cooldown: float) -> float:
    """Learning rate relative to its peak: linear warm-up, constant, linear fall at the end.

    Args:
        step: optimiser steps taken so far, over all runs.
        progress: how far this run is, 0..1.
        cooldown: final fraction of the run.
    """
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    cool = 1.0 if cooldown == 0 else min(1.0, (1 - progress) / cooldown)
    return warm * max(cool, 0.0)


class Trainer:
    """Optimises the parameters of `model` that require a gradient, and keeps their average."""

    def __init__(self, stage: StageName, model: nn.Module, config: LoopConfig) -> None:
        self.stage, self.model, self.config = stage, model, config
        params = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.params = params
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=(0.9, config.beta2), fused=config.device.startswith("cuda")
        )
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.step = 0
        self.progress = 0.0

    @property
    def ema(self) -> nn.Module:
        """The model with averaged weights."""
        return self.averaged.module

    @property
    def is_cooling(self) -> bool:
        return self.progress >= 1 - self.config.cooldown

    def resume(self, folder: Path) -> None:
        """Restores weights, averages, optimiser moments and the step of an earlier run."""
        self.step = load_state(folder, self.stage, self.model, self.ema, self.optimizer)
        self.averaged.n_averaged.fill_(self.step)
        logger.info("%s: resumed from %s at step %d", self.stage, folder, self.step)

    def save(self, folder: Path) -> None:
        save_state(folder, self.stage, self.step, self.model, self.ema, self.optimizer)

    def run(
        self,
        compute_loss: Callable[[], tuple[Tensor, Metrics]],
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Trains until the step or time limit.

        Args:
            compute_loss: draws a batch; returns the loss and numbers for the progress line.
            after_step: called after every update, say to repair the codebook.

        Raises:
            DivergedError: the loss is not finite.
        """
        config, started = self.config, time.monotonic()
        first_step, lap_step, lap_start = self.step, self.step, started
        while self.progress < 1:
            loss, metrics = compute_loss()
            lr = config.lr * lr_factor(
                self.step, self.progress, config.warmup_steps, config.cooldown
            )
            self._update(loss, lr)
            after_step()
            self.step += 1
            elapsed = time.monotonic() - started
            self.progress = (self.step - first_step) / config.steps
            if config.minutes is not None:
                self.progress = max(self.progress, elapsed / 60 / config.minutes)
            if (self.step - first_step) % config.log_every == 0 or self.progress >= 1:
                self._log(
                    loss,
                    metrics,
                    lr,
                    (self.step - lap_step) / (time.monotonic() - lap_start),
                    elapsed,
                )
                lap_step, lap_start = self.step, time.monotonic()

    def _update(self, loss: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)

    def _log(self, loss: Tensor, metrics: Metrics, lr: float, rate: float, elapsed: float) -> None:
        value = loss.item()
        if value != value or abs(value) == float("inf"):
            raise DivergedError(
                f"{self.stage}: loss is {value} at step {self.step}; "
                "resume the last state with a lower --lr",
                step=self.step,
            )
        numbers = "  ".join(f"{name} {metric.item():.4g}" for name, metric in metrics.items())
        logger.info(
            "%s %6d  loss %.4f  %s  lr %.2e  %.2f it/s  %.0f img/s  %.0f s",
            self.stage, self.step, value, numbers, lr, rate, rate * self.config.batch_size, elapsed,
        )  # fmt: skip
