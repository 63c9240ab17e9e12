"""A backend against PyTorch in float32, graph by graph under teacher forcing.

What the validation ladder of an export does for ONNX Runtime's CPU provider, for any runner, such
as that of TensorRT engines. It measures, and sets no limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from export.certificate import GraphParity
from export.engines import BackendEngine, Runner
from export.ladder import output_parity
from export.teacher import SEED
from export.verify import TokenCertificate, TokenParity, compare_tokens, make_teacher
from hmar.hmar import HMAR
from hmar.vae import VQVAE
from runtime.bundle import Manifest

KINDS = ("cond", "ns", "mask", "mask_input", "quant", "decode")


def verify_backend(
    runner: Runner,
    manifest: Manifest,
    model: HMAR,
    tokenizer: VQVAE,
    progress: Callable[[str], None] = lambda graph: None,
) -> TokenCertificate:
    """Runs every graph of a generation on a backend.

    Args:
        progress: called with each graph's name before it is run.

    Raises:
        BackendError: a graph cannot be run.
    """
    start = time.perf_counter()
    progress("PyTorch reference")
    engine = BackendEngine(runner, manifest)
    teacher = make_teacher(manifest, model, tokenizer)
    graphs: dict[str, GraphParity] = {}
    tokens: list[TokenParity] = []
    for name, spec in manifest.graphs.items():
        if spec.kind not in KINDS:
            continue
        progress(name)
        began = time.perf_counter()
        feeds, expected = teacher.case(spec)
        outputs = engine.run(name, feeds)
        seconds = round(time.perf_counter() - began, 3)
        parities = {n: output_parity(expected[n], array) for n, array in outputs.items()}
        graphs[name] = GraphParity(outputs=parities, seconds=seconds)
        if spec.kind in ("ns", "mask"):
            tokens.append(compare_tokens(spec, teacher, torch.from_numpy(outputs["logits"])))
    return TokenCertificate(
        precision=manifest.precision,
        engine=engine.name,
        token_engine=engine.name,
        labels=tuple(teacher.labels),
        seed=SEED,
        rms_limit=float("inf"),
        graphs=graphs,
        tokens=tuple(tokens),
        seconds=round(time.perf_counter() - start, 2),
    )
