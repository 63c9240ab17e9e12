"""One module to one ONNX graph, through torch.export."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import nn

logger = logging.getLogger(__name__)
# It warns about torchvision, which nothing here uses, once per traced module.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)

Examples = Mapping[str, torch.Tensor | Mapping[str, torch.Tensor] | None]


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
    with warnings.catch_warnings():
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
