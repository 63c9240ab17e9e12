"""Pictures and masks of any size and mode, and one message for each that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import pictures
from scripts.pictures import Fit, Picture, keep_by_box, parse_box, read_mask, read_picture

SIDE = 16


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def picture(size: tuple[int, int]) -> Picture:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    return Picture(path=Path("in.png"), pixels=pixels, fit=Fit(size=size, side=SIDE), notes=())


def mask_file(tmp_path: Path, white: np.ndarray) -> Path:
    return save(tmp_path / "mask.png", Image.fromarray(white.astype(np.uint8) * 255))


def test_a_picture_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    read = read_picture(save(tmp_path / "a.png", Image.fromarray(pixels)), SIDE)
    np.testing.assert_array_equal(read.pixels, pixels)
    assert read.notes == ()


@pytest.mark.parametrize(
    ("size", "inner", "corner"),
    [((32, 32), (16, 16), (0, 0)), ((40, 20), (16, 8), (0, 4)), ((3, 100), (1, 16), (7, 0))],
)
def test_other_sizes_are_resized_and_padded(
    tmp_path: Path, size: tuple[int, int], inner: tuple[int, int], corner: tuple[int, int]
) -> None:
    read = read_picture(save(tmp_path / "a.png", Image.new("RGB", size, (9, 99, 199))), SIDE)
    assert (read.fit.inner, read.fit.corner) == (inner, corner)
    assert (read.pixels == (9, 99, 199)).all(), "the padding goes on with the edge"
    text = ", ".join(read.notes)
    assert f"resized from {size[0]}x{size[1]} to {inner[0]}x{inner[1]}" in text
    assert ("padded to 16x16" in text) == (inner != (16, 16))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "tiff", "YCbCr": "tiff"}.get(mode, "png")
    white = Image.new("RGB", (SIDE, SIDE), "white").convert(mode)
    read = read_picture(save(tmp_path / f"a.{suffix}", white), SIDE)
    assert (read.pixels == 255).all()


def test_transparent_parts_are_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (200, 0, 0, 0))
    image.putpixel((3, 2), (200, 0, 0, 255))
    read = read_picture(save(tmp_path / "a.png", image), SIDE)
    assert read.pixels[2, 3].tolist() == [200, 0, 0] and read.pixels[0, 0].tolist() == [255] * 3
    assert "laid over white" in read.notes[0]


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6  # the file's left side is the picture's top
    path = save(tmp_path / "a.png", image, exif=exif)
    read = read_picture(path, 8)
    assert read.fit.size == (4, 8) and "turned upright" in read.notes[0]
    assert read.pixels[0, 2 + 3].tolist() == [255] * 3 and read.pixels[0, 2].tolist() == [0] * 3


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), color) for color in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    read = read_picture(path, SIDE)
    assert read.pixels[0, 0].tolist() == [255, 0, 0] and read.notes == ("the first of 2 frames",)


def test_a_large_jpeg_is_decoded_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jpg", Image.new("RGB", (512, 256), (0, 128, 0)))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 64 * 32)
    read = read_picture(path, SIDE)
    assert read.fit.size == (512, 256) and read.fit.inner == (16, 8)


def test_large_pictures_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (90, 50)))
    whole = path.read_bytes()
    path.write_bytes(whole[:60])  # its size alone can be read
    monkeypatch.setattr(pictures, "MAX_PIXELS", 4000)
    with pytest.raises(ValueError, match=r"a\.png: too large \(90x50\), at most"):
        read_picture(path, SIDE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a\.png: too large .*make it smaller"):
        read_picture(path, SIDE)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (text := tmp_path / "a.png").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.png: not an image; give a PNG"):
        read_picture(text, SIDE)
    with pytest.raises(ValueError, match=r"none\.png: cannot be read .*No such file"):
        read_picture(tmp_path / "none.png", SIDE)
    with pytest.raises(ValueError, match="cannot be read"):
        read_picture(tmp_path, SIDE)
    whole = save(tmp_path / "b.png", Image.effect_noise((64, 64), 50)).read_bytes()
    text.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        read_picture(text, SIDE)
    deep = save(tmp_path / "c.png", Image.new("I;16", (SIDE, SIDE)))
    with pytest.raises(ValueError, match="of mode I;16, which is not read; convert it to 8-bit"):
        read_picture(deep, SIDE)


def test_a_mask_keeps_pixels_of_which_all_is_black(tmp_path: Path) -> None:
    white = np.zeros((32, 32), np.bool_)
    white[9, 4] = True
    keep = read_mask(mask_file(tmp_path, white), picture((32, 32)))
    assert not keep[4, 2] and keep.sum() == SIDE * SIDE - 1


def test_a_mask_turned_round_keeps_pixels_of_which_all_is_white(tmp_path: Path) -> None:
    white = np.zeros((32, 32), np.bool_)
    white[8:13, 4:9] = True
    keep = read_mask(mask_file(tmp_path, white), picture((32, 32)), is_outside=True)
    assert keep[4:6, 2:4].all() and keep.sum() == 4


def test_padding_is_never_kept(tmp_path: Path) -> None:
    white = np.zeros((8, 16), np.bool_)
    white[0, 0] = True
    keep = read_mask(mask_file(tmp_path, white), picture((16, 8)))
    assert not keep[:4].any() and not keep[12:].any() and keep[4:12].sum() == 16 * 8 - 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (8, 8), 255), "the mask is 8x8, the picture in.png is 16x16"),
        (Image.new("L", (16, 16), 255), "all white: nothing would be kept"),
        (Image.new("L", (16, 16), 0), "all black: nothing is marked"),
        (Image.new("RGBA", (16, 16)), "of mode RGBA, which is not read; save it as grey"),
    ],
    ids=["size", "white", "black", "mode"],
)
def test_masks_that_do_not_do(tmp_path: Path, image: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_mask(save(tmp_path / "mask.png", image), picture((16, 16)))


def test_boxes() -> None:
    keep = keep_by_box((4, 8, 8, 32), picture((32, 32)))
    assert not keep[4:, 2:4].any() and keep[:4].all() and keep[:, 4:].all()
    np.testing.assert_array_equal(
        keep_by_box((4, 8, 8, 32), picture((32, 32)), is_outside=True), ~keep
    )
    whole = keep_by_box((5, 8, 7, 32), picture((32, 32)))  # of the pixels it touches
    np.testing.assert_array_equal(whole, keep)
    inner = keep_by_box((5, 8, 9, 32), picture((32, 32)), is_outside=True)
    assert inner[4:, 3].all() and inner.sum() == 12


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((4, 4, 4, 8), "left < right <= 32"),
        ((0, 0, 33, 8), "left < right <= 32"),
        ((-1, 0, 3, 3), "left,top,right,bottom"),
        ((0, 0, 32, 32), "is all of in.png"),
    ],
)
def test_boxes_that_do_not_fit(box: pictures.Box, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_by_box(box, picture((32, 32)))


def test_boxes_are_four_integers() -> None:
    assert parse_box("1, 2,3,4") == (1, 2, 3, 4)
    for text in ("1,2,3", "a,b,c,d", "1,2,3,4,5", "1.5,2,3,4"):
        with pytest.raises(ValueError, match="a box is x0,y0,x1,y1, four integers, got"):
            parse_box(text)
