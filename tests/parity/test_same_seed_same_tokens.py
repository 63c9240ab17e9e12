"""An image depends on its label, seed and index alone: not on batch, slot or backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmar import reference
from runtime.config import SamplingConfig
from runtime.philox import uniforms
from runtime.pipeline import Pipeline
from runtime.trace import Trace
from tests.golden_data import Case

SCHEDULE = [[1], [1, 1, 2], [1, 2, 2, 4], [2, 3, 5, 6]]
SAMPLING = SamplingConfig(cfg=2.0, top_k=40, top_p=0.95, mask_schedule=SCHEDULE)
LABELS = [3, -1, 7, 0, 9, 2, 5, 5]


def tokens_of(
    pipeline: Pipeline, labels: list[int], index: list[int], seed: int = 11
) -> list[np.ndarray]:
    trace = Trace()
    pipeline.generate(labels, seed=seed, image_index=index, sampling=SAMPLING, trace=trace)
    arrays = trace.arrays()
    return [arrays[f"s{k}_tokens"] for k in range(len(SCHEDULE))]


@pytest.fixture(scope="module")
def one_by_one(tiny_pipeline: Pipeline) -> list[list[np.ndarray]]:
    return [tokens_of(tiny_pipeline, [label], [i]) for i, label in enumerate(LABELS)]


@pytest.mark.parametrize("batch", [3, 8])
@pytest.mark.parametrize("rotation", [0, 1, 2])
def test_batch_and_slot_do_not_matter(
    tiny_pipeline: Pipeline, one_by_one: list[list[np.ndarray]], batch: int, rotation: int
) -> None:
    order = [(i + rotation) % batch for i in range(batch)]
    together = tokens_of(tiny_pipeline, [LABELS[i] for i in order], order)
    for slot, i in enumerate(order):
        for k in range(len(SCHEDULE)):
            np.testing.assert_array_equal(
                together[k][slot], one_by_one[i][k][0], err_msg=f"image {i}, scale {k}"
            )


def test_pytorch_reference_draws_the_same_tokens(
    tiny: Case, tiny_pipeline: Pipeline, one_by_one: list[list[np.ndarray]]
) -> None:
    drawn = {}
    for k, pn in enumerate(tiny.config["patch_nums"]):
        for j in range(len(SCHEDULE[k])):
            drawn[f"s{k}_ns" if j == 0 else f"s{k}_m{j}"] = uniforms(
                11, range(len(LABELS)), k, j, pn * pn
            )
    config = reference.ReferenceConfig(cfg=2.0, top_k=40, top_p=0.95, mask_schedule=SCHEDULE)
    seen: dict[str, torch.Tensor] = {}
    draw = reference.draw_inverse_cdf(drawn)
    reference.generate(tiny.model, tiny.tokenizer, LABELS, config, draw, seen.__setitem__)
    for k in range(len(SCHEDULE)):
        expected = np.concatenate([tokens[k] for tokens in one_by_one])
        np.testing.assert_array_equal(seen[f"s{k}_tokens"].numpy(), expected, err_msg=f"scale {k}")


def test_another_seed_gives_other_tokens(
    tiny_pipeline: Pipeline, one_by_one: list[list[np.ndarray]]
) -> None:
    other = tokens_of(tiny_pipeline, LABELS[:1], [0], seed=12)
    assert any(not np.array_equal(a, b) for a, b in zip(other, one_by_one[0], strict=True))
