"""The TensorRT runner on the host: what it binds, pads and hands on, with the golden tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.backends import captured_runs
from runtime.backends.device_values import DeviceValue
from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.backends.placement import PlacedRunner
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.engine_plan import EngineOptions, Layout
from runtime.errors import DeviceMemoryError, EngineIncompatibleError
from runtime.pipeline import HMARPipeline, Pipeline
from scripts.profile_step import profile_layers
from tests.cases import run_pipeline
from tests.golden_data import Case
from tests.host_device import LAYERS, OrtEngine, host_runner, staged_engine, whole_engine
from tests.trace_check import compare_trace

TINY = Case("tiny")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.mark.parametrize(
    ("name", "batches", "layout"),
    [
        ("argmax", (1, 2, 4), "profiles"),
        ("argmax_multi", (8,), "profiles"),
        ("argmax_partial", (1,), "profiles"),
        ("uniform_default", (3,), "per-scale"),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_golden_trace(bundle: Bundle, name: str, batches: tuple[int, ...], layout: Layout) -> None:
    runner, device = host_runner(
        bundle, EngineOptions(batches=batches, layout=layout, guidance="any")
    )
    entry, golden = TINY.trace(name)
    with HMARPipeline(runner, max_batch=max(batches)) as pipeline:
        compare_trace(golden, run_pipeline(pipeline, entry, golden))
    assert device.is_closed and not device.blocks


def test_runs_with_many_launches_are_graphs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, device = host_runner(bundle, EngineOptions(batches=(1, 2, 4), guidance="any"))
    for engine in runner._engines.values():
        engine.has_many_launches = True
    entry, golden = TINY.trace("argmax")
    with HMARPipeline(runner, max_batch=4) as pipeline:
        compare_trace(golden, run_pipeline(pipeline, entry, golden))
        captures = device.captures
        assert captures == sum(len(set(engine.used)) for engine in runner._engines.values())
        compare_trace(golden, run_pipeline(pipeline, entry, golden))
        assert device.captures == captures
        # what a caller keeps is not written by later runs
        labels = np.array([[1, 10], [2, 10]], np.int32)
        kept, later = (runner.run("cond", {"label": label})["cond"] for label in labels)
        assert not np.array_equal(kept.numpy(device), later.numpy(device))
        monkeypatch.setattr(captured_runs, "MAX_GRAPHS", 3)
        compare_trace(golden, run_pipeline(pipeline, entry, golden))
        assert device.captures > captures
    assert device.is_closed and not device.blocks


def test_prefix_context_and_score(bundle: Bundle, tiny_pipeline: Pipeline) -> None:
    options = EngineOptions(batches=(3,), guidance="any", extra=("ns_prefix", "score"))
    entry, golden = TINY.trace("argmax_kvcache")
    with HMARPipeline(host_runner(bundle, options)[0], max_batch=3) as pipeline:
        compare_trace(golden, run_pipeline(pipeline, entry, golden))
        images = tiny_pipeline.generate([1, 2], seed=3)
        tokens = pipeline.encode(images)
        ours, reference = (p.score(tokens, [1, 2]) for p in (pipeline, tiny_pipeline))
    np.testing.assert_allclose(ours.ns_log_prob, reference.ns_log_prob, rtol=1e-4)
    assert ours.mask_log_prob is not None and reference.mask_log_prob is not None
    np.testing.assert_allclose(ours.mask_log_prob, reference.mask_log_prob, rtol=1e-4)


def test_an_image_does_not_depend_on_the_batch_bucket(bundle: Bundle) -> None:
    images = []
    for batches in ((1,), (2,), (4,)):
        with HMARPipeline(host_runner(bundle, EngineOptions(batches=batches))[0], max_batch=1) as p:
            images.append(p.generate([5], seed=11))
    for other in images[1:]:
        np.testing.assert_array_equal(other, images[0])


def test_values_stay_on_the_device_and_buffers_are_reused(bundle: Bundle) -> None:
    runner, device = host_runner(bundle, EngineOptions(batches=(1,)))
    label = np.array([1, 10], np.int32)
    cond = runner.run("cond", {"label": label})
    assert all(isinstance(value, DeviceValue) for value in cond.values())
    assert device.downloads == 0 and device.uploads == 1
    held = cond["cond"].numpy(device)
    again = runner.run("cond", {"label": label})
    # the first values are still referred to
    assert again["cond"].buffer.address != cond["cond"].buffer.address
    np.testing.assert_array_equal(cond["cond"].numpy(device), held)
    del cond, again
    blocks = len(device.blocks)
    for _ in range(3):
        runner.run("cond", {"label": label})
    assert len(device.blocks) == blocks
    runner.close()


def test_a_value_of_a_smaller_profile_is_copied_and_padded(bundle: Bundle) -> None:
    runner, device = host_runner(bundle, EngineOptions(batches=(1, 4)))
    model = bundle.manifest.hmar
    P = model.patch_nums[-1]
    f_hat = np.random.default_rng(0).normal(size=(1, model.latent_channels, P, P))
    tokens = np.zeros((1, 1, 1), np.int32)
    small = runner.run("quant_s00_pn01", {"tokens": tokens, "f_hat": f_hat.astype(np.float32)})
    engine = whole_engine(bundle, "decode", ({"B": 4},))
    runner._engines["decode"] = engine
    image = runner.run("decode", {"f_hat": small["f_hat_out"]})["image"]
    assert image.shape == (1, 3, model.image_side_px, model.image_side_px)
    assert np.isfinite(image.numpy(device)).all()
    runner.close()


def test_stages_run_as_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    runner, _ = host_runner(bundle, EngineOptions(batches=(1, 3)))
    rng, model = np.random.default_rng(0), bundle.manifest.hmar
    side = model.image_side_px
    image = rng.random((2, 3, side, side)).astype(np.float32)
    graphs = {"encode": {"image": image}, "decode": runner.run("encode", {"image": image})}
    for graph, feeds in graphs.items():
        feeds = {spec.name: feeds[spec.name] for spec in bundle.manifest.graphs[graph].inputs}
        whole = runner.run(graph, feeds)
        folder = tmp_path / graph
        folder.mkdir()
        engine = staged_engine(bundle, graph, ({"B": 1}, {"B": 3}), 6, folder)
        staged = TensorRTRunner(bundle.manifest, {graph: engine}, runner._device, (1, 3))
        feeds = {name: runner.numpy(value) for name, value in feeds.items()}
        for name, value in staged.run(graph, feeds).items():
            ours, reference = staged.numpy(value), runner.numpy(whole[name])
            assert ours.dtype == reference.dtype
            # ONNX Runtime fuses across what are cuts here
            np.testing.assert_allclose(ours, reference, atol=1e-4, err_msg=name)
    runner.close()


def test_a_batch_without_profile_is_named(bundle: Bundle) -> None:
    runner, _ = host_runner(bundle, EngineOptions(batches=(1,)))
    with pytest.raises(EngineIncompatibleError, match=r"no profile for .*'N': 6.*--batch"):
        runner.run("cond", {"label": np.zeros(6, np.int32)})
    runner.close()


def test_a_graph_left_out_is_named_and_can_be_placed(bundle: Bundle) -> None:
    options = EngineOptions(batches=(2,), guidance="any", leave_out=("decode",))
    runner, _ = host_runner(bundle, options)
    entry, golden = TINY.trace("argmax")
    with pytest.raises(EngineIncompatibleError, match=r'placement=\{"decode": "ort-cpu"\}'):
        run_pipeline(HMARPipeline(runner, max_batch=2), entry, golden)
    other = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu"))
    placed = PlacedRunner(runner, {"decode": other})
    assert placed.name == "trt (decode on ort-cpu)" and placed.max_batch == 2
    with HMARPipeline(placed, max_batch=2) as pipeline:
        compare_trace(golden, run_pipeline(pipeline, entry, golden))


def test_a_batch_beyond_the_engines_is_split(bundle: Bundle, tiny_pipeline: Pipeline) -> None:
    runner, _ = host_runner(bundle, EngineOptions(batches=(1, 2)))
    with HMARPipeline(runner, max_batch=64) as pipeline:
        assert pipeline.max_batch == 2
        images = pipeline.generate([1, 2, 3, 4, 5], seed=5)
    reference = tiny_pipeline.generate([1, 2, 3, 4, 5], seed=5)
    assert np.abs(images.astype(int) - reference).max() <= 1


def test_no_room_for_a_batch_names_a_smaller_one(bundle: Bundle) -> None:
    runner, device = host_runner(bundle, EngineOptions(batches=(1, 4)))
    device.total_nbytes = 100_000  # enough for one image
    with HMARPipeline(runner, max_batch=4) as pipeline:
        message = (
            r"engine \w+ of \{.*\}: no room for its inputs and outputs: .*; loaded are \d+ MB of "
            r"weights, 0 MB of activations and 0 MB of buffers, free are .*with max_batch=1, or"
        )
        with pytest.raises(DeviceMemoryError, match=message) as caught:
            pipeline.generate([1, 2, 3, 4])
        assert caught.value.suggested_batch == 1
    assert device.is_closed and not device.blocks


def test_an_interrupted_generation_keeps_no_buffers(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, device = host_runner(bundle, EngineOptions(batches=(1,)))
    with HMARPipeline(runner, max_batch=1) as pipeline:
        pipeline.generate([1], seed=3)  # constants take buffers for good
        whole = pipeline.generate([1], seed=3)
        blocks = len(device.blocks)

        def interrupted(*arguments: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runner._engines["quant_s02_pn03"], "execute", interrupted)
            pipeline.generate([1], seed=3)
        np.testing.assert_array_equal(pipeline.generate([1], seed=3), whole)
        assert len(device.blocks) == blocks


def test_layers_are_timed_at_a_profile(bundle: Bundle) -> None:
    runner, _ = host_runner(bundle, EngineOptions(batches=(1, 4)))
    dims = {"N": 2, "l": 9, "blocks_plus_1": 2}
    count, matmul, norm = profile_layers(runner, "ns_trunk", dims, runs=3).export()
    assert count == {"count": 3} and (matmul["name"], norm["name"]) == LAYERS
    assert (norm["timeMs"], norm["medianMs"]) == (6, 2)
    engine = runner._engines["ns_trunk"]
    assert isinstance(engine, OrtEngine)
    assert {tuple(engine.profiles[i].items()) for i in engine.used} == {tuple(dims.items())}
    runner.close()
