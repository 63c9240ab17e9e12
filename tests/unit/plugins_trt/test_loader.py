"""Finding, checking and registering the libraries; libraries here are a few lines of C++."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from plugins_trt import loader
from plugins_trt.ahead_of_time import ARCHITECTURES
from plugins_trt.errors import PluginError, PluginNotFoundError, PluginVersionError
from plugins_trt.loader import FILES, LibraryKind, find_library, load_trt_plugins, open_library
from tests.plugin_build import ROOT, PluginBuild

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def fake_library(
    folder: Path, kind: LibraryKind, version: str | None = None, architectures: str = "80,90"
) -> Path:
    """A library that only says what it is."""
    says = {"version": version or loader.package_version(), "architectures": architectures}
    code = "".join(
        f'extern "C" const char* bsa_{name}() {{ return "{value}"; }}\n'
        for name, value in says.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILES[kind]
    command = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=code, text=True, check=True)
    return path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Empty folders in place of the package's and the checkout's."""
    installed, built = tmp_path / "lib", tmp_path / "build" / "plugins"
    monkeypatch.setattr(loader, "INSTALLED", installed)
    monkeypatch.setattr(loader, "BUILT", built)
    return installed, built


@pytest.mark.parametrize("kind", FILES, ids=FILES.get)
def test_missing_library_says_how_to_build_it(kind: LibraryKind, places: tuple[Path, Path]) -> None:
    with pytest.raises(PluginNotFoundError) as caught:
        find_library(kind)
    message = str(caught.value)
    assert all(str(place / FILES[kind]) in message for place in places)
    assert "cmake -S plugins_trt" in message and "pip install" in message


def test_missing_library_says_why_pip_left_it_out(places: tuple[Path, Path]) -> None:
    places[0].mkdir()
    (places[0] / "notes.txt").write_text("libhmar_ort.so: no headers\nlibhmar_plugins.so: no nvcc")
    with pytest.raises(PluginNotFoundError, match=r"\(libhmar_plugins.so: no nvcc\); build it"):
        find_library("trt")


def test_a_named_library_is_not_looked_for_elsewhere(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(PluginNotFoundError, match=f"not found at {tmp_path}/mine.so; build it"):
        find_library("ort", tmp_path / "mine.so")


@needs_compiler
@pytest.mark.parametrize("kind", FILES, ids=FILES.get)
def test_installed_comes_before_built(kind: LibraryKind, places: tuple[Path, Path]) -> None:
    installed, built = places
    path = fake_library(built, kind, architectures="")
    assert find_library(kind) == path
    assert open_library(kind).architectures == ()
    path = fake_library(installed, kind)
    library = open_library(kind)
    assert (library.path, library.architectures) == (path, (80, 90))
    assert find_library(kind, path) == find_library(kind, path.parent) == path


@needs_compiler
def test_other_version(tmp_path: Path) -> None:
    path = fake_library(tmp_path, "ort", version="9.9.9")
    with pytest.raises(
        PluginVersionError, match=r"built from version 9\.9\.9, this package is"
    ) as e:
        find_library("ort", path)
    assert (e.value.found, e.value.expected) == ("9.9.9", loader.package_version())


def test_not_a_library(tmp_path: Path) -> None:
    path = tmp_path / FILES["ort"]
    path.write_text("text")
    with pytest.raises(PluginError, match=r"not a libhmar_ort\.so for this machine: "):
        find_library("ort", path)


@needs_compiler
def test_another_library(tmp_path: Path) -> None:
    path = tmp_path / "empty.so"
    subprocess.run(["c++", "-shared", "-x", "c++", "/dev/null", "-o", str(path)], check=True)
    with pytest.raises(PluginError, match=r"not a libhmar_plugins\.so .* bsa_version"):
        find_library("trt", path)


class Registry:
    """TensorRT's plugin registry, as far as the loader uses it."""

    def __init__(self, works: bool) -> None:
        self.works, self.loaded = works, list[str]()

    def load_library(self, path: str) -> None:
        self.loaded.append(path)

    @property
    def all_creators(self) -> list[Any]:
        ours = SimpleNamespace(
            name="BlockSparseAttention", plugin_version="1", plugin_namespace="hmar"
        )
        return [ours] if self.works and self.loaded else []


def tensorrt(registry: Registry) -> Any:
    return SimpleNamespace(
        __name__="tensorrt", __version__="10.14", get_plugin_registry=lambda: registry
    )


@needs_compiler
def test_trt_plugins_are_registered_once(tmp_path: Path) -> None:
    path = fake_library(tmp_path, "trt")
    registry = Registry(works=True)
    for _ in range(2):
        assert load_trt_plugins(tensorrt(registry), path).architectures == (80, 90)
    assert registry.loaded == [str(path)]


@needs_compiler
def test_trt_that_takes_no_plugins(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"tensorrt 10\.14 did not register hmar::BlockSparse"):
        load_trt_plugins(tensorrt(Registry(works=False)), fake_library(tmp_path, "trt"))


@pytest.mark.trt
def test_tensorrt_takes_the_library(plugin_build: PluginBuild) -> None:
    code = (
        "import sys, tensorrt_rtx as trt\n"
        "from plugins_trt.loader import load_trt_plugins\n"
        "builder = trt.Builder(trt.Logger(trt.Logger.ERROR))\n"
        "for _ in range(2): print(load_trt_plugins(trt, sys.argv[1]).architectures)"
    )
    command = [sys.executable, "-c", code, str(plugin_build.library)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{ARCHITECTURES}\n" * 2, done.stderr
    assert "Cannot find plugin" not in done.stderr


def test_ort_library_is_found_and_registered(ort_library: Path) -> None:
    library = loader.register_ort(ort.SessionOptions(), ort_library)
    assert library == open_library("ort", ort_library)
    assert library.version == loader.package_version()
