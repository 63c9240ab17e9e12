"""Sizes of HMAR, Hi-MAR and their autoencoders, and one preset per published model."""

from __future__ import annotations

from dataclasses import dataclass

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Multi-scale VQVAE: convolutional encoder and decoder around a residual quantizer.

    Attributes:
        vocab_size: codebook rows, V.
        latent_channels: channels of the latent map, Cvae.
        base_channels: channels at full resolution; level i has `base_channels * channel_mult[i]`.
        channel_mult: one factor per resolution level, finest first.
        num_res_blocks: residual blocks per encoder level (a decoder level has one more).
        num_phi: convolutions shared by the scales of the quantizer.
        phi_ratio: weight of the convolution in `phi(h) = (1 - r) h + r conv(h)`.
    """

    vocab_size: int = 4096
    latent_channels: int = 32
    base_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_phi: int = 4
    phi_ratio: float = 0.5

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HMARConfig:
    """Sizes of the transformer.

    Attributes:
        depth: blocks that one pass runs through: shared base plus one branch.
        branch_layers: blocks of the next-scale branch, and of the masked branch.
        embed_dim: width C.
        num_heads: attention heads; `embed_dim` must be divisible by it.
        patch_nums: side of the token map at every scale, coarse to fine.
        num_classes: classes, not counting the "no class" row of the embedding.
        vocab_size: V, as in the tokenizer.
        latent_channels: Cvae, as in the tokenizer.
        shared_aln: one modulation projection for all blocks (d36-s) instead of one per block.
        attn_l2_norm: unit-length q and k with a learned scale per head.
        has_mask_branch: False for a next-scale stage on its own.
        norm_eps: epsilon of the layer norms.
    """

    depth: int
    branch_layers: int
    embed_dim: int
    num_heads: int
    patch_nums: tuple[int, ...] = PATCH_NUMS_256
    num_classes: int = 1000
    vocab_size: int = 4096
    latent_channels: int = 32
    shared_aln: bool = False
    attn_l2_norm: bool = True
    has_mask_branch: bool = True
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if not 0 <= self.branch_layers <= self.depth:
            raise ValueError(f"branch_layers must be in 0..{self.depth}, got {self.branch_layers}")
        if len(self.patch_nums) < 2 or self.patch_nums[0] != 1:
            raise ValueError(
                f"patch_nums must start with 1 and have at least two scales, got {self.patch_nums}"
            )
        if any(b <= a for a, b in zip(self.patch_nums, self.patch_nums[1:], strict=False)):
            raise ValueError(f"patch_nums must increase, got {self.patch_nums}")

    @property
    def num_scales(self) -> int:
        return len(self.patch_nums)

    @property
    def seq_len(self) -> int:
        """Tokens of the whole pyramid, L."""
        return sum(pn * pn for pn in self.patch_nums)

    @property
    def base_layers(self) -> int:
        return self.depth - self.branch_layers

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def attn_scale(self) -> float:
        """Softmax scale: 1 with q/k L2 norm (a learned scale replaces it), else 0.25 / sqrt(d)."""
        return 1.0 if self.attn_l2_norm else 0.25 * self.head_dim**-0.5

    def scale_slices(self) -> tuple[slice, ...]:
        """Position range of every scale in the packed pyramid."""
        slices, start = [], 0
        for pn in self.patch_nums:
            slices.append(slice(start, start + pn * pn))
            start += pn * pn
        return tuple(slices)


def _preset(depth: int, patch_nums: tuple[int, ...], shared_aln: bool = False) -> HMARConfig:
    return HMARConfig(
        depth=depth,
        branch_layers=8,
        embed_dim=64 * depth,
        num_heads=depth,
        patch_nums=patch_nums,
        shared_aln=shared_aln,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KLVAEConfig:
    """Autoencoder of Hi-MAR: convolutional encoder and decoder around a Gaussian latent.

    Attributes:
        latent_channels: channels of the latent map, C.
        base_channels: channels at full resolution; level i has `base_channels * channel_mult[i]`.
        channel_mult: one factor per resolution level, finest first.
        num_res_blocks: residual blocks per encoder level (a decoder level has one more).
        latent_scale: tokens are latents times this.
    """

    latent_channels: int = 16
    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_scale: float = 0.2325

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HiMARConfig:
    """Sizes of Hi-MAR: masked encoder and decoder for both phases, and one denoiser per phase.

    Attributes:
        embed_dim: width D of encoder and decoder.
        encoder_depth, decoder_depth: blocks.
        encoder_heads, decoder_heads: attention heads; `embed_dim` must be divisible by both.
        pivot_side: side of the low-resolution grid of the first phase.
        dense_side: side of the grid of the second phase.
        token_channels: channels C of a token, as in the autoencoder.
        buffer_size: copies of the condition in front of the tokens.
        num_classes: rows of the class embedding; 0 = the caller gives a vector per image instead.
        mlp_depth, mlp_width: blocks and width of the pivots' denoiser.
        dit_depth, dit_width, dit_heads, dit_mlp_ratio: those of the dense tokens' denoiser.
        norm_eps: epsilon of the layer norms.
    """

    embed_dim: int
    encoder_depth: int
    decoder_depth: int
    encoder_heads: int
    decoder_heads: int
    mlp_depth: int
    mlp_width: int
    dit_depth: int
    dit_width: int
    dit_heads: int
    pivot_side: int = 8
    dense_side: int = 16
    token_channels: int = 16
    buffer_size: int = 64
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    dit_mlp_ratio: float = 4.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for width, heads in (
            ("embed_dim", "encoder_heads"),
            ("embed_dim", "decoder_heads"),
            ("dit_width", "dit_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width} {getattr(self, width)} is not a multiple of {heads} "
                    f"{getattr(self, heads)}"
                )
        # 4 * pivot_side steps, of which each predicts at least one pivot
        if self.pivot_side < 4:
            raise ValueError(f"pivot_side must be at least 4, got {self.pivot_side}")

    @property
    def num_pivots(self) -> int:
        return self.pivot_side**2

    @property
    def num_dense(self) -> int:
        return self.dense_side**2

    @property
    def num_tokens(self) -> int:
        """Positions of both grids, S: the pivots first."""
        return self.num_pivots + self.num_dense

    @property
    def pivot_steps(self) -> int:
        """Steps of the first phase."""
        return 4 * self.pivot_side


HIMAR_PRESETS: dict[str, HiMARConfig] = {
    "himar-base-256": HiMARConfig(
        embed_dim=768,
        encoder_depth=12,
        decoder_depth=12,
        encoder_heads=12,
        decoder_heads=12,
        mlp_depth=6,
        mlp_width=1024,
        dit_depth=6,
        dit_width=512,
        dit_heads=8,
    ),
    "himar-large-256": HiMARConfig(
        embed_dim=1024,
        encoder_depth=16,
        decoder_depth=16,
        encoder_heads=16,
        decoder_heads=16,
        mlp_depth=8,
        mlp_width=1280,
        dit_depth=8,
        dit_width=512,
        dit_heads=8,
    ),
    "himar-huge-256": HiMARConfig(
        embed_dim=1280,
        encoder_depth=20,
        decoder_depth=20,
        encoder_heads=16,
        decoder_heads=16,
        mlp_depth=12,
        mlp_width=1536,
        dit_depth=12,
        dit_width=768,
        dit_heads=12,
    ),
}

PRESETS: dict[str, HMARConfig | HiMARConfig] = HIMAR_PRESETS | {
    f"hmar-d{depth}{'-s' if shared else ''}-{16 * patch_nums[-1]}": _preset(
        depth, patch_nums, shared
    )
    for depth, shared in ((16, False), (20, False), (24, False), (30, False), (36, True))
    for patch_nums in (PATCH_NUMS_256, PATCH_NUMS_512)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSampling:
    """Sampling settings that a model was published with; see `hmar.reference.ReferenceConfig`."""

    cfg: float = 1.5
    top_k: int = 900
    top_p: float = 0.96


PUBLISHED_SAMPLING = {
    16: PublishedSampling(cfg=1.7, top_k=1000, top_p=0.99),
    20: PublishedSampling(cfg=1.9, top_k=950, top_p=0.99),
    24: PublishedSampling(cfg=2.1, top_k=900, top_p=0.99),
    30: PublishedSampling(cfg=1.7, top_k=1000, top_p=0.99),
}
"""By depth; other depths use the argument defaults."""


def preset_name(config: HMARConfig | HiMARConfig) -> str | None:
    """Name of the preset with exactly these sizes."""
    return next((name for name, preset in PRESETS.items() if preset == config), None)


def default_schedule(patch_nums: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The published mask schedule: masked passes at the 2x2 and 3x3 scales only."""
    published = {2: (1, 3), 3: (1, 1, 2, 5)}
    return tuple(published.get(pn, (pn * pn,)) for pn in patch_nums)
