"""The bundle of Hi-MAR-B at its real size, and bundles in half precision.

    python -m pytest tests/slow/test_himar_export.py --slow --himar-golden-dir DIR -s

DIR holds the golden files of Hi-MAR. Takes about ten minutes and 4 GB of disk on two cores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmar.himar_reference import to_map
from hmar.quant import flatten_map
from runtime.bundle import Bundle
from tests.command_line import peak_bytes, run
from tests.himar_checkpoints import make_himar_bundle, write_himar, write_kl_vae
from tests.himar_golden import HiMARCase
from tests.himar_graphs import Graphs, generation_arrays

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--himar-golden-dir")
    if folder is None:
        pytest.skip("give the folder of Hi-MAR's golden traces: --himar-golden-dir DIR")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("himar-b")
    return write_himar(folder, "himar_base"), write_kl_vae(folder, "himar_base")


@pytest.fixture(scope="module")
def bundle(files: tuple[Path, Path]) -> Path:
    out = files[0].parent / "bundle"
    run("export.py", "--ckpt", files[0], "--vae", files[1], "--out", out)
    return out


@pytest.fixture(scope="module")
def graphs(bundle: Path) -> Graphs:
    return Graphs(bundle)


def test_size_and_memory(files: tuple[Path, Path], bundle: Path) -> None:
    assert peak_bytes() <= 2.5 * sum(f.stat().st_size for f in files)
    manifest = Bundle.open(bundle).manifest
    assert manifest.himar.preset == "himar-base-256"
    written = sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file())
    assert written <= 1.02 * manifest.weights.nbytes


def test_generation(folder: Path, graphs: Graphs) -> None:
    case = HiMARCase("base.trace", folder)
    ours = generation_arrays(case, graphs)
    for name in ("p1.tokens", "p2.tokens", "small_z"):
        case.check(name, ours[name])
    (image,) = graphs.run("decode", tokens=torch.from_numpy(ours["p2.tokens"][-1]))
    (small,) = graphs.run("decode_pivot", tokens=torch.from_numpy(ours["p1.tokens"][-1]))
    case.check("image", image.numpy() * 2 - 1)
    case.check("small_image", small.numpy() * 2 - 1)


def test_guided_calls_of_the_denoisers(folder: Path, graphs: Graphs) -> None:
    case = HiMARCase("base.modules", folder)
    config, pivots, dense = case.model.config, case.model.pivot_denoiser, case.model.dense_denoiser
    C, D, G = config.token_channels, config.embed_dim, config.dense_side

    def feeds(call: dict[str, Any]) -> dict[str, torch.Tensor]:
        scale = torch.tensor([call["cfg_scale"]])
        return {"timestep": torch.tensor([call["t"]]), "scale": scale}

    x, z = case.drawn("mlp.x", (6, 1, C)), case.drawn("mlp.c", (6, 1, D))
    given = feeds(case.json["mlp_cfg_call"])
    noise, variance = graphs.run("denoise_pivot", x=x[:3], head_cond=pivots.cond(z), **given)
    # the stored unconditional half has the same noise with its own variance
    (_, rest) = graphs.run(
        "denoise_pivot_unguided", x=x[:3], head_cond=pivots.cond(z[3:]), timestep=given["timestep"]
    )
    out = torch.cat((torch.cat((noise, variance), -1), torch.cat((noise, rest), -1)))
    case.check("mlp.out_cfg", out.squeeze(1))

    x, z = (flatten_map(case.drawn(f"dit.{n}", (4, c, G, G))) for n, c in (("x", C), ("z", D)))
    given = feeds(case.json["dit_cfg_call"])
    (noise,) = graphs.run("denoise_dense", x=x[:2], head_cond=dense.cond(z), **given)
    case.check("dit.out_cfg", to_map(noise.repeat(2, 1, 1), G))


def test_autoencoder_both_ways(folder: Path, graphs: Graphs) -> None:
    case = HiMARCase("vae_kl16", folder)
    scale = case.vae.config.latent_scale
    for name, graph in (("16x16", "decode"), ("8x8", "decode_pivot")):
        B, h, w = case.json["latents"][name]
        latent = case.drawn(f"vae.z.{name}", (B, 16, h, w), 1 / scale)
        (image,) = graphs.run(graph, tokens=flatten_map(latent * scale))
        case.check(f"decoded.{name}", image.numpy() * 2 - 1)
    image = case.drawn("vae.x.256x256", (1, 3, 256, 256), 0.5)
    tokens, std = graphs.run("encode", image=image / 2 + 0.5)
    case.check("mean.256x256", to_map(tokens / scale, 16))
    case.check("std.256x256", to_map(std / scale, 16))
    sample = to_map(tokens + std * flatten_map(case.noise(0, (1, 16, 16, 16))), 16)
    case.check("sample.256x256", sample / scale)


def test_real_size_through_the_command_line(
    files: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    """A second opinion on the bundle, from its files alone."""
    out = tmp_path / "certificate.json"
    run("verify.py", "--bundle", bundle, "--ckpt", files[0], "--vae", files[1], "--json", out)
    assert_within(json.loads(out.read_text()), 2e-5, 2e-4)


@pytest.mark.parametrize(
    ("precision", "graph_limit", "generation_limit"),
    [
        # tests/golden/himar/README.md, "Reduced precision": largest differences over rms
        ("fp16", 9e-3, 1.8e-2),
        ("bf16", 8e-2, 1.1e-1),
    ],
)
def test_half_precision(
    tmp_path: Path, precision: str, graph_limit: float, generation_limit: float
) -> None:
    bundle = make_himar_bundle(tmp_path, "tiny_a", precision)
    certificate = json.loads((bundle / "certificate.json").read_text())
    assert_within(certificate, graph_limit, generation_limit)
    by_torch = [name for name, g in certificate["graphs"].items() if g["stand_in"]]
    assert ("denoise_dense" in by_torch) == (precision == "bf16") and "encode" not in by_torch
    dtypes = {spec.dtype for spec in Bundle.open(bundle).manifest.graphs["pivot_03"].inputs}
    assert dtypes == {"float32", "int32", {"fp16": "float16", "bf16": "bfloat16"}[precision]}


def test_the_published_grid(tmp_path: Path) -> None:
    bundle = make_himar_bundle(tmp_path, "narrow")
    manifest = Bundle.open(bundle).manifest
    assert manifest.himar.pivot_steps == sum(g.kind == "pivot" for g in manifest.graphs.values())
    assert_within(json.loads((bundle / "certificate.json").read_text()), 2e-5, 2e-4)


def assert_within(certificate: dict[str, Any], graph_limit: float, generation_limit: float) -> None:
    """Largest RMS errors of the graphs' outputs and of a generation's results."""
    for graph in certificate["graphs"].values():
        assert ratios(graph["outputs"]) and max(ratios(graph["outputs"])) <= graph_limit
    assert max(ratios(certificate["generation"]["outputs"])) <= generation_limit


def ratios(outputs: dict[str, dict[str, float]]) -> Sequence[float]:
    found = [output["rms_ratio"] for output in outputs.values()]
    assert np.isfinite(found).all()
    return found
