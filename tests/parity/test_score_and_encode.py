"""`score` and `encode` of a bundle against the golden pyramid pass and tokenizer."""

from __future__ import annotations

import numpy as np
import torch

from runtime.pipeline import Pipeline
from runtime.trajectory import condition
from tests.golden_data import Case, assert_close

LOGITS_ABS, F_HAT_ABS = 2e-5, 1e-6  # tests/golden/hmar/README.md


def golden_tokens(case: Case) -> list[np.ndarray]:
    return [case.modules[f"tf_s{k}_tokens"] for k in range(len(case.config["patch_nums"]))]


def golden_mask(case: Case, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.bool_)
    mask[:, case.modules["pyr_idx_to_mask"] + 1] = True  # indices count from the start of scale 1
    return mask


def test_score_graph_gives_the_golden_pyramid_logits(tiny: Case, tiny_pipeline: Pipeline) -> None:
    golden, runner = tiny.modules, tiny_pipeline.runner
    tokens = np.concatenate(golden_tokens(tiny), axis=1)
    feeds = {
        **condition(runner, golden["tf_labels"]),
        "tokens": tokens,
        "token_mask": golden_mask(tiny, tokens.shape),
    }
    out = {n: runner.numpy(v) for n, v in runner.run("score", feeds).items()}
    assert_close("ns", golden["pyr_ns_logits"], out["ns_logits"], max_abs=LOGITS_ABS)
    assert_close("mask", golden["pyr_mask_logits"], out["mask_logits"], max_abs=LOGITS_ABS)
    assert_close("x_ns", golden["pyr_x_ns"], out["map"], max_abs=F_HAT_ABS)
    assert_close("x_mask", golden["pyr_x_mask"], out["h"], max_abs=F_HAT_ABS)


def test_score_is_the_log_likelihood_of_the_tokens(tiny: Case, tiny_pipeline: Pipeline) -> None:
    golden, tokens = tiny.modules, golden_tokens(tiny)
    packed = np.concatenate(tokens, axis=1)
    scores = tiny_pipeline.score(
        tokens, golden["tf_labels"].tolist(), golden_mask(tiny, packed.shape)
    )
    for branch, log_prob in (("ns", scores.ns_log_prob), ("mask", scores.mask_log_prob)):
        full = torch.from_numpy(golden[f"pyr_{branch}_logits"]).double().log_softmax(-1).numpy()
        assert_close(
            branch,
            np.take_along_axis(full, packed[..., None], -1)[..., 0],
            log_prob,
            rms_ratio=1e-5,
        )


def test_encode_gives_the_golden_tokens(tiny: Case, tiny_pipeline: Pipeline) -> None:
    golden, runner = tiny.modules, tiny_pipeline.runner
    image = (golden["vae_img_int8"].astype(np.float32) / 127 + 1) / 2
    out = runner.run("encode", {"image": image})
    last = len(tiny.config["patch_nums"]) - 1
    expected = np.concatenate([golden[f"vae_s{k}_tokens"] for k in range(last + 1)], axis=1)
    np.testing.assert_array_equal(runner.numpy(out["tokens"]), expected)
    assert_close(
        "f_hat", golden[f"vae_s{last}_f_hat"], runner.numpy(out["f_hat"]), max_abs=2 * F_HAT_ABS
    )
    decoded = runner.numpy(runner.run("decode", {"f_hat": out["f_hat"]})["image"])
    assert_close("image", (golden["vae_img_rec"].clip(-1, 1) + 1) / 2, decoded, rms_ratio=5e-6)


def test_encode_of_pixels_splits_into_scales(tiny_pipeline: Pipeline) -> None:
    side = tiny_pipeline.manifest.hmar.image_side_px
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    tokens = tiny_pipeline.encode(images)
    assert [t.shape for t in tokens] == [
        (3, pn * pn) for pn in tiny_pipeline.manifest.hmar.patch_nums
    ]
