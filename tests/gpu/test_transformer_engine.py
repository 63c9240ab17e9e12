"""The transformer's compiled kernels on a GPU, against PyTorch in float32.

    python -m pytest tests/gpu/test_transformer_engine.py -v -rs

needs the built plugin library, `cuda.bindings` and an H100 (the library holds these kernels for
compute capability 9.0).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from export.tensors import BLOCK_LINEARS, named_blocks
from hmar.config import HMARConfig
from hmar.hmar import HMAR
from runtime.backends.cuda import CudaDevice
from runtime.backends.device_values import BufferPool, DeviceValue
from runtime.backends.kernel_library import KernelLibrary
from runtime.backends.planned_engine import DeviceArrays, PlannedEngine
from runtime.transformer_plan import TransformerSizes, plan_pass, transformer_weights
from tests.golden_data import assert_close
from tests.gpu.library import open_kernels

pytestmark = pytest.mark.gpu

CONFIG = HMARConfig(depth=3, branch_layers=1, embed_dim=1024, num_heads=16, num_classes=10)
# every division of the work, and sizes off the tiles: 1 row to 4,352
PASSES = [
    (1, 1), (2, 4), (2, 9), (2, 25), (2, 36), (2, 64), (2, 100), (2, 169), (3, 256), (2, 1024),
    (9, 100), (17, 100), (16, 169), (17, 256), (1, 1023),
]  # fmt: skip
# measured 1.2e-3 after 16 blocks, of which float16 inputs and activations are the cause
RMS = 2e-3


@pytest.fixture(scope="module")
def kernels(device: CudaDevice) -> KernelLibrary:
    return open_kernels("transformer", device)


@pytest.fixture(scope="module")
def model() -> HMAR:
    """Random weights that float16 holds; all but those of the heads, which are float32."""
    torch.manual_seed(0)
    model = HMAR(CONFIG).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5 * p[0].numel() ** -0.5 if p.dim() == 2 else 0.1)
            p.copy_(p.half())
        model.ns_head.weight.normal_(std=CONFIG.embed_dim**-0.5)
    return model.cuda()


def tensors_of(model: HMAR) -> dict[str, np.ndarray]:
    """Tensors as a bundle holds them."""
    found: dict[str, Tensor] = {}
    for name, block in named_blocks(model):
        found[f"{name}.qkv.weight"] = block.attn.mat_qkv.weight.T.half()
        found[f"{name}.qkv.bias"] = block.attn.qkv_bias().half()
        found[f"{name}.scale_mul"] = block.attn.scale_mul()
        for ours, theirs in BLOCK_LINEARS.items():
            linear = block.get_submodule(theirs)
            found[f"{name}.{ours}.weight"] = linear.weight.T.half()  # type: ignore[union-attr]
            found[f"{name}.{ours}.bias"] = linear.bias.half()  # type: ignore[union-attr]
    found["ns_head.weight"], found["ns_head.bias"] = model.ns_head.weight.T, model.ns_head.bias
    return {name: np.ascontiguousarray(t.detach().cpu().numpy()) for name, t in found.items()}


@pytest.fixture(scope="module")
def engine(device: CudaDevice, kernels: KernelLibrary, model: HMAR) -> Iterator[PlannedEngine]:
    sizes = TransformerSizes(
        width=CONFIG.embed_dim,
        heads=CONFIG.num_heads,
        hidden=CONFIG.mlp_dim,
        vocab=CONFIG.vocab_size,
        layers={"base": CONFIG.base_layers, "ns": CONFIG.branch_layers},
    )
    plans = [plan_pass(sizes, "ns", images, length, kernels.table) for images, length in PASSES]
    arrays = transformer_weights(sizes, tensors_of(model).__getitem__)
    weights = DeviceArrays(device, arrays, 4 * max(plan.num_arrivals for plan in plans))
    profiles = [{"N": images, "l": length} for images, length in PASSES]
    engine = PlannedEngine(kernels, device, profiles, plans, weights, weights.nbytes)
    yield engine
    engine.close()


class Run:
    """One pass on the device; memory that is written begins as NaN."""

    def __init__(self, device: CudaDevice, engine: PlannedEngine, model: HMAR, case: int) -> None:
        self._device, self._engine, self._profile = device, engine, case
        (N, l), C = PASSES[case], CONFIG.embed_dim
        g = torch.Generator("cuda").manual_seed(case)
        x_NlC = torch.randn((N, l, C), generator=g, device="cuda").half()
        cond_NC = torch.randn((N, C), generator=g, device="cuda")
        with torch.inference_mode():
            self.expected = model(x_NlC.float(), cond_NC, "ns").cpu().numpy()
            ada = torch.cat([v.flatten(2) for v in model.modulation(cond_NC, "ns")], dim=1)
            inputs = {
                "x": x_NlC,
                "ada_base": ada[:, : CONFIG.base_layers],
                "ada_ns": ada[:, CONFIG.base_layers :],
                "head_ns": model.ns_head_nm.ada_lin(cond_NC)[:, None],
            }
        self._pool = BufferPool(device)
        self._values = {name: self._upload(tensor) for name, tensor in inputs.items()}
        self._values["logits"] = DeviceValue.empty("float32", self.expected.shape, self._pool)
        self._scratch = self._pool.take(engine.activation_nbytes[case])
        self.forget()

    def _upload(self, tensor: Tensor) -> DeviceValue:
        array = np.ascontiguousarray(tensor.half().cpu().numpy())
        value = DeviceValue.empty("float16", array.shape, self._pool)
        self._device.upload(value.buffer.address, array)
        return value

    def forget(self) -> None:
        for buffer in (self._values["logits"].buffer, self._scratch):
            self._device.upload(buffer.address, np.full(buffer.nbytes, 0xFF, np.uint8))

    def execute(self) -> None:
        addresses = {name: value.buffer.address for name, value in self._values.items()}
        shapes = {name: value.shape for name, value in self._values.items()}
        stream = self._device.stream
        self._engine.execute(self._profile, shapes, addresses, self._scratch.address, stream)

    def logits(self) -> np.ndarray:
        return self._values["logits"].numpy(self._device)

    def close(self) -> None:
        self._pool.close()


@pytest.fixture(params=range(len(PASSES)), ids=lambda i: "N{}-l{}".format(*PASSES[i]))
def run(
    request: pytest.FixtureRequest, device: CudaDevice, engine: PlannedEngine, model: HMAR
) -> Iterator[Run]:
    torch.backends.cuda.matmul.allow_tf32 = False
    run = Run(device, engine, model, request.param)
    yield run
    run.close()


def test_logits_are_those_of_pytorch(run: Run) -> None:
    run.execute()
    assert_close("logits", run.expected, run.logits(), rms_ratio=RMS)


def test_captured_launches_do_the_same(device: CudaDevice, run: Run) -> None:
    run.execute()
    eager = run.logits()
    graph = device.capture(run.execute)
    for _ in range(2):
        run.forget()
        graph.launch()
        np.testing.assert_array_equal(run.logits(), eager)
    graph.close()
