"""One module to one ONNX graph, through torch.export."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import onnx_ir as ir
import torch
from torch import nn

logger = logging.getLogger(__name__)
# It warns about torchvision, which nothing here uses, once per traced module.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)

try:  # internals, so that another version may be without them
    from onnxscript._framework_apis import torch_2_5 as operators

    _read_operators = cache(operators.get_torchlib_ops)
except (ImportError, AttributeError):
    operators = None  # type: ignore[assignment]

Examples = Mapping[str, torch.Tensor | Mapping[str, torch.Tensor] | None]


@contextmanager
def _operators_read_once() -> Iterator[None]:
    """Keeps ONNX Script's operators, which torch.onnx.export reads anew at every call.

    That is 40% of its time; an export traces 17 modules.
    """
    if operators is None:
        yield
        return
    with patch.object(operators, "get_torchlib_ops", _read_operators):
        yield


def trace(
    module: nn.Module,
    inputs: Examples,
    outputs: Sequence[str],
    dynamic: Mapping[str, Sequence[int]],
    opset: int,
) -> ir.Graph:
    """ONNX graph of a module whose weights are all inputs.

    Args:
        inputs: example tensors by argument name; only dtypes and shapes matter. An argument that is
            None disappears; one that is a mapping becomes one input per entry, with static shape.
        outputs: names of the outputs.
        dynamic: per input, the dimensions that stay symbolic.
        opset: ONNX opset.
    """
    start = time.perf_counter()
    names: list[str] = []
    shapes: dict[str, object] = {}
    for name, example in inputs.items():
        if isinstance(example, Mapping):
            names += example
            shapes[name] = {key: {} for key in example}
        elif example is None:
            shapes[name] = None
        else:
            names.append(name)
            shapes[name] = {d: torch.export.Dim.DYNAMIC for d in dynamic.get(name, ())}
    with warnings.catch_warnings(), _operators_read_once():
        # raised inside torch.export about its own code
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.export.export(module, (), kwargs=dict(inputs), dynamic_shapes=shapes)
        onnx_program = torch.onnx.export(
            program,
            kwargs={},
            dynamo=True,
            opset_version=opset,
            optimize=True,
            verbose=False,
            input_names=names,
            output_names=list(outputs),
        )
    assert onnx_program is not None  # None comes from the exporter without dynamo only
    logger.debug("traced %s in %.1f s", type(module).__name__, time.perf_counter() - start)
    return onnx_program.model.graph
