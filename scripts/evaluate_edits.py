"""Judge edits of the demo checkpoint: does the region show the target, is the rest as it was.

For every task, a small CNN learns the classes from real renders of which it sees the edited region
alone, the rest being grey. Its agreement with the target is printed for every method, beside that
on real renders that it did not train on; and the mean absolute error outside the region, in 8-bit
steps, as decoded and blended.

example:
  python scripts/evaluate_edits.py --bundle out/demo --data parts.npz --num 52
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from hmar.training.demo import EVALUATION_SEED
from hmar.training.judges import ConvJudge, predict, train_conv_judge
from hmar.training.parts import PartPack
from hmar.training.render import Renderer
from hmar.training.sheet import to_uint8
from runtime.config import BACKENDS
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from runtime.regions import blend
from scripts.cli import ProgressBar, parser, run
from scripts.edit_tasks import FEATHER_PX, GREY, TASKS, VARIANTS, Task, shown


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="of the demo")
    p.add_argument("--data", type=Path, required=True, help="from scripts/pack_demo_data.py")
    p.add_argument("--num", type=int, default=52, metavar="N", help="pictures of each task")
    p.add_argument("--judge-steps", type=int, default=200, help="training steps of each CNN")
    p.add_argument("--seed", type=int, default=0, help="of the edits")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="library and device")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = one per core")
    return p.parse_args()


class RegionRenderer(Renderer):
    """Renders of which only a region is seen."""

    def __init__(self, pack: PartPack, seed: int, region: np.ndarray) -> None:
        super().__init__(pack, torch.device("cpu"), seed, "all")
        self.region = torch.from_numpy(region)

    def render(self, label_B: Tensor) -> Tensor:
        return torch.where(self.region, super().render(label_B), GREY / 127.5 - 1)


class RegionJudge:
    """A CNN that names the class of a region.

    Attributes:
        floor: its agreement with the labels of real renders.
    """

    def __init__(self, pack: PartPack, region: np.ndarray, steps: int, num_real: int) -> None:
        torch.manual_seed(0)
        self.region = region
        renderer = RegionRenderer(pack, EVALUATION_SEED + 7, region)
        self.net: ConvJudge = train_conv_judge(renderer, steps)
        images, labels = RegionRenderer(pack, EVALUATION_SEED + 8, region).batch(num_real)
        self.floor = float((predict(self.net, images) == labels.numpy()).mean())

    def agreement(self, images: np.ndarray, targets: list[int]) -> float:
        """Share of the images (B, H, W, 3) whose region is named as the target."""
        seen = torch.from_numpy(shown(images, self.region)).permute(0, 3, 1, 2)
        return float((predict(self.net, seen.float() / 127.5 - 1) == np.array(targets)).mean())


def outside_error(images: np.ndarray, original: np.ndarray, keep: np.ndarray) -> float:
    """Mean absolute difference of kept pixels, in 8-bit steps."""
    return float(np.abs(images.astype(np.int16) - original)[:, keep].mean())


def task_lines(
    pipeline: Pipeline,
    task: Task,
    images: np.ndarray,
    labels: list[int],
    judge: RegionJudge,
    seed: int,
) -> list[str]:
    """Rows of a Markdown table."""
    targets = task.targets(labels, pipeline.manifest.hmar.num_classes)
    given, keep = task.given(images), np.broadcast_to(task.keep, images.shape[:3])
    edits = {"reconstruction": pipeline.edit(given, np.ones_like(task.keep), targets)}
    for name, edit in VARIANTS.items():
        edits[name] = pipeline.edit(given, task.keep, targets, edit=edit, seed=seed)
    lines = []
    for name, edited in edits.items():
        blended = blend(edited, images, keep, FEATHER_PX)
        figures = [
            f"{judge.agreement(edited, targets):.0%}",
            f"{outside_error(edited, images, task.keep):.2f}",
            f"{judge.agreement(blended, targets):.0%}",
            f"{outside_error(blended, images, task.keep):.2f}",
        ]
        lines.append(f"| {task.name} ({judge.floor:.1%}) | {name} | {' | '.join(figures)} |")
    return lines


def main() -> None:
    args = parse_args()
    pack = PartPack.load(args.data)
    image, label = Renderer(pack, torch.device("cpu"), EVALUATION_SEED + 9).batch(args.num)
    images, labels = to_uint8(image), label.tolist()
    print("| task (judge on real renders) | method | agreement | error | blended | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    with (
        Pipeline.load(args.bundle, args.backend, threads=args.threads, max_batch=26) as pipeline,
        ProgressBar() as progress,
    ):
        for done, task in enumerate(TASKS):
            progress("judging", done, len(TASKS))
            judge = RegionJudge(pack, ~task.keep, args.judge_steps, num_real=520)
            lines = task_lines(pipeline, task, images, labels, judge, args.seed)
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    run(main, DeployError, OSError)
