"""The C++ runtime's generations on a GPU beside Python's: the same pixels and tokens, and how long;
at once, and pass by pass.

    python -m tests.gpu.cpp_generations --bundle DIR --batch 1,64 [--tensorrt FILE]

Needs the built plugin library, `cuda.bindings`, and what CMake builds the C++ runtime with; neither
TensorRT nor ONNX Runtime. Records the bundle's generations first. With a TensorRT library both run
the bundle's engines in place of kernels (`build_engines.py --kernels off`); building then needs its
headers, in build/headers/tensorrt.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plugins_trt.loader import open_library
from runtime.backends.cuda import CudaDevice
from runtime.backends.device_values import BufferPool
from runtime.backends.generation import Generations
from runtime.backends.kernel_engines import kernel_engines
from runtime.backends.kernel_library import KernelLibrary
from runtime.backends.recordings import Library as PluginLibrary
from runtime.backends.recordings import make_recordings
from runtime.backends.sampling_kernels import CudaSamplingKernels
from runtime.backends.trt import TensorRTRunner
from runtime.backends.trt_engine import Engine
from runtime.backends.trt_folder import find_folder, import_library, load_engines
from runtime.bundle import Bundle
from runtime.config import BackendConfig, SamplingConfig
from runtime.engine_manifest import find_engines_for
from tests.cpp_runtime import CppSession, Library, Output, Request
from tests.plugin_build import ROOT

BUILD = ROOT / "build" / "tests" / "cpp-gpu"
ROUNDS = 3  # in which both take turns
LIMIT = 1.03  # of C++ over Python


def build_library() -> Path:
    """The C++ runtime, with hmar-generate; ONNX Runtime's headers are enough."""
    for command in (
        ["cmake", "-S", str(ROOT / "runtime" / "cpp"), "-B", str(BUILD)],
        ["cmake", "--build", str(BUILD), "--parallel"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return BUILD / "libhmar_runtime.so"


class PythonGenerations:
    """Python's own, by the same kernels and one CUDA graph each; or by engines of TensorRT."""

    def __init__(
        self, bundle: Bundle, batches: Sequence[int], *, has_engines: bool = False
    ) -> None:
        self._undo = ExitStack()
        self.device = CudaDevice()
        self._undo.callback(self.device.close)
        use: Literal["engine", "kernels"] = "engine" if has_engines else "kernels"
        config = BackendConfig(name="trt", decoder=use, transformer=use, max_batch=max(batches))
        engines: dict[str, Engine]
        if has_engines:
            found = find_folder(import_library(bundle, config), bundle, config, self.device.gpu)
            assert found is not None
            gpu = self.device.gpu
            engines = dict(load_engines(*found, bundle, config, gpu, leave_out=()))
        else:
            engines = dict(kernel_engines(bundle, config, self.device, batches))
        for engine in engines.values():
            self._undo.callback(engine.close)
        runner = TensorRTRunner(bundle.manifest, engines, self.device, batches)
        library = KernelLibrary(open_library("trt").path, "sampling", self.device)
        kernels = CudaSamplingKernels(library, self.device.stream)

        def fail(what: str, batch: int, error: Exception) -> Any:
            raise AssertionError(what) from error

        def in_pool(pool: BufferPool) -> TensorRTRunner:
            return runner.in_pool(pool)

        self.call = Generations(in_pool, kernels, self.device, batches, fail)
        self._undo.callback(self.call.close)

    def close(self) -> None:
        self._undo.close()


class Timed:
    """One request for pixels alone, with arrays of its own."""

    def __init__(self, session: CppSession, labels: Sequence[int]) -> None:
        self._session, self._request, self._output = session, Request(), Output()
        self._labels = np.array(labels, np.int32)
        side = session.info.image_side_px
        self.pixels = np.zeros((len(labels), side, side, 3), np.uint8)
        session.library("request_init", session.bundle, ctypes.byref(self._request))
        self._request.labels, self._request.num_images = self._labels.ctypes.data, len(labels)
        self._output.struct_size = ctypes.sizeof(Output)
        self._output.pixels, self._output.pixels_size = self.pixels.ctypes.data, self.pixels.size

    def __call__(self, seed: int) -> None:
        self._request.seed = seed
        arguments = ctypes.byref(self._request), ctypes.byref(self._output)
        self._session.library("generate", self._session.session, *arguments)


def labels_of(bundle: Bundle, count: int) -> list[int]:
    return (
        np.random.default_rng(count).integers(0, bundle.manifest.hmar.num_classes, count).tolist()
    )


def compare(
    bundle: Bundle, python: PythonGenerations, session: CppSession, count: int, seed: int
) -> None:
    """Raises AssertionError unless pixels and tokens of `count` images are the same."""
    labels, sampling = labels_of(bundle, count), SamplingConfig.defaults(bundle.manifest)
    images = list(range(5, 5 + count))
    ours = session.generate(labels, seed=seed, image_index=images)
    theirs = python.call(labels, images, seed, sampling)
    np.testing.assert_array_equal(ours["pixels"], theirs)
    for k, tokens in enumerate(python.call.tokens()):
        np.testing.assert_array_equal(ours[f"s{k}_tokens"], tokens[:count])
    assert np.ptp(ours["pixels"]) > 0
    expected = (np.clip(ours["image"], 0, 1) * np.float32(255)).round().astype(np.uint8)
    np.testing.assert_array_equal(expected.transpose(0, 2, 3, 1), theirs)


def compare_steps(
    bundle: Bundle, python: PythonGenerations, session: CppSession, count: int, seed: int
) -> None:
    """Raises AssertionError unless pass by pass, with a callback, tokens are those of a whole."""
    labels, sampling = labels_of(bundle, count), SamplingConfig.defaults(bundle.manifest)
    seen: list[int] = []
    ours = session.generate(
        labels, seed=seed, on_scale=lambda event: seen.append(event.scale_idx) or 0
    )
    python.call(labels, list(range(count)), seed, sampling)
    assert seen == list(range(len(bundle.manifest.hmar.patch_nums)))
    for k, tokens in enumerate(python.call.tokens()):
        np.testing.assert_array_equal(ours[f"s{k}_tokens"], tokens[:count])


def latencies_ms(
    bundle: Bundle, python: PythonGenerations, session: CppSession, batch: int, runs: int
) -> dict[str, float]:
    """Medians of both, labels in and pixels on the host, measured in turns."""
    labels, sampling = labels_of(bundle, batch), SamplingConfig.defaults(bundle.manifest)
    images, timed = list(range(batch)), Timed(session, labels)
    calls = {
        "python": lambda seed: python.call(labels, images, seed, sampling),
        "cpp": timed,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call(0)
            for seed in range(runs):
                start = time.perf_counter()
                call(seed)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def first_image(library: Path, plugins: Path, bundle: Path, batch: int, check: int) -> None:
    """Times of a fresh process, as JSON."""
    marks = [time.perf_counter()]
    with CppSession(
        Library(library), bundle, backend="gpu", plugins=plugins, max_batch=batch, check=check
    ) as session:
        marks.append(time.perf_counter())
        call = Timed(session, labels_of(Bundle.open(bundle), batch))
        call(1)
        marks.append(time.perf_counter())
        call(2)
        marks.append(time.perf_counter())
    names = ("opened_s", "first_s", "second_s")
    values = dict(zip(names, np.diff(marks).round(3).tolist(), strict=True))
    sys.stdout.write(json.dumps({**values, "sum": int(call.pixels.sum())}) + "\n")


def in_fresh_process(
    library: Path, bundle: Path, batch: int, check: int, *prefix: str
) -> dict[str, float]:
    """What `first_image` measures in a process of its own, which `prefix` may start."""
    arguments = map(str, (library, open_library("trt").path, bundle, batch, check))
    command = [
        *prefix,
        sys.executable,
        "-m",
        "tests.gpu.cpp_generations",
        "--first-image",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1]))


def sanitizer() -> str | None:
    """compute-sanitizer, where it is."""
    found = shutil.which("compute-sanitizer")
    return found or next(map(str, Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None)


def generate_tool(bundle: Path, batch: int, runs: int) -> str:
    """The last line of `hmar-generate --repeat`."""
    labels = ",".join(map(str, labels_of(Bundle.open(bundle), batch)))
    done = subprocess.run(
        [
            str(BUILD / "hmar-generate"), "--bundle", str(bundle), "--backend", "gpu",
            "--plugins", str(open_library("trt").path), "--labels", labels,
            "--max-batch", str(batch), "--out", str(BUILD / f"b{batch}.ppm"),
            "--repeat", str(runs), "--trust-weights",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().replace("\n", " | ")


def main() -> None:
    if sys.argv[1:2] == ["--first-image"]:
        library, plugins, bundle, batch, check = sys.argv[2:]
        first_image(Path(library), Path(plugins), Path(bundle), int(batch), int(check))
        return
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    p.add_argument("--batch", default="1,64", metavar="B,B,…")
    p.add_argument("--runs", type=int, default=20, help=f"of each of {ROUNDS} rounds")
    p.add_argument("--tensorrt", type=Path, metavar="FILE", help="libnvinfer.so or RTX's")
    p.add_argument("--no-memcheck", action="store_true", help="leave out compute-sanitizer")
    args = p.parse_args()
    batches = tuple(int(b) for b in args.batch.split(","))
    say = sys.stdout.write
    library, bundle = build_library(), Bundle.open(args.bundle)
    python = PythonGenerations(bundle, batches, has_engines=args.tensorrt is not None)
    start, gpu = time.perf_counter(), python.device.gpu
    plugins, engines = PluginLibrary.built(gpu), None
    if args.tensorrt is not None:
        plugins = PluginLibrary(
            tables={"sampling": plugins.tables["sampling"]},
            digests={"sampling": plugins.digests["sampling"]},
        )
        engines = find_engines_for(bundle, gpu)
    made = make_recordings(
        bundle,
        gpu,
        batches,
        [SamplingConfig.defaults(bundle.manifest)],
        library=plugins,
        engines=engines,
        force=True,
    )
    say(f"recorded {len(made.index.recordings)} generations, {time.perf_counter() - start:.2f} s\n")
    with CppSession(
        Library(library),
        args.bundle,
        backend="gpu",
        plugins=open_library("trt").path,
        tensorrt=args.tensorrt,
        max_batch=max(batches),
    ) as session:
        say(f"{session.backend}\n")
        for batch in batches:
            for seed, count in ((0, batch), (2**64 - 1, max(1, batch - 3))):
                compare(bundle, python, session, count, seed)
            say(f"batch {batch}: pixels and tokens are equal\n")
        for batch in () if args.tensorrt is not None else batches:  # engines compile for long
            compare_steps(bundle, python, session, batch, 3)
            say(f"batch {batch}: tokens are equal pass by pass\n")
        for batch in batches:
            times = latencies_ms(bundle, python, session, batch, args.runs)
            ratio = times["cpp"] / times["python"]
            verdict = "ok" if ratio <= LIMIT else f"above {LIMIT}"
            say(
                f"batch {batch}: Python {times['python']:.3f} ms, C++ {times['cpp']:.3f} ms, "
                f"ratio {ratio:.3f} ({verdict})\n"
            )
    python.close()
    if args.tensorrt is not None:
        return
    for batch in batches:
        for check, name in ((1, "weights trusted"), (0, "all hashed")):
            times = in_fresh_process(library, args.bundle, batch, check)
            say(f"batch {batch}, fresh process, {name}: {times}\n")
        say(f"hmar-generate, batch {batch}: {generate_tool(args.bundle, batch, args.runs)}\n")
    if args.no_memcheck:
        return
    tool = sanitizer()
    if tool is None:
        say("compute-sanitizer is not here\n")
        return
    prefix = (tool, "--tool", "memcheck", "--error-exitcode", "9")
    in_fresh_process(library, args.bundle, batches[0], 1, *prefix)
    say(f"batch {batches[0]}: compute-sanitizer memcheck finds nothing\n")


if __name__ == "__main__":
    main()
