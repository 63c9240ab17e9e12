"""Generations of the C++ runtime on a GPU: the same pixels and tokens as Python's.

    python -m pytest tests/gpu/test_cpp_gpu.py -v -rs

needs the built plugin library with all kernels for this GPU (an H100), `cuda.bindings`, and what
CMake builds the C++ runtime with. `python -m tests.gpu.cpp_generations` measures, too.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from export import ExportConfig, export_bundle
from plugins_trt.loader import open_library
from runtime.backends.recordings import Library as PluginLibrary
from runtime.backends.recordings import make_recordings
from runtime.bundle import Bundle
from runtime.config import SamplingConfig
from runtime.errors import BackendUnavailableError
from tests.cases import write_files
from tests.cpp_runtime import CppSession, Library
from tests.golden_data import Case
from tests.gpu.cpp_generations import (
    PythonGenerations,
    build_library,
    compare,
    in_fresh_process,
    sanitizer,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        importlib.util.find_spec("cuda") is None
        or importlib.util.find_spec("cuda.bindings") is None,
        reason="no cuda.bindings: pip install cuda-bindings",
    ),
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("c++") is None, reason="no cmake or no c++"
    ),
]

BATCHES = (1, 3)
LAYERS = {"depth": 3, "n_layers_train": 1}  # of a model of the published widths


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    case = Case("d16_256")
    case.config = {**case.config, **LAYERS}
    folder = tmp_path_factory.mktemp("shallow")
    files, config = write_files(folder, case), ExportConfig(precision="fp16", verify=False)
    return Bundle.open(export_bundle(config, files.ckpt, files.vae, folder / "bundle").bundle)


@pytest.fixture(scope="module")
def python(bundle: Bundle) -> Iterator[PythonGenerations]:
    try:
        python = PythonGenerations(bundle, BATCHES)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    yield python
    python.close()


@pytest.fixture(scope="module")
def library() -> Path:
    return build_library()


@pytest.fixture(scope="module")
def session(library: Path, bundle: Bundle, python: PythonGenerations) -> Iterator[CppSession]:
    gpu = python.device.gpu
    plugins = PluginLibrary.built(gpu)
    sampling = SamplingConfig.defaults(bundle.manifest)
    make_recordings(bundle, gpu, BATCHES, [sampling], library=plugins)
    with CppSession(
        Library(library), bundle.folder, backend="gpu", plugins=open_library("trt").path
    ) as session:
        yield session


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_pixels_and_tokens_are_pythons(
    bundle: Bundle, python: PythonGenerations, session: CppSession, count: int, seed: int
) -> None:
    assert session.backend.startswith("gpu (")
    compare(bundle, python, session, count, seed)


def test_requests_are_split(session: CppSession) -> None:
    whole = session.generate([1, 2, 3, 4], seed=1)["pixels"]
    first = session.generate([1, 2, 3], seed=1)["pixels"]
    assert (whole[:3] == first).all()
    last = session.generate([4], seed=1, image_index=[3])["pixels"]
    assert (whole[3:] == last).all()


def test_memcheck_finds_nothing(library: Path, bundle: Bundle, session: CppSession) -> None:
    tool = sanitizer()
    if tool is None:
        pytest.skip("no compute-sanitizer")
    prefix = (tool, "--tool", "memcheck", "--error-exitcode", "9")
    in_fresh_process(library, bundle.folder, 1, 1, *prefix)
