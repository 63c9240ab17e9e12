"""Figures of a set of labelled pictures, from judges fitted on real renders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmar.checkpoint import load_tokenizer
from hmar.config import PATCH_NUMS_256
from hmar.training.demo import EVALUATION_SEED, TOKENIZER_FILE
from hmar.training.fidelity import frechet_distance, nearest_backgrounds, nearest_distances
from hmar.training.judges import LinearProbe, predict, train_conv_judge
from hmar.training.parts import PartPack
from hmar.training.render import Renderer, Split, held_out_pairs
from hmar.training.sheet import to_uint8
from scripts.lite0 import Lite0

CLASS_AXES = 32  # few enough for the covariance of one class's pictures
NUM_HARD = 3  # cyborg, robohead and cat, the last classes
Row = dict[str, str | int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSet:
    """Labelled pictures: (N, H, W, 3) uint8 and (N,), with a name and, if any, their PSNR in dB."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    psnr_db: float = float("nan")

    @classmethod
    def load(cls, name: str, path: Path) -> PictureSet:
        with np.load(path) as arrays:
            missing = {"images", "labels"} - set(arrays.files)
            if missing:
                raise ValueError(f"{path}: no array {', '.join(sorted(missing))}; see --help")
            return cls(name=name, images=arrays["images"], labels=arrays["labels"])


class Judging:
    """Fits the judges on real renders once, then judges sets.

    Args:
        pack: parts of the real pictures.
        num_real: pictures that the probe and the Fréchet distance are fitted on.
        judge_steps: training steps of the convolutional judge.
        device: torch device.
    """

    def __init__(self, pack: PartPack, num_real: int, judge_steps: int, device: str) -> None:
        torch.manual_seed(0)
        self.pack, self.device, self.lite0 = pack, device, Lite0(device)
        self.judge_net = train_conv_judge(
            Renderer(pack, torch.device(device), EVALUATION_SEED + 1, "all"), judge_steps
        )
        real = render_set("fit", pack, num_real, EVALUATION_SEED + 2, device)
        self.real_images, self.real_features = real.images, self.lite0.features(real.images)
        self.real_labels = real.labels
        self.probe = LinearProbe(self.real_features, real.labels)
        centred = self.real_features - self.real_features.mean(axis=0)
        self.main_axes = np.linalg.svd(centred, full_matrices=False)[2][:CLASS_AXES].T

    def score(self, pictures: PictureSet) -> Row:
        """Accuracies and Fréchet distances: what settings are compared by."""
        features = self.lite0.features(pictures.images)
        found = predict(self.judge_net, _to_tensor(pictures.images, self.device))
        by_class = self._class_frechet(features, pictures.labels)
        return {
            "set": pictures.name,
            "n": len(pictures.images),
            "cnn_accuracy": float((found == pictures.labels).mean()),
            "probe_accuracy": float((self.probe.predict(features) == pictures.labels).mean()),
            "frechet": frechet_distance(features, self.real_features),
            "frechet_class": float(np.mean(by_class)),
            "frechet_hard": float(np.mean(by_class[-NUM_HARD:])),
        }

    def judge(self, pictures: PictureSet) -> Row:
        """The scores, distances to the nearest real pictures, number of held-out pairs, PSNR."""
        nearest_N = nearest_distances(pictures.images, self.real_images)
        return {
            **self.score(pictures),
            "nearest_rms": float(nearest_N.mean()),
            "nearest_1st": float(np.percentile(nearest_N, 1)),
            "held_out": int(self.shows_held_out_pair(pictures).sum()),
            "psnr_db": pictures.psnr_db,
        }

    def shows_held_out_pair(self, pictures: PictureSet) -> np.ndarray:
        """Boolean (N,): the class is recognised, and its background is one kept out of training."""
        backgrounds = nearest_backgrounds(pictures.images, self.pack.backgrounds)
        held_out = held_out_pairs(self.pack.num_classes, len(self.pack.backgrounds))
        found = predict(self.judge_net, _to_tensor(pictures.images, self.device))
        return held_out[pictures.labels, backgrounds] & (found == pictures.labels)

    def _class_frechet(self, features: np.ndarray, labels: np.ndarray) -> list[float]:
        """Fréchet distance of every class, in the main axes of real features."""
        ours, real = features @ self.main_axes, self.real_features @ self.main_axes
        return [
            frechet_distance(ours[labels == c], real[self.real_labels == c])
            for c in range(self.pack.num_classes)
        ]


def render_set(
    name: str, pack: PartPack, size: int, seed: int, device: str, split: Split = "train"
) -> PictureSet:
    """Fresh real pictures, balanced over the classes."""
    image, label = Renderer(pack, torch.device(device), seed, split).batch(size)
    return PictureSet(name=name, images=to_uint8(image), labels=label.cpu().numpy())


def make_sets(pack: PartPack, ckpt: Path, size: int, device: str) -> Iterator[PictureSet]:
    """Real pictures, the same with wrong labels, and their reconstructions."""
    real = render_set("real", pack, size, EVALUATION_SEED + 3, device)
    yield real
    wrong = (real.labels + 1) % pack.num_classes
    yield PictureSet(name="wrong labels", images=real.images, labels=wrong)
    tokenizer = load_tokenizer(ckpt / TOKENIZER_FILE, PATCH_NUMS_256).to(device)
    decoded = []
    with torch.inference_mode():
        for image in _to_tensor(real.images, device).split(64):
            decoded.append(
                to_uint8(
                    tokenizer.decode(tokenizer.quantize.encode(tokenizer.latent(image))[1][-1])
                )
            )
    images = np.concatenate(decoded)
    mse = np.square(images.astype(np.float32) - real.images).mean(axis=(1, 2, 3))
    psnr_db = float((10 * np.log10(255**2 / mse)).mean())
    yield PictureSet(name="reconstruction", images=images, labels=real.labels, psnr_db=psnr_db)


def table(rows: Sequence[Row]) -> str:
    """One line per row below the names of the columns."""
    width = max(14, *(len(str(row["set"])) for row in rows))
    cells = [f"{column:>14}" for column in list(rows[0])[1:]]
    lines = ["  ".join((f"{'set':{width}}", *cells))]
    for row in rows:
        values = [
            f"{v:>14.4g}" if isinstance(v, float) else f"{v:>14}" for v in list(row.values())[1:]
        ]
        lines.append("  ".join((f"{row['set']:{width}}", *values)))
    return "\n".join(lines)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Writes all figures that are known; JSON has no NaN."""
    known = [{k: v for k, v in row.items() if v == v} for row in rows]
    path.write_text(json.dumps(known, indent=1, allow_nan=False) + "\n")


def _to_tensor(image_NHWC: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(image_NHWC).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
