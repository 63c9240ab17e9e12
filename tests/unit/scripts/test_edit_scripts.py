"""The command lines of editing and scoring as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from hmar.config import PRESETS, HMARConfig
from runtime.config import SamplingConfig
from runtime.editing import EditConfig
from runtime.pipeline import Pipeline
from scripts import (
    classify_demo,
    edit,
    edit_sheets,
    evaluate_edits,
    schedule_table,
    score,
)
from scripts.edit_tasks import TASKS, Task
from tests.unit.scripts.test_scripts import fails, run

BOX = ("--box", "8,8,24,32")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0)
    Image.fromarray(pixels.repeat(8, 1)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.mark.parametrize(
    "script",
    [edit, score, schedule_table, edit_sheets, evaluate_edits, classify_demo],
    ids=lambda script: script.__name__,
)
def test_help_teaches(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = f"{script.__name__.replace('.', '/')}.py"
    monkeypatch.setattr("sys.argv", [file, "--help"])
    with pytest.raises(SystemExit) as exit_:
        script.parse_args()
    assert exit_.value.code == 0
    assert f"python {file} " in capsys.readouterr().out, "an example to copy"


def test_edits_a_box_and_traces_it(
    tiny_bundle: Path, tiny_pipeline: Pipeline, image: Path, tmp_path: Path
) -> None:
    out, trace, strip = (tmp_path / name for name in ("out.png", "t.npz", "strip.png"))
    done = run(
        "edit.py", "--bundle", tiny_bundle, "--image", image, *BOX, "--label=-1,3", "--samples", 2,
        "--seed", 7, "--columns", 4, "--blend", "--out", out, "--trace", trace, "--strip", strip,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "note: " in done.stderr and "resized from 96x64 to 64x43, padded to 64x64" in done.stderr
    assert "4 images of 64 px" in done.stdout
    with Image.open(out) as sheet, Image.open(strip) as steps:
        assert sheet.size == (4 * 64, 64) and steps.size == (4 * 64, 4 * 64)
    with np.load(trace) as arrays:
        assert arrays["s3_tokens"].shape == arrays["edit_s3_given"].shape == (4, 16)
        kept = arrays["edit_s3_keep"]
        assert arrays["edit_s2_keep"].all() and not kept.all()  # three scales kept whole
        np.testing.assert_array_equal(arrays["s3_tokens"][kept], arrays["edit_s3_given"][kept])
        given = [arrays[f"edit_s{k}_given"] for k in range(4)]
        again = tiny_pipeline.edit(
            given,
            kept.reshape(4, 4, 4),
            [-1, -1, 3, 3],
            edit=EditConfig(keep_scales=3),
            seed=7,
            sampling=SamplingConfig(
                **{n: getattr(tiny_pipeline.defaults, n) for n in ("cfg", "top_k", "top_p")},
                mask_schedule=tiny_pipeline.defaults.mask_schedule,
                skip_guidance_below=0.0,
            ),
        )
        np.testing.assert_array_equal(
            again, np.rint(arrays["image"].transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        )


def test_given_tokens_and_a_keep_mask_by_the_published_method(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    keep, given, trace = (tmp_path / name for name in ("keep.npy", "given.npz", "t.npz"))
    np.save(keep, np.eye(4, dtype=np.bool_))
    tokens = {f"s{k}": np.full((2, n), k + 1) for k, n in enumerate((1, 4, 9, 16))}
    np.savez(given, **tokens)
    done = run(
        "edit.py", "--bundle", tiny_bundle, "--given", given, "--keep", keep, "--label", "1,2",
        "--method", "published", "--draws", "argmax", "--out", tmp_path / "x.png",
        "--trace", trace,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(trace) as arrays:
        for k in range(4):
            np.testing.assert_array_equal(arrays[f"edit_s{k}_given"], tokens[f"s{k}"])
        np.testing.assert_array_equal(arrays["edit_s3_keep"], [np.eye(4).ravel()] * 2)
        assert arrays["edit_s0_keep"].all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing says what to regenerate; give --mask, --box or --keep, or --keep-scales"),
        ([*BOX[:1], "0,0,99,9"], "box 0,0,99,9: must be left,top,right,bottom"),
        ([*BOX, "--label", "99"], "label 99 is out of range"),
        ([*BOX, "--method", "published", "--refine", "1"], 'belong to the method "known"'),
        (["--refine", "2", "--schedule", "fast"], "refining runs masked passes"),
        ([*BOX, "--samples", "0"], "--samples must be >= 1"),
        ([*BOX, "--blend", "65"], "feather_px is 65, images have 64 px"),
        ([*BOX, "--animate", "a.avi"], "animations are .gif or .webp"),
    ],
)
def test_edit_refuses(
    tiny_bundle: Path,
    image: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = image.parent / "out.png"
    common = ["--bundle", str(tiny_bundle), "--image", str(image), "--out", str(out)]
    label = [] if "--label" in arguments else ["--label", "1"]
    monkeypatch.setattr("sys.argv", ["edit.py", *common, *label, *arguments])
    with pytest.raises(ValueError) as error:
        edit.main()
    assert message in str(error.value)
    assert not out.exists()


def test_errors_are_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    (text := tmp_path / "in.png").write_text("no picture")
    line = fails(
        "edit.py", "--bundle", tiny_bundle, "--image", text, "--box", "0,0,1,1", "--label", "1",
        "--out", tmp_path / "out.png",
    )  # fmt: skip
    assert "in.png: not an image" in line


def test_pictures_and_labels_are_paired() -> None:
    maps = [np.array([[5], [6]])]
    images, labels = edit.rows(maps, [1], 2)
    assert images[0].ravel().tolist() == [5, 5, 6, 6] and labels == [1] * 4
    images, labels = edit.rows([np.array([[5]])], ["a", "b"], 1)
    assert images[0].ravel().tolist() == [5, 5] and labels == ["a", "b"]
    with pytest.raises(ValueError, match="2 pictures for 3 labels"):
        edit.rows(maps, [1, 2, 3], 1)


def test_score_ranks_pictures(tiny_bundle: Path, image: Path, tmp_path: Path) -> None:
    report = tmp_path / "s.json"
    done = run(
        "score.py", "--bundle", tiny_bundle, "--labels", "-1,4,7", "--top", 2, "--json", report,
        image, image,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second and first.startswith(f"{image}: ") and first.count("(") == 2
    scores = json.loads(report.read_text())[0]["log_likelihood"]
    assert set(scores) == {"-1", "4", "7"} and len(scores["4"]) == 4
    best = max(scores, key=lambda label: sum(scores[label]))
    assert first.startswith(f"{image}: {best} ")


def test_schedule_costs_against_numbers_by_hand() -> None:
    config = PRESETS["hmar-d16-256"]
    assert isinstance(config, HMARConfig)
    assert schedule_table.costs(config, "fast")[:2] == (0, 0)
    assert schedule_table.costs(config, "default")[:2] == (1 + 3, 3 + 8 + 7 + 5)
    fast, default = (schedule_table.costs(config, name)[2] for name in ("fast", "default"))
    passes = [(4, 1)] + [(9, 1)] * 3
    assert default - fast == sum(schedule_table.pass_flops(config, n, l) for l, n in passes)
    per_token = 16 * 24 * 1024**2 + 2 * 1024 * 4096
    assert schedule_table.pass_flops(config, 2, 9) == 18 * (per_token + 4 * 9 * 1024 * 16)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_demo_tasks_tell_nothing_of_what_is_outside_a_kept_box(task: Task) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
    changed = np.where(task.keep[..., None], images, 255 - images)
    np.testing.assert_array_equal(task.given(images)[:, task.keep], images[:, task.keep])
    is_told = (task.given(images) != task.given(changed)).any()
    assert is_told == (not task.keeps_box)
