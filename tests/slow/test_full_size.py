"""The full-size d16 model at 256 px against its golden traces, through the command lines.

    python -m pytest tests/slow --slow --golden-dir DIR -s

DIR holds d16_256.json and its .npz files. Takes about five minutes and 7 GB of disk on two cores.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import Bundle
from tests.checkpoints import write_pth
from tests.golden_data import Case

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    folder = request.config.getoption("--golden-dir")
    if folder is None:
        pytest.skip("give the folder of the full-size traces: --golden-dir DIR")
    return Case("d16_256", folder)


@pytest.fixture(scope="module")
def files(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("d16")
    return write_pth(folder, "hmar", case.config), write_pth(folder, "vae", case.config)


def run(script: str, *arguments: object) -> str:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, f"scripts/{script}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    seconds = time.perf_counter() - start
    print(f"\n{script}: {seconds:.1f} s, peak so far {peak / 1e6:.2f} GB\n{done.stdout}")
    return done.stdout


@pytest.fixture(scope="module")
def bundle(files: tuple[Path, Path]) -> Path:
    out = files[0].parent / "bundle"
    run("export.py", "--ckpt", files[0], "--vae", files[1], "--out", out)
    return out


def test_size_and_memory(files: tuple[Path, Path], bundle: Path) -> None:
    checkpoint = sum(f.stat().st_size for f in files)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak <= 2.5 * checkpoint
    weights = Bundle.open(bundle).manifest.weights.nbytes
    assert sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file()) <= 1.02 * weights


@pytest.mark.parametrize("name", ["argmax", "topk1", "uniform"])
def test_trace_is_token_identical(case: Case, bundle: Path, tmp_path: Path, name: str) -> None:
    entry, golden = case.trace(name)
    call, trace = entry["call"], tmp_path / "trace.npz"
    run(
        "generate.py", "--bundle", bundle, "--labels", ",".join(map(str, call["labels"])),
        "--cfg", call["cfg"], "--top-k", call["top_k"], "--top-p", call["top_p"],
        "--draws", case.folder / entry["file"] if entry["mode"] == "uniform" else "argmax",
        "--trace", trace, "--out", tmp_path / "grid.png",
    )  # fmt: skip
    with np.load(trace) as ours:
        for draw in entry["draws"]:
            for array in ("drawn", "tokens"):
                key = f"{draw}_{array}"
                np.testing.assert_array_equal(ours[key], golden[key], err_msg=key)
            if f"{draw}_idx_to_mask" in golden:
                key = f"{draw}_idx_to_mask"
                np.testing.assert_array_equal(
                    np.sort(ours[key], 1), np.sort(golden[key], 1), err_msg=key
                )
        for k in range(len(case.config["patch_nums"])):
            # the reference's own float32 run is 2.7e-6 from float64 here ("stability" in the JSON)
            assert np.abs(ours[f"s{k}_f_hat"] - golden[f"s{k}_f_hat"]).max() < 6e-6
        assert (
            np.abs(ours["image"] - golden["image_f16"].astype(np.float32)).max() < 1e-3
        )  # float16 steps


def test_modules(case: Case) -> None:
    """Blocks and the teacher-forced pyramid of the full-size model, by the PyTorch reference."""
    import torch

    from hmar import reference
    from tests.golden_data import assert_close

    golden, model = case.modules, case.model
    x, cond = (torch.from_numpy(golden[n]) for n in ("block_x", "block_cond"))
    with torch.no_grad():
        for key in [
            k
            for k in golden
            if k.startswith("block_") and k.endswith("_out") and "pyramid" not in k
        ]:
            name = key.removeprefix("block_").removesuffix("_out")
            if name.endswith(("_attn", "_ffn")):
                continue
            block = model.get_submodule(name)
            assert_close(name, golden[key], block(x, block.modulation(cond))[0], rms_ratio=5e-6)
    tokens = [
        torch.from_numpy(golden[f"tf_s{k}_tokens"]).long()
        for k in range(len(case.config["patch_nums"]))
    ]
    mask = torch.zeros(tokens[0].shape[0], case.config["L"], dtype=torch.bool)
    mask[:, torch.from_numpy(golden["pyr_idx_to_mask"]).long() + 1] = True
    scores = reference.score(model, case.tokenizer, golden["tf_labels"].tolist(), tokens, mask)
    for branch in ("ns", "mask"):
        logits = scores[f"{branch}_logits"]
        flipped = logits.argmax(-1).numpy() != golden[f"pyr_{branch}_argmax"]
        assert golden[f"pyr_{branch}_gap"][flipped].max(initial=0) < 1e-4
        assert_close(
            f"gap {branch}",
            golden[f"pyr_{branch}_gap"],
            -torch.diff(logits.topk(2).values)[..., 0],
            rms_ratio=1e-4,
        )
