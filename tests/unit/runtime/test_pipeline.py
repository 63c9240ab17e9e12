"""What a pipeline refuses: use after closing, in a fork or as a copy; and what it splits."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.fake import FakeRunner
from runtime.errors import PipelineUseError
from runtime.pipeline import HMARPipeline, Pipeline
from tests.unit.runtime.manifests import manifest

ROOT = Path(__file__).resolve().parents[3]
IMAGES = np.zeros((1, 4, 4, 3), np.uint8)
TOKENS = [np.zeros((1, 1), np.int32), np.zeros((1, 4), np.int32)]
USES: dict[str, Callable[[Pipeline], Any]] = {
    "generate": lambda p: p.generate([1]),
    "encode": lambda p: p.encode(IMAGES),
    "edit": lambda p: p.edit(TOKENS, np.ones((2, 2), np.bool_), [1]),
    "score": lambda p: p.score(TOKENS, [1]),
}


class ClosingRunner(FakeRunner):
    """Counts how often it is closed."""

    def __init__(self) -> None:
        super().__init__(manifest(), {})
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closed_pipeline_is_refused(use: Callable[[Pipeline], Any]) -> None:
    runner = ClosingRunner()
    with HMARPipeline(runner, max_batch=1) as pipeline:
        pipeline.close()
    assert runner.closed == 1
    with pytest.raises(PipelineUseError, match=r"is closed; load it again with Pipeline\.load"):
        use(pipeline)


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_pipeline_is_neither_pickled_nor_copied(make: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"cannot be pickled or copied.*bundle's path"):
        make(HMARPipeline(ClosingRunner(), max_batch=1))


def test_a_fork_refuses_the_pipeline_and_leaves_it_open() -> None:
    code = (
        "import os\n"
        "from runtime.errors import PipelineUseError\n"
        "from runtime.pipeline import HMARPipeline\n"
        "from tests.unit.runtime.test_pipeline import USES, ClosingRunner\n"
        "runner = ClosingRunner()\n"
        "pipeline = HMARPipeline(runner, max_batch=1)\n"
        "if child := os.fork():\n"
        "    os._exit(os.waitpid(child, 0)[1] != 0)\n"
        "for use in USES.values():\n"
        "    try: use(pipeline)\n"
        "    except PipelineUseError as e: print(e, flush=True)\n"
        "pipeline.close()\n"
        "os._exit(runner.closed)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == len(USES)
    assert all("belongs to process" in line and "spawn" in line for line in lines)


def test_no_more_images_in_one_pass_than_the_backend_takes() -> None:
    runner = ClosingRunner()
    runner.max_batch = 2
    assert HMARPipeline(runner, max_batch=8).max_batch == 2
    assert HMARPipeline(runner, max_batch=1).max_batch == 1
