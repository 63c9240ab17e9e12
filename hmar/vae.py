"""The multi-scale VQVAE around the quantizer: convolutional encoder and decoder.

Parameter names are those of the published tokenizer. Images are (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmar.config import KLVAEConfig, TokenizerConfig
from hmar.quant import Quantizer, flatten_map


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


def pointwise(conv: nn.Conv2d, x_BlC: Tensor) -> Tensor:
    """A 1x1 convolution as the matrix product that it is.

    TensorRT-RTX 1.4 has no kernel for a group norm followed by a 1x1 convolution on SM 9.0.
    """
    return F.linear(x_BlC, conv.weight.flatten(1), conv.bias)


class AttnBlock(nn.Module):
    """Single-head attention over all positions, scale channels ** -0.5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        q, k, v = pointwise(self.qkv, flatten_map(self.norm(x_BChw))).chunk(3, dim=-1)
        attn_Bll = torch.softmax((q @ k.transpose(1, 2)) * x_BChw.shape[1] ** -0.5, dim=-1)
        o_BlC = pointwise(self.proj_out, attn_Bll @ v)
        return x_BChw + o_BlC.transpose(1, 2).reshape(x_BChw.shape)


Attention = Callable[[int], nn.Module]
"""Channels -> attention block: `AttnBlock`, or one with another layout of its parameters."""


class Mid(nn.Module):
    def __init__(self, channels: int, attention: Attention) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halves the side; pads right and bottom by one zero row and column."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the side by nearest neighbour, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, with attention after each if one is given."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, attention: Attention | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(in_channels if i == 0 else out_channels, out_channels)
            for i in range(num_blocks)
        )
        self.attn = nn.ModuleList(
            attention(out_channels) for _ in range(num_blocks if attention else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class Encoder(nn.Module):
    """Image to latent map; attends at the lowest resolution."""

    def __init__(
        self, config: TokenizerConfig | KLVAEConfig, out_channels: int, attention: Attention
    ) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (cin, cout) in enumerate(zip([config.base_channels, *widths], widths, strict=False)):
            level = Level(cin, cout, config.num_res_blocks, attention if i == last else None)
            if i != last:
                level.downsample = Downsample(cout)
            self.down.append(level)
        self.mid = Mid(widths[-1], attention)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for i, level in enumerate(self.down):
            h = level(h)
            if i != len(self.down) - 1:
                h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent map to image; attends in the middle and, if told, at the lowest resolution."""

    def __init__(
        self,
        config: TokenizerConfig | KLVAEConfig,
        attention: Attention,
        level_attention: Attention | None,
    ) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Mid(widths[-1], attention)
        self.up = nn.ModuleList()
        for i, (cin, cout) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            level_attn = level_attention if i == last else None
            level = Level(cin, cout, config.num_res_blocks + 1, level_attn)
            if i != 0:
                level.upsample = Upsample(cout)
            self.up.append(level)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latent))
        for i in reversed(range(len(self.up))):
            h = self.up[i](h)
            if i != 0:
                h = self.up[i].upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class VQVAE(nn.Module):
    """Tokenizer: image -> token maps of all scales, and `f_hat` -> image."""

    def __init__(self, config: TokenizerConfig, patch_nums: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        C = config.latent_channels
        self.encoder = Encoder(config, C, AttnBlock)
        self.decoder = Decoder(config, AttnBlock, AttnBlock)
        self.quantize = Quantizer(config, patch_nums)
        self.quant_conv = nn.Conv2d(C, C, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(C, C, 3, padding=1)

    def latent(self, image_B3HW: Tensor) -> Tensor:
        """Latent map (B, Cvae, P, P) of images in [-1, 1], before quantization."""
        return self.quant_conv(self.encoder(image_B3HW))

    def decode(self, f_hat_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] (clamped), (B, 3, 16P, 16P)."""
        return self.decoder(self.post_quant_conv(f_hat_BCHW)).clamp(-1, 1)
