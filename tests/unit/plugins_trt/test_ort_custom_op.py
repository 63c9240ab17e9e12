"""The ONNX Runtime custom op on the CPU: against the reference and the function body; errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from plugins_trt.ahead_of_time import ARCHITECTURES
from plugins_trt.block_sparse_attn.spec import (
    LAYOUTS,
    OP_NAME,
    PATTERNS,
    Attributes,
    Layout,
    Pattern,
)
from plugins_trt.loader import open_library
from tests.attention_cases import LARGE_PACKS, PACKS, Inputs, make_inputs, relative_error
from tests.attention_onnx import feeds, make_session, model, run_op
from tests.plugin_build import PluginBuild

CASES = {**PACKS, "pyramid-256": LARGE_PACKS["pyramid-256"]}
HEAD_DIMS = {"pyramid": 20, "one-block": 5, "long-and-short": 80}  # default 64
# Of the relative error: float32 sums in another order; one rounding of the output.
LIMITS = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {"fp32": torch.float32, **HALF}


def make_case(
    name: str, dtype: torch.dtype, pattern: Pattern = "block_diagonal", l2_norm: bool = False
) -> Inputs:
    return make_inputs(CASES[name], dtype, pattern, l2_norm, head_dim=HEAD_DIMS.get(name, 64))


def values_only(values: Tensor, bounds: Sequence[int]) -> Inputs:
    """Queries and keys of 0: an output is the mean of the values (T, d) of its block."""
    qkv = torch.zeros(1, len(values), 3, 1, values.shape[1], dtype=values.dtype)
    qkv[0, :, 2, 0] = values
    blocks = torch.tensor(bounds, dtype=torch.int32)
    attributes = Attributes(sm_scale=1.0)
    return Inputs(qkv=qkv, cu_seqlens=blocks, scale_mul=None, attributes=attributes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("l2_norm", [False, True], ids=["plain", "l2"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_custom_op_is_the_reference(
    ort_library: Path, pattern: Pattern, l2_norm: bool, layout: Layout, dtype: str
) -> None:
    for name in CASES:
        case = make_case(name, DTYPES[dtype], pattern, l2_norm)
        error = relative_error(run_op(case, ort_library, layout), case.expected())
        assert error < LIMITS[DTYPES[dtype]], name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_custom_op_is_the_function_body(ort_library: Path, pattern: Pattern) -> None:
    for name in CASES:
        case = make_case(name, torch.float32, pattern, True)
        body, out = run_op(case), run_op(case, ort_library)
        assert relative_error(out, body.double()) < LIMITS[torch.float32], name


def test_another_instruction_set_differs_by_rounding(
    ort_library: Path, ort_library_without_avx2: Path
) -> None:
    for name in ("pyramid", "long-and-short"):
        case = make_case(name, torch.float32, "block_causal", True)
        out, baseline = run_op(case, ort_library), run_op(case, ort_library_without_avx2)
        assert relative_error(baseline, out.double()) < LIMITS[torch.float32]


def test_library_with_kernels_for_gpus_runs_on_the_cpu_too(plugin_build: PluginBuild) -> None:
    if not plugin_build.ort_library.exists():
        pytest.skip("needs ONNX Runtime's headers: python scripts/fetch_headers.py")
    assert open_library("ort", plugin_build.ort_library).architectures == ARCHITECTURES
    case = make_case("pyramid", torch.float32)
    error = relative_error(run_op(case, plugin_build.ort_library), case.expected())
    assert error < LIMITS[torch.float32]


@pytest.mark.parametrize("dtype", HALF)
def test_every_16_bit_number_passes_through(ort_library: Path, dtype: str) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(HALF[dtype]).view(1024, 64)
    out = run_op(values_only(numbers, range(1025)), ort_library)
    torch.testing.assert_close(out[0], numbers, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF)
def test_output_is_rounded_to_nearest_even(ort_library: Path, dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    largest = 0x7C00 if dtype == "fp16" else 0x7E00  # sums of two stay finite in float32
    size = (512, 64)
    bits = torch.randint(0, largest - 4, size, generator=generator, dtype=torch.int16)
    more = torch.randint(1, 4, size, generator=generator, dtype=torch.int16)
    numbers = torch.stack([bits, bits + more], dim=1).view(HALF[dtype])  # neighbours
    out = run_op(values_only(numbers.view(1024, 64), range(0, 1025, 2)), ort_library)
    torch.testing.assert_close(
        out[0, ::2], (numbers.double().mean(1)).to(HALF[dtype]), rtol=0, atol=0
    )


def test_number_of_threads_changes_nothing(ort_library: Path) -> None:
    case = make_case("long-and-short", torch.float32, "block_causal")
    one, two = (run_op(case, ort_library, threads=n) for n in (1, 2))
    assert torch.equal(one, two)


def test_zero_query_and_key_are_finite(ort_library: Path) -> None:
    case = make_case("one-block", torch.float32, l2_norm=True)
    case.qkv[0, 0] = 0
    assert torch.isfinite(run_op(case, ort_library)).all()


def test_logits_far_apart(ort_library: Path) -> None:
    case = make_case("long-and-short", torch.float32, "block_causal")
    case = replace(case, attributes=replace(case.attributes, sm_scale=40.0))
    error = relative_error(run_op(case, ort_library), case.expected())
    assert error < 1e-4  # logits of 1000 have steps of 6e-5


def test_nan_stays_in_its_block(ort_library: Path) -> None:
    case = make_inputs((70, 9), torch.float32, "block_diagonal", False)
    case.qkv[:, 5, 1] = torch.nan  # a key
    out = run_op(case, ort_library)
    assert torch.isnan(out[:, :70]).all()
    assert torch.isfinite(out[:, 70:]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_library", [True, False])
def test_the_op_runs_instead_of_the_function(
    ort_library: Path, tmp_path: Path, with_library: bool, layout: Layout
) -> None:
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    case = make_inputs((4, 9), torch.float32, "block_diagonal", False)
    graph = model(case.attributes, 3, 64, layout)
    session = make_session(graph, ort_library if with_library else None, options)
    session.run(None, feeds(case, layout))
    events = json.loads(Path(session.end_profiling()).read_text())
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
        make_session(graph.SerializeToString(), ort_library)


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
        make_session(graph.SerializeToString(), ort_library).run(None, arrays)


@pytest.mark.parametrize("blocks", [[1, 6], [0, 4, 3, 6], [0, 5], [0, 9]])
def test_bad_blocks(ort_library: Path, blocks: list[int]) -> None:
    case = values_only(torch.zeros(6, 8), blocks)
    message = f"start with 0, never decrease and end with T = 6, got .{blocks[0]}, "
    with pytest.raises(Exception, match=message):
        run_op(case, ort_library)


def test_mixed_dtypes(ort_library: Path) -> None:
    graph = onnx.load_from_string(model(Attributes(sm_scale=1.0), 2, 5, "separate"))
    del graph.functions[:]
    graph.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(Exception, match=OP_NAME):
        make_session(graph.SerializeToString(), ort_library)
