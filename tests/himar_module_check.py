"""Comparison of Hi-MAR's modules with golden arrays, stored whole (tiny) or as probes (real size).

Every array of these files is compared, except inputs and the samplings of the tiny case.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmar.diffusion_head import guided_noise, sinusoids
from hmar.himar import PHASES
from hmar.himar_reference import to_map
from hmar.kl_vae import gaussian
from hmar.quant import flatten_map
from tests.himar_golden import HiMARCase

CLASS = 3  # of the first row of the stage inputs; the second has none


@torch.inference_mode()
def check_transformer(case: HiMARCase) -> None:
    """Blocks, and encoder and decoder of both phases."""
    model, config = case.model, case.model.config
    D, P, N, C = config.embed_dim, config.num_pivots, config.num_dense, config.token_channels
    block_x = case.drawn("block", (2, 13, D))
    for task, phase in enumerate(PHASES):
        for side, ada, block in (
            ("enc", model.encoder_ada(phase), model.encoder_blocks[0]),
            ("dec", model.decoder_ada(phase), model.decoder_blocks[-1]),
        ):
            case.check(f"{side}_ada.task{task}", ada)
            out = block(block_x, block.modulation(ada, task))
            case.check(f"{side}_block.task{task}", out)

    tokens, pivots, small_z = (
        case.drawn(name, (2, *shape))
        for name, shape in (("tokens", (N, C)), ("pivots", (P, C)), ("small_z", (P, D)))
    )
    cond_RD = model.cond([CLASS, -1])
    known_dense = case.tensor("stage2.known").long() + P
    known = {
        "pivot": case.tensor("stage1.known").long(),
        "dense": torch.cat((torch.arange(P).expand(2, -1), known_dense), dim=1),
    }
    for stage, phase, given in ((1, "pivot", pivots), (2, "dense", small_z)):
        enc_in = model.encoder_input(phase, cond_RD, given, tokens, known[phase])
        enc_out = model.encode(phase, enc_in)
        dec_in = model.decoder_input(phase, enc_out, known[phase])
        dec_out = model.decode(phase, dec_in)
        for name, value in (
            ("enc_in", enc_in),
            ("enc_out", enc_out),
            ("dec_in", dec_in),
            ("dec_out", dec_out),
        ):
            case.check(f"stage{stage}.{name}", value)
        whole = model(phase, cond_RD, given, tokens, known[phase])
        assert torch.equal(whole, dec_out)


@torch.inference_mode()
def check_mlp_denoiser(case: HiMARCase) -> None:
    """Time embedding, a block, and a call without and with guidance."""
    denoiser, config = case.model.pivot_denoiser, case.model.config
    C, call = config.token_channels, case.json["mlp_cfg_call"]
    x, z = case.drawn("mlp.x", (6, 1, C)), case.drawn("mlp.c", (6, 1, config.embed_dim))
    time, cond = denoiser.time(case.tensor("mlp.t")), denoiser.cond(z)
    h, y = denoiser.input_proj(x), time + cond
    case.check("mlp.t_freq", sinusoids(case.tensor("mlp.t")).float())
    case.check("mlp.t_emb", time.squeeze(1))
    case.check("mlp.res0_x", h.squeeze(1))
    case.check("mlp.res0_y", y.squeeze(1))
    case.check("mlp.res0_out", denoiser.res_blocks[0](h, y).squeeze(1))
    case.check("mlp.out", denoiser(x, time, cond).squeeze(1))

    time = denoiser.time(torch.tensor([call["t"]]))
    out = guided_noise(denoiser, x[:3], time, cond, call["cfg_scale"])
    # the reference also returns the unconditional half: the same noise, with its own variance
    uncond = denoiser(x[:3], time, cond[3:])
    rest = torch.cat((out[..., :C], uncond[..., C:]), dim=-1)
    case.check("mlp.out_cfg", torch.cat((out, rest)).squeeze(1))


@torch.inference_mode()
def check_dit_denoiser(case: HiMARCase) -> None:
    """Time embedding, a block, and a call without and with guidance."""
    denoiser, config = case.model.dense_denoiser, case.model.config
    G, call = config.dense_side, case.json["dit_cfg_call"]
    x = flatten_map(case.drawn("dit.x", (4, config.token_channels, G, G)))
    z = flatten_map(case.drawn("dit.z", (4, config.embed_dim, G, G)))
    time, cond = denoiser.time(case.tensor("dit.t")), denoiser.cond(z)
    h, y = denoiser.x_embedder(x) + denoiser.pos_embed, time + cond
    case.check("dit.t_emb", time.squeeze(1))
    case.check("dit.block0_x", h)
    case.check("dit.block0_c", y)
    case.check("dit.block0_out", denoiser.blocks[0](h, y))
    case.check("dit.out", to_map(denoiser(x, time, cond), G))

    time = denoiser.time(torch.tensor([call["t"]]))
    out = guided_noise(denoiser, x[:2], time, cond, call["cfg_scale"])
    case.check("dit.out_cfg", to_map(out.repeat(2, 1, 1), G))


@torch.inference_mode()
def check_vae(case: HiMARCase) -> None:
    """Decoding of every latent and encoding of every image of an autoencoder case."""
    vae = case.vae
    C, scale = vae.config.latent_channels, vae.config.latent_scale
    for name, (B, h, w) in case.json["latents"].items():
        latent = case.drawn(f"vae.z.{name}", (B, C, h, w), 1 / scale)
        case.check(f"decoder_in.{name}", vae.post_quant_conv(latent))
        case.check(f"decoded.{name}", vae.decode_latent(latent))
        assert torch.equal(vae.decode(latent * scale), vae.decode_latent(latent * scale / scale))
    for name, (B, H, W) in case.json["images"].items():
        image = case.drawn(f"vae.x.{name}", (B, 3, H, W), 0.5)
        noise = case.noise(0, (B, C, H // vae.config.downsampling, W // vae.config.downsampling))
        moments = vae.moments(image)
        mean, std = gaussian(moments)
        sample: Tensor = vae.encode(image, noise) / scale
        for key, value in (("moments", moments), ("mean", mean), ("std", std), ("sample", sample)):
            case.check(f"{key}.{name}", value)
