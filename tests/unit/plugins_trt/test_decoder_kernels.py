"""The decoder's kernels in Triton's interpreter against PyTorch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plugins_trt.decoder.tiles import Tile
from plugins_trt.decoder.weights import channels_last, fold_upsampling, prepare
from tests.interpreted import run_interpreted

CONVOLUTIONS = (
    "plain", "pointwise", "one-pixel", "to-pixels", "from-pixels", "split-channels",
    "split-and-masked", "residual", "upsampled", "upsampled-split",
)  # fmt: skip
NORMS = ("one-tile", "many-tiles", "odd")
LAYOUTS = ("from-planes", "from-tokens", "to-image", "to-image-unclamped")
ATTENTIONS = ("one-block", "many-blocks", "odd")
# float16 rounds by at most 2^-11; weights of attention and folded ones are rounded once more
TOLERANCE = 6e-4
# some fifteen maps in a row are rounded to float16
PLAN_TOLERANCE = 3e-3
SUMS_TOLERANCE = 1e-6  # float32


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    return run_interpreted("tests.unit.plugins_trt.interpreted_decoder")


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_that_of_pytorch(errors: dict[str, dict[str, float]], name: str) -> None:
    assert errors[f"conv-{name}"]["out"] < TOLERANCE
    assert errors[f"conv-{name}"]["sums"] < SUMS_TOLERANCE


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("kind", ["norm", "norm-silu"])
def test_group_norm_is_that_of_pytorch(
    errors: dict[str, dict[str, float]], kind: str, name: str
) -> None:
    assert errors[f"{kind}-{name}"]["out"] < TOLERANCE


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_that_of_pytorch(errors: dict[str, dict[str, float]], name: str) -> None:
    assert errors[f"attention-{name}"]["out"] < TOLERANCE


@pytest.mark.parametrize("kernel", LAYOUTS)
def test_layouts_are_changed_exactly(errors: dict[str, dict[str, float]], kernel: str) -> None:
    assert errors["layouts"][kernel] == 0


def test_a_plan_of_himars_decoder_makes_the_images_of_its_graph() -> None:
    found = run_interpreted("tests.unit.plugins_trt.interpreted_himar_decoder")
    assert found["error"] < PLAN_TOLERANCE
    assert found["greatest"] > 1  # whiter than white, and not clamped


def test_folded_weights_upsample_and_convolve() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 4, 5), generator=g, dtype=torch.float64)
    weights = torch.randn((6, 3, 3, 3), generator=g, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weights, padding=1)
    folded = torch.from_numpy(fold_upsampling(channels_last(weights.numpy())))
    padded = F.pad(x, (1, 1, 1, 1))
    for phase, weights_of_phase in enumerate(folded):
        row, column = divmod(phase, 2)
        reads = padded[:, :, row : row + 5, column : column + 6]
        out = F.conv2d(reads, weights_of_phase.permute(0, 3, 1, 2))
        np.testing.assert_allclose(out, expected[:, :, row::2, column::2], rtol=1e-12, atol=1e-12)


def test_tiles_cover_the_image_and_all_channels() -> None:
    tile = Tile(height=8, width=16, channels=128, rest=32)
    assert tile.count(16, 16) == 2
    assert tile.count(17, 33) == 9
    assert [tile.channel_blocks(c) for c in (3, 160, 161, 640)] == [1, 1, 2, 4]


@pytest.mark.parametrize("upsamples", [False, True])
def test_weights_are_prepared_for_the_kernels(upsamples: bool) -> None:
    g = torch.Generator().manual_seed(0)
    weights = torch.randn((6, 4, 3, 3), generator=g).half()
    prepared = prepare(weights.numpy(), upsamples=upsamples)
    last = weights.permute(0, 2, 3, 1).contiguous().numpy()
    expected = fold_upsampling(last.astype(np.float32)).astype(np.float16) if upsamples else last
    np.testing.assert_array_equal(prepared, expected)
    assert prepared.dtype == np.float16 and prepared.flags.c_contiguous
    assert prepare(weights.numpy()[0, 0, 0], upsamples=False).dtype == np.float32
