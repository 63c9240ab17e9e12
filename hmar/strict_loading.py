"""State dicts to models, after comparing every name, shape and value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from hmar.checkpoint_file import StateDict
from hmar.errors import CheckpointKeyError, CheckpointValueError

# No trained weight comes near float16's range; a flipped exponent bit does.
MAX_ABS = 65504.0
LISTED = 6  # names shown per group of an error

Model = TypeVar("Model", bound=nn.Module)


def require(state: StateDict, names: Sequence[str], source: str) -> None:
    """Raises CheckpointKeyError unless the state dict has all of these names."""
    missing = tuple(n for n in names if n not in state)
    if missing:
        raise CheckpointKeyError(
            f"{source}: missing keys that tell the model's size: {', '.join(missing)}",
            missing=missing,
        )


def build(
    make: Callable[[], Model],
    state: StateDict,
    source: str,
    derived_shapes: Mapping[str, tuple[int, ...]],
) -> Model:
    """A model with the given weights, float32 on the CPU, in eval mode.

    Args:
        make: makes the model; called with the meta device.
        source: file name for messages.
        derived_shapes: further names that the state dict may hold, and that the model does not use.

    Raises:
        CheckpointKeyError: keys are missing, unexpected or misshapen.
        CheckpointValueError: weights are not floating-point numbers, or not finite.
    """
    with torch.device("meta"):
        model = make()
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    _check_keys(state, expected, derived_shapes, source)
    _check_dtypes(state, expected, source)
    weights = {name: state[name].float() for name in expected}
    _check_values(weights, source)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _check_keys(
    state: StateDict,
    expected: Mapping[str, tuple[int, ...]],
    derived: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    missing = tuple(n for n in expected if n not in state)
    unexpected = tuple(n for n in state if n not in expected and n not in derived)
    misshapen = {
        n: (tuple(state[n].shape), shape)
        for n, shape in {**expected, **derived}.items()
        if n in state and tuple(state[n].shape) != shape
    }
    if not (missing or unexpected or misshapen):
        return
    groups = (
        ("missing", [f"{n} {list(expected[n])}" for n in missing]),
        ("unexpected", [f"{n} {list(state[n].shape)}" for n in unexpected]),
        (
            "misshapen",
            [
                f"{n}: found {list(got)}, expected {list(want)}"
                for n, (got, want) in misshapen.items()
            ],
        ),
    )
    lines = [f"{source}: the keys do not fit the published layout"]
    for title, items in groups:
        if items:
            more = [f"… and {len(items) - LISTED} more"] if len(items) > LISTED else []
            lines.append(f"  {title} ({len(items)}):")
            lines += [f"    {item}" for item in items[:LISTED] + more]
    raise CheckpointKeyError(
        "\n".join(lines), missing=missing, unexpected=unexpected, misshapen=misshapen
    )


def _check_dtypes(state: StateDict, expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    wrong = [
        f"{n} ({str(state[n].dtype).removeprefix('torch.')})"
        for n in expected
        if not state[n].is_floating_point()
    ]
    if wrong:
        more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise CheckpointValueError(
            f"{source}: weights that are not floating-point numbers: "
            f"{', '.join(wrong[:LISTED])}{more}; quantized checkpoints are not supported"
        )


def _check_values(weights: StateDict, source: str) -> None:
    bad = []
    for name, tensor in weights.items():
        low, high = (v.item() for v in torch.aminmax(tensor))
        if not (-MAX_ABS <= low and high <= MAX_ABS):  # also False for NaN
            bad.append(f"{name} (range {low:g} … {high:g})")
    if bad:
        more = f" and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        raise CheckpointValueError(
            f"{source}: weights that are not finite or beyond ±{MAX_ABS:g}: "
            f"{', '.join(bad[:LISTED])}{more}; the file is damaged or training diverged"
        )
