"""The KL-16 autoencoder of Hi-MAR: image to Gaussian latent, and latent to image.

Parameter names are those of the published file. Images are (B, 3, H, W) in [-1, 1]; tokens are
latents times `config.latent_scale`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmar.config import KLVAEConfig
from hmar.quant import flatten_map
from hmar.vae import Decoder, Encoder, group_norm, pointwise

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class SplitAttnBlock(nn.Module):
    """`hmar.vae.AttnBlock` with separate projections for queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h_BlC = flatten_map(self.norm(x_BChw))
        q, k, v = (pointwise(conv, h_BlC) for conv in (self.q, self.k, self.v))
        attn_Bll = torch.softmax((q @ k.transpose(1, 2)) * x_BChw.shape[1] ** -0.5, dim=-1)
        o_BlC = pointwise(self.proj_out, attn_Bll @ v)
        return x_BChw + o_BlC.transpose(1, 2).reshape(x_BChw.shape)


def gaussian(moments_B2Chw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (B, C, h, w), of the encoder's moments."""
    mean, log_variance = moments_B2Chw.chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE))


class KLVAE(nn.Module):
    """Autoencoder: image -> Gaussian over tokens, and tokens -> image."""

    def __init__(self, config: KLVAEConfig) -> None:
        super().__init__()
        self.config = config
        C = config.latent_channels
        self.encoder = Encoder(config, 2 * C, SplitAttnBlock)
        self.decoder = Decoder(config, SplitAttnBlock, level_attention=None)
        self.quant_conv = nn.Conv2d(2 * C, 2 * C, 1)
        self.post_quant_conv = nn.Conv2d(C, C, 1)

    def moments(self, image_B3HW: Tensor) -> Tensor:
        """Mean and log-variance of the latent, (B, 2C, H/16, W/16)."""
        return self.quant_conv(self.encoder(image_B3HW))

    def encode(self, image_B3HW: Tensor, noise_BChw: Tensor) -> Tensor:
        """Tokens drawn for images, (B, C, H/16, W/16); zero noise gives the mean."""
        mean, std = gaussian(self.moments(image_B3HW))
        return (mean + std * noise_BChw) * self.config.latent_scale

    def decode_latent(self, latent_BChw: Tensor) -> Tensor:
        """Images of latents, not clamped, (B, 3, 16h, 16w)."""
        return self.decoder(self.post_quant_conv(latent_BChw))

    def decode(self, tokens_BChw: Tensor) -> Tensor:
        """Images of tokens, not clamped, (B, 3, 16h, 16w)."""
        return self.decode_latent(tokens_BChw / self.config.latent_scale)
