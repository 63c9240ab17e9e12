"""Settings: `SamplingConfig` per call, `BackendConfig` per process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from runtime.bundle import Kind, Manifest, ModelSpec, SamplingDefaults
from runtime.errors import ManifestError
from runtime.schedule import Schedule, check_schedule

BackendName = Literal["auto", "ort-cpu", "ort-cuda", "trt"]
BACKENDS: tuple[str, ...] = get_args(BackendName)
AttentionKind = Literal["function", "plugin"]
ATTENTION_KINDS: tuple[str, ...] = get_args(AttentionKind)
KernelUse = Literal["auto", "kernels", "engine"]
KERNEL_USES: tuple[str, ...] = get_args(KernelUse)
Context = Literal["scale", "prefix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Settings of one generation.

    Attributes:
        cfg: guidance strength, >= 0; logits are `(1+t) cond - t uncond` with
            `t = cfg * si / (S - 1)` in next-scale passes and `t = cfg * 1e-6` in masked passes.
        top_k: keep the k largest logits; 0 = off.
        top_p: keep the smallest set of tokens with this probability mass, in [0, 1]; 0 = off.
        mask_schedule: one entry per scale, see `runtime.schedule`; None = no masked passes.
        context: "scale" (each scale sees itself, as the model was trained) or "prefix" (next-scale
            passes see all earlier scales too, as with a key-value cache; a benchmarking option
            without masks).
        skip_guidance_below: passes whose weight t is smaller run without the unconditional half
            of the batch: by default the first scale, and all masked passes. 0 = no pass does. A
            traced generation always has both halves.
    """

    cfg: float = 1.5
    top_k: int = 900
    top_p: float = 0.96
    mask_schedule: Sequence[Sequence[int]] | None = None
    context: Context = "scale"
    skip_guidance_below: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.cfg < float("inf"):
            raise ValueError(f"cfg must be a finite number >= 0, got {self.cfg}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k must be an integer >= 0 (0 = off), got {self.top_k!r}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be in [0, 1] (0 = off), got {self.top_p}")
        if not 0 <= self.skip_guidance_below < float("inf"):
            raise ValueError(
                "skip_guidance_below must be a finite number >= 0 (0 = no pass is skipped), "
                f"got {self.skip_guidance_below}"
            )
        if self.context not in get_args(Context):
            raise ValueError(f"context must be one of {get_args(Context)}, got {self.context!r}")
        if self.context == "prefix" and self.mask_schedule is not None:
            raise ValueError('context="prefix" has no masked passes; set mask_schedule=None')

    @classmethod
    def defaults(cls, manifest: Manifest) -> SamplingConfig:
        """The settings that an HMAR bundle's model was published with.

        Raises:
            ManifestError: the bundle is of another family.
        """
        published = manifest.sampling
        if not isinstance(published, SamplingDefaults):
            raise ManifestError(
                f"these settings are HMAR's; this bundle is of family {manifest.family!r}"
            )
        return cls(
            cfg=published.cfg,
            top_k=published.top_k,
            top_p=published.top_p,
            mask_schedule=published.mask_schedule,
        )

    def checked(self, model: ModelSpec) -> Schedule | None:
        """The mask schedule, after checking all settings against a model's sizes.

        Raises:
            ValueError: a setting does not fit the model.
        """
        if self.top_k > model.vocab_size:
            raise ValueError(
                f"top_k is {self.top_k}, the vocabulary has {model.vocab_size} entries; "
                "use 0 to keep all"
            )
        if self.mask_schedule is None:
            return None
        schedule = check_schedule(self.mask_schedule, model.patch_nums)
        if not model.has_mask_branch and any(len(entry) > 1 for entry in schedule[1:]):
            raise ValueError(
                "this model has no masked branch; set mask_schedule=None (--schedule none)"
            )
        return schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Settings of a backend.

    Attributes:
        name: "auto" takes CUDA where ONNX Runtime offers it, else the CPU. "trt" needs engines,
            from scripts/build_engines.py.
        threads: CPU threads of one operator; 0 = one per core.
        max_batch: largest number of images in one pass; larger requests are split. Engines for
            larger batches are not used and take no memory for them.
        check_weights: hash the weights file when the bundle is opened, and the engines.
        placement: other backends for some kinds of graph, such as {"decode": "ort-cpu"}.
        engines: folder of engines; None = the one of the bundle that fits this machine.
        attention: what runs the attention op: "function" (standard operators, as the graphs hold
            them) or "plugin" (the built library that `plugins_trt.loader` finds). Engines
            were built with one or the other; "plugin" then refuses those without it.
        decoder: what decodes images in the backend "trt": "kernels" (the built library holds some,
            for a float16 decoder of the published sizes, of both families, or the demo's on an
            H100), "engine"
            (TensorRT's), or "auto", which is kernels where there are some.
        transformer: what runs the passes of the transformer, and what lies between them; likewise,
            the library's kernels being for float16 models of the published widths (of Hi-MAR
            but the largest).
        denoisers: what runs Hi-MAR's denoisers; likewise, for float16 models of the published
            sizes.
        nvtx: mark every step with an NVTX range named after its graph, for Nsight Systems; there is
            then no generation at once.
    """

    name: BackendName = "auto"
    threads: int = 0
    max_batch: int = 8
    check_weights: bool = True
    attention: AttentionKind = "function"
    placement: Mapping[Kind, BackendName] = field(default_factory=dict)
    engines: Path | None = None
    decoder: KernelUse = "auto"
    transformer: KernelUse = "auto"
    denoisers: KernelUse = "auto"
    nvtx: bool = False

    def __post_init__(self) -> None:
        if self.name not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {self.name!r}")
        if self.attention not in ATTENTION_KINDS:
            raise ValueError(f"attention must be one of {ATTENTION_KINDS}, got {self.attention!r}")
        for name in ("decoder", "transformer", "denoisers"):
            if getattr(self, name) not in KERNEL_USES:
                raise ValueError(
                    f"{name} must be one of {KERNEL_USES}, got {getattr(self, name)!r}"
                )
        if self.threads < 0:
            raise ValueError(f"threads must be >= 0, got {self.threads}")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be >= 1, got {self.max_batch}")
        for kind, name in self.placement.items():
            if kind not in get_args(Kind):
                raise ValueError(f"placement: {kind!r} is no kind of graph; {get_args(Kind)} are")
            if name not in BACKENDS:
                raise ValueError(f"placement of {kind}: must be one of {BACKENDS}, got {name!r}")

    def runs(self, kind: Kind, backend: BackendName) -> bool:
        """Whether graphs of a kind run on a backend that is the pipeline's own."""
        return self.placement.get(kind, backend) == backend
