"""Options and fixtures shared by the suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runtime.pipeline import Pipeline
from tests.cases import make_bundle
from tests.golden_data import Case
from tests.plugin_build import PluginBuild, build_ort, build_plugins
from tests.tensorrt_build import rtx_version


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        help="folder with the full-size golden traces, for the slow tests",
    )
    parser.addoption(
        "--slow", action="store_true", help="also run the slow tests (full-size models)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))
    if rtx_version() is None:
        for item in items:
            if "trt" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no TensorRT: pip install '.[rtx]'"))
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(
                pytest.mark.skip(reason="full-size model: run with --slow --golden-dir DIR")
            )


@pytest.fixture(scope="session")
def tiny() -> Case:
    return Case("tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"), Case("tiny"))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, "ort-cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def tiny_fp16_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny-fp16"), Case("tiny"), precision="fp16")


@pytest.fixture(scope="session")
def tiny_bf16_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny-bf16"), Case("tiny"), precision="bf16")


@pytest.fixture(scope="session")
def plugin_build() -> PluginBuild:
    return build_plugins()


@pytest.fixture(scope="session")
def ort_library() -> Path:
    return build_ort("ort")


@pytest.fixture(scope="session")
def ort_library_without_avx2() -> Path:
    return build_ort("ort-baseline", "-DHMAR_CPU_AVX2=OFF")
