"""Finds the built plugin libraries, checks that they belong to this package, and registers them.

`pip install` puts them into plugins_trt/lib; in a checkout, CMake puts them into build/plugins.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from plugins_trt.block_sparse_attn.spec import OP_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from plugins_trt.errors import PluginError, PluginNotFoundError, PluginVersionError

__all__ = [
    "Library",
    "PluginError",
    "PluginNotFoundError",
    "PluginVersionError",
    "find_library",
    "load_trt_plugins",
    "open_library",
    "register_ort",
]

logger = logging.getLogger(__name__)

LibraryKind = Literal["trt", "ort"]
FILES: dict[LibraryKind, str] = {"trt": "libhmar_plugins.so", "ort": "libhmar_ort.so"}

_PACKAGE = Path(__file__).resolve().parent
INSTALLED = _PACKAGE / "lib"
BUILT = _PACKAGE.parent / "build" / "plugins"
BUILD_NOTES = "notes.txt"  # in INSTALLED, one line for each library that was left out, with why

HOW_TO_BUILD = (
    "build it in a checkout with 'cmake -S plugins_trt -B build/plugins && "
    "cmake --build build/plugins', or install with 'pip install -C plugins=on .' (see README)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A built library.

    Attributes:
        path: the file.
        version: of the package that it was built from.
        architectures: compute capabilities that it holds kernels for, times ten; empty = CPU only.
    """

    path: Path
    version: str
    architectures: tuple[int, ...]


def package_version() -> str:
    """Version of this package: the checkout's, else the installed one's."""
    project = _PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return importlib.metadata.version("hmar-deploy")


def find_library(kind: LibraryKind, path: Path | str | None = None) -> Path:
    """The library of a kind, after checking its version.

    Args:
        kind: "trt" (TensorRT plugins) or "ort" (ONNX Runtime custom ops).
        path: the library or its folder; default: where pip or CMake puts it.

    Raises:
        PluginNotFoundError: it is not there.
        PluginVersionError: it was built from another version of this package.
        PluginError: it cannot be loaded.
    """
    return open_library(kind, path).path


def open_library(kind: LibraryKind, path: Path | str | None = None) -> Library:
    """As `find_library`, with what the library says of itself."""
    file = _locate(kind, path)
    library = _describe(kind, file)
    expected = package_version()
    if library.version != expected:
        raise PluginVersionError(
            f"{file}: built from version {library.version}, this package is {expected}; "
            f"remove it, then {HOW_TO_BUILD}",
            found=library.version,
            expected=expected,
        )
    return library


def _locate(kind: LibraryKind, path: Path | str | None) -> Path:
    name = FILES[kind]
    if path is None:
        places = [INSTALLED / name, BUILT / name]
    else:
        path = Path(path)
        places = [path / name if path.is_dir() else path]
    for place in places:
        if place.is_file():
            return place
    notes = INSTALLED / BUILD_NOTES
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    why = "".join(f" ({line})" for line in lines if line.startswith(name))
    raise PluginNotFoundError(
        f"{name}: not found at {' or '.join(map(str, places))}{why}; {HOW_TO_BUILD}"
    )


def _describe(kind: LibraryKind, file: Path) -> Library:
    try:
        library = ctypes.CDLL(str(file))
        version, architectures = library.bsa_version, library.bsa_architectures  # csrc/bsa.h
    except (OSError, AttributeError) as error:
        raise PluginError(
            f"{file}: not a {FILES[kind]} for this machine: {error}; {HOW_TO_BUILD}"
        ) from error
    version.restype = architectures.restype = ctypes.c_char_p
    return Library(
        path=file,
        version=version().decode(),
        architectures=tuple(int(a) for a in architectures().decode().split(",") if a),
    )


def load_trt_plugins(trt: ModuleType, path: Path | str | None = None) -> Library:
    """Registers the plugins with TensorRT, for its parser and for engines that hold them.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        path: as in `find_library`.

    Raises:
        PluginError: the library is missing, of another version, or TensorRT does not take it.
    """
    library = open_library("trt", path)
    registry = trt.get_plugin_registry()
    if not _is_registered(registry):
        registry.load_library(str(library.path))
    if not _is_registered(registry):
        raise PluginError(
            f"{library.path}: {trt.__name__} {trt.__version__} did not register "
            f"{PLUGIN_NAMESPACE}::{OP_NAME} version {PLUGIN_VERSION} from it; its log says why"
        )
    logger.info("%s: plugins of %s", trt.__name__, library.path)
    return library


def _is_registered(registry: Any) -> bool:
    wanted = (OP_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    return wanted in {(c.name, c.plugin_version, c.plugin_namespace) for c in registry.all_creators}


def register_ort(session_options: Any, path: Path | str | None = None) -> Library:
    """Registers the custom ops with ONNX Runtime, for sessions made with these options.

    A registered op takes precedence over a model's function of the same name.

    Args:
        session_options: an `onnxruntime.SessionOptions`.
        path: as in `find_library`.

    Raises:
        PluginError: the library is missing or of another version.
    """
    library = open_library("ort", path)
    session_options.register_custom_ops_library(str(library.path))
    logger.info("ONNX Runtime: custom ops of %s", library.path)
    return library
