"""The benchmark of generations on the tiny bundle, and its table, plot and trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hmar.himar_schedule import HiMARSampling
from runtime.bundle import Bundle
from runtime.config import SamplingConfig
from runtime.himar_config import HiMARSamplingConfig
from runtime.timing import Span
from scripts.ceilings import measure_host_ceilings
from scripts.chrome_trace import chrome_trace
from scripts.generation_bench import Bench, BenchConfig
from scripts.generation_table import lines
from scripts.generation_times import Effort, achieved
from scripts.generation_work import Work
from scripts.himar_rival import HiMARTorchGenerator
from tests.himar_golden import HiMARCase

ROOT = Path(__file__).resolve().parents[3]
ONE_RUN = Effort(warmup=0, runs=1)
QUICK = HiMARSamplingConfig(num_iter=1, pivot_diffusion_steps="2", dense_diffusion_steps="3")
PARTS = [
    *("conditioning", "next-scale passes", "quantizer", "masked passes", "decode"),
    *("sampling", "other", "stepped"),
]


def figures(ms: float, **more: object) -> dict[str, Any]:
    return {"median_ms": ms, "p10_ms": ms, "p90_ms": ms, **more}


RATES = {"tflops": 0.5, "gbytes_per_s": 30.0, "floor_share": 0.25}
REPORT = {
    "machine": {"cpu": "2 x a CPU", "gpu": "none", "commit": "abc"},
    "bundle": "tiny", "precision": "fp32", "side_px": 64,
    "settings": "cfg 1.5, 4 masked passes",
    "image_flops": {"trunk": 2e9, "decode": 1e9},
    "ceilings": {"CPU": {"tflops": 0.1, "gbytes_per_s": 20.0}},
    "rows": [
        {
            "what": "ort-cpu", "batch": 2, "images_per_s": 100.0, "first_ms": 1500.0,
            "host_mb": 12.0, "device_mb": None, **figures(20, **RATES),
            "parts": {
                "decode": figures(5, calls=1, **RATES),
                "other": figures(15),
                "stepped": figures(20),
            },
        },
        {"what": "trt", "error": "no GPU"},
        {"what": "ort-cuda", "batch": 64, "error": "out of memory"},
    ],
}  # fmt: skip


def test_measures_the_tiny_bundle(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    config = BenchConfig(
        bundle=tiny_bundle,
        batches=(1, 2),
        backends=("ort-cpu", "ort-cuda"),
        sampling=SamplingConfig.defaults(manifest),
        effort=ONE_RUN,
    )
    bench = Bench(manifest, config)
    one, two, missing = bench.rows()
    assert [row["batch"] for row in (one, two)] == [1, 2]
    assert list(one["parts"]) == PARTS
    stepped = one["parts"].pop("stepped")["median_ms"]
    assert sum(part["median_ms"] for part in one["parts"].values()) == pytest.approx(stepped)
    calls = {name: part["calls"] for name, part in two["parts"].items() if "calls" in part}
    assert calls == dict(zip(PARTS, (1, 4, 8, 4, 1), strict=False))
    assert 0 < one["floor_share"] < 1 and one["device_mb"] is None
    assert "pip install onnxruntime-gpu" in missing["error"]
    spans = [span for span in bench.spans["ort-cpu, batch 1"] if span.track == "step"]
    # conditioning runs once for guided passes and once for the others
    passes = [step.graph for step in bench.steps if step.graph != "cond"]
    assert [span.name for span in spans if span.name != "cond"] == passes, (
        "the work is counted for these"
    )
    assert sum(bench.image_flops().values()) > 1e9


def test_measures_a_bundle_of_himar(tiny_himar_bundle: Path) -> None:
    manifest = Bundle.open(tiny_himar_bundle).manifest
    config = BenchConfig(
        bundle=tiny_himar_bundle,
        batches=(1,),
        backends=("ort-cpu",),
        sampling=QUICK,
        effort=ONE_RUN,
        threads=1,
    )
    (row,) = Bench(manifest, config).rows()
    calls = {name: part.get("calls") for name, part in row["parts"].items()}
    assert calls == {
        "conditioning": 1, "pivot passes": 16, "pivot denoiser": 32, "dense passes": 1,
        "dense denoiser": 3, "decode": 1, "sampling": None, "other": None, "stepped": None,
    }  # fmt: skip
    assert 0 < row["floor_share"] < 1


@pytest.mark.parametrize(("dtype", "rms"), [(torch.float16, 0.02), (torch.bfloat16, 0.05)])
def test_torch_generates_with_himar(dtype: torch.dtype, rms: float) -> None:
    """In half precision as in float32; tokens of fewer steps leave float16's range."""
    case = HiMARCase("tiny_a.linear")
    settings = HiMARSampling(
        cfg=2.0, re_cfg=2.0, pivot_respacing="3,2,1,0", dense_respacing="3,2,1,0"
    )
    images = []
    for precision in (torch.float32, dtype):
        generator = HiMARTorchGenerator(case.model, case.vae, torch.device("cpu"), precision)
        torch.manual_seed(0)
        images.append(generator([1], settings))
    assert all(im.shape == (1, 128, 128, 3) and im.dtype == torch.uint8 for im in images)
    expected, image = (im.double() for im in images)
    assert (image - expected).square().mean().sqrt() < rms * expected.std()


def test_torch_generates_too_and_says_what_it_cannot(tiny_bundle: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("tests/gpu/test_bench.py compares both ways on a GPU")
    manifest = Bundle.open(tiny_bundle).manifest
    config = BenchConfig(
        bundle=tiny_bundle,
        batches=(1,),
        backends=(),
        sampling=SamplingConfig(top_k=8, mask_schedule=None),
        effort=ONE_RUN,
        checkpoint=([tiny_bundle.parent / "hmar.pth"], tiny_bundle.parent / "vae.pth"),
    )
    eager, compiled = Bench(manifest, config).rows()
    assert eager["what"] == "torch eager" and eager["images_per_s"] > 0
    assert compiled == {"what": "torch compiled", "error": "CUDA graphs need a CUDA GPU"}


def test_table_and_plot_from_json(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install '.[bench]'")
    source, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    source.write_text(json.dumps(REPORT))
    command = [sys.executable, "scripts/bench.py", "--from-json", source, "--plot", plot]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(lines(REPORT))
    assert plot.stat().st_size > 1000


def test_table() -> None:
    text = "\n".join(lines(REPORT))
    assert "tiny: fp32, 64 px, cfg 1.5, 4 masked passes" in text
    assert "TFLOP of one image: trunk 0.002, decode 0.001" in text
    assert "ceilings, CPU: 0.1 TFLOP/s, 20 GB/s" in text
    assert "100 images/s  0.5 TFLOP/s  30 GB/s  floor 25%" in text
    assert "trt: left out: no GPU" in text
    assert "ort-cuda, batch 64: left out: out of memory" in text
    (decode,) = [line for line in text.splitlines() if line.startswith("  decode")]
    assert " 1 x " in decode and "5.000 ms" in decode and " 25%" in decode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "none"], "none: no bundle here"),
        (["--from-json", "none.json"], "none.json"),
        ([], "give either --bundle or --from-json"),
        (["--bundle", "x", "--ckpt", "x"], "--ckpt and --vae go together"),
    ],
)
def test_refuses(arguments: list[str], message: str) -> None:
    command = [sys.executable, "scripts/bench.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr


def test_unknown_backends_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ort-cpu, ort-cuda, trt, got \['auto'\]"):
        BenchConfig(
            bundle=tmp_path,
            batches=(1,),
            backends=("auto",),
            sampling=SamplingConfig(),
            effort=ONE_RUN,
        )


def test_measurements_end() -> None:
    effort = Effort(runs=20, max_seconds=10)
    assert not effort.is_done(2, 1000), "three runs whatever they take"
    assert effort.is_done(3, 11) and not effort.is_done(3, 9)
    assert effort.is_done(20, 0)


def test_rates() -> None:
    ceilings = measure_host_ceilings(side=64, copy_bytes=4096)
    assert ceilings.tflops > 0 and ceilings.gbytes_per_s > 0
    assert achieved(Work(flops=10**12, nbytes=10**9), 500, None) == {
        "tflops": 2.0,
        "gbytes_per_s": 2.0,
    }


def test_trace_of_a_generation() -> None:
    spans = [
        Span(name="ns0", track="step", start_ms=1, ms=2),
        Span(name="sampling", track="host", start_ms=3, ms=0.5),
    ]
    trace = chrome_trace({"ort-cpu, batch 1": spans, "trt, batch 1": spans[:1]})
    events = json.loads(json.dumps(trace))["traceEvents"]
    names = {(e["pid"], e["args"]["name"]) for e in events if e["ph"] == "M"}
    assert {(1, "ort-cpu, batch 1"), (1, "step"), (1, "host"), (2, "trt, batch 1")} <= names
    assert [(e["pid"], e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"] == [
        (1, 1, 1000, 2000),
        (1, 2, 3000, 500),
        (2, 1, 1000, 2000),
    ]
