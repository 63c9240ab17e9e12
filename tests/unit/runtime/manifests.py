"""Small manifests for tests that need no graphs."""

from __future__ import annotations

from typing import Any

from runtime.bundle import (
    FORMAT_VERSION,
    FileSpec,
    GraphSpec,
    HiMARModelSpec,
    HiMARSamplingDefaults,
    Manifest,
    ModelSpec,
    SamplingDefaults,
    TensorSpec,
    WeightSpec,
)

V, CVAE, C, CLASSES, PATCH_NUMS = 16, 4, 8, 10, (1, 2)


def model_spec(**changes: Any) -> ModelSpec:
    sizes: dict[str, Any] = {
        "preset": None, "depth": 2, "branch_layers": 1, "embed_dim": C, "num_heads": 1,
        "num_classes": CLASSES, "vocab_size": V, "latent_channels": CVAE, "patch_nums": PATCH_NUMS,
        "shared_aln": False, "attn_l2_norm": True, "has_mask_branch": True, "image_side_px": 4,
    }  # fmt: skip
    return ModelSpec(**{**sizes, **changes})


def _graph(
    kind: str,
    scale_idx: int | None,
    inputs: list[str],
    outputs: list[str],
    step_idx: int | None = None,
) -> GraphSpec:
    name = kind if scale_idx is None else f"{kind}_s{scale_idx}"

    def specs(names: list[str]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(n, "float32", ("N",)) for n in names)

    return GraphSpec(
        kind=kind,  # type: ignore[arg-type]
        scale_idx=scale_idx,
        step_idx=step_idx,
        inputs=specs(inputs),
        outputs=specs(outputs),
        file=f"graphs/{name}.onnx",
        sha256="0" * 64,
        nbytes=1,
    )


def manifest(**changes: Any) -> Manifest:
    """Two scales, with every graph that a generation calls."""
    graphs = {
        "cond": _graph("cond", None, ["label"], ["cond", "ada_ns", "ada_mask"]),
        "ns0": _graph("ns", 0, ["cond", "ada_ns"], ["logits"]),
        "quant0": _graph("quant", 0, ["tokens", "f_hat"], ["f_hat_out", "map"]),
        "ns1": _graph("ns", 1, ["map", "ada_ns"], ["logits"]),
        "mask_input1": _graph("mask_input", 1, ["tokens"], ["h"]),
        "mask1": _graph("mask", 1, ["map", "h", "token_mask", "ada_mask"], ["logits"]),
        "quant1": _graph("quant", 1, ["tokens", "f_hat"], ["f_hat_out"]),
        "decode": _graph("decode", None, ["f_hat"], ["image"]),
    }
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "producer": "test",
        "family": "hmar",
        "precision": "fp32",
        "opset": 20,
        "model": model_spec(),
        "sampling": SamplingDefaults(cfg=1.5, top_k=8, top_p=0.9, mask_schedule=((1,), (1, 3))),
        "graphs": graphs,
        "weights": FileSpec(file="graphs/weights.bin", sha256="0" * 64, nbytes=64),
        "tensors": {"w": WeightSpec("float32", (4, 4), 0)},
        "plugins": (),
        "sources": (),
    }
    return Manifest(**{**fields, **changes})


def himar_manifest(**changes: Any) -> Manifest:
    """Grids of 4x4 pivots and 8x8 tokens, with every graph that a generation calls."""
    model = HiMARModelSpec(
        preset=None,
        embed_dim=C,
        encoder_depth=2,
        decoder_depth=2,
        num_classes=CLASSES,
        token_channels=CVAE,
        pivot_side=4,
        dense_side=8,
        num_iter=2,
        image_side_px=64,
    )
    sampling = HiMARSamplingDefaults(
        num_iter=2,
        cfg=2.5,
        re_cfg=2.7,
        cfg_schedule="linear",
        temperature=1.0,
        pivot_diffusion_steps="2",
        dense_diffusion_steps="3",
    )
    known = {"pivot": ["pivots", "known"], "dense": ["dense", "known"]}
    state, guided = ["x", "timestep", "head_cond"], ["scale"]
    graphs = {"cond": _graph("cond", None, ["label"], ["cond"])}
    for s in range(model.pivot_steps):
        inputs = ["cond", *(known["pivot"] if s else ()), "source", "predicted"]
        graphs[f"pivot_{s:02d}"] = _graph("pivot", None, inputs, ["z", "head_cond"], s)
    for k in (0, 1, None):
        inputs = ["cond", "small_z", *(() if k == 0 else known["dense"]), "source"]
        name = "dense" if k is None else f"dense_{k:02d}"
        graphs[name] = _graph("dense", None, inputs, ["head_cond"], k)
    for phase, outputs in (("pivot", ["noise", "variance"]), ("dense", ["noise"])):
        kind = f"denoise_{phase}"
        graphs[kind] = _graph(kind, None, state + guided, outputs)
        graphs[f"{kind}_unguided"] = _graph(f"{kind}_unguided", None, state, outputs)
    for kind in ("decode", "decode_pivot"):
        graphs[kind] = _graph(kind, None, ["tokens"], ["image"])
    graphs["encode"] = _graph("encode", None, ["image"], ["tokens", "std"])
    fields: dict[str, Any] = {
        "family": "himar", "model": model, "sampling": sampling, "graphs": graphs
    }  # fmt: skip
    return manifest(**{**fields, **changes})
