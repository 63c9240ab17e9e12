"""The graphs between the passes by launches: the same as on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.glue_engine import glue_engines
from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import Bundle, TensorSpec
from runtime.config import BackendConfig
from runtime.engine_plan import resolve
from runtime.errors import BackendUnavailableError
from runtime.glue_plan import GLUE, phi_index
from tests.golden_data import assert_close
from tests.host_device import HostDevice
from tests.host_glue import HostGlueKernels, host_table

BATCHES = (1, 3)
HALF_RMS, FLOAT_RMS = 6e-4, 2e-6  # up to three roundings to float16; sums in another order


@pytest.fixture(scope="module")
def bundle(tiny_fp16_bundle: Path) -> Bundle:
    return Bundle.open(tiny_fp16_bundle)


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> Iterator[TensorRTRunner]:
    device = HostDevice()
    kernels = HostGlueKernels(host_table(bundle.manifest.hmar.latent_channels))
    engines = glue_engines(bundle, kernels, device, BATCHES)
    runner = TensorRTRunner(bundle.manifest, engines, device, BATCHES)
    yield runner
    runner.close()
    assert not device.blocks


def feeds(bundle: Bundle, graph: str, rows: int) -> dict[str, np.ndarray]:
    model, spec = bundle.manifest.hmar, bundle.manifest.graphs[graph]
    rng, dims = np.random.default_rng(0), {"N": rows, "B": rows, "l": model.patch_nums[-1] ** 2}

    def values(tensor: TensorSpec) -> np.ndarray:
        shape = resolve(tensor, dims)
        if tensor.name == "positions":
            first = sum(pn * pn for pn in model.patch_nums[:-1])
            return np.arange(first, first + dims["l"], dtype=np.int32)
        if tensor.dtype == "int32":
            limit = model.num_classes + 1 if tensor.name == "label" else model.vocab_size
            return rng.integers(0, limit, shape, np.int32)
        if tensor.dtype == "bool":
            return rng.random(shape) < 0.5
        return rng.standard_normal(shape).astype(tensor.dtype)

    return {tensor.name: values(tensor) for tensor in spec.inputs}


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_outputs_are_those_of_the_graphs(bundle: Bundle, runner: TensorRTRunner, rows: int) -> None:
    reference = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu"))
    for name, spec in bundle.manifest.graphs.items():
        takes_images = "B" in {d for tensor in spec.inputs for d in tensor.shape}
        too_many = rows > (max(BATCHES) if takes_images else 2 * max(BATCHES))
        odd = spec.kind == "cond" and rows % 2  # always of both halves
        if spec.kind not in GLUE or too_many or odd:
            continue
        given = feeds(bundle, name, rows)
        expected, got = reference.run(name, given), runner.run(name, given)
        assert set(got) == set(expected), name
        for output in spec.outputs:
            limit = HALF_RMS if output.dtype == "float16" else FLOAT_RMS
            assert_close(
                f"{name} {output.name}",
                reference.numpy(expected[output.name]),
                runner.numpy(got[output.name]),
                rms_ratio=limit,
            )


def test_scales_use_the_phi_of_the_model() -> None:
    from hmar.quant import phi_indices

    for scales in range(2, 15):
        for count in range(1, 5):
            assert phi_indices(scales, count) == tuple(
                phi_index(k, scales, count) for k in range(scales)
            )


def test_a_bundle_in_float32_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="compute in float16, the bundle in fp32"):
        glue_engines(Bundle.open(tiny_bundle), HostGlueKernels({}), HostDevice(), BATCHES)


def test_maps_of_other_channels_are_refused(bundle: Bundle) -> None:
    kernels = HostGlueKernels(host_table(5))
    with pytest.raises(BackendUnavailableError, match="no kernel embed with HAS_MASK=0, CHANNELS="):
        glue_engines(bundle, kernels, HostDevice(), BATCHES)
