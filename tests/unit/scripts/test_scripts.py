"""The command lines as a user runs them: help, results, and one line for each bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.images import CAPTION_PX
from tests.cases import Files, write_files
from tests.golden_data import Case
from tests.trace_check import compare_trace

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = [
    *("export.py", "generate.py", "verify.py", "make_recipe_checkpoint.py"),
    *("bench.py", "profile_step.py"),
]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"scripts/{script}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def fails(script: str, *arguments: object) -> str:
    """Stderr of a run that must fail with exit code 1 and without a traceback."""
    done = run(script, *arguments)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("files"), Case("tiny"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_teaches(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0
    assert f"python scripts/{script} " in done.stdout, "an example to copy"
    assert "(default: 0)" in done.stdout or script != "generate.py", "defaults are shown"


def test_generate_writes_a_grid_and_says_where(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    done = run(
        "generate.py", "--bundle", tiny_bundle, "--labels", "-1,2,1", "--seed", 3, "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout and "3 images of 64 px" in done.stdout
    with Image.open(out) as image:
        assert image.size == (128, 128)


def test_captions_and_columns(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    options = ("--labels", "1,2,3,4", "--columns", 4, "--captions")
    run("generate.py", "--bundle", tiny_bundle, *options, "--out", out)
    with Image.open(out) as image:
        assert image.size == (4 * 64, 64 + CAPTION_PX)
        caption = np.asarray(image)[64:, :64]
    assert (caption == 255).any() and (caption < 128).any(), "dark text on white"


def test_a_part_of_a_batch_can_be_drawn_again(tiny_bundle: Path, tmp_path: Path) -> None:
    all_three, last = tmp_path / "all.npz", tmp_path / "last.npz"
    common = ("--bundle", tiny_bundle, "--seed", 3, "--out", tmp_path / "x.png")
    run("generate.py", *common, "--labels", "1,2,7", "--trace", all_three)
    run("generate.py", *common, "--labels", "7", "--first-index", 2, "--trace", last)
    with np.load(all_three) as a, np.load(last) as b:
        np.testing.assert_array_equal(a["s3_tokens"][2:], b["s3_tokens"])


@pytest.mark.parametrize(
    "name", ["argmax_truncated", "uniform_topp", "argmax_nomask", "argmax_unconditional"]
)
def test_verification_options_reproduce_golden_traces(
    tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    entry, golden = Case("tiny").trace(name)
    call = entry["call"]
    labels = (
        call["labels"] if isinstance(call["labels"], list) else [call["labels"]] * call["batch"]
    )
    draws = Case("tiny").folder / entry["file"] if entry["mode"] == "uniform" else "argmax"
    schedule = json.dumps(call["mask_schedule"]) if call["mask"] else "none"
    trace = tmp_path / "trace.npz"
    done = run(
        "generate.py", "--bundle", tiny_bundle, f"--labels={','.join(map(str, labels))}",
        "--cfg", call["cfg"], "--top-k", call["top_k"], "--top-p", call["top_p"],
        "--schedule", schedule,
        "--draws", draws, "--trace", trace, "--trace-logits", "--out", tmp_path / "x.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(trace) as arrays:
        ours = dict(arrays)
    compare_trace(golden, ours)
    assert {"s1_ns_raw", "s1_ns_guided", "image"} <= set(ours)
    assert ours["image"].dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "10"], "label 10 is out of range: 0..9, or -1 for unconditional"),
        (
            ["--labels", "cat"],
            "or -1 for unconditional (this bundle has no class names)",
        ),
        (
            ["--labels", "1", "--schedule", "[[1],[1,3]]"],
            "mask_schedule has 2 entries, the model has 4 scales",
        ),
        (["--labels", "1", "--schedule", "[[1],[1,-3],[9],[16]]"], "mask_schedule[1]"),
        (
            ["--labels", "1", "--schedule", "often"],
            "is no name (default, fast, quality, cosine:N) and no JSON",
        ),
        (["--labels", "1", "--top-k", "65"], "top_k is 65, the vocabulary has 64 entries"),
        (["--labels", "1", "--top-p", "1.5"], "top_p must be in [0, 1]"),
        (["--labels", "1", "--cfg", "-1"], "cfg must be a finite number >= 0"),
        (["--labels", "1", "--seed", "-1"], "seed must be in"),
        (["--labels", "1", "--max-batch", "0"], "max_batch must be >= 1"),
        (["--labels", "1", "--draws", "nothing.npz"], "not an .npz file of uniforms"),
        (
            ["--labels", "1", "--context", "prefix", "--schedule", "[[1],[1,3],[9],[16]]"],
            "no masked passes",
        ),
        (["--labels", "1", "--backend", "ort-cuda"], "pip install onnxruntime-gpu"),
    ],
)
def test_generate_refuses(
    tiny_bundle: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "grid.png"
    assert message in fails("generate.py", "--bundle", tiny_bundle, "--out", out, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_uniforms_for_another_batch(tiny_bundle: Path, tmp_path: Path) -> None:
    draws = tmp_path / "u.npz"
    np.savez(draws, s0_ns_u=np.zeros((2, 1)))
    error = fails(
        "generate.py",
        "--bundle",
        tiny_bundle,
        "--labels",
        "1",
        "--draws",
        draws,
        "--out",
        tmp_path / "x.png",
    )
    assert "s0_ns_u is for 2 images, got 1 labels" in error


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/where.png", "does not exist"), (".", "is a folder"), ("grid.what", "suffix")],
)
def test_output_that_cannot_be_written(
    tiny_bundle: Path, tmp_path: Path, name: str, message: str
) -> None:
    error = fails("generate.py", "--bundle", tiny_bundle, "--labels", "1", "--out", tmp_path / name)
    assert message in error


def test_generate_from_a_damaged_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "graphs" / "cond.onnx").unlink()
    error = fails("generate.py", "--bundle", bundle, "--labels", "1", "--out", tmp_path / "x.png")
    assert "graphs/cond.onnx: missing" in error
    error = fails("generate.py", "--bundle", tmp_path, "--labels", "1", "--out", tmp_path / "x.png")
    assert "no bundle here" in error and "scripts/export.py" in error


def test_export_of_files_in_the_wrong_order(files: Files, tmp_path: Path) -> None:
    error = fails("export.py", "--ckpt", files.vae, "--vae", files.ckpt[0], "--out", tmp_path / "b")
    assert "expected a checkpoint of kind HMAR" in error and "found tokenizer" in error
    assert list(tmp_path.iterdir()) == []


def test_verify_measures_a_backend(tiny_bundle: Path, files: Files) -> None:
    arguments = ("--bundle", tiny_bundle, "--ckpt", files.ckpt[0], "--vae", files.vae)
    done = run("verify.py", *arguments, "--backend", "ort-cpu")
    assert done.returncode == 0, done.stderr
    assert "tokens by ort-cpu" in done.stdout and "encode" not in done.stdout
    (total,) = (line for line in done.stdout.splitlines() if line.startswith("all "))
    assert total.split() == ["all", "100.00%", "100.00%"]


def test_verify_prints_the_table(tiny_bundle: Path, files: Files, tmp_path: Path) -> None:
    report = tmp_path / "certificate.json"
    done = run(
        "verify.py",
        "--bundle",
        tiny_bundle,
        "--ckpt",
        files.ckpt[0],
        "--vae",
        files.vae,
        "--json",
        report,
    )
    assert done.returncode == 0, done.stderr
    assert "ns_s03_pn04" in done.stdout and done.stdout.strip().endswith(str(tiny_bundle))
    assert json.loads(report.read_text())["precision"] == "fp32"
