"""Whole generations on a device, here the host, against the loop that goes step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import generation
from runtime.backends.device_values import Buffer, BufferPool
from runtime.bundle import Bundle
from runtime.config import SamplingConfig
from runtime.engine_plan import EngineOptions
from runtime.pipeline import HMARPipeline, Pipeline
from tests.host_device import FILL, HostDevice, host_runner

BATCHES = (2, 4)
SETTINGS = {
    "default": {},
    "no masked passes": {"mask_schedule": None},
    "several masked passes": {"mask_schedule": ((1,), (1, 1, 2), (1, 3, 3), (9, 4, 2, 1))},
    "no guidance": {"cfg": 0.0},
    "both halves everywhere": {"skip_guidance_below": 0.0},
    "all tokens": {"top_k": 0, "top_p": 0.0},
}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def on_device(bundle: Bundle) -> Iterator[tuple[Pipeline, HostDevice]]:
    options = EngineOptions(batches=BATCHES, guidance="any")
    runner, device = host_runner(bundle, options, has_kernels=True)
    with HMARPipeline(runner, max_batch=max(BATCHES)) as pipeline:
        yield pipeline, device
    assert device.is_closed and not device.blocks


@pytest.mark.parametrize("name", SETTINGS)
def test_images_are_those_of_the_loop(on_device: tuple[Pipeline, HostDevice], name: str) -> None:
    pipeline, _ = on_device
    sampling = dataclasses.replace(pipeline.defaults, **SETTINGS[name])
    labels = [1, -1, 3, 4, 5]  # one part of four, one of one
    at_once = pipeline.generate(labels, seed=(1 << 63) + 5, sampling=sampling)
    stepwise = pipeline.generate(
        labels, seed=(1 << 63) + 5, sampling=sampling, on_scale=lambda event: None
    )
    np.testing.assert_array_equal(at_once, stepwise)


def test_edits_go_step_by_step_and_are_those_of_onnxruntime(
    on_device: tuple[Pipeline, HostDevice], tiny_pipeline: Pipeline
) -> None:
    pipeline, device = on_device
    captures, keep = device.captures, np.ones((4, 4), np.bool_)
    keep[1:3, 2:] = False
    images = tiny_pipeline.generate([1, 2, 3], seed=1)
    ours, expected = (p.edit(images, keep, [4, 5, -1], seed=2) for p in (pipeline, tiny_pipeline))
    np.testing.assert_array_equal(ours, expected)
    assert device.captures == captures


def test_replays_of_one_batch_do_not_write_what_another_keeps(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, device = host_runner(
        bundle, EngineOptions(batches=(1, 2), guidance="any"), has_kernels=True
    )
    take, size = BufferPool.take, 1 << 20
    written: set[int] = (
        set()
    )  # what a replay writes: a graph has the addresses it was captured with

    def take_alike(pool: BufferPool, nbytes: int) -> Buffer:
        assert nbytes <= size
        buffer = take(pool, size)  # any buffer may be taken again for any value
        if device.is_capturing:
            written.add(buffer.address)
        return buffer

    monkeypatch.setattr(BufferPool, "take", take_alike)
    with HMARPipeline(runner, max_batch=2) as pipeline:
        pipeline.generate([1], seed=1)
        of_one = frozenset(written)
        images = pipeline.generate([2, 3], seed=2)
        for address in of_one:
            device.blocks[address].fill(FILL)
        np.testing.assert_array_equal(pipeline.generate([2, 3], seed=2), images)


def test_labels_seeds_and_settings_need_no_new_capture(
    on_device: tuple[Pipeline, HostDevice],
) -> None:
    pipeline, device = on_device
    pipeline.generate([1, 2])
    captures = device.captures
    for seed, cfg, top_k in ((1, 1.5, 3), (2, 4.0, 0)):
        sampling = dataclasses.replace(pipeline.defaults, cfg=cfg, top_k=top_k)
        calls = {"seed": seed, "image_index": [7, 1 << 40], "sampling": sampling}
        at_once = pipeline.generate([3, 4], **calls)
        stepwise = pipeline.generate([3, 4], **calls, on_scale=lambda event: None)
        np.testing.assert_array_equal(at_once, stepwise)
    assert device.captures == captures


def test_nothing_but_inputs_and_pixels_crosses(on_device: tuple[Pipeline, HostDevice]) -> None:
    pipeline, device = on_device
    pipeline.generate([1, 2])
    uploads, downloads = device.uploads, device.downloads
    pipeline.generate([2, 3])
    assert device.uploads - uploads == len(dataclasses.fields(generation.Inputs))
    assert device.downloads - downloads == 1


def test_graphs_are_bounded(
    on_device: tuple[Pipeline, HostDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, device = on_device
    monkeypatch.setattr(generation, "MAX_GRAPHS", 2)
    schedules = [((1,), (1, n), (), ()) for n in (1, 2, 3)]
    captures = []
    for schedule in (*schedules, schedules[2], schedules[0]):
        sampling = SamplingConfig(top_k=0, mask_schedule=schedule)
        pipeline.generate([1], sampling=sampling)
        captures.append(device.captures)
    made = np.diff(captures).tolist()
    assert made == [1, 1, 0, 1]


def test_without_kernels_the_loop_goes_step_by_step(
    bundle: Bundle, tiny_pipeline: Pipeline
) -> None:
    runner, device = host_runner(bundle, EngineOptions(batches=(2,)))
    with HMARPipeline(runner, max_batch=2) as pipeline:
        images = pipeline.generate([1, 2], seed=3)
    assert device.captures == 0
    np.testing.assert_array_equal(images, tiny_pipeline.generate([1, 2], seed=3))
