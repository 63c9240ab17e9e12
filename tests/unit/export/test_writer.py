"""What a bundle holds, and what is left on disk when an export does not finish."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import ExportConfig, OutputError, ParityError, export_bundle, verify_bundle
from export import writer as writer_module
from export.weights import WeightsFile
from hmar.errors import CheckpointValueError
from runtime.bundle import Bundle
from tests.cases import Files, write_files
from tests.checkpoints import state_dict
from tests.golden_data import Case

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("files"), Case("tiny"))


def export(files: Files, out: Path, *, verify: bool = False) -> None:
    export_bundle(ExportConfig(verify=verify), files.ckpt, files.vae, out)


# --- what a bundle holds -------------------------------------------------------------------------


def test_every_file_is_in_the_manifest(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    listed = {g.file for g in manifest.graphs.values()} | {
        "graphs/weights.bin",
        "certificate.json",
        "manifest.json",
    }
    assert {
        str(f.relative_to(tiny_bundle)) for f in tiny_bundle.rglob("*") if f.is_file()
    } == listed
    assert [s.file for s in manifest.sources] == ["hmar.pth", "vae.pth"]


def test_one_graph_per_scale_step(tiny_bundle: Path) -> None:
    graphs = set(Bundle.open(tiny_bundle).manifest.graphs)
    scales = [(0, 1), (1, 2), (2, 3), (3, 4)]
    expected = {f"{kind}_s{k:02d}_pn{pn:02d}" for kind in ("ns", "quant") for k, pn in scales}
    expected |= {
        f"{kind}_s{k:02d}_pn{pn:02d}" for kind in ("mask", "mask_input") for k, pn in scales[1:]
    }
    expected |= {
        "cond",
        "embed_first",
        "embed_ns",
        "embed_mask",
        "ns_trunk",
        "mask_trunk",
        "ns_prefix",
    }
    assert graphs == expected | {"decode", "encode", "score"}


def test_graphs_share_the_weights_file(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert sum(g.nbytes for g in manifest.graphs.values()) < 0.02 * manifest.weights.nbytes
    used = set()
    for spec in manifest.graphs.values():
        model = onnx.load(tiny_bundle / spec.file, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                external = {e.key: e.value for e in tensor.external_data}
                assert external["location"] == "weights.bin"
                assert int(external["offset"]) == manifest.tensors[tensor.name].offset
                used.add(tensor.name)
    assert used == set(manifest.tensors), (
        "every stored tensor is used, and every used one is in the manifest"
    )


def test_every_attention_is_the_op_with_its_body(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "graphs/ns_s02_pn03.onnx", load_external_data=False)
    nodes = [n for n in model.graph.node if n.op_type == "BlockSparseAttention"]
    assert len(nodes) == 4 and not [n for n in model.graph.node if n.op_type == "Softmax"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert attributes == {
        "sm_scale": 1.0, "pattern": b"block_diagonal", "qk_l2_norm": 1,
        "plugin_version": b"1", "plugin_namespace": b"hmar",
    }  # fmt: skip
    assert [(f.domain, f.name) for f in model.functions] == [("hmar", "BlockSparseAttention")]


def test_step_graphs_are_static_in_tokens_and_dynamic_in_rows(tiny_bundle: Path) -> None:
    for spec in Bundle.open(tiny_bundle).manifest.graphs.values():
        if spec.scale_idx is None:
            continue
        for tensor in (*spec.inputs, *spec.outputs):
            symbols = {d for d in tensor.shape if isinstance(d, str)}
            assert symbols in ({"N"}, {"B"}), (spec.file, tensor)


def test_certificate_says_what_was_compared(tiny_bundle: Path) -> None:
    certificate = json.loads((tiny_bundle / "certificate.json").read_text())
    assert set(certificate["graphs"]) == set(Bundle.open(tiny_bundle).manifest.graphs)
    assert all(g["not_run"] is None and g["outputs"] for g in certificate["graphs"].values())
    assert {(t["kind"], t["scale_idx"]) for t in certificate["tokens"]} == {
        *(("ns", k) for k in range(4)), *(("mask", k) for k in range(1, 4)),
    }  # fmt: skip
    assert all(
        t["argmax_equal"] == t["drawn_equal"] == t["compared"] for t in certificate["tokens"]
    )


# --- parity ------------------------------------------------------------------------------------


def test_verify_passes_again(tiny_bundle: Path, files: Files) -> None:
    table = verify_bundle(tiny_bundle, files.ckpt, files.vae).table()
    assert "ns_s03_pn04" in table and "100.00%" in table


def test_another_checkpoint_of_the_same_sizes_fails(
    tiny_bundle: Path, files: Files, tmp_path: Path
) -> None:
    other = tmp_path / "other.pth"
    torch.save(state_dict("hmar", Case("tiny").config, 99), other)
    with pytest.raises(ParityError, match="graph cond, cond: rms error ratio") as caught:
        verify_bundle(tiny_bundle, [other], files.vae)
    assert caught.value.graph == "cond" and caught.value.rms_ratio > caught.value.limit


def test_a_wrong_graph_means_no_bundle(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = WeightsFile.add

    def swapped(
        self: WeightsFile, name: str, dtype: torch.dtype, shape: tuple[int, ...], load
    ) -> None:  # type: ignore[no-untyped-def]
        real(
            self, name, dtype, shape, (lambda: load() * 1.01) if name == "ns_head.weight" else load
        )

    monkeypatch.setattr(WeightsFile, "add", swapped)
    with pytest.raises(ParityError, match="logits"):
        export(files, tmp_path / "bundle", verify=True)
    assert list(tmp_path.iterdir()) == []


# --- the target folder ---------------------------------------------------------------------


def test_an_old_bundle_is_replaced(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export(files, out)
    (out / "engines").mkdir()
    export(files, out)
    assert not (out / "engines").exists()
    assert Bundle.open(out).manifest.certificate is None
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_no_bundle_is_kept(files: Files, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        export(files, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_parent_folders_are_made(files: Files, tmp_path: Path) -> None:
    export(files, tmp_path / "a" / "b")
    assert Bundle.open(tmp_path / "a" / "b").manifest.precision == "fp32"


def test_a_file_where_a_folder_is_needed(files: Files, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError, match="cannot write the bundle"):
        export(files, tmp_path / "a" / "b")


def test_too_little_space_is_seen_before_any_work(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(OutputError, match="no space left on the device: the bundle needs"):
        export(files, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_disk_fills_up_while_weights_are_written(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    export(files, out)
    before = (out / "manifest.json").read_bytes()
    real = WeightsFile.write

    def full(self: WeightsFile, path: Path):  # type: ignore[no-untyped-def]
        for i, item in enumerate(real(self, path)):
            if i == 40:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield item

    monkeypatch.setattr(WeightsFile, "write", full)
    with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
        export(files, out)
    assert list(tmp_path.iterdir()) == [out] and (out / "manifest.json").read_bytes() == before


def test_a_full_disk_for_real(files: Files, tmp_path: Path) -> None:
    """The kernel refuses to write beyond a limit, in the middle of the weights file."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))\n"
        "sys.argv = ['export.py', *sys.argv[1:]]\n"
        "import runpy; runpy.run_path('scripts/export.py', run_name='__main__')\n"
    )
    arguments = [
        "--ckpt",
        str(files.ckpt[0]),
        "--vae",
        str(files.vae),
        "--out",
        str(tmp_path / "bundle"),
        "--no-verify",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "cannot write the bundle" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_a_killed_export_leaves_nothing(files: Files, tmp_path: Path, signum: int) -> None:
    out = tmp_path / "bundle"
    command = [
        sys.executable,
        "scripts/export.py",
        "--ckpt",
        str(files.ckpt[0]),
        "--vae",
        str(files.vae),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.partial-*/graphs/*.onnx")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signum)
    assert process.wait(timeout=60) != 0
    assert not out.exists()
    if signum == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []
    else:  # nobody could tidy up; the next export does
        export(files, out)
        assert list(tmp_path.iterdir()) == [out]


def test_wrong_tokenizer_means_no_bundle(files: Files, tmp_path: Path) -> None:
    vae = tmp_path / "files"
    vae.mkdir()
    torch.save(state_dict("vae", {**Case("tiny").config, "V": 32}, 1), vae / "vae.pth")
    with pytest.raises(CheckpointValueError, match="wrong tokenizer"):
        export_bundle(ExportConfig(), files.ckpt, vae / "vae.pth", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision must be one of"):
        ExportConfig(precision="int4")  # type: ignore[arg-type]


def test_weights_hold_the_checkpoints_values(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    data = np.memmap(tiny_bundle / manifest.weights.file, mode="r")
    spec = manifest.tensors["base_blocks.1.fc2.weight"]
    stored = (
        data[spec.offset : spec.offset + 4 * spec.shape[0] * spec.shape[1]]
        .view(np.float32)
        .reshape(spec.shape)
    )
    np.testing.assert_array_equal(
        stored, Case("tiny").model.base_blocks[1].ffn.fc2.weight.detach().numpy().T
    )
