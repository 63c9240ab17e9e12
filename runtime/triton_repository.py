"""A model repository for Triton Inference Server: a bundle, its configuration, a model file.

Triton's Python backend runs `runtime.triton_model`, for which this package must be installed in the
server's Python environment. The scale loop holds decisions between graphs, so neither Triton's
ONNX Runtime backend nor an ensemble could run it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from runtime.bundle import Bundle, Manifest
from runtime.config import BACKENDS, BackendName, SamplingConfig

MODEL_FILE = '''"""For Triton's Python backend; its environment needs hmar-deploy."""

from runtime.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """Settings of a served model.

    Attributes:
        name: of the model, and of its folder.
        backend: see `BackendConfig`.
        max_batch: most images in one pass of the server, however many requests they come from.
        max_queue_delay_us: how long a request waits for others to share a pass with.
        seed: with it, the index that a request gives names its image's random numbers.
    """

    name: str = "hmar"
    backend: BackendName = "auto"
    max_batch: int = 8
    max_queue_delay_us: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-]", self.name):
            raise ValueError(f"name must be of letters, digits and _.-, got {self.name!r}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {self.backend!r}")
        if self.max_batch < 1 or self.max_queue_delay_us < 0:
            raise ValueError(
                "max_batch must be >= 1 and max_queue_delay_us >= 0, "
                f"got {self.max_batch} and {self.max_queue_delay_us}"
            )
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must be in 0..2^64-1, got {self.seed}")


def config_text(manifest: Manifest, config: TritonConfig) -> str:
    """The model's `config.pbtxt`.

    Raises:
        ManifestError: the bundle is not HMAR's.
    """
    published = SamplingConfig.defaults(manifest)
    side, last_class = manifest.hmar.image_side_px, manifest.hmar.num_classes - 1
    names = ("cfg", "top_k", "top_p", "mask_schedule")
    parameters = {
        "backend": config.backend,
        "seed": str(config.seed),
        "sampling": json.dumps({name: getattr(published, name) for name in names}),
    }
    kind = "KIND_CPU" if config.backend == "ort-cpu" else "KIND_AUTO"
    entries = "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in parameters.items()
    )
    return f"""\
name: {json.dumps(config.name)}
backend: "python"
max_batch_size: {config.max_batch}
# label: 0..{last_class}, or -1 = unconditional; with the seed, image_index names random numbers
input [
  {{ name: "label" data_type: TYPE_INT32 dims: [ 1 ] }},
  {{ name: "image_index" data_type: TYPE_UINT64 dims: [ 1 ] }}
]
output [ {{ name: "image" data_type: TYPE_UINT8 dims: [ {side}, {side}, 3 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: {config.max_queue_delay_us} }}
# one instance: it has a copy of the weights of its own, and uses all that the device has
instance_group [ {{ count: 1 kind: {kind} }} ]
{entries}"""


def write_repository(bundle: Bundle, out: Path, config: TritonConfig) -> Path:
    """Writes a model into a repository, which may hold others; returns the model's folder.

    Files of the bundle are linked where the file system can, and copied otherwise.

    Raises:
        ValueError: the repository has a model of this name.
        ManifestError: the bundle is not HMAR's.
    """
    text = config_text(bundle.manifest, config)
    folder = out / config.name
    if folder.exists():
        raise ValueError(f"{folder} exists already; remove it, or give the model another name")
    partial = out / f".{config.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    version = partial / "1"
    version.mkdir(parents=True)
    (partial / "config.pbtxt").write_text(text, encoding="utf-8")
    (version / "model.py").write_text(MODEL_FILE, encoding="utf-8")
    shutil.copytree(bundle.folder, version / "bundle", copy_function=_link_or_copy)
    partial.rename(folder)
    return folder


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
