"""Every array of the golden module files, by the PyTorch model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmar import reference
from hmar.layers import Block, modulate
from hmar.quant import Quantizer, flatten_map
from tests.golden_data import Case, assert_close, fill

LOGITS_ABS = 2e-5  # tests/golden/hmar/README.md, "How to use it"
F_HAT_ABS = 1e-6


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def as_map(flat_Blc: torch.Tensor) -> torch.Tensor:
    side = round(flat_Blc.shape[1] ** 0.5)
    return flat_Blc.transpose(1, 2).unflatten(2, (side, side))


BLOCKS = ["base_blocks.0", "ns_blocks.0", "ns_blocks.1", "mask_blocks.0"]


@pytest.mark.parametrize("name", BLOCKS)
def test_block(tiny: Case, name: str) -> None:
    golden = tiny.modules
    block: Block = tiny.model.get_submodule(name)
    x, cond = tensor(golden["block_x"]), tensor(golden["block_cond"])
    with torch.no_grad():
        ada = block.modulation(cond)
        gamma1, _, scale1, scale2, shift1, shift2 = ada.unbind(2)
        attn_in = modulate(x, scale1, shift1, block.eps)
        attn_out, _ = block.attn(attn_in)
        ffn_in = modulate(x + gamma1 * attn_out, scale2, shift2, block.eps)
        results = {
            "attn_in": attn_in,
            "attn_out": attn_out,
            "ffn_in": ffn_in,
            "ffn_out": block.ffn(ffn_in),
            "out": block(x, ada)[0],
        }
    for key in results:
        assert_close(f"{name} {key}", golden[f"block_{name}_{key}"], results[key])


def test_block_over_the_pyramid_sees_its_own_scale_only(tiny: Case) -> None:
    golden, patch_nums = tiny.modules, tiny.config["patch_nums"]
    scale = torch.cat([torch.full((pn * pn,), k) for k, pn in enumerate(patch_nums)])
    block: Block = tiny.model.ns_blocks[0]
    with torch.no_grad():
        ada = block.modulation(tensor(golden["block_cond"]))
        out, _ = block(tensor(golden["block_pyramid_x"]), ada, scale[:, None] == scale[None, :])
    assert_close("pyramid", golden["block_ns_blocks.0_pyramid_out"], out)


@pytest.mark.parametrize("branch", ["ns", "mask"])
def test_head(tiny: Case, branch: str) -> None:
    golden = tiny.modules
    with torch.no_grad():
        out = tiny.model.head(tensor(golden["block_x"]), tensor(golden["block_cond"]), branch)
    assert_close(branch, golden[f"head_{branch}_logits"], out, max_abs=LOGITS_ABS)


@pytest.mark.parametrize("case_name", ["tiny", "d16_256"])
def test_interpolation_between_scale_grids(case_name: str) -> None:
    case = Case(case_name)
    golden = case.arrays(case.json.get("interp", case.json["modules"]))
    patch_nums = case.config["patch_nums"]
    with torch.device("meta"):
        quant = Quantizer(case.tokenizer_config, patch_nums)
    shapes_only = torch.nn.Module()
    shapes_only.quantize = quant
    quant = fill(shapes_only, case.config["vae_seed"]).quantize
    f_hat = tensor(golden["interp_f_hat"])
    assert list(quant.phi_index) == case.json["phi_index"]
    for k, pn in enumerate(patch_nums):
        h = tensor(golden[f"interp_s{k}_h"])
        with torch.no_grad():
            f_hat_out = quant.commit(f_hat, h, k)
            results = {
                "f_hat_out": f_hat_out,
                "mask_f_hat": quant.downsample(f_hat, pn),
                "mask_h": quant.masked_h(h, k),
            }
            if k + 1 < len(patch_nums):
                results["next"] = quant.downsample(f_hat_out, patch_nums[k + 1])
        for key, value in results.items():
            assert_close(f"s{k} {key}", golden[f"interp_s{k}_{key}"], value, max_abs=F_HAT_ABS)


def test_teacher_forced_generation(tiny: Case) -> None:
    golden, patch_nums = tiny.modules, tiny.config["patch_nums"]
    seen: dict[str, torch.Tensor] = {}
    forced = reference.draw_forced(
        {f"s{k}": golden[f"tf_s{k}_tokens"] for k in range(len(patch_nums))}
    )
    config = reference.ReferenceConfig(cfg=1.5)
    labels = golden["tf_labels"].tolist()
    reference.generate(tiny.model, tiny.tokenizer, labels, config, forced, seen.__setitem__)
    quant, model = tiny.tokenizer.quantize, tiny.model
    cond = model.cond(reference.guided_labels(model, labels))
    for k, positions in enumerate(model.config.scale_slices()):
        assert_close(f"s{k} ns x", golden[f"tf_s{k}_ns_x"], seen[f"s{k}_ns_x"])
        assert_close(
            f"s{k} ns", golden[f"tf_s{k}_ns_logits"], seen[f"s{k}_ns_raw"], max_abs=LOGITS_ABS
        )
        if k + 1 < len(patch_nums):
            assert_close(
                f"s{k} next", golden[f"tf_s{k}_next"], seen[f"s{k}_next"], max_abs=F_HAT_ABS
            )
        if k == 0:
            continue
        tokens = tensor(golden[f"tf_s{k}_tokens"]).long()
        idx = tensor(golden[f"tf_s{k}_m1_idx_to_mask"]).long()
        token_mask = torch.zeros(tokens.shape, dtype=torch.bool).scatter(1, idx, True)
        f_hat_in = as_map(flatten_map(seen[f"s{k - 1}_next"]))
        with torch.no_grad():
            h_in = quant.masked_h(quant.lookup(tokens), k)
            x = model.mask_input(
                flatten_map(f_hat_in).repeat(2, 1, 1),
                flatten_map(h_in).repeat(2, 1, 1),
                token_mask.repeat(2, 1),
                positions,
            )
            logits = model(x, cond, "mask")
        assert_close(f"s{k} f_hat_in", golden[f"tf_s{k}_m1_f_hat_in"], f_hat_in, max_abs=F_HAT_ABS)
        assert_close(f"s{k} h_in", golden[f"tf_s{k}_m1_h_in"], h_in, max_abs=F_HAT_ABS)
        assert_close(f"s{k} mask x", golden[f"tf_s{k}_m1_x"], x)
        assert_close(f"s{k} mask", golden[f"tf_s{k}_m1_logits"], logits, max_abs=LOGITS_ABS)
    last = len(patch_nums) - 1
    assert_close("f_hat", golden["tf_f_hat"], seen[f"s{last}_f_hat"], max_abs=F_HAT_ABS)


def pyramid_tokens(
    golden: dict[str, np.ndarray], num_scales: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    tokens = [tensor(golden[f"tf_s{k}_tokens"]).long() for k in range(num_scales)]
    mask = torch.zeros(tokens[0].shape[0], sum(t.shape[1] for t in tokens), dtype=torch.bool)
    mask[:, tensor(golden["pyr_idx_to_mask"]).long() + 1] = (
        True  # indices count from the start of scale 1
    )
    return tokens, mask


def test_score_over_the_pyramid(tiny: Case) -> None:
    golden, labels = tiny.modules, tiny.modules["tf_labels"].tolist()
    tokens, mask = pyramid_tokens(golden, len(tiny.config["patch_nums"]))
    with torch.no_grad():
        x_ns, x_mask = tiny.tokenizer.quantize.teacher_maps(tokens)
    assert_close("x_ns", golden["pyr_x_ns"], x_ns, max_abs=F_HAT_ABS)
    assert_close("x_mask", golden["pyr_x_mask"], x_mask, max_abs=F_HAT_ABS)
    ns_logits = reference.score_ns(tiny.model, labels, x_ns)
    mask_logits = reference.score_masked(tiny.model, labels, x_ns, x_mask, mask)
    assert_close("ns_logits", golden["pyr_ns_logits"], ns_logits, max_abs=LOGITS_ABS)
    assert_close("mask_logits", golden["pyr_mask_logits"], mask_logits, max_abs=LOGITS_ABS)


def test_tokenizer(tiny: Case) -> None:
    golden, vae = tiny.modules, tiny.tokenizer
    image = tensor(golden["vae_img_int8"].astype(np.float32) / 127)
    with torch.no_grad():
        latent = vae.latent(image)
        tokens, f_hats = vae.quantize.encode(latent)
        # against float64 the golden is 1.5e-6 off and PyTorch on an AVX2 machine 2.1e-6
        assert_close("latent", golden["vae_f"], latent, rms_ratio=5e-6)
        for k in range(len(tokens)):
            np.testing.assert_array_equal(
                tokens[k], golden[f"vae_s{k}_tokens"], err_msg=f"scale {k}"
            )
            assert_close(f"s{k} f_hat", golden[f"vae_s{k}_f_hat"], f_hats[k], max_abs=2 * F_HAT_ABS)
        assert_close(
            "reconstruction", golden["vae_img_rec"], vae.decode(f_hats[-1]), rms_ratio=5e-6
        )
