"""Hi-MAR on the TensorRT runner, on the host: profiles, padding, and denoising at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.backends.placement import PlacedRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.engine_plan import EngineOptions, Layout
from runtime.errors import EngineIncompatibleError
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_pipeline import HiMARPipeline
from runtime.himar_schedule import plan
from runtime.pipeline import Pipeline
from runtime.timing import TimedRunner
from runtime.trace import Trace
from tests.himar_golden import HiMARCase
from tests.host_device import host_runner
from tests.parity.test_himar_pipeline import regenerated

QUICK = HiMARSamplingConfig(pivot_diffusion_steps="2,1,0,0", dense_diffusion_steps="2,1,1,0")
# numbers of pivots that a step predicts
COUNTS = {step.predicted for step in plan(16, 16, 1.0, "constant")}
LABELS, INDEX = [3, 7, -1], [0, 5, (1 << 40) + 2]


@pytest.fixture(scope="module")
def bundle(tiny_himar_bundle: Path) -> Bundle:
    return Bundle.open(tiny_himar_bundle)


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> Iterator[dict[str, np.ndarray]]:
    """Tokens of a generation that goes call by call on ONNX Runtime."""
    with Pipeline.load(bundle.folder, "ort-cpu", threads=1) as pipeline:
        trace = Trace()
        pipeline.generate(LABELS, image_index=INDEX, seed=9, sampling=QUICK, trace=trace)
        yield trace.arrays()


def check(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, ref in expected.items():
        if ref.dtype == np.bool_:
            np.testing.assert_array_equal(ours[name], ref, err_msg=name)
        else:
            np.testing.assert_allclose(ours[name], ref, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("batches", "has_kernels"),
    [((3,), True), ((1, 4), True), ((2,), True), ((4,), False)],
    ids=["full", "padded", "split", "call by call, padded"],
)
def test_generation(
    bundle: Bundle,
    expected: dict[str, np.ndarray],
    batches: tuple[int, ...],
    has_kernels: bool,
) -> None:
    runner, device = host_runner(bundle, EngineOptions(batches=batches), has_kernels=has_kernels)
    trace = Trace()
    with HiMARPipeline(runner, max_batch=max(batches)) as pipeline:
        pipeline.generate(LABELS, image_index=INDEX, seed=9, sampling=QUICK, trace=trace)
        check(trace.arrays(), expected)
    # one graph for every number of pivots predicted in a step, and one for the dense tokens
    assert device.captures == (len(COUNTS) + 1 if has_kernels else 0)
    assert device.is_closed and not device.blocks


def test_passes_with_many_launches_are_graphs(
    bundle: Bundle, expected: dict[str, np.ndarray]
) -> None:
    runner, device = host_runner(bundle, EngineOptions(batches=(1, 4)), has_kernels=True)
    for engine in runner._engines.values():
        engine.has_many_launches = True  # also of denoisers, whose sampling is a graph as a whole
    trace = Trace()
    with HiMARPipeline(runner, max_batch=4) as pipeline:
        pipeline.generate(LABELS, image_index=INDEX, seed=9, sampling=QUICK, trace=trace)
        check(trace.arrays(), expected)
        once = ("cond", "pivot", "dense", "decode")
        kinds = {name: graph.kind for name, graph in bundle.manifest.graphs.items()}
        used = {n: set(e.used) for n, e in runner._engines.items() if kinds[n].startswith(once)}
        assert device.captures == len(COUNTS) + 1 + sum(map(len, used.values()))
    assert device.is_closed and not device.blocks


def test_golden_generation_call_by_call(bundle: Bundle) -> None:
    """Draws from outside do not go at once."""
    case = HiMARCase("tiny_a.linear")
    runner, device = host_runner(bundle, EngineOptions(batches=(2,)), has_kernels=True)
    with HiMARPipeline(runner, max_batch=2) as pipeline:
        ours = regenerated(pipeline, case)
    for name in ("p1.mask", "p1.tokens", "p2.mask", "p2.tokens"):
        case.check(name, ours[name])
    assert device.captures == 0


def test_modulations_of_all_diffusion_steps_at_once(
    bundle: Bundle, expected: dict[str, np.ndarray]
) -> None:
    """As engines are built for: with the bundle's own diffusion steps."""
    quick = replace(bundle.manifest.sampling, pivot_diffusion_steps=QUICK.pivot_diffusion_steps)
    quick_bundle = replace(bundle, manifest=replace(bundle.manifest, sampling=quick))
    runner, _ = host_runner(quick_bundle, EngineOptions(batches=(1, 4)), has_kernels=True)
    trace = Trace()
    with HiMARPipeline(runner, max_batch=4) as pipeline:
        pipeline.generate(LABELS, image_index=INDEX, seed=9, sampling=QUICK, trace=trace)
        check(trace.arrays(), expected)
        used = {name for name, engine in runner._engines.items() if engine.used}
    assert {"modulate_pivot", "denoise_pivot_modulated"} <= used and "denoise_pivot" not in used


@pytest.mark.parametrize("layout", ["profiles", "per-scale"])
def test_without_guidance(bundle: Bundle, layout: Layout) -> None:
    options = EngineOptions(batches=(2,), guidance="any", layout=layout)
    runner, _ = host_runner(bundle, options, has_kernels=True)
    sampling = replace(QUICK, cfg=1.0, re_cfg=1.0)
    with (
        HiMARPipeline(runner, max_batch=2) as pipeline,
        Pipeline.load(bundle.folder, "ort-cpu", threads=1) as reference,
    ):
        ours, ref = (
            p.generate_tokens([3], seed=2, sampling=sampling) for p in (pipeline, reference)
        )
    np.testing.assert_allclose(ours.dense, ref.dense, atol=2e-4)


def test_engines_are_for_the_bundles_number_of_steps(bundle: Bundle) -> None:
    runner, _ = host_runner(bundle, EngineOptions(batches=(1,)), has_kernels=True)
    with (
        HiMARPipeline(runner, max_batch=1) as pipeline,
        pytest.raises(EngineIncompatibleError, match="engine dense: no profile for"),
    ):
        pipeline.generate([1], sampling=replace(QUICK, num_iter=3))


def test_time_of_what_runs_at_once(bundle: Bundle) -> None:
    runner, _ = host_runner(bundle, EngineOptions(batches=(1,)), has_kernels=True)
    timed = TimedRunner(runner)
    with HiMARPipeline(timed, max_batch=1) as pipeline:
        pipeline.generate([1], sampling=QUICK)
        names = [span.name for span in timed.spans() if span.track == "step"]
    assert names.count("denoise_pivot") == 16 and names.count("denoise_dense") == 4


def test_placed_denoiser_goes_call_by_call(bundle: Bundle) -> None:
    main, device = host_runner(
        bundle, EngineOptions(batches=(1,), leave_out=("denoise_dense",)), has_kernels=True
    )
    other = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu", threads=1))
    placed = PlacedRunner(main, {"denoise_dense": other})
    with HiMARPipeline(placed, max_batch=1) as pipeline:
        pipeline.generate([1], sampling=QUICK)
    assert device.captures == len(COUNTS), "the pivots' denoiser runs at once"
