"""The Triton kernel on a GPU against the float64 reference."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from plugins_trt.block_sparse_attn.reference import block_mask
from plugins_trt.block_sparse_attn.spec import NORM_FLOOR, PATTERNS, Attributes, Pattern
from plugins_trt.block_sparse_attn.variants import HEAD_DIMS, tiles
from tests.attention_cases import LARGE_PACKS, PACKS, Inputs, make_inputs, relative_error

pytestmark = pytest.mark.gpu

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FP32_LIMIT = 1e-5  # float32 sums of up to 4096 terms
HALF_FACTOR = 2.0  # of the error of PyTorch's attention in the same dtype


def kernel(inputs: Inputs, **options: object) -> torch.Tensor:
    from plugins_trt.block_sparse_attn.jit import run_kernel

    B, T, _, H, d = inputs.qkv.shape
    out = torch.full((B, T, H * d), torch.nan, dtype=inputs.qkv.dtype, device="cuda")
    return run_kernel(
        *inputs.qkv.unbind(2),
        inputs.cu_seqlens,
        inputs.scale_mul,
        inputs.attributes,
        out=out,
        **options,
    )


def sdpa(inputs: Inputs) -> torch.Tensor:
    """PyTorch's attention with a dense mask, in the dtype of the inputs."""
    a, dtype = inputs.attributes, inputs.qkv.dtype
    q, k, v = inputs.qkv.permute(2, 0, 3, 1, 4)
    if a.qk_l2_norm:
        q, k = (
            x.float() / x.float().norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR) for x in (q, k)
        )
        q, k = (q * inputs.scale_mul.view(-1, 1, 1)).to(dtype), k.to(dtype)
    mask = block_mask(inputs.cu_seqlens, q.shape[2], a.pattern)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=a.sm_scale)
    return o.transpose(1, 2).flatten(2)


def check(inputs: Inputs, out: torch.Tensor) -> None:
    expected = inputs.expected()
    error = relative_error(out, expected)
    if inputs.qkv.dtype == torch.float32:
        assert error < FP32_LIMIT
    else:
        assert error < HALF_FACTOR * relative_error(sdpa(inputs), expected) + 1e-7


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "l2"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_kernel_is_the_reference(pattern: Pattern, norm: bool, dtype: str, head_dim: int) -> None:
    name = str(DTYPES[dtype]).removeprefix("torch.")
    packs = [*PACKS.values(), *LARGE_PACKS.values()]
    for (seed, lengths), tile in itertools.product(enumerate(packs), tiles(name, head_dim)):
        inputs = make_inputs(
            lengths, DTYPES[dtype], pattern, norm, head_dim=head_dim, seed=seed, device="cuda"
        )
        check(inputs, kernel(inputs, tile=tile))


@pytest.mark.parametrize("head_dim", [5, 16, 48, 72])
def test_other_head_dims_are_compiled_at_first_use(head_dim: int) -> None:
    inputs = make_inputs(
        PACKS["pyramid"], torch.float16, "block_causal", True, head_dim=head_dim, device="cuda"
    )
    check(inputs, kernel(inputs))


def test_separate_tensors_give_what_packed_ones_give() -> None:
    from plugins_trt.block_sparse_attn.jit import run_kernel

    inputs = make_inputs(PACKS["pyramid"], torch.float16, "block_diagonal", True, device="cuda")
    q, k, v = (x.contiguous() for x in inputs.qkv.unbind(2))
    out = run_kernel(q, k, v, inputs.cu_seqlens, inputs.scale_mul, inputs.attributes)
    assert torch.equal(out, kernel(inputs))


def test_torch_op_uses_the_kernel() -> None:
    inputs = make_inputs(PACKS["pyramid"], torch.float16, "block_diagonal", True, device="cuda")
    out = torch.ops.hmar.block_sparse_attention(
        inputs.qkv, inputs.cu_seqlens, inputs.scale_mul, 1.0, "block_diagonal", True
    )
    assert torch.equal(out, kernel(inputs))


def test_replay_from_a_cuda_graph_follows_new_inputs() -> None:
    inputs = make_inputs(PACKS["pyramid"], torch.float16, "block_diagonal", True, device="cuda")
    other = make_inputs(
        PACKS["pyramid"], torch.float16, "block_diagonal", True, seed=7, device="cuda"
    )
    expected = kernel(other)
    kernel(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel(inputs)
    inputs.qkv.copy_(other.qkv)
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, expected)


def test_large_offsets() -> None:
    """Rows of more than 2^31 elements: offsets need 64 bits."""
    T, H, d = 120_000, 96, 64
    qkv = torch.randn(1, T, 3, H, d, dtype=torch.float16, device="cuda")
    cu_seqlens = torch.arange(0, T + 1, 100, dtype=torch.int32, device="cuda")
    inputs = Inputs(
        qkv=qkv, cu_seqlens=cu_seqlens, scale_mul=None, attributes=Attributes(sm_scale=0.125)
    )
    last = Inputs(
        qkv=qkv[:, -100:], cu_seqlens=cu_seqlens[:2], scale_mul=None, attributes=inputs.attributes
    )
    check(last, kernel(inputs)[:, -100:])


def test_unsupported_calls_say_what_is_supported() -> None:
    with pytest.raises(ValueError, match="at most 128"):
        kernel(
            make_inputs((4,), torch.float16, "block_diagonal", False, head_dim=160, device="cuda")
        )
    with pytest.raises(ValueError, match="float32"):
        kernel(make_inputs((4,), torch.float64, "block_diagonal", False, device="cuda"))
