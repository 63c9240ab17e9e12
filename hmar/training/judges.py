"""Classifiers that say what a picture shows: fitted on real renders, then applied to samples."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmar.training.render import Renderer


class ConvJudge(nn.Sequential):
    """A small convolutional classifier of pictures in [-1, 1]."""

    def __init__(self, num_classes: int, width: int = 32) -> None:
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        channels = 3
        for level in range(3):
            out = width * 2**level
            layers += [
                nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            channels = out
        super().__init__(
            *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(channels * 4, num_classes)
        )


def train_conv_judge(renderer: Renderer, steps: int = 400, batch_size: int = 104) -> ConvJudge:
    """A judge trained on fresh renders only."""
    judge = ConvJudge(renderer.num_classes).to(renderer.device).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        image, label = renderer.batch(batch_size)
        F.cross_entropy(judge(image), label).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def predict(judge: nn.Module, image_N3HW: Tensor, batch_size: int = 256) -> np.ndarray:
    """Most probable class of every picture, (N,)."""
    return torch.cat([judge(x).argmax(dim=1) for x in image_N3HW.split(batch_size)]).cpu().numpy()


class LinearProbe:
    """Multinomial logistic regression over standardised features, fitted to convergence.

    Args:
        features: (N, F) of real renders.
        labels: (N,).
        penalty: on the squared weights, beside the mean cross-entropy.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, penalty: float = 1e-3) -> None:
        self.mean, self.std = features.mean(axis=0), features.std(axis=0) + 1e-6
        x, target = self._standardised(features), torch.from_numpy(labels)
        self.weights = torch.zeros(x.shape[1], int(labels.max()) + 1, requires_grad=True)
        self.offset = torch.zeros(self.weights.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [self.weights, self.offset], max_iter=200, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(self._logits(x), target)
            value = value + penalty * self.weights.square().sum()
            value.backward()
            return value

        optimizer.step(loss)

    @torch.no_grad()
    def predict(self, features: np.ndarray) -> np.ndarray:
        """Most probable class of every row, (N,)."""
        return self._logits(self._standardised(features)).argmax(dim=1).numpy()

    def _logits(self, x_NF: Tensor) -> Tensor:
        return x_NF @ self.weights + self.offset

    def _standardised(self, features: np.ndarray) -> Tensor:
        return torch.from_numpy(((features - self.mean) / self.std).astype(np.float32))
