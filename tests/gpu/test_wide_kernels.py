"""The kernels for many rows and pixels on Hopper, one by one, against PyTorch in float32.

    python -m pytest tests/gpu/test_wide_kernels.py -v

needs the built plugin library, `cuda.bindings` and an H100. Sizes lie off the tiles, and there are
more tiles than programs; outputs and scratch memory begin as NaN, and stay so outside the outputs.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plugins_trt.decoder.weights import fold_upsampling
from runtime.backends.cuda import CudaDevice
from runtime.backends.kernel_library import KernelLibrary
from runtime.launches import blocks
from tests.gpu.library import open_kernels
from tests.gpu.single_kernels import EPILOGUES, LinearLayer, Output, half, launch, names

transformer_aot = pytest.importorskip("plugins_trt.transformer.aot", reason="no triton")
decoder_aot = pytest.importorskip("plugins_trt.decoder.aot", reason="no triton")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def transformer(device: CudaDevice) -> KernelLibrary:
    return open_kernels("transformer", device)


@pytest.fixture(scope="module")
def decoder(device: CudaDevice) -> KernelLibrary:
    return open_kernels("decoder", device)


@pytest.mark.parametrize(
    ("rows", "length", "depth", "width"),
    [
        (1, 1, 64, 64),
        (129, 43, 128, 192),
        (300, 7, 512, 320),
        (2049, 2049, 320, 1024),
        (9001, 256, 192, 1088),
    ],
)
@pytest.mark.parametrize("name", names(transformer_aot, "wide"))
def test_linear_layers(
    transformer: KernelLibrary, name: str, rows: int, length: int, depth: int, width: int
) -> None:
    of = transformer.table[name]["constants"]
    layer = LinearLayer(of, rows, length, depth, width)
    tiles = blocks(rows, of["CLUSTER"] * of["BLOCK_M"]) * blocks(width, of["BLOCK_N"])
    tiles *= of["CLUSTER"]
    sums = Output(tiles, of["SPLITS"], of["BLOCK_M"], of["BLOCK_N"], dtype=torch.float32)
    arrivals = torch.zeros(tiles, 1 + of["COOPERATES"], dtype=torch.int32, device="cuda")
    arguments = {**layer.arguments, "out": layer.out.values}
    arguments |= {"partials": sums.values, "arrivals": arrivals}
    for _ in range(2):
        launch(transformer, name, (tiles * of["SPLITS"],), arguments)
        layer.out.check(layer.expected)
        assert not arrivals.any()
    assert sums.is_guarded


@pytest.mark.parametrize("name", names(transformer_aot, "wide"))
def test_tail_of_gelu(transformer: KernelLibrary, name: str) -> None:
    of = transformer.table[name]["constants"]
    if of["EPILOGUE"] not in (EPILOGUES["gelu"], EPILOGUES["gelu_erf"]):
        pytest.skip("another epilogue")
    width = 1024
    bias = torch.linspace(-6, 0, width, device="cuda").half()
    x, weights, out = half(1, 64) * 0, half(64, width), Output(1, width)
    sizes = {"rows": 1, "length": 1, "depth": 64, "width": width}
    tensors = {"x": x, "weights": weights, "bias": bias, "out": out.values}
    launch(transformer, name, (of["CLUSTER"] * blocks(width, of["BLOCK_N"]),), {**tensors, **sizes})
    kind = "tanh" if of["EPILOGUE"] == EPILOGUES["gelu"] else "none"
    y = F.gelu(bias.float(), approximate=kind)
    # of the hardware's tangent, and of rounding
    limit = bias.float().abs() * 2**-12 + y.abs() * 2**-11 + 1e-6
    excess = ((out.values.float() - y).abs() / limit).max()
    assert excess <= 1, f"{excess:.2g} times the limit"


@pytest.mark.parametrize("length", [1, 17, 64, 65, 100, 169, 256, 300, 1000])
@pytest.mark.parametrize("name", names(transformer_aot, "wide_attention"))
def test_attention(transformer: KernelLibrary, name: str, length: int) -> None:
    of = transformer.table[name]["constants"]
    torch.manual_seed(0)
    images, heads = 3, 5
    qkv, scale = half(images, length, 3, heads, 64), 20 * torch.rand(heads, device="cuda") + 1
    out = Output(images, length, heads * 64)
    q, k, v = qkv.float().permute(2, 0, 3, 1, 4)
    if of["HAS_NORM"]:
        q, k = F.normalize(q, dim=-1) * scale[:, None, None], F.normalize(k, dim=-1)
    else:
        q = q / 8
    y = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)
    qkv[1] = torch.nan  # an image is not read for another one
    sizes = {"length": length, "width": heads * 64, "images": images}
    arguments = {"qkv": qkv, "scale_mul": scale, "out": out.values, **sizes}
    grid = (blocks(length, of["BLOCK_Q"]), heads, images)
    launch(transformer, name, grid, arguments)
    assert out.values[1].isnan().all()
    out.values[1] = y[1]
    out.check(y)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 1), (3, 20, 37), (5, 64, 72)])
@pytest.mark.parametrize("name", names(decoder_aot, "wide_conv"))
def test_convolutions(
    decoder: KernelLibrary, name: str, batch: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    of = decoder.table[name]["constants"]
    cin, cout, side, upsamples = (of[k] for k in ("CIN", "COUT", "SIDE", "UPSAMPLES"))
    x, bias = half(batch, height, width, cin), torch.randn(cout, device="cuda")
    weights = half(cout, side, side, cin) / (side * side * cin) ** 0.5
    scale, phases = (2, 4) if upsamples else (1, 1)
    residual = half(batch, scale * height, scale * width, cout)
    planes = x.permute(0, 3, 1, 2).float()
    if upsamples:
        planes = F.interpolate(planes, scale_factor=2, mode="nearest")
    y = F.conv2d(planes, weights.permute(0, 3, 1, 2).float(), bias, padding=side // 2)
    y = y.permute(0, 2, 3, 1) + (residual.float() if of["HAS_RESIDUAL"] else 0.0)
    if upsamples:
        folded = fold_upsampling(weights.float().cpu().numpy())
        weights = torch.from_numpy(folded).half().cuda()
    tiles = blocks(height, of["TILE_H"]) * blocks(width, of["TILE_W"])
    out = Output(*y.shape)
    sums = Output(batch, phases * tiles, 2, cout, dtype=torch.float32)
    clusters = blocks(tiles * batch, of["CLUSTER"]) * phases * blocks(cout, of["BLOCK_N"])
    tensors = {"x": x, "weights": weights, "bias": bias, "residual": residual}
    tensors |= {"x_rest": x, "weights_rest": weights}
    written = {"out": out.values, "sums": sums.values}
    sizes = {"batch": batch, "height": height, "width": width}
    launch(decoder, name, (of["CLUSTER"] * clusters,), {**tensors, **written, **sizes})
    out.check(y)
    if of["HAS_SUMS"]:
        stored = out.values.float().flatten(1, 2)
        sums.values = sums.values.sum(1)
        sums.check(torch.stack([stored.sum(1), stored.square().sum(1)], dim=1), limit=1e-5)
    else:
        assert sums.values.isnan().all()
