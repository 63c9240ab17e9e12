"""Data, weights and shortcuts of training, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmar.config import PATCH_NUMS_256, TokenizerConfig
from hmar.quant import Quantizer
from hmar.training.fast import MatrixQuantizer
from hmar.training.loop import lr_factor
from hmar.training.losses import scale_weights, ssim_loss, token_weights
from hmar.training.parts import PartPack
from hmar.training.quantize import CodeUsage, encode_with_errors, quantize_straight_through
from hmar.training.render import Renderer, held_out_pairs

TOKENIZER = TokenizerConfig(vocab_size=16, latent_channels=4)


@pytest.fixture
def quant() -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(TOKENIZER, PATCH_NUMS_256)


def test_matrix_upsampling_is_the_bicubic_one(quant: Quantizer) -> None:
    fast = MatrixQuantizer(quant)
    for pn in PATCH_NUMS_256:
        h = torch.randn(2, 4, pn, pn)
        torch.testing.assert_close(
            fast.upsample(h), quant.upsample(h), atol=1e-5, rtol=0
        )  # float32 sums


def test_straight_through_quantization_agrees_with_encode_and_passes_the_gradient(
    quant: Quantizer,
) -> None:
    f = torch.randn(2, 4, 16, 16, requires_grad=True)
    out = quantize_straight_through(quant, f)
    tokens, f_hats = quant.encode(f.detach())
    assert torch.equal(out.tokens, torch.cat(tokens, dim=1))
    torch.testing.assert_close(out.f_hat, f_hats[-1], atol=1e-5, rtol=0)
    out.f_hat.sum().backward()
    assert torch.equal(f.grad, torch.ones_like(f))


def test_errors_change_what_is_seen_and_what_follows_only(quant: Quantizer) -> None:
    f = torch.randn(3, 4, 16, 16)
    error = torch.zeros(3, 680, dtype=torch.bool)
    error[:, 1:5] = True  # the 2x2 scale
    targets, seen = encode_with_errors(quant, f, error)
    clean, _ = quant.encode(f)
    for k in (0, 1):
        assert torch.equal(targets[k], clean[k])
    assert torch.equal(seen[0], clean[0])
    assert torch.equal(seen[1], clean[1].roll(1, dims=0))
    assert not torch.equal(targets[2], clean[2])


def test_unused_codes_move_onto_residuals() -> None:
    usage = CodeUsage(4, torch.device("cpu"))
    usage.update_(torch.tensor([[0, 0, 1, 1]]))
    codebook, residuals = torch.zeros(4, 2), torch.ones(1, 4, 2)
    moved = usage.restart_(codebook, residuals, 0.03, torch.Generator().manual_seed(0))
    assert moved.tolist() == [False, False, True, True]
    assert codebook.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_scale_weights_sum_to_one_and_are_shared_by_tokens() -> None:
    weights = scale_weights(PATCH_NUMS_256, peak=12, sigma=1)
    assert sum(weights) == pytest.approx(1)
    assert max(weights) == weights[8]  # 13 is the patch number nearest to the peak
    assert token_weights(PATCH_NUMS_256, peak=12, sigma=1).sum().item() == pytest.approx(1)


def test_learning_rate_warms_up_and_cools_down() -> None:
    assert lr_factor(0, 0.0, warmup_steps=10, cooldown=0.5) == 0.1
    assert lr_factor(99, 0.4, warmup_steps=10, cooldown=0.5) == 1.0
    assert lr_factor(99, 0.75, warmup_steps=10, cooldown=0.5) == 0.5


def test_equal_images_have_no_structural_loss() -> None:
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert ssim_loss(image, image).item() == pytest.approx(0, abs=1e-5)


def test_held_out_pairs_leave_every_class_and_background_in_training() -> None:
    pairs = held_out_pairs(13, 20)
    assert (pairs.sum(axis=1) == 2).all()
    assert (pairs.sum(axis=0) < 13).all()


@pytest.fixture
def pack() -> PartPack:
    """Three classes without parts, 4 px, on six plain backgrounds."""
    grey = np.arange(6, dtype=np.uint8)[:, None, None, None] * 10
    return PartPack(
        parts=np.zeros((1, 4, 4, 4), np.uint8),
        slots=np.tile(np.array([[[0, 1]]], np.int32), (3, 1, 1)),
        backgrounds=np.broadcast_to(grey, (6, 4, 4, 3)).copy(),
    )


def test_renders_follow_seed_and_split(pack: PartPack) -> None:
    held_out = held_out_pairs(3, 6)
    for split, expected in (("train", False), ("held_out", True)):
        image, label = Renderer(pack, torch.device("cpu"), 0, split).batch(64)
        background = ((image[:, 0, 0, 0] + 1) * 12.75).round().long()
        assert (held_out[label.numpy(), background.numpy()] == expected).all()
    again, _ = Renderer(pack, torch.device("cpu"), 0, "held_out").batch(64)
    assert torch.equal(image, again)


def test_batches_are_balanced_and_sorted(pack: PartPack) -> None:
    renderer = Renderer(pack, torch.device("cpu"), 0)
    for _ in range(5):
        _, label = renderer.batch(12)
        assert label.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert set(renderer.batch(10)[1].bincount(minlength=3).tolist()) == {3, 4}


def test_class_weights_are_shares_of_a_batch(pack: PartPack) -> None:
    renderer = Renderer(pack, torch.device("cpu"), 0, class_weights=(1, 1, 3))
    _, label = renderer.batch(20)
    assert label.tolist() == [0] * 4 + [1] * 4 + [2] * 12


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0, 1.0)], ids=["too-few", "zero"])
def test_class_weights_must_be_one_positive_number_per_class(
    pack: PartPack, weights: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="expected 3 positive numbers"):
        Renderer(pack, torch.device("cpu"), 0, class_weights=weights)
