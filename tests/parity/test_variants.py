"""Architecture options without golden traces: bundle against PyTorch reference, free-running."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hmar import reference
from runtime.config import SamplingConfig
from runtime.draws import ArgmaxDraws
from runtime.pipeline import Pipeline
from runtime.trace import Trace
from tests.cases import make_bundle, tiny_variant
from tests.trace_check import compare_trace


@pytest.mark.parametrize("variant", ["shared-aln-without-l2-norm", "five-scales"])
def test_variant(tmp_path: Path, variant: str) -> None:
    case = tiny_variant(variant)
    patch_nums = case.config["patch_nums"]
    schedule = [[1], *([pn, 1, pn * pn - 3] for pn in patch_nums[1:])]
    seen: dict[str, torch.Tensor] = {}
    reference.generate(
        case.model,
        case.tokenizer,
        [4, -1, 0],
        reference.ReferenceConfig(cfg=2.5, top_k=30, mask_schedule=schedule),
        reference.draw_argmax,
        seen.__setitem__,
    )
    with Pipeline.load(make_bundle(tmp_path, case), "ort-cpu") as pipeline:
        model = pipeline.manifest.hmar
        assert (model.shared_aln, model.attn_l2_norm) == (
            case.config["shared_aln"],
            case.config["attn_l2_norm"],
        )
        assert list(model.patch_nums) == patch_nums
        trace = Trace(logits=True)
        sampling = SamplingConfig(cfg=2.5, top_k=30, top_p=0.0, mask_schedule=schedule)
        images = pipeline.generate([4, -1, 0], sampling=sampling, draws=ArgmaxDraws(), trace=trace)
    golden = {n: t.numpy() for n, t in seen.items() if not n.endswith(("_x", "_kept"))}
    compare_trace(golden, trace.arrays(), slack=3)
    assert images.shape == (3, 16 * patch_nums[-1], 16 * patch_nums[-1], 3)
