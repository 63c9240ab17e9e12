"""The decoder's compiled kernels on a GPU, against PyTorch and ONNX Runtime.

    python -m pytest tests/gpu/test_decoder_engine.py -v -rs

needs the built plugin library, `cuda.bindings`, an H100 (the library holds these kernels for
compute capability 9.0), and TensorRT for whole generations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export import ExportConfig, export_bundle
from hmar.config import KLVAEConfig, TokenizerConfig
from hmar.kl_vae import KLVAE
from hmar.vae import VQVAE
from runtime.backends.cuda import CudaDevice
from runtime.backends.decoder_engine import decoder_weights
from runtime.backends.device_values import BufferPool, DeviceValue
from runtime.backends.kernel_library import KernelLibrary
from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.backends.planned_engine import PlannedEngine, share_weights
from runtime.backends.trt_library import import_tensorrt, installed_flavours
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.decoder_plan import DecoderSizes, plan_decoder
from runtime.engine_cache import build_engines
from runtime.engine_plan import EngineOptions
from runtime.engine_target import choose_target, local_gpu
from runtime.pipeline import Pipeline
from tests.golden_data import assert_close
from tests.gpu.library import open_kernels

pytestmark = pytest.mark.gpu

DEMO = Path(__file__).resolve().parents[2] / "demo"
BATCHES = (1, 3, 8)
SIDE = 16
SIZES = DecoderSizes(
    latent_channels=32, latent_side=SIDE, widths=(160, 160, 320, 320, 640), num_blocks=3
)
# some sixty maps in a row are rounded to float16, by up to 2^-11 each
RMS = 5e-3


@pytest.fixture(scope="module")
def kernels(device: CudaDevice) -> KernelLibrary:
    return open_kernels("decoder", device)


@pytest.fixture(scope="module")
def vae() -> VQVAE:
    """The published tokenizer's sizes, random weights that float16 holds."""
    torch.manual_seed(0)
    vae = VQVAE(TokenizerConfig(), patch_nums=(1, SIDE)).eval()
    with torch.no_grad():
        for name, p in vae.named_parameters():
            if p.dim() == 4:
                p.normal_(std=p[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                p.normal_(mean=1, std=0.2)
            else:
                p.normal_(std=0.1)
        vae.decoder.conv_out.weight.mul_(0.3)  # so that few pixels are clamped
    return vae.half().float()


@pytest.fixture(scope="module")
def engine(device: CudaDevice, kernels: KernelLibrary, vae: VQVAE) -> Iterator[PlannedEngine]:
    state = {name: tensor.half().numpy() for name, tensor in vae.state_dict().items()}
    plans = [plan_decoder(SIZES, batch, kernels.table) for batch in BATCHES]
    arrays = decoder_weights(plans[0].weights, state.__getitem__)
    planned = {"decode": ([{"B": batch} for batch in BATCHES], plans)}
    (engine,) = share_weights(planned, kernels, device, arrays).values()
    yield engine
    engine.close()


class Run:
    """One batch on the device; memory that is written begins as NaN."""

    def __init__(self, device: CudaDevice, engine: PlannedEngine, batch: int) -> None:
        self.f_hat = np.random.default_rng(batch).normal(size=(batch, 32, SIDE, SIDE))
        self.f_hat = self.f_hat.astype(np.float32)
        self._device, self._engine, self._profile = device, engine, BATCHES.index(batch)
        self._pool = BufferPool(device)
        side = 16 * SIDE
        self._in = DeviceValue.empty("float32", self.f_hat.shape, self._pool)
        self._image = DeviceValue.empty("float32", (batch, 3, side, side), self._pool)
        self._scratch = self._pool.take(engine.activation_nbytes[self._profile])
        device.upload(self._in.buffer.address, self.f_hat)
        self.forget()

    def forget(self) -> None:
        for buffer in (self._image.buffer, self._scratch):
            self._device.upload(buffer.address, np.full(buffer.nbytes, 0xFF, np.uint8))

    def execute(self) -> None:
        self._engine.execute(
            self._profile,
            {"f_hat": self.f_hat.shape},
            {"f_hat": self._in.buffer.address, "image": self._image.buffer.address},
            self._scratch.address,
            self._device.stream,
        )

    def image(self) -> np.ndarray:
        return self._image.numpy(self._device)

    def close(self) -> None:
        self._pool.close()


@pytest.fixture(params=BATCHES, ids=lambda b: f"B{b}")
def run(request: pytest.FixtureRequest, device: CudaDevice, engine: PlannedEngine) -> Iterator[Run]:
    run = Run(device, engine, request.param)
    yield run
    run.close()


def test_images_are_those_of_pytorch(run: Run, vae: VQVAE) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        expected = vae.cuda().decode(torch.from_numpy(run.f_hat).cuda()).cpu().numpy()
    assert (np.abs(expected) < 1).mean() > 0.9 and expected.std() > 0.1
    run.execute()
    assert_close("image", expected, run.image() * 2 - 1, rms_ratio=RMS)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("side", [8, 16])
def test_images_of_tokens_are_those_of_pytorch(
    device: CudaDevice, kernels: KernelLibrary, side: int, batch: int
) -> None:
    """Hi-MAR's autoencoder, whose images are not clamped."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    vae = KLVAE(KLVAEConfig()).requires_grad_(False)
    for name, p in vae.named_parameters():
        p.normal_(mean=float("norm" in name), std=p[0].numel() ** -0.5 if p.dim() == 4 else 0.1)
    vae = vae.half().float()
    sizes = DecoderSizes(
        family="himar", latent_channels=16, latent_side=side, widths=(128, 128, 256, 256, 512),
        num_blocks=3, latent_scale=vae.config.latent_scale,
    )  # fmt: skip
    state = {name: tensor.half().numpy() for name, tensor in vae.state_dict().items()}
    plan = plan_decoder(sizes, batch, kernels.table)
    arrays = decoder_weights(plan.weights, state.__getitem__)
    planned = {"decode": ([{"B": batch}], [plan])}
    (engine,) = share_weights(planned, kernels, device, arrays).values()
    tokens = np.random.default_rng(batch).normal(size=(batch, side**2, 16)).astype(np.float32)
    tokens *= 0.2325
    with torch.inference_mode():
        maps = torch.from_numpy(tokens).transpose(1, 2).unflatten(2, (side, side))
        expected = vae.cuda().decode(maps.cuda()).cpu().numpy()
    pool = BufferPool(device)
    given = DeviceValue.empty("float32", tokens.shape, pool)
    image = DeviceValue.empty("float32", (batch, 3, 16 * side, 16 * side), pool)
    scratch = pool.take(plan.nbytes)
    device.upload(given.buffer.address, tokens)
    for buffer in (image.buffer, scratch):
        device.upload(buffer.address, np.full(buffer.nbytes, 0xFF, np.uint8))
    addresses = {"tokens": given.buffer.address, "image": image.buffer.address}
    engine.execute(0, {"tokens": tokens.shape}, addresses, scratch.address, device.stream)
    assert_close("image", expected, image.numpy(device) * 2 - 1, rms_ratio=RMS)
    engine.close()
    pool.close()


def test_captured_launches_do_the_same(device: CudaDevice, run: Run) -> None:
    run.execute()
    eager = run.image()
    graph = device.capture(run.execute)
    for _ in range(2):
        run.forget()
        graph.launch()
        np.testing.assert_array_equal(run.image(), eager)
    graph.close()


@pytest.fixture(scope="module")
def bundle(kernels: KernelLibrary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo in float16, with engines of all but the convolutional networks."""
    if not installed_flavours():
        pytest.skip("no TensorRT: pip install tensorrt-rtx-cu13")
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    config = ExportConfig(precision="fp16", verify=False)
    checkpoints = [DEMO / "hmar.safetensors"], DEMO / "tokenizer.safetensors"
    export_bundle(config, *checkpoints, folder, sampling=DEMO / "sampling.json")
    bundle = Bundle.open(folder)
    target = choose_target(import_tensorrt(), (), local_gpu(), attention="function")
    build_engines(bundle, target, EngineOptions(batches=(1, 3), leave_out=("encode", "decode")))
    return bundle


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(bundle.folder, "trt", decoder="kernels") as pipeline:
        yield pipeline


@pytest.mark.parametrize("batch", [1, 2, 3], ids=lambda b: f"B{b}")
def test_images_of_the_demo_are_those_of_onnx_runtime(
    bundle: Bundle, pipeline: Pipeline, batch: int
) -> None:
    f_hat = np.random.default_rng(batch).normal(size=(batch, 32, SIDE, SIDE)).astype(np.float32)
    reference = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu"))
    expected = reference.numpy(reference.run("decode", {"f_hat": f_hat})["image"])
    image = pipeline.runner.numpy(pipeline.runner.run("decode", {"f_hat": f_hat})["image"])
    assert_close("image", expected - 0.5, image - 0.5, rms_ratio=RMS)


def test_a_whole_generation_is_that_of_the_steps(pipeline: Pipeline) -> None:
    assert pipeline.runner._generations is not None
    labels = [1, 2, 3, 4, 5]
    for seed in (5, 6):  # captured, and replayed
        at_once = pipeline.generate(labels, seed=seed)
        steps = pipeline.generate(labels, seed=seed, on_scale=lambda event: None)
        assert np.abs(at_once.astype(int) - steps).max() <= 1
