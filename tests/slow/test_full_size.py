"""The full-size d16 model at 256 px against its golden traces, through the command lines.

    python -m pytest tests/slow --slow --golden-dir DIR -s

DIR holds d16_256.json and its .npz files. Takes about five minutes and 7 GB of disk on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.base import StepRunner
from runtime.bundle import Bundle
from runtime.pipeline import Pipeline
from runtime.trajectory import condition
from tests.checkpoints import write_pth
from tests.command_line import peak_bytes, run
from tests.golden_data import Case

pytestmark = pytest.mark.slow


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


@pytest.fixture(scope="module")
def bundle(files: tuple[Path, Path]) -> Path:
    out = files[0].parent / "bundle"
    run("export.py", "--ckpt", files[0], "--vae", files[1], "--out", out)
    return out


def test_size_and_memory(files: tuple[Path, Path], bundle: Path) -> None:
    checkpoint = sum(f.stat().st_size for f in files)
    assert peak_bytes() <= 2.5 * checkpoint
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


@pytest.fixture(scope="module")
def runner(bundle: Path) -> Iterator[StepRunner]:
    with Pipeline.load(bundle, "ort-cpu", check_weights=False) as pipeline:
        yield pipeline.runner


def check_logits(name: str, golden: dict[str, np.ndarray], logits: np.ndarray) -> None:
    """Compares with the stored probes, and with the argmax wherever it is no close call."""
    probe = logits[tuple(golden[f"{name}_probe_index"].T)]
    assert np.abs(probe - golden[f"{name}_probe"]).max() < 1e-4, name
    if f"{name}_argmax" in golden:
        flipped = logits.argmax(-1) != golden[f"{name}_argmax"]
        assert golden[f"{name}_gap"][flipped].max(initial=0) < 1e-4, name


def test_score(case: Case, runner: StepRunner) -> None:
    golden = case.modules
    slices = case.hmar_config.scale_slices()
    tokens = np.concatenate([golden[f"tf_s{k}_tokens"] for k in range(len(slices))], axis=1)
    mask = np.zeros(tokens.shape, np.bool_)
    mask[:, golden["pyr_idx_to_mask"] + 1] = True  # indices count from the start of scale 1
    feeds = {**condition(runner, golden["tf_labels"]), "tokens": tokens, "token_mask": mask}
    out = runner.run("score", feeds)
    for branch in ("ns", "mask"):
        logits = runner.numpy(out[f"{branch}_logits"])
        flipped = logits.argmax(-1) != golden[f"pyr_{branch}_argmax"]
        assert golden[f"pyr_{branch}_gap"][flipped].max(initial=0) < 1e-4
        for k, positions in enumerate(slices):
            check_logits(f"pyr_{branch}_s{k}", golden, logits[:, positions])


def test_teacher_forced_steps(case: Case, runner: StepRunner) -> None:
    golden, patch_nums = case.modules, case.config["patch_nums"]
    labels = golden["tf_labels"].tolist()
    cond = condition(runner, [*labels, *[case.config["num_classes"]] * len(labels)])
    f_hat: Any = np.zeros_like(golden["tf_f_hat"])
    operands: dict[str, np.ndarray] = {}
    for k, pn in enumerate(patch_nums):
        tokens = golden[f"tf_s{k}_tokens"].reshape(-1, pn, pn)
        check_logits(f"tf_s{k}_ns", golden, run_step(runner, "ns", k, operands, cond))
        if k > 0:
            mask = np.zeros((len(labels), pn * pn), np.bool_)
            np.put_along_axis(mask, golden[f"tf_s{k}_m1_idx_to_mask"], True, axis=1)
            h = runner.numpy(
                runner.run(runner.manifest.graph("mask_input", k), {"tokens": tokens})["h"]
            )
            masked = {
                **operands,
                "h": np.concatenate((h, h)),
                "token_mask": np.concatenate((mask, mask)),
            }
            check_logits(f"tf_s{k}_m1", golden, run_step(runner, "mask", k, masked, cond))
        out = runner.run(runner.manifest.graph("quant", k), {"tokens": tokens, "f_hat": f_hat})
        f_hat = out["f_hat_out"]
        if "map" in out:
            operands = {"map": np.concatenate([runner.numpy(out["map"])] * 2)}
    assert np.abs(runner.numpy(f_hat) - golden["tf_f_hat"]).max() < 6e-6


def run_step(
    runner: StepRunner, kind: Any, k: int, operands: dict[str, Any], cond: dict[str, Any]
) -> np.ndarray:
    graph = runner.manifest.graph(kind, k)
    inputs = [i.name for i in runner.manifest.graphs[graph].inputs]
    return runner.numpy(runner.run(graph, {n: {**cond, **operands}[n] for n in inputs})["logits"])


def test_tokenizer(case: Case, runner: StepRunner) -> None:
    golden = case.modules
    out = runner.run("encode", {"image": (golden["vae_img_int8"].astype(np.float32) / 127 + 1) / 2})
    tokens = runner.numpy(out["tokens"])
    for k, positions in enumerate(case.hmar_config.scale_slices()):
        np.testing.assert_array_equal(
            tokens[:, positions], golden[f"vae_s{k}_tokens"], err_msg=f"scale {k}"
        )
    image = runner.numpy(runner.run("decode", {"f_hat": out["f_hat"]})["image"]) * 2 - 1
    assert np.abs(image - golden["vae_img_rec_f16"].astype(np.float32).clip(-1, 1)).max() < 2e-3
