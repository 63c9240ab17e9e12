"""`scripts/generate.py` on Hi-MAR bundles: its own options, and those of the other family."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.families import OPTIONS, check_options
from scripts.himar_case import read_case
from scripts.himar_generate import parse_diffusion_steps
from tests.himar_golden import HIMAR_GOLDEN, HiMARCase

ROOT = Path(__file__).resolve().parents[3]
QUICK = ("--num-iter", 1, "--diffusion-steps", "2,2", "--threads", 1)


def generate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/generate.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("100,250", ("100", "250")),
        ("5,3,2,0:9,6,5,0", ("5,3,2,0", "9,6,5,0")),
        ("5,3,2,0; 9,6,5,0", ("5,3,2,0", "9,6,5,0")),
        ("100 4,3,3,0", ("100", "4,3,3,0")),
        ("5,3,2,0,9,6,5,0", ("5,3,2,0", "9,6,5,0")),
    ],
)
def test_diffusion_steps(text: str, steps: tuple[str, str]) -> None:
    assert parse_diffusion_steps(text) == steps


@pytest.mark.parametrize("text", ["100", "1,2,3", "1:2:3", ""])
def test_diffusion_steps_that_are_not_two(text: str) -> None:
    with pytest.raises(ValueError, match="such as 100,250 or 5,3,2,0:9,6,5,0"):
        parse_diffusion_steps(text)


@pytest.mark.parametrize("content", ["{", "[]", '{"sampler": {}}', None])
def test_case_that_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "case.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="case file"):
        read_case(path)


def test_options_of_the_other_family() -> None:
    plain = argparse.Namespace(**OPTIONS["hmar"], **OPTIONS["himar"])
    check_options(plain, "hmar")
    check_options(plain, "himar")
    plain.num_iter, plain.top_k = 4, 100
    with pytest.raises(ValueError, match=r"--num-iter: an option of Hi-MAR; this bundle is of HM"):
        check_options(plain, "hmar")
    with pytest.raises(ValueError, match=r"--top-k: an option of HMAR; this bundle is of Hi-MAR"):
        check_options(plain, "himar")


def test_golden_case_from_the_command_line(tiny_himar_bundle: Path, tmp_path: Path) -> None:
    golden, trace = HiMARCase("tiny_a.iter1"), tmp_path / "trace.npz"
    (label,) = golden.json["sampler"]["labels"]
    small = tmp_path / "small.png"
    done = generate(
        "--bundle", tiny_himar_bundle, "--labels", label, "--threads", 1,
        "--draws", HIMAR_GOLDEN / "tiny_a.iter1.json", "--trace", trace,
        "--small-out", small, "--out", tmp_path / "x.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(trace) as arrays:
        ours = dict(arrays)
    for name in ("p1.mask", "p1.tokens", "p2.mask", "p2.tokens", "small_tokens", "dense_tokens"):
        golden.check(name, ours[name])
    golden.check("image", ours["image"])
    expected = golden.arrays["small_image_64_uint8"][0].astype(int)
    with Image.open(small) as image:
        assert np.abs(np.asarray(image) - expected).max() <= 1


def test_vectors_and_one_line_for_bad_input(tiny_himar_bundle: Path, tmp_path: Path) -> None:
    vectors, out = tmp_path / "vectors.npy", tmp_path / "x.png"
    np.save(vectors, np.random.default_rng(0).standard_normal((2, 64)))
    common = ("--bundle", tiny_himar_bundle, "--out", out)
    done = generate(*common, "--cond", vectors, "--captions", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "2 images of 128 px" in done.stdout

    case = json.loads((HIMAR_GOLDEN / "tiny_a.iter1.json").read_text())
    (tmp_path / "case.json").write_text(json.dumps({**case, "sampler": {"bsz": 1}}))
    for arguments, message in (
        (("--labels", "10"), "label 10 is out of range: 0..9"),
        (("--labels", "1", "--draws", tmp_path / "case.json"), "the case has no 'num_iter'"),
        (
            ("--labels", "1,2", "--draws", tmp_path / "case.json"),
            "the case is for 1 images, got 2 labels",
        ),
    ):
        done = generate(*common, *arguments)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
        assert message in line


def test_hmar_refuses_options_of_himar(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    done = generate("--bundle", tiny_bundle, "--labels", 1, "--re-cfg", 2, "--out", out)
    assert done.returncode == 1
    assert "--re-cfg: an option of Hi-MAR; this bundle is of HMAR" in done.stderr
