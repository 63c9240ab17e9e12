"""The ONNX Runtime custom op on the CPU: against the reference and the function body; errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from plugins_trt.block_sparse_attn.reference import block_sparse_attention
from plugins_trt.block_sparse_attn.spec import (
    LAYOUTS,
    OP_NAME,
    PATTERNS,
    Attributes,
    Layout,
    Pattern,
)
from plugins_trt.loader import register_ort
from tests.golden_data import assert_close
from tests.unit.plugins_trt.packs import PACKS, feeds, inputs, model

# More than one tile of queries and of keys, none of them full.
LONG = {"long": [70, 0, 131, 1], "pyramid-680": [n * n for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]}
# name: (ONNX, NumPy, torch, limit on the RMS ratio: one rounding of the output)
DTYPES = {
    "fp32": (onnx.TensorProto.FLOAT, np.float32, torch.float32, 2e-6),
    "fp16": (onnx.TensorProto.FLOAT16, np.float16, torch.float16, 2**-11),
    "bf16": (onnx.TensorProto.BFLOAT16, ml_dtypes.bfloat16, torch.bfloat16, 2**-8),
}


def session(
    graph: bytes, library: Path | None, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    options = options or ort.SessionOptions()
    options.log_severity_level = 4
    if library is not None:
        register_ort(options, library)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(
    library: Path | None,
    attributes: Attributes,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    layout: Layout = "packed",
    dtype: str = "fp32",
    threads: int = 0,
) -> np.ndarray:
    """The output, in memory that was filled with NaN before."""
    qkv, cu_seqlens, scale_mul = tensors
    heads, head_dim = qkv.shape[3:]
    onnx_dtype, numpy_dtype, _, _ = DTYPES[dtype]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    made = session(model(attributes, heads, head_dim, layout, onnx_dtype), library, options)
    out = np.full((*qkv.shape[:2], heads * head_dim), np.nan, numpy_dtype)
    binding = made.io_binding()
    arrays = feeds(qkv, cu_seqlens, scale_mul if attributes.qk_l2_norm else None, layout)
    tokens = ("qkv", *"qkv")
    # values on the CPU point into these arrays and do not keep them alive
    with np.errstate(invalid="ignore"):  # NaN
        arrays = {n: a.astype(numpy_dtype) if n in tokens else a for n, a in arrays.items()}
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, ortvalue(array))
    binding.bind_ortvalue_output("o", ortvalue(out))
    made.run_with_iobinding(binding)
    return out


def ortvalue(array: np.ndarray) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), onnx.TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("l2_norm", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_custom_op_is_the_reference(
    ort_library: Path, pattern: Pattern, l2_norm: bool, layout: Layout, dtype: str
) -> None:
    attributes = Attributes(sm_scale=0.3, pattern=pattern, qk_l2_norm=l2_norm)
    torch_dtype, limit = DTYPES[dtype][2:]
    for name, lengths in {**PACKS, **LONG}.items():
        head_dim = {"long": 64, "pyramid": 20}.get(name, 5)
        qkv, cu_seqlens, scale_mul = inputs(lengths, head_dim=head_dim, batch=2)
        qkv = qkv.to(torch_dtype).float()
        expected = block_sparse_attention(
            qkv.double(),
            cu_seqlens,
            scale_mul.double() if l2_norm else None,
            sm_scale=0.3,
            pattern=pattern,
            qk_l2_norm=l2_norm,
        )
        out = run(ort_library, attributes, (qkv, cu_seqlens, scale_mul), layout, dtype)
        assert_close(name, expected, out.astype(np.float32), rms_ratio=limit)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_custom_op_is_the_function_body(ort_library: Path, pattern: Pattern) -> None:
    attributes = Attributes(sm_scale=0.3, pattern=pattern, qk_l2_norm=True)
    for name, lengths in {**PACKS, **LONG}.items():
        tensors = inputs(lengths, head_dim=80)
        body, out = (run(library, attributes, tensors) for library in (None, ort_library))
        assert_close(name, body, out)


def test_another_instruction_set_differs_by_rounding(
    ort_library: Path, ort_library_without_avx2: Path
) -> None:
    attributes = Attributes(sm_scale=0.3, pattern="block_causal", qk_l2_norm=True)
    tensors = inputs(LONG["long"], head_dim=20)
    out, baseline = (run(n, attributes, tensors) for n in (ort_library, ort_library_without_avx2))
    assert_close("baseline", out, baseline)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_every_16_bit_number_passes_through(ort_library: Path, dtype: str) -> None:
    numpy_dtype = DTYPES[dtype][1]
    numbers = np.arange(2**16, dtype=np.uint16).view(numpy_dtype).astype(np.float32)
    qkv = torch.zeros(1, 1024, 3, 1, 64)
    qkv[:, :, 2] = torch.from_numpy(numbers.reshape(1, 1024, 1, 64))
    blocks = torch.arange(1025, dtype=torch.int32)  # of one token: its value is the output
    attributes = Attributes(sm_scale=1.0)
    out = run(ort_library, attributes, (qkv, blocks, torch.ones(1)), dtype=dtype)
    np.testing.assert_array_equal(out.astype(np.float32).ravel(), numbers)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_output_is_rounded_to_nearest_even(ort_library: Path, dtype: str) -> None:
    numpy_dtype = DTYPES[dtype][1]
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 0x7C00 if dtype == "fp16" else 0x7E00, (1024, 64), dtype=np.uint16)
    patterns[1::2] = patterns[::2] + rng.integers(1, 4, (512, 64), dtype=np.uint16)
    numbers = patterns.view(numpy_dtype).astype(np.float32)
    numbers[~np.isfinite(numbers)] = 1
    qkv = torch.zeros(1, 1024, 3, 1, 64)
    qkv[:, :, 2] = torch.from_numpy(numbers).view(1, 1024, 1, 64)
    pairs = torch.arange(0, 1025, 2, dtype=torch.int32)  # queries of 0: the mean of two values
    attributes = Attributes(sm_scale=1.0)
    out = run(ort_library, attributes, (qkv, pairs, torch.ones(1)), dtype=dtype)
    mean = ((numbers[::2].astype(np.float64) + numbers[1::2]) / 2).astype(np.float32)
    np.testing.assert_array_equal(out[0, ::2], mean.astype(numpy_dtype))


def test_number_of_threads_changes_nothing(ort_library: Path) -> None:
    attributes = Attributes(sm_scale=0.3, pattern="block_causal")
    one, two = (run(ort_library, attributes, inputs([70, 9, 131]), threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_zero_query_and_key_are_finite(ort_library: Path) -> None:
    qkv, cu_seqlens, scale_mul = inputs([4])
    qkv[0, 0] = 0
    attributes = Attributes(sm_scale=1.0, qk_l2_norm=True)
    assert np.isfinite(run(ort_library, attributes, (qkv, cu_seqlens, scale_mul))).all()


def test_nan_stays_in_its_block(ort_library: Path) -> None:
    qkv, cu_seqlens, scale_mul = inputs([70, 9])
    qkv[:, 5, 1] = torch.nan  # a key
    out = run(ort_library, Attributes(sm_scale=1.0), (qkv, cu_seqlens, scale_mul))
    assert np.isnan(out[:, :70]).all()
    assert np.isfinite(out[:, 70:]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_library", [True, False])
def test_the_op_runs_instead_of_the_function(
    ort_library: Path, tmp_path: Path, with_library: bool, layout: Layout
) -> None:
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    graph = model(Attributes(sm_scale=0.3), 2, 5, layout)
    made = session(graph, ort_library if with_library else None, options)
    qkv, cu_seqlens, _ = inputs([4, 9])
    made.run(None, feeds(qkv, cu_seqlens, None, layout))
    events = json.loads(Path(made.end_profiling()).read_text())
    ran = {e["args"]["op_name"] for e in events if "op_name" in e.get("args", {})}
    assert (ran == {OP_NAME}) if with_library else ("Softmax" in ran and OP_NAME not in ran)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pattern": "x"},
            r"pattern must be one of \('block_diagonal', 'block_causal'\), got 'x'",
        ),
        ({"sm_scale": -0.5}, "sm_scale must be positive, got -0.5"),
        ({"sm_scale": 1}, "attribute sm_scale: "),
        ({"pattern": None}, "attribute pattern: "),
    ],
)
def test_bad_attributes(ort_library: Path, changes: dict[str, Any], message: str) -> None:
    graph = onnx.load_from_string(model(Attributes(sm_scale=1.0), 2, 5))
    (node,) = graph.graph.node
    kept = [a for a in node.attribute if a.name not in changes]
    changed = [
        onnx.helper.make_attribute(name, value)
        for name, value in changes.items()
        if value is not None
    ]
    del node.attribute[:]
    node.attribute.extend(kept + changed)
    with pytest.raises(Exception, match=f"{OP_NAME}: {message}"):
        session(graph.SerializeToString(), ort_library)


PACKED = {"qkv": (1, 6, 3, 2, 8), "cu_seqlens": (2,)}
SEPARATE = {**dict.fromkeys("qkv", (1, 6, 2, 8)), "cu_seqlens": (2,)}


@pytest.mark.parametrize(
    ("shapes", "l2_norm", "message"),
    [
        (PACKED | {"qkv": (1, 6, 2, 2, 8)}, False, r"qkv must be \(B, T, 3, H, d\), got \(1, 6, 2"),
        (PACKED | {"qkv": (1, 6, 2, 8)}, False, "qkv must be"),
        (PACKED | {"cu_seqlens": (1,)}, False, r"cu_seqlens must be .* got \(1,\)"),
        (PACKED | {"cu_seqlens": (2, 2)}, False, "cu_seqlens must be"),
        (PACKED, True, "scale_mul belongs to qk_l2_norm=1, got qk_l2_norm=1"),
        (
            PACKED | {"scale_mul": (2,)},
            False,
            "scale_mul belongs to qk_l2_norm=1, got qk_l2_norm=0",
        ),
        (PACKED | {"scale_mul": (3,)}, True, r"scale_mul must be \(2,\) for 2 heads, got \(3,\)"),
        (SEPARATE | {"k": (1, 6, 1, 8)}, False, r"all alike, got .*, \(1, 6, 1, 8\) and"),
        (SEPARATE | {"v": (1, 5, 2, 8)}, False, "all alike"),
        (PACKED | {"cu_seqlens": (2,), "scale_mul": (2,), "more": (2,)}, True, "takes 2 or 3"),
    ],
)
def test_bad_shapes(
    ort_library: Path, shapes: dict[str, tuple[int, ...]], l2_norm: bool, message: str
) -> None:
    def dtype(name: str) -> type:
        return np.int32 if name in ("cu_seqlens", "more") else np.float32

    arrays = {name: np.zeros(shape, dtype(name)) for name, shape in shapes.items()}
    graph = onnx.load_from_string(model(Attributes(sm_scale=1.0, qk_l2_norm=l2_norm), 2, 8))
    del graph.graph.input[:], graph.graph.output[:], graph.graph.node[0].input[:]
    del graph.functions[:]
    for name, array in arrays.items():
        elem = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.graph.input.append(onnx.helper.make_tensor_value_info(name, elem, None))
        graph.graph.node[0].input.append(name)
    graph.graph.output.append(onnx.helper.make_tensor_value_info("o", 1, None))
    with pytest.raises(Exception, match=f"{OP_NAME}: .*{message}"):
        session(graph.SerializeToString(), ort_library).run(None, arrays)


@pytest.mark.parametrize("blocks", [[1, 6], [0, 4, 3, 6], [0, 5], [0, 9]])
def test_bad_blocks(ort_library: Path, blocks: list[int]) -> None:
    qkv, _, scale_mul = inputs([6])
    attributes = Attributes(sm_scale=1.0)
    with pytest.raises(
        Exception, match=f"start with 0, never decrease and end with T = 6, got .{blocks[0]}, "
    ):
        run(ort_library, attributes, (qkv, torch.tensor(blocks, dtype=torch.int32), scale_mul))


def test_mixed_dtypes(ort_library: Path) -> None:
    graph = onnx.load_from_string(model(Attributes(sm_scale=1.0), 2, 5, "separate"))
    del graph.functions[:]
    graph.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(Exception, match=OP_NAME):
        session(graph.SerializeToString(), ort_library)
