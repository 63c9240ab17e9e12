"""The custom op on ONNX Runtime's CUDA provider, against the float64 reference."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch

from plugins_trt.block_sparse_attn.spec import LAYOUTS, PATTERNS, Layout, Pattern
from plugins_trt.loader import PluginNotFoundError, open_library
from tests.attention_cases import LARGE_PACKS, PACKS, make_inputs
from tests.attention_onnx import run_op
from tests.gpu.test_block_sparse_attn import DTYPES, check

pytestmark = pytest.mark.gpu

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.fixture(scope="module")
def library() -> Path:
    if PROVIDERS[0] not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    try:
        library = open_library("ort")
    except PluginNotFoundError as error:
        pytest.skip(str(error))
    if not library.architectures:
        pytest.skip(f"{library.path} was built for the CPU alone")
    return library.path


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "l2"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_custom_op_is_the_reference(
    library: Path, pattern: Pattern, norm: bool, layout: Layout, dtype: str, head_dim: int
) -> None:
    for name in ("pyramid", "empty-blocks", "long-and-short", "pyramid-256"):
        inputs = make_inputs(
            {**PACKS, **LARGE_PACKS}[name],
            DTYPES[dtype],
            pattern,
            norm,
            head_dim=head_dim,
            device="cuda",
        )
        check(inputs, run_op(inputs, library, layout, PROVIDERS).cuda())


def test_a_head_dim_without_a_kernel(library: Path) -> None:
    inputs = make_inputs((9,), torch.float16, "block_diagonal", False, head_dim=72)
    with pytest.raises(Exception, match="BlockSparseAttention: head_dim must be one of"):
        run_op(inputs, library, providers=PROVIDERS)
