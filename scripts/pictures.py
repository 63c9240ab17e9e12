"""Pictures and masks of any size and mode, read into the model's square."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from runtime.regions import kept_in_cells

MAX_PIXELS = 40_000_000  # decoded; some 400 MB with what reading needs beside them
ORIENTATION = 0x0112  # EXIF: values from 5 on swap width and height
PICTURE_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
MASK_MODES = ("1", "L", "P", "RGB")
MASK_THRESHOLD = 128  # from here on, a mask is white
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How an upright picture lies in a square: resized to its longer side, centred.

    Attributes:
        size: width and height of the picture.
        side: of the square, in pixels.
    """

    size: tuple[int, int]
    side: int

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height in the square."""
        width, height = (max(1, round(n * self.side / max(self.size))) for n in self.size)
        return width, height

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top in the square."""
        return (self.side - self.inner[0]) // 2, (self.side - self.inner[1]) // 2

    def place(self, inner_hw: np.ndarray) -> np.ndarray:
        """A mask of the resized picture in the square; what lies around the picture is False."""
        square = np.zeros((self.side, self.side), np.bool_)
        (left, top), (width, height) = self.corner, self.inner
        square[top : top + height, left : left + width] = inner_hw
        return square


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture in the model's square.

    Attributes:
        path: of the file.
        pixels: (side, side, 3) uint8; the picture's edges go on into the padding.
        fit: how it lies there.
        notes: what was done to it, for the user.
    """

    path: Path
    pixels: np.ndarray
    fit: Fit
    notes: tuple[str, ...]


def read_picture(path: Path, side: int) -> Picture:
    """A picture of any size, made upright, laid over white where transparent, resized and padded.

    Raises:
        ValueError: the file is no picture, of an unknown mode, damaged, or too large.
    """
    loaded = _load(path, PICTURE_MODES, "convert it to 8-bit RGB or grey", side)
    image, notes = loaded.image, loaded.notes
    if image.has_transparency_data:
        notes.append("laid over white, where it is transparent")
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    fit = Fit(size=loaded.size, side=side)
    resized = image.convert("RGB").resize(fit.inner, Image.Resampling.LANCZOS)
    if fit.inner != fit.size:
        notes.append(f"resized from {_by(fit.size)} to {_by(fit.inner)}")
    if fit.inner != (side, side):
        notes.append(f"padded to {side}x{side}")
    (left, top), (width, height) = fit.corner, fit.inner
    around = ((top, side - height - top), (left, side - width - left), (0, 0))
    pixels = np.pad(np.asarray(resized), around, mode="edge")
    return Picture(path=path, pixels=pixels, fit=fit, notes=tuple(notes))


def read_mask(path: Path, picture: Picture, *, is_outside: bool = False) -> np.ndarray:
    """What to keep of a picture, (side, side) boolean, from a mask of the picture's size.

    White is regenerated, or black if `is_outside`; so is the padding. Of pixels that are resized to
    one, all must be kept.

    Raises:
        ValueError: the mask is no picture, of another size or mode, too large, or all of one
            colour.
    """
    loaded = _load(path, MASK_MODES, "save it as grey: white where to regenerate")
    if loaded.size != picture.fit.size:
        raise ValueError(
            f"{path}: the mask is {_by(loaded.size)}, the picture {picture.path} is "
            f"{_by(picture.fit.size)}; make the mask of the picture's size"
        )
    is_white = np.asarray(loaded.image.convert("L")) >= MASK_THRESHOLD
    if is_white.all() or not is_white.any():
        what = "white: nothing would be kept" if is_white.all() else "black: nothing is marked"
        raise ValueError(f"{path}: the mask is all {what}; white is regenerated, black is kept")
    keep_hw = is_white if is_outside else ~is_white
    width, height = picture.fit.inner
    return picture.fit.place(kept_in_cells(kept_in_cells(keep_hw, height, 0), width, 1))


def keep_by_box(box: Box, picture: Picture, *, is_outside: bool = False) -> np.ndarray:
    """What to keep of a picture, (side, side) boolean: all but a box, or the box alone.

    Raises:
        ValueError: the box is empty, reaches out of the picture, or is all of it.
    """
    x0, y0, x1, y1 = box
    (width, height), inner = picture.fit.size, picture.fit.inner
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"box {x0},{y0},{x1},{y1}: must be left,top,right,bottom with left < right <= {width} "
            f"and top < bottom <= {height}, in pixels of {picture.path}"
        )
    if box == (0, 0, width, height):
        raise ValueError(f"box {x0},{y0},{x1},{y1}: is all of {picture.path}; give a smaller one")
    in_row = kept_in_cells(_inside(x0, x1, width, is_outside), inner[0], 0)
    in_column = kept_in_cells(_inside(y0, y1, height, is_outside), inner[1], 0)
    both = np.logical_and if is_outside else np.logical_or
    return picture.fit.place(both.outer(in_column, in_row))


def parse_box(text: str) -> Box:
    """A box from `x0,y0,x1,y1`.

    Raises:
        ValueError: the text is not four integers.
    """
    try:
        x0, y0, x1, y1 = map(int, text.split(","))
    except ValueError as error:
        raise ValueError(f"a box is x0,y0,x1,y1, four integers, got {text!r}") from error
    return x0, y0, x1, y1


def _inside(first: int, end: int, length: int, is_kept: bool) -> np.ndarray:
    place = np.arange(length)
    return ((place >= first) & (place < end)) == is_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """An upright image, the file's upright size, and what was done."""

    image: Image.Image
    size: tuple[int, int]
    notes: list[str]


def _load(path: Path, modes: Sequence[str], advice: str, draft_px: int | None = None) -> _Loaded:
    """Decodes a file after checking its size and mode.

    Args:
        modes: that are read; `advice` says what to do with others.
        draft_px: a JPEG may be decoded smaller, to no less than this side.
    """
    notes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we are stricter
            opened = Image.open(path)
        with opened as image:
            size = image.size
            if draft_px is not None:
                image.draft("RGB", (draft_px, draft_px))
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, _by(image.size))
            if image.mode not in modes:
                raise ValueError(f"{path}: of mode {image.mode}, which is not read; {advice}")
            image.load()
            if getattr(image, "n_frames", 1) > 1:
                notes.append(f"the first of {image.n_frames} frames")
            orientation = image.getexif().get(ORIENTATION, 1)
            upright = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image; give a PNG, JPEG, WebP or the like") from error
    except (OSError, SyntaxError) as error:  # Pillow's of damaged files
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
    if orientation != 1:
        notes.append("turned upright, as its EXIF data says")
    return _Loaded(image=upright, size=size[::-1] if orientation >= 5 else size, notes=notes)


def _too_large(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path}: too large ({found}), at most {MAX_PIXELS // 10**6} million pixels are decoded; "
        "make it smaller first"
    )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
