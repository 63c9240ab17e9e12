"""Hi-MAR by the C++ runtime on a GPU beside Python's: the same tokens, and how long.

    python -m tests.gpu.cpp_himar --bundle DIR --batch 1,32

Needs the built plugin library, `cuda.bindings`, and what CMake builds the C++ runtime with. Records
the bundle's defaults first.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from plugins_trt.loader import open_library
from runtime.backends.recordings import make_recordings
from runtime.bundle import Bundle
from runtime.engine_target import local_gpu
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_pipeline import HiMARPipeline
from runtime.pipeline import Pipeline
from tests.cpp_himar import CppHimarSession
from tests.cpp_runtime import Library
from tests.gpu.cpp_generations import build_library

SHORT = HiMARSamplingConfig(
    cfg=2.5, re_cfg=2.7, pivot_diffusion_steps="5,3,2,0", dense_diffusion_steps="4,3,3,0"
)
"""Under which untrained weights have finite tokens, too."""


def compare(
    python: HiMARPipeline,
    session: CppHimarSession,
    count: int,
    seed: int,
    sampling: HiMARSamplingConfig,
) -> None:
    """Raises AssertionError unless tokens of `count` images are the same, and pixels within 1."""
    labels = np.random.default_rng(count).integers(0, 1000, count).tolist()
    ours = session.generate(labels, seed=seed, sampling=sampling)
    theirs = python.generate_tokens(labels, seed=seed, sampling=sampling)
    np.testing.assert_array_equal(ours["pivots"], theirs.pivots)
    np.testing.assert_array_equal(ours["dense"], theirs.dense)
    if np.isfinite(ours["image"]).all():
        difference = np.abs(ours["pixels"].astype(int) - python.decode(theirs.dense))
        assert difference.max() <= 1 and np.ptp(ours["pixels"]) > 0
    else:  # as with untrained weights at many diffusion steps
        assert sampling != SHORT


def latencies_ms(
    python: HiMARPipeline, session: CppHimarSession, batch: int, runs: int
) -> dict[str, float]:
    """Medians of both, labels in and pixels on the host, measured in turns."""
    labels = [int(label) for label in np.arange(batch) % 1000]
    calls = {
        "python": lambda seed: python.generate(labels, seed=seed),
        "cpp": lambda seed: session.generate(labels, seed=seed),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for seed in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(seed)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    p.add_argument("--batch", default="1,32", metavar="B,B,…")
    p.add_argument("--runs", type=int, default=3)
    args = p.parse_args()
    batches = tuple(int(b) for b in args.batch.split(","))
    bundle, say = Bundle.open(args.bundle), sys.stdout.write
    start = time.perf_counter()
    settings = [HiMARSamplingConfig.defaults(bundle.manifest), SHORT]
    gpu = local_gpu()
    assert gpu is not None, "there is no GPU here"
    made = make_recordings(bundle, gpu, batches, settings, force=True)
    say(f"recorded {len(made.index.recordings)} steps, {time.perf_counter() - start:.2f} s\n")
    with (
        Pipeline.load(args.bundle, "trt", max_batch=max(batches)) as python,
        CppHimarSession(
            Library(build_library()),
            args.bundle,
            backend="gpu",
            plugins=open_library("trt").path,
            max_batch=max(batches),
        ) as session,
    ):
        assert isinstance(python, HiMARPipeline)
        say(f"{session.backend}\n")
        for batch in batches:
            for sampling in settings:
                for seed, count in ((0, batch), (2**64 - 1, max(1, batch - 3))):
                    compare(python, session, count, seed, sampling)
            say(f"batch {batch}: tokens are equal, and pictures that are finite within 1\n")
        for batch in batches:
            times = latencies_ms(python, session, batch, args.runs)
            ratio = times["cpp"] / times["python"]
            say(
                f"batch {batch}: Python {times['python']:.1f} ms, C++ {times['cpp']:.1f} ms, "
                f"ratio {ratio:.3f}\n"
            )


if __name__ == "__main__":
    main()
