"""Options and fixtures shared by the suite."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from runtime.pipeline import Pipeline
from tests.cases import make_bundle
from tests.golden_data import Case
from tests.himar_checkpoints import make_himar_bundle
from tests.plugin_build import PluginBuild, build_ort, finish_plugins, start_plugins
from tests.recorded import make_engine_bundle, make_recorded_bundle
from tests.tensorrt_build import rtx_version

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other cores belong to the other workers

STARTED_BUILD = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        help="folder with the full-size golden traces, for the slow tests",
    )
    parser.addoption(
        "--himar-golden-dir",
        type=Path,
        help="folder with all golden traces of Hi-MAR, for its slow tests",
    )
    parser.addoption(
        "--slow", action="store_true", help="also run the slow tests (full-size models)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))
    if rtx_version() is None:
        for item in items:
            if item.get_closest_marker("trt"):
                item.add_marker(pytest.mark.skip(reason="no TensorRT: pip install '.[rtx]'"))
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(
                pytest.mark.skip(reason="full-size model: run with --slow and a folder of traces")
            )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins the long build before the first test, if a test will want it."""
    wanted = any(
        "plugin_build" in getattr(item, "fixturenames", ())
        and item.get_closest_marker("skip") is None
        for item in session.items
    )
    if wanted and not session.config.option.collectonly:
        with contextlib.suppress(pytest.skip.Exception):  # said again by the test that wants it
            session.config.stash[STARTED_BUILD] = start_plugins()


def pytest_unconfigure(config: pytest.Config) -> None:
    started = config.stash.get(STARTED_BUILD, None)
    if started is not None and started.poll() is None:
        os.killpg(started.pid, signal.SIGTERM)


def shared_bundle(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """A bundle that `make` writes into a folder as `bundle`, once for all workers of a run."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            made = root / f"{name}.making"
            made.mkdir(exist_ok=True)
            make(made)
            made.rename(folder)
    return folder / "bundle"


def shared_tiny_bundle(factory: pytest.TempPathFactory, precision: str) -> Path:
    """The tiny case's bundle."""
    return shared_bundle(
        factory,
        f"tiny-{precision}",
        lambda folder: make_bundle(folder, Case("tiny"), precision=precision),
    )


@pytest.fixture(scope="session")
def tiny() -> Case:
    return Case("tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_tiny_bundle(tmp_path_factory, "fp32")


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, "ort-cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def tiny_fp16_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_tiny_bundle(tmp_path_factory, "fp16")


@pytest.fixture(scope="session")
def recorded_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_fp16_bundle: Path) -> Path:
    """The same with recordings for the kernels of `tests.host_library`."""
    return shared_bundle(
        tmp_path_factory,
        "tiny-recorded",
        lambda folder: make_recorded_bundle(folder / "bundle", tiny_fp16_bundle),
    )


@pytest.fixture(scope="session")
def engine_bundles(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_himar_bundle: Path
) -> tuple[Path, Path]:
    """Bundles of both families whose recordings run engines of `tests.host_engines`."""
    hmar, himar = (
        shared_bundle(
            tmp_path_factory,
            f"{bundle.parent.name}-engines",
            lambda folder, bundle=bundle: make_engine_bundle(folder / "bundle", bundle),
        )
        for bundle in (tiny_bundle, tiny_himar_bundle)
    )
    return hmar, himar


@pytest.fixture(scope="session")
def tiny_bf16_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_tiny_bundle(tmp_path_factory, "bf16")


@pytest.fixture(scope="session")
def tiny_himar_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_bundle(tmp_path_factory, "tiny-himar", make_himar_bundle)


@pytest.fixture(scope="session")
def tiny_himar_fp16_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_bundle(
        tmp_path_factory,
        "tiny-himar-fp16",
        lambda folder: make_himar_bundle(folder, precision="fp16", verify=False),
    )


@pytest.fixture(scope="session")
def plugin_build(pytestconfig: pytest.Config) -> PluginBuild:
    return finish_plugins(pytestconfig.stash.get(STARTED_BUILD, None) or start_plugins())


@pytest.fixture(scope="session")
def ort_library() -> Path:
    return build_ort("ort")


@pytest.fixture(scope="session")
def ort_library_without_avx2() -> Path:
    return build_ort("ort-baseline", "-DHMAR_CPU_AVX2=OFF")
