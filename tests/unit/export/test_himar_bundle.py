"""What a Hi-MAR bundle holds, what its certificate says, and what becomes of a wrong graph."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from export import ExportConfig, ExportError, ParityError, export_bundle, verify_bundle
from export.engines import CpuEngine
from export.errors import GraphError
from export.families import load_family
from export.himar.teacher import TeacherRun
from export.himar.verify import make_teacher
from export.ladder import output_parity
from export.torch_graph import TorchGraph
from export.weights import WeightsFile
from runtime.bundle import Bundle, HiMARSamplingDefaults
from tests.cases import write_files
from tests.golden_data import Case
from tests.himar_checkpoints import CASES, write_himar, write_kl_vae
from tests.himar_golden import HiMARCase, published_state
from tests.unit.runtime.manifests import manifest as hmar_manifest

HEADS = CASES["tiny_a"].num_heads


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    return write_himar(folder, "tiny_a"), write_kl_vae(folder, "tiny_a")


def export(files: tuple[Path, Path], out: Path, *, verify: bool = False, **settings) -> Bundle:  # type: ignore[no-untyped-def]
    config = ExportConfig(verify=verify)
    export_bundle(config, [files[0]], files[1], out, num_heads=HEADS, **settings)
    return Bundle.open(out)


# --- what a bundle holds -------------------------------------------------------------------------


def test_graphs_of_every_step(tiny_himar_bundle: Path) -> None:
    manifest = Bundle.open(tiny_himar_bundle).manifest
    steps = {f"pivot_{s:02d}" for s in range(16)} | {f"dense_{k:02d}" for k in range(4)}
    denoisers = {f"denoise_{phase}" for phase in ("pivot", "dense")}
    assert set(manifest.graphs) == steps | denoisers | {f"{d}_unguided" for d in denoisers} | {
        "cond", "pivot", "dense", "modulate_pivot", "denoise_pivot_modulated",
        "decode", "decode_pivot", "encode",
    }  # fmt: skip
    assert manifest.graph("dense", step_idx=2) == "dense_02" and manifest.graph("dense") == "dense"
    assert manifest.himar.num_iter == 4 and manifest.himar.image_side_px == 128


def test_symbolic_dimensions(tiny_himar_bundle: Path) -> None:
    allowed = {
        "pivot": {"N", "known", "n"}, "dense": {"N", "known"}, "modulate_pivot": {"T", "N", "n"},
        "denoise_pivot": {"B", "2B", "n"}, "denoise_pivot_modulated": {"B", "2B", "n"},
        "denoise_pivot_unguided": {"B", "n"}, "denoise_dense": {"B", "2B"}, "cond": {"N"},
    }  # fmt: skip
    for name, spec in Bundle.open(tiny_himar_bundle).manifest.graphs.items():
        dims = {d for t in (*spec.inputs, *spec.outputs) for d in t.shape if isinstance(d, str)}
        steps = {"N"} if name.startswith(("pivot_", "dense_")) else {"B"}
        assert dims == allowed.get(name, steps), name


def test_graphs_share_the_weights_file(tiny_himar_bundle: Path) -> None:
    manifest = Bundle.open(tiny_himar_bundle).manifest
    used = set()
    for spec in manifest.graphs.values():
        model = onnx.load(tiny_himar_bundle / spec.file, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                external = {e.key: e.value for e in tensor.external_data}
                assert external["location"] == "weights.bin"
                assert int(external["offset"]) == manifest.tensors[tensor.name].offset
                used.add(tensor.name)
    assert used == set(manifest.tensors)


def test_the_averages_are_exported(tiny_himar_bundle: Path) -> None:
    """The checkpoint's other weights are zero."""
    manifest = Bundle.open(tiny_himar_bundle).manifest
    spec = manifest.tensors["z_proj.weight"]
    data = (tiny_himar_bundle / manifest.weights.file).read_bytes()
    stored = torch.frombuffer(bytearray(data), dtype=torch.float32, offset=spec.offset, count=1024)
    expected = published_state("tiny_a", CASES["tiny_a"].seed)["z_proj.weight"]
    assert torch.equal(stored.view(spec.shape), expected.T)


# --- settings ------------------------------------------------------------------------------------


def test_settings_are_stored_and_give_the_steps(files: tuple[Path, Path], tmp_path: Path) -> None:
    given = {"cfg": 2, "cfg_schedule": "constant", "dense_diffusion_steps": "9,6,5,0"}
    (tmp_path / "sampling.json").write_text(json.dumps({**given, "num_iter": 3}))
    (tmp_path / "names.json").write_text(json.dumps([f"animal {i}" for i in range(10)]))
    bundle = export(
        files,
        tmp_path / "bundle",
        sampling=tmp_path / "sampling.json",
        class_names=tmp_path / "names.json",
        num_iter=2,
    )
    assert bundle.manifest.sampling == HiMARSamplingDefaults(
        num_iter=2, cfg=2.0, re_cfg=1.0, cfg_schedule="constant", temperature=1.0,
        pivot_diffusion_steps="100", dense_diffusion_steps="9,6,5,0",
    )  # fmt: skip
    assert bundle.class_names()[3] == "animal 3"
    steps = [s.step_idx for s in bundle.manifest.graphs.values() if s.kind == "dense"]
    assert bundle.manifest.himar.num_iter == 2 and steps == [0, 1, None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 900}, r"unknown settings \['top_k'\], not in \['num_iter', 'cfg', 're_cfg'"),
        ({"cfg_schedule": "cosine"}, "cfg_schedule must be 'linear' or 'constant', got 'cosine'"),
        ({"pivot_diffusion_steps": "1"}, "respacing '1' gives 1 steps; at least 2 needed"),
        ({"num_iter": 0}, "num_iter must be at least 1, got 0"),
        ({"num_iter": 65}, "num_iter is 65, and the model has only 64 dense tokens"),
        ({"temperature": "hot"}, "not sampling settings"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit(
    files: tuple[Path, Path], tmp_path: Path, given: dict, message: str
) -> None:
    (tmp_path / "sampling.json").write_text(json.dumps(given))
    with pytest.raises(ExportError, match=message):
        export(files, tmp_path / "bundle", sampling=tmp_path / "sampling.json")
    assert not (tmp_path / "bundle").exists()


# --- parity --------------------------------------------------------------------------------------


def test_certificate_says_what_was_compared(tiny_himar_bundle: Path) -> None:
    certificate = json.loads((tiny_himar_bundle / "certificate.json").read_text())
    graphs = Bundle.open(tiny_himar_bundle).manifest.graphs
    for name, spec in graphs.items():
        parity = certificate["graphs"][name]
        assert set(parity["outputs"]) == {o.name for o in spec.outputs}, name
        assert parity["not_run"] is None and parity["stand_in"] is None
    run = certificate["generation"]
    assert set(run["outputs"]) == {"pivots", "dense", "image"}
    assert (run["first_pivot_step"], run["num_iter"], run["cfg"], run["re_cfg"]) == (0, 4, 2.5, 2.7)


def test_verify_passes_again(tiny_himar_bundle: Path, files: tuple[Path, Path]) -> None:
    certificate = verify_bundle(tiny_himar_bundle, [files[0]], files[1], num_heads=HEADS)
    table = certificate.table()
    assert "dense_03" in table and "generation from pivot step 0, 4 dense steps" in table
    assert any(line.startswith("generation   rms errors") for line in certificate.summary())


def test_another_checkpoint_of_the_same_sizes_fails(
    tiny_himar_bundle: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    torch.save(published_state("tiny_a", 99), tmp_path / "other.pth")
    with pytest.raises(ParityError, match="graph cond, cond: rms error ratio"):
        verify_bundle(tiny_himar_bundle, [tmp_path / "other.pth"], files[1], num_heads=HEADS)


def test_a_bundle_of_the_other_family(
    tiny_himar_bundle: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    hmar = write_files(tmp_path, Case("tiny"))
    with pytest.raises(ExportError, match="of family 'himar', the checkpoint is of 'hmar'"):
        verify_bundle(tiny_himar_bundle, hmar.ckpt, hmar.vae)
    himar = load_family([files[0]], files[1], num_heads=HEADS)
    with pytest.raises(ExportError, match="of family 'hmar', the checkpoint is of 'himar'"):
        himar.of_bundle(hmar_manifest(), tmp_path)


def test_a_wrong_graph_means_no_bundle(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = WeightsFile.add

    def swapped(self: WeightsFile, name: str, dtype: torch.dtype, shape: tuple, load) -> None:  # type: ignore[no-untyped-def]
        wrong = name == "dense.decoder_masked"
        real(self, name, dtype, shape, (lambda: load() * 1.01) if wrong else load)

    monkeypatch.setattr(WeightsFile, "add", swapped)
    with pytest.raises(ParityError, match="graph dense_00, head_cond: rms error ratio"):
        export(files, tmp_path / "bundle", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_graphs_in_pytorch_op_by_op(tiny_himar_bundle: Path) -> None:
    """What stands in for ONNX Runtime in bfloat16 computes the same in float32."""
    manifest, case = Bundle.open(tiny_himar_bundle).manifest, HiMARCase("tiny_a.linear")
    teacher: TeacherRun = make_teacher(manifest, case.model, case.vae)
    engine = CpuEngine(tiny_himar_bundle, manifest, kept=1)
    for name in ("cond", "pivot_00", "pivot_09", "dense", "denoise_pivot", "denoise_dense",
                 "denoise_pivot_unguided", "decode_pivot"):  # fmt: skip
        spec = manifest.graphs[name]
        feeds, _ = teacher.case(spec)
        expected = engine.run(name, feeds)
        results = TorchGraph(tiny_himar_bundle / spec.file, spec).run(feeds)
        for output, ref in expected.items():
            assert output_parity(ref, results[output]).rms_ratio < 2e-6, (name, output)


def test_an_op_without_a_pytorch_form_is_named(tmp_path: Path) -> None:
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, number, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Sin", ["x"], ["y"])], "graph", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "sine.onnx")
    spec = hmar_manifest().graphs["cond"]
    with pytest.raises(GraphError, match=r"sine\.onnx: .* \['Sin'\] have no PyTorch form"):
        TorchGraph(tmp_path / "sine.onnx", spec)


# --- models that are conditioned by vectors ------------------------------------------------------


def test_a_model_conditioned_by_vectors(files: tuple[Path, Path], tmp_path: Path) -> None:
    state = published_state("tiny_a", CASES["tiny_a"].seed)
    del state["class_emb.weight"]
    torch.save({"model_ema": state}, tmp_path / "vectors.pth")
    bundle = export((tmp_path / "vectors.pth", files[1]), tmp_path / "bundle", verify=True)
    manifest = bundle.manifest
    assert manifest.himar.num_classes == 0
    assert manifest.tensors["cond_rows"].shape == (1, 64)  # the row without condition
    for kind in ("pivot", "dense"):
        graph = manifest.graphs[manifest.graph(kind, step_idx=1)]
        assert graph.inputs[0].name == "cond" and graph.inputs[0].shape == ("N", 64)
    certificate = json.loads((bundle.folder / "certificate.json").read_text())
    assert certificate["labels"] == []
    assert all(o["rms_ratio"] < 1e-5 for o in certificate["generation"]["outputs"].values())
