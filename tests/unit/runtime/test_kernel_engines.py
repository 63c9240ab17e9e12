"""Which graphs need no engine, since the plugin library has kernels for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hmar.config import HIMAR_PRESETS
from plugins_trt.loader import Library, PluginNotFoundError
from runtime.backends import kernel_engines
from runtime.backends.kernel_engines import KINDS, kinds_with_kernels
from runtime.bundle import Bundle, WeightSpec
from runtime.errors import BackendUnavailableError
from tests.kernel_tables import kernel_table
from tests.unit.runtime.manifests import himar_manifest
from tests.unit.runtime.published import published, published_himar

TABLES = {
    part: pytest.importorskip(f"plugins_trt.{part}.aot", reason="no triton")
    for part in ("decoder", "glue", "transformer")
}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for compute capability 9.0."""

    def read(path: Path, part: str, gpu: str) -> Any:
        if gpu != "sm90" or part not in TABLES:
            raise BackendUnavailableError(f"{path}: {part} kernels for 90, none for {gpu}")
        return kernel_table(TABLES[part])

    opened = Library(path=Path("libhmar_plugins.so"), version="0.1.0", architectures=(90,))
    monkeypatch.setattr(kernel_engines, "open_library", lambda kind: opened)
    monkeypatch.setattr(kernel_engines, "read_table", read)


def bundle(**changes: Any) -> Bundle:
    """A bundle of d16 at 256 px, as far as launches depend on it."""
    manifest = published("hmar-d16-256")
    sizes = {"depth": 16, "branch_layers": 8, "num_heads": 16, "vocab_size": 4096, **changes}
    tensors = {**manifest.tensors, "base_blocks.0.fc1.bias": WeightSpec("float16", (4096,), 0)}
    model = dataclasses.replace(manifest.hmar, **sizes)
    return Bundle(Path("d16"), dataclasses.replace(manifest, model=model, tensors=tensors))


@pytest.mark.usefixtures("library")
def test_graphs_with_kernels_need_no_engine() -> None:
    assert kinds_with_kernels(bundle(), "sm90", (1, 64)) == set(KINDS["transformer"]["hmar"])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("gpu", ["sm80", "sm120"])
def test_other_gpus_need_engines(gpu: str) -> None:
    assert kinds_with_kernels(bundle(), gpu, (1,)) == set()


@pytest.mark.usefixtures("library")
def test_models_without_kernels_need_engines() -> None:
    assert kinds_with_kernels(bundle(attn_l2_norm=False), "sm90", (1,)) == set()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("preset", HIMAR_PRESETS)
def test_graphs_of_published_sizes_need_no_engines(preset: str) -> None:
    himar = Bundle(Path("himar"), published_himar(preset))
    has_heads_of_64 = preset != "himar-huge-256"
    passes = set(KINDS["transformer"]["himar"]) if has_heads_of_64 else set()
    kinds = set(KINDS["denoisers"]["himar"]) | passes | {"decode", "decode_pivot"}
    assert kinds_with_kernels(himar, "sm90", (1, 32)) == kinds
    assert kinds_with_kernels(himar, "sm80", (1, 32)) == set()


@pytest.mark.usefixtures("library")
def test_other_sizes_need_engines() -> None:
    unknown = himar_manifest(precision="fp16")
    for manifest in (unknown, published_himar("himar-base-256", "fp32")):
        assert kinds_with_kernels(Bundle(Path("himar"), manifest), "sm90", (1,)) == set()


@pytest.mark.usefixtures("library")
def test_a_bundle_without_decoder_needs_none() -> None:
    whole = published_himar("himar-base-256")
    graphs = {n: graph for n, graph in whole.graphs.items() if not graph.kind.startswith("decode")}
    himar = Bundle(Path("himar"), dataclasses.replace(whole, graphs=graphs))
    kinds = set(KINDS["denoisers"]["himar"]) | set(KINDS["transformer"]["himar"])
    assert kinds_with_kernels(himar, "sm90", (1,)) == kinds


def test_without_the_library_all_is_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(kind: str) -> None:
        raise PluginNotFoundError("libhmar_plugins.so: not found")

    monkeypatch.setattr(kernel_engines, "open_library", missing)
    assert kinds_with_kernels(bundle(), "sm90", (1,)) == set()
