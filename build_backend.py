"""Build backend: setuptools, plus the plugin libraries in the wheel where they can be built.

    pip install .                  builds them if this machine has a CUDA compiler and headers of
                                   TensorRT or ONNX Runtime; otherwise, or if the build fails,
                                   installs without them
    pip install -C plugins=on .    builds them or fails
    pip install -C plugins=cpu .   builds ONNX Runtime's for the CPU alone, or fails
    pip install -C plugins=off .   does not try

Where headers are: -C tensorrt-root=DIR, -C onnxruntime-root=DIR (default: build/headers, as
scripts/fetch_headers.py fills it, then the system's folders). For which GPUs: -C archs=80,90.
What was left out and why goes into plugins_trt/lib/notes.txt, which `plugins_trt.loader` quotes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "wheel-plugins"
LIBRARIES = {  # file: (its header, where fetch_headers.py puts it, CMake's name for the place)
    "libhmar_plugins.so": ("NvInferRuntime.h", "tensorrt", "TENSORRT_ROOT"),
    "libhmar_ort.so": ("onnxruntime_cxx_api.h", "onnxruntime", "ONNXRUNTIME_ROOT"),
}
# what compiles kernels: Triton's, and those in CUDA C++
COMPILERS = ("triton>=3.6", "cuda-bindings>=12.9", "nvidia-cuda-nvrtc>=13.0")
Mode = Literal["auto", "on", "cpu", "off"]


class PluginBuildError(Exception):
    """The libraries cannot be built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """pip's config settings (-C name=value)."""

    plugins: Mode = "auto"
    tensorrt_root: str = ""
    onnxruntime_root: str = ""
    archs: str = ""

    def __post_init__(self) -> None:
        if self.plugins not in get_args(Mode):
            raise ValueError(f"-C plugins must be one of {get_args(Mode)}, got {self.plugins!r}")

    @classmethod
    def parse(cls, config_settings: Mapping[str, Any] | None) -> Settings:
        known = {f.name.replace("_", "-"): f.name for f in fields(cls)}
        return cls(**{known[k]: v for k, v in (config_settings or {}).items() if k in known})

    def root(self, library: str) -> str:
        return self.tensorrt_root if library == "libhmar_plugins.so" else self.onnxruntime_root


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to build and with what.

    Attributes:
        roots: by library, the folder of its headers.
        missing: by library, why it is left out.
    """

    roots: Mapping[str, Path]
    missing: Mapping[str, str]


def make_plan(settings: Settings) -> Plan:
    """What can be built here, as far as compilers and headers tell."""
    roots: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for library, (header, folder, variable) in LIBRARIES.items():
        if settings.plugins == "off":
            missing[library] = "installed with -C plugins=off"
        elif settings.plugins == "cpu" and library != "libhmar_ort.so":
            missing[library] = "installed with -C plugins=cpu"
        elif settings.plugins != "cpu" and cuda_compiler() is None:
            missing[library] = "no CUDA compiler (nvcc) was found when this package was installed"
        elif (root := find_header(header, folder, settings.root(library))) is None:
            option = variable.lower().replace("_", "-")
            missing[library] = f"{header} was not found; name its folder with -C {option}=DIR"
        else:
            roots[library] = root
    return Plan(roots=roots, missing=missing)


def cuda_compiler() -> str | None:
    """Path of nvcc."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def find_header(header: str, folder: str, named: str) -> Path | None:
    """The folder that CMake is to look in for a header."""
    places = [Path(named)] if named else [ROOT / "build" / "headers" / folder, Path("/usr")]
    inner = ("", "include", "include/x86_64-linux-gnu", f"include/{folder}")
    for place in places:
        if any((place / i / header).is_file() for i in inner):
            return place.resolve()
    return None


def with_compilers() -> dict[str, str] | None:
    """Environment variables with which this Python finds COMPILERS.

    Those of pip's isolated build, or those of the environment that the package is installed into:
    what pip isolates with is named in PYTHONPATH.
    """
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for environment in (dict(os.environ), bare):
        uses = "import triton; from cuda.bindings import nvrtc; nvrtc.nvrtcVersion()"
        command = [sys.executable, "-c", uses]
        if subprocess.run(command, env=environment, cwd=ROOT, capture_output=True).returncode == 0:
            return environment
    return None


def get_requires_for_build_wheel(
    config_settings: Mapping[str, Any] | None = None,
) -> list[str]:
    settings = Settings.parse(config_settings)
    requires = list(build_meta.get_requires_for_build_wheel(config_settings))
    if make_plan(settings).roots:
        if shutil.which("cmake") is None:
            requires.append("cmake>=3.25")
        if settings.plugins != "cpu" and with_compilers() is None:
            requires.extend(COMPILERS)
    return requires


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    settings = Settings.parse(config_settings)
    plan = make_plan(settings)
    built: Sequence[Path] = ()
    notes = dict(plan.missing)
    wanted = settings.plugins in ("on", "cpu")
    if wanted and not plan.roots:
        raise PluginBuildError(f"-C plugins={settings.plugins}: {lines(notes)}")
    try:
        if plan.roots:
            built = build_libraries(plan, settings)
    except PluginBuildError as error:
        if wanted:
            raise
        print(f"plugin libraries: the build failed; installing without them\n{error}")
        notes |= dict.fromkeys(plan.roots, f"its build failed: {lines(str(error))[-300:]}")
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    files = {f"plugins_trt/lib/{path.name}": path.read_bytes() for path in built}
    if notes:
        text = "".join(f"{library}: {why}\n" for library, why in notes.items())
        print(f"plugin libraries left out\n{text}", end="")
        files["plugins_trt/lib/notes.txt"] = text.encode()
    return add_to_wheel(Path(wheel_directory) / name, files, is_pure=not built)


def lines(text: str | Mapping[str, str]) -> str:
    """Text on one line."""
    if not isinstance(text, str):
        text = "; ".join(f"{name}: {value}" for name, value in text.items())
    return " ".join(text.split())


def build_libraries(plan: Plan, settings: Settings) -> list[Path]:
    """Builds with CMake.

    Raises:
        PluginBuildError: it fails.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    for stale in BUILD.glob("*.so"):
        stale.unlink()
    # Paths of an earlier build environment must not survive; what was compiled may.
    (BUILD / "CMakeCache.txt").unlink(missing_ok=True)
    options = [f"-D{LIBRARIES[name][2]}={root}" for name, root in plan.roots.items()]
    if settings.plugins == "cpu":
        source = ROOT / "plugins_trt" / "ort"
    else:
        source = ROOT / "plugins_trt"
        options.append(f"-DHMAR_KERNELS_DIR={compile_kernels(settings.archs)}")
    run(["cmake", "-S", str(source), "-B", str(BUILD), *options])
    run(["cmake", "--build", str(BUILD), "--parallel"])
    missing = [name for name in plan.roots if not (BUILD / name).is_file()]
    if missing:
        raise PluginBuildError(f"CMake did not make {missing}")
    return [BUILD / name for name in plan.roots]


def compile_kernels(archs: str) -> Path:
    """Compiles the kernels for these GPUs ("" = all) and returns their folder.

    Raises:
        PluginBuildError: it fails.
    """
    environment = with_compilers()
    if environment is None:
        raise PluginBuildError(
            f"{', '.join(COMPILERS)}: not all installed, nor in the build environment"
        )
    folder = BUILD / "kernels"
    for package in ("block_sparse_attn", "sampling", "decoder", "transformer", "glue"):
        command = [sys.executable, "-m", f"plugins_trt.{package}.aot", "--out", str(folder)]
        run([*command, "--arch", archs] if archs else command, environment)
    return folder


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs a command of the build.

    Raises:
        PluginBuildError: it fails.
    """
    print(" ".join(command), flush=True)
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except FileNotFoundError as error:
        raise PluginBuildError(f"{command[0]} was not found") from error
    output = done.stdout.decode(errors="replace")
    print(output, end="", flush=True)
    if done.returncode != 0:
        raise PluginBuildError(f"{' '.join(command[:3])}: {output[-2000:]}")


def add_to_wheel(wheel: Path, files: Mapping[str, bytes], *, is_pure: bool) -> str:
    """Adds files to a pure wheel and returns its name, which tells the platform unless pure."""
    if not files:
        return wheel.name
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    tag = "py3-none-any" if is_pure else f"py3-none-{platform}"
    target = wheel.with_name(wheel.name.replace("py3-none-any", tag))
    unfinished = wheel.with_suffix(".tmp")
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        (record,) = (n for n in old.namelist() if n.endswith(".dist-info/RECORD"))
        entries = [line for line in old.read(record).decode().splitlines() if line]
        changed = dict(files)
        if not is_pure:
            about = record.replace("RECORD", "WHEEL")
            text = old.read(about).decode()
            text = text.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
            changed[about] = text.replace("Tag: py3-none-any", f"Tag: {tag}").encode()
        for info in old.infolist():
            if info.filename not in (*changed, record):
                new.writestr(info, old.read(info))
        for name, data in changed.items():
            new.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            entries = [e for e in entries if not e.startswith(f"{name},")]
            entries.append(f"{name},sha256={digest},{len(data)}")
        new.writestr(record, "\n".join(entries) + "\n")
    wheel.unlink()
    unfinished.rename(target)
    return target.name
