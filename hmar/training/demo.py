"""The three stages of the demo checkpoint: build, resume, train, save, publish, preview."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hmar.checkpoint import check_pair, load_hmar, load_tokenizer
from hmar.config import HMARConfig, TokenizerConfig
from hmar.hmar import HMAR
from hmar.reference import ReferenceConfig
from hmar.training.config import LoopConfig, StageName, TokenizerLossConfig, TransformerLossConfig
from hmar.training.fast import use_matrix_quantizer_
from hmar.training.initial import init_hmar_, start_mask_branch_
from hmar.training.parts import PartPack
from hmar.training.preview import save_samples
from hmar.training.publish import save_hmar, save_tokenizer
from hmar.training.render import Renderer, Split
from hmar.training.tokenizer_stage import TokenizerStage, evaluate_reconstruction
from hmar.training.transformer_stage import TransformerStage
from hmar.vae import VQVAE

logger = logging.getLogger(__name__)

TOKENIZER_FILE, HMAR_FILE = "tokenizer.safetensors", "hmar.safetensors"
EVALUATION_SEED = 1_000_000  # pictures that no training run draws
STEP_SEEDS = 10_007  # a run that starts at another step sees other pictures
# Per scale, positions predicted again in each masked pass; an entry's first number is not used.
PREVIEW_MASK_SCHEDULE = (
    (1,),
    (1, 3),
    (1, 4, 4),
    (1, 8, 8),
    (1, 12, 8),
    (1, 18, 12),
    (64,),
    (100,),
    (169,),
    (256,),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """Where a run reads and writes.

    Attributes:
        data: packed parts.
        out: folder for state files, published files and sheets.
        resume: folder with state files of the same stage to go on from.
        init_from: folder with published files: first weights where nothing is resumed, and the
            frozen parts of later stages.
    """

    data: Path
    out: Path
    resume: Path | None = None
    init_from: Path | None = None

    def published(self, name: str) -> Path | None:
        """The published file to start from, if there is one."""
        path = None if self.init_from is None else self.init_from / name
        return path if path is not None and path.is_file() else None

    def required(self, name: str, stage: StageName) -> Path:
        """The published file that a stage needs."""
        path = self.published(name)
        if path is None:
            raise ValueError(
                f"the {stage} stage needs {name}; pass the folder that holds it as --init-from"
            )
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewConfig:
    """What is made at the end of a run, beside the weights.

    Attributes:
        num_reconstructions: pictures reconstructed per split after the tokenizer stage.
        samples_per_class: pictures of the sample sheet.
        cfg: guidance of the samples.
        top_k: largest number of tokens kept.
        top_p: nucleus.
        seed: of the samples.
    """

    num_reconstructions: int = 1040
    samples_per_class: int = 8
    cfg: float = 1.5
    top_k: int = 600
    top_p: float = 0.95
    seed: int = 0


def train_tokenizer(
    files: RunFiles,
    sizes: TokenizerConfig,
    patch_nums: tuple[int, ...],
    config: LoopConfig,
    preview: PreviewConfig,
) -> None:
    """Trains the tokenizer; writes state, `tokenizer.safetensors` and reconstruction sheets."""
    files.out.mkdir(parents=True, exist_ok=True)
    pack, device = PartPack.load(files.data), torch.device(config.device)
    torch.manual_seed(config.seed)
    source = files.published(TOKENIZER_FILE)
    tokenizer = VQVAE(sizes, patch_nums) if source is None else load_tokenizer(source, patch_nums)
    use_matrix_quantizer_(tokenizer)
    tokenizer = tokenizer.to(device).train().requires_grad_(True)
    stage = TokenizerStage(
        tokenizer, _renderer(pack, device, config, 0), config, TokenizerLossConfig()
    )
    if files.resume is not None:
        stage.trainer.resume(files.resume)
        stage.renderer = _renderer(pack, device, config, stage.trainer.step)
    stage.run()
    stage.trainer.save(files.out)
    averaged = stage.trainer.ema.eval()
    save_tokenizer(files.out / TOKENIZER_FILE, averaged)
    splits: tuple[Split, ...] = ("train", "held_out")
    for split in splits:
        report = evaluate_reconstruction(
            averaged,
            Renderer(pack, device, EVALUATION_SEED, split),
            preview.num_reconstructions,
            files.out / f"reconstructions_{split}.png",
        )
        logger.info(
            "reconstruction, %s pairs: PSNR %.2f dB, L1 %.4f", split, report.psnr_db, report.l1
        )


def train_next_scale(
    files: RunFiles,
    sizes: HMARConfig,
    config: LoopConfig,
    losses: TransformerLossConfig,
    preview: PreviewConfig,
) -> None:
    """Trains base and next-scale branch; writes state, `hmar.safetensors` and a sample sheet."""
    source = files.published(HMAR_FILE)
    torch.manual_seed(config.seed)
    if source is None:
        model = HMAR(replace(sizes, has_mask_branch=False))
        init_hmar_(model)
    else:
        model = _without_mask_branch(load_hmar([source]))
    _train_transformer(files, model, "next-scale", config, losses, preview)


def train_masked(
    files: RunFiles, config: LoopConfig, losses: TransformerLossConfig, preview: PreviewConfig
) -> None:
    """Trains the masked branch; writes state, `hmar.safetensors` and sample sheets."""
    torch.manual_seed(config.seed)
    model = load_hmar([files.required(HMAR_FILE, "masked")])
    if not model.config.has_mask_branch:
        shared = model.state_dict()
        model = HMAR(replace(model.config, has_mask_branch=True))
        model.load_state_dict(shared, strict=False)
        start_mask_branch_(model)
    _train_transformer(files, model, "masked", config, losses, preview)


def _train_transformer(
    files: RunFiles,
    model: HMAR,
    name: StageName,
    config: LoopConfig,
    losses: TransformerLossConfig,
    preview: PreviewConfig,
) -> None:
    files.out.mkdir(parents=True, exist_ok=True)
    pack, device = PartPack.load(files.data), torch.device(config.device)
    tokenizer = load_tokenizer(files.required(TOKENIZER_FILE, name), model.config.patch_nums)
    check_pair(model, tokenizer)
    use_matrix_quantizer_(tokenizer)
    tokenizer = tokenizer.to(device)
    stage = TransformerStage(
        "ns" if name == "next-scale" else "mask",
        model.to(device).train(),
        tokenizer,
        _renderer(pack, device, config, 0, losses.class_weights),
        config,
        losses,
    )
    if files.resume is not None:
        stage.trainer.resume(files.resume)
        stage.renderer = _renderer(pack, device, config, stage.trainer.step, losses.class_weights)
    stage.run()
    stage.trainer.save(files.out)
    averaged = stage.trainer.ema.eval()
    save_hmar(files.out / HMAR_FILE, averaged)
    labels = [label for label in range(pack.num_classes) for _ in range(preview.samples_per_class)]
    sampling = ReferenceConfig(cfg=preview.cfg, top_k=preview.top_k, top_p=preview.top_p)
    sheets = {"samples": sampling}
    if averaged.config.has_mask_branch:
        sheets["samples_masked"] = replace(
            sampling, mask_schedule=PREVIEW_MASK_SCHEDULE[: averaged.config.num_scales]
        )
    for sheet, settings in sheets.items():
        path = files.out / f"{sheet}.png"
        save_samples(
            averaged, tokenizer, labels, preview.samples_per_class, settings, preview.seed, path
        )


def _renderer(
    pack: PartPack,
    device: torch.device,
    config: LoopConfig,
    step: int,
    class_weights: tuple[float, ...] | None = None,
) -> Renderer:
    seed = config.seed * STEP_SEEDS + step
    return Renderer(pack, device, seed, class_weights=class_weights)


def _without_mask_branch(model: HMAR) -> HMAR:
    if not model.config.has_mask_branch:
        return model
    bare = HMAR(replace(model.config, has_mask_branch=False))
    bare.load_state_dict(model.state_dict(), strict=False)
    return bare
