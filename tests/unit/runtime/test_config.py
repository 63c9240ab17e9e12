"""Settings that do not fit are refused with what came and what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.config import BackendConfig, SamplingConfig
from tests.unit.runtime.manifests import model_spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg": -1.0}, "cfg must be a finite number >= 0, got -1.0"),
        ({"cfg": float("nan")}, "cfg"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"context": "all"}, "context"),
        ({"context": "prefix", "mask_schedule": [[1]]}, "no masked passes"),
    ],
)
def test_bad_sampling(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


def test_top_k_beyond_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="top_k is 17, the vocabulary has 16"):
        SamplingConfig(top_k=17).checked(model_spec())


def test_masks_need_a_masked_branch() -> None:
    config = SamplingConfig(top_k=0, mask_schedule=[[1], [1, 3]])
    with pytest.raises(ValueError, match="no masked branch"):
        config.checked(model_spec(has_mask_branch=False))
    assert config.checked(model_spec()) == ((1,), (1, 3))


def test_unknown_setting() -> None:
    with pytest.raises(TypeError):
        SamplingConfig(temperature=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "tpu"},
        {"threads": -1},
        {"max_batch": 0},
        {"attention": "fast"},
        {"decoder": "fast"},
    ],
)
def test_bad_backend(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        BackendConfig(**settings)
