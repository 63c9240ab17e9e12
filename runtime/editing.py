"""Editing settings, and the tokens that an edit gives to the scale loop."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from runtime.bundle import ModelSpec
from runtime.given import KeptTokens, ReplacedTokens
from runtime.philox import MAX_PASSES
from runtime.regions import known_tokens, published_tokens, spread
from runtime.schedule import Schedule, masked_counts

EditMethod = Literal["known", "published"]
EDIT_METHODS: tuple[str, ...] = get_args(EditMethod)
TOKEN_NAMES = ("edit_s{k}_given", "s{k}", "s{k}_tokens", "vae_s{k}_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class EditConfig:
    """Settings of one edit.

    Attributes:
        method: "known" keeps every token whose whole cell is kept, in all passes. "published" is
            the procedure published for VAR: the mask resized to each scale, and tokens replaced
            after the generation of a scale.
        dilation_px: the region to regenerate grows by so many pixels on all sides.
        keep_scales: the first so many scales are kept whole: what is regenerated then varies
            from the given image in detail only.
        refine_rounds: 0 draws the region anew. From 1, it starts from the given tokens, and the
            masked passes run so often; each predicts the tokens that the model finds least likely.
        feather_px: put the kept pixels back, with a seam of so many pixels inside the region;
            None = the image as it is decoded.
    """

    method: EditMethod = "known"
    dilation_px: int = 0
    keep_scales: int = 0
    refine_rounds: int = 0
    feather_px: int | None = None

    def __post_init__(self) -> None:
        if self.method not in EDIT_METHODS:
            raise ValueError(f"method must be one of {EDIT_METHODS}, got {self.method!r}")
        for name in ("dilation_px", "keep_scales", "refine_rounds", "feather_px"):
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not is_count and not (name == "feather_px" and value is None):
                raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
        if self.method == "published" and (self.keep_scales or self.refine_rounds):
            raise ValueError(
                'keep_scales and refine_rounds belong to the method "known"; the published '
                f"procedure has neither, got {self.keep_scales} and {self.refine_rounds}"
            )

    def check(self, model: ModelSpec, schedule: Schedule | None) -> None:
        """Compares the settings with a model and a checked schedule.

        Raises:
            ValueError: a setting does not fit them.
        """
        for name, value in (("dilation_px", self.dilation_px), ("feather_px", self.feather_px)):
            if value is not None and value > model.image_side_px:
                raise ValueError(f"{name} is {value}, images have {model.image_side_px} px")
        scales = len(model.patch_nums)
        if self.keep_scales > scales:
            raise ValueError(f"keep_scales is {self.keep_scales}, the model has {scales} scales")
        if not self.refine_rounds:
            return
        passes = [
            len(masked_counts(entry, pn * pn)) if k >= self.keep_scales else 0
            for k, (entry, pn) in enumerate(zip(schedule or (), model.patch_nums, strict=False))
        ]
        if not any(passes):
            raise ValueError(
                "refining runs masked passes, and the schedule has none at the scales that are not "
                "kept; take another, such as quality, or a smaller keep_scales"
            )
        if self.refine_rounds * max(passes) >= MAX_PASSES:
            raise ValueError(
                f"refine_rounds is {self.refine_rounds}: with {max(passes)} masked passes in a "
                f"round, a scale would have more than {MAX_PASSES - 1}"
            )


def keep_pixels(keep: np.ndarray, batch: int, model: ModelSpec) -> np.ndarray:
    """A keep mask of pixels, (B, side, side), from one of pixels or of the finest tokens.

    Args:
        keep: boolean, True = keep: (n, n) for all images or (B, n, n), where n is the image side in
            pixels or the last patch number.

    Raises:
        ValueError: another shape or dtype.
    """
    side, P = model.image_side_px, model.patch_nums[-1]
    wanted = {(*lead, n, n) for lead in ((), (batch,)) for n in (side, P)}
    if keep.dtype != np.bool_ or keep.shape not in wanted:
        raise ValueError(
            f"keep must be boolean, ({side}, {side}) pixels or ({P}, {P}) tokens, for all images "
            f"or with the {batch} images first; got {keep.shape} {keep.dtype}"
        )
    repeat = side // keep.shape[-1]
    pixels = keep.repeat(repeat, axis=-2).repeat(repeat, axis=-1)
    return np.broadcast_to(pixels, (batch, side, side))


def given_tokens(
    tokens: Sequence[np.ndarray], keep_BHW: np.ndarray, patch_nums: Sequence[int], edit: EditConfig
) -> KeptTokens | ReplacedTokens:
    """What the scale loop takes, from token maps of all scales and a keep mask of pixels."""
    keep_BHW = ~spread(~keep_BHW, edit.dilation_px)
    if edit.method == "published":
        P = patch_nums[-1]
        keep_BPP = known_tokens(keep_BHW, P).reshape(-1, P, P)
        kept = [published_tokens(keep_BPP, pn) for pn in patch_nums]
        return ReplacedTokens(tokens=tokens, kept=kept)
    kept = [known_tokens(keep_BHW, pn) | (k < edit.keep_scales) for k, pn in enumerate(patch_nums)]
    return KeptTokens(
        tokens=tokens,
        kept=kept,
        starts_given=edit.refine_rounds > 0,
        rounds=max(1, edit.refine_rounds),
    )


def load_tokens(path: Path, patch_nums: Sequence[int]) -> list[np.ndarray]:
    """Token maps of all scales, each (B, pn*pn), from an `.npz` file.

    For scale k the file holds `edit_s{k}_given` (a trace of an edit), `s{k}`, `s{k}_tokens` (a
    trace of a generation) or `vae_s{k}_tokens`; the first of these names that all scales have.

    Raises:
        ValueError: the file is not an `.npz` file, or holds no integer maps of these sizes.
    """
    arrays = _load(path, "an .npz file of token maps")
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"{path}: holds one array; give an .npz file of token maps")
    for pattern in TOKEN_NAMES:
        names = [pattern.format(k=k) for k in range(len(patch_nums))]
        if all(name in arrays for name in names):
            break
    else:
        raise ValueError(
            f"{path}: holds no token maps of {len(patch_nums)} scales; expected arrays named "
            f"{', '.join(p.format(k=0) for p in TOKEN_NAMES)} and so on, found {sorted(arrays)[:8]}"
        )
    tokens = [arrays[name] for name in names]
    shapes = [(len(tokens[0]), pn * pn) for pn in patch_nums]
    if [t.shape for t in tokens] != shapes or any(t.dtype.kind not in "iu" for t in tokens):
        raise ValueError(
            f"{path}: {names[0]} and so on must be integers of shapes {shapes}, "
            f"got {[(t.shape, str(t.dtype)) for t in tokens]}"
        )
    return tokens


def load_keep(path: Path) -> np.ndarray:
    """A keep mask from an `.npy` file; `keep_pixels` checks its shape.

    Raises:
        ValueError: the file is not an `.npy` file, or not boolean.
    """
    keep = _load(path, "an .npy file of a boolean mask")
    if not isinstance(keep, np.ndarray) or keep.dtype != np.bool_:
        found = f"{keep.dtype} numbers" if isinstance(keep, np.ndarray) else "several arrays"
        raise ValueError(f"{path}: holds {found}, wanted a boolean array, True = keep, as .npy")
    return keep


def _load(path: Path, wanted: str) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not {wanted} ({error})") from error
