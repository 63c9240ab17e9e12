"""What `pip install` does about the plugin libraries; nothing is compiled here."""

from __future__ import annotations

import base64
import hashlib
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="the build backend is setuptools'")
import build_backend
from build_backend import LIBRARIES, Plan, PluginBuildError, Settings, add_to_wheel, make_plan

NAME = "hmar_deploy-0.1.0"
MISSING_HEADER = "onnxruntime_cxx_api.h was not found; name its folder with -C onnxruntime-root=DIR"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout on a machine with nvcc, Triton and cmake, and ONNX Runtime's headers fetched."""
    headers = tmp_path / "build" / "headers" / "onnxruntime"
    headers.mkdir(parents=True)
    (headers / "onnxruntime_cxx_api.h").touch()
    monkeypatch.setattr(build_backend, "ROOT", tmp_path)
    monkeypatch.setattr(build_backend, "cuda_compiler", lambda: "/cuda/bin/nvcc")
    monkeypatch.setattr(build_backend, "with_compilers", lambda: {})
    monkeypatch.setattr(build_backend.shutil, "which", lambda name: f"/usr/bin/{name}")
    real = build_backend.find_header
    monkeypatch.setattr(  # without what the system itself may have
        build_backend,
        "find_header",
        lambda h, f, named: real(h, f, named or str(tmp_path / "build" / "headers" / f)),
    )
    return tmp_path


def pure_wheel(folder: Path) -> Path:
    files = {
        "hmar/__init__.py": "",
        f"{NAME}.dist-info/WHEEL": "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256=x,1\n" for name in files) + f"{NAME}.dist-info/RECORD,,\n"
    path = folder / f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, f"{NAME}.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)
    return path


@pytest.fixture
def fake_setuptools(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        build_backend.build_meta, "build_wheel", lambda folder, *_: pure_wheel(Path(folder)).name
    )
    monkeypatch.setattr(
        build_backend.build_meta, "get_requires_for_build_wheel", lambda *_: ["base"]
    )
    return machine


def notes(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as opened:
        return opened.read("plugins_trt/lib/notes.txt").decode()


def test_source_distribution_holds_all_that_the_libraries_are_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a copy: in a checkout, setuptools adds what it found in earlier builds
    root, copy = Path(build_backend.ROOT), tmp_path / "checkout"
    shutil.copytree(root / "plugins_trt", copy / "plugins_trt")
    for name in ("pyproject.toml", "MANIFEST.in", "build_backend.py", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    monkeypatch.chdir(copy)
    name = build_backend.build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / name) as opened:
        held = {path.partition("/")[2] for path in opened.getnames()}
    kinds = {".cpp", ".h", ".cu", ".cuh", ".S", ".in", ".txt", ".map", ".py"}
    sources = {
        path.relative_to(copy).as_posix()
        for path in (copy / "plugins_trt").rglob("*")
        if path.suffix in kinds and "lib" not in path.relative_to(copy).parts
    }
    assert len(sources) > 40 and sources <= held


def test_libraries_make_a_wheel_of_this_platform(tmp_path: Path) -> None:
    name = add_to_wheel(pure_wheel(tmp_path), {"plugins_trt/lib/a.so": b"code"}, is_pure=False)
    assert name.startswith(f"{NAME}-py3-none-linux_")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with zipfile.ZipFile(tmp_path / name) as wheel:
        about = wheel.read(f"{NAME}.dist-info/WHEEL").decode()
        record = wheel.read(f"{NAME}.dist-info/RECORD").decode().splitlines()
        assert sorted(wheel.namelist()) == sorted(line.split(",")[0] for line in record)
    assert about == f"Root-Is-Purelib: false\nTag: {name[len(NAME) + 1 : -4]}\n"
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"code").digest()).decode().rstrip("=")
    assert f"plugins_trt/lib/a.so,sha256={digest},4" in record


def test_plan_builds_what_there_are_headers_for(machine: Path) -> None:
    plan = make_plan(Settings())
    assert plan.roots == {"libhmar_ort.so": machine / "build" / "headers" / "onnxruntime"}
    assert plan.missing["libhmar_plugins.so"].startswith("NvInferRuntime.h was not found")
    (machine / "trt" / "include").mkdir(parents=True)
    (machine / "trt" / "include" / "NvInferRuntime.h").touch()
    settings = Settings.parse({"tensorrt-root": str(machine / "trt"), "--other": "x"})
    assert set(make_plan(settings).roots) == set(LIBRARIES)


def test_plan_without_a_cuda_compiler(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_backend, "cuda_compiler", lambda: None)
    assert not make_plan(Settings()).roots
    assert set(make_plan(Settings(plugins="cpu")).roots) == {"libhmar_ort.so"}
    assert not make_plan(Settings(plugins="off")).roots


def test_tools_are_asked_for_only_where_something_is_built(
    fake_setuptools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires = build_backend.get_requires_for_build_wheel
    assert requires() == ["base"]
    monkeypatch.setattr(build_backend, "with_compilers", lambda: None)
    monkeypatch.setattr(build_backend.shutil, "which", lambda name: None)
    assert requires() == ["base", "cmake>=3.25", *build_backend.COMPILERS]
    assert requires({"plugins": "cpu"}) == ["base", "cmake>=3.25"]
    assert requires({"plugins": "off"}) == ["base"]


def test_a_failed_build_installs_without(
    fake_setuptools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(plan: Plan, settings: Settings) -> list[Path]:
        raise PluginBuildError("no such\ninstruction")

    monkeypatch.setattr(build_backend, "build_libraries", fail)
    wheel = fake_setuptools / build_backend.build_wheel(str(fake_setuptools))
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    assert "libhmar_ort.so: its build failed: no such instruction\n" in notes(wheel)
    with pytest.raises(PluginBuildError):
        build_backend.build_wheel(str(fake_setuptools), {"plugins": "on"})


def test_nothing_to_build_with(fake_setuptools: Path) -> None:
    (fake_setuptools / "build/headers/onnxruntime/onnxruntime_cxx_api.h").unlink()
    wheel = fake_setuptools / build_backend.build_wheel(str(fake_setuptools))
    assert f"libhmar_ort.so: {MISSING_HEADER}\n" in notes(wheel)
    with pytest.raises(PluginBuildError, match=MISSING_HEADER):
        build_backend.build_wheel(str(fake_setuptools), {"plugins": "on"})


def test_libraries_go_into_the_wheel(
    fake_setuptools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = fake_setuptools / "libhmar_ort.so"
    library.write_bytes(b"code")
    monkeypatch.setattr(build_backend, "build_libraries", lambda *_: [library])
    name = build_backend.build_wheel(str(fake_setuptools), {"plugins": "cpu"})
    with zipfile.ZipFile(fake_setuptools / name) as wheel:
        assert wheel.read("plugins_trt/lib/libhmar_ort.so") == b"code"


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match=r"-C plugins must be one of .* got 'yes'"):
        Settings.parse({"plugins": "yes"})
