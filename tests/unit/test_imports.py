"""Who may import whom: data flows from hmar over export and the bundle to runtime."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = {"hmar", "export", "runtime", "plugins_trt", "scripts", "tests"}
MAY_IMPORT = {
    "hmar": {"hmar"},
    "plugins_trt": {"plugins_trt"},
    "runtime": {
        "runtime",
        "plugins_trt.loader",
        "plugins_trt.block_sparse_attn.spec",
        "plugins_trt.decoder.weights",
        "plugins_trt.glue.tiles",
        "plugins_trt.transformer.weights",
    },
    "export": {"export", "hmar", "plugins_trt", "runtime.bundle"},
}
LIBRARIES = {
    "hmar": {"torch", "numpy", "safetensors"},
    "plugins_trt": {"torch", "numpy", "triton", "cuda"},
    "runtime": {"numpy", "onnx", "onnxruntime", "cuda", "nvtx", "triton_python_backend_utils"},
    "export": {"torch", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "ml_dtypes"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def allowed(name: str, package: str) -> bool:
    top = name.split(".")[0]
    if top in PROJECT:
        return any(name == ok or name.startswith(f"{ok}.") for ok in MAY_IMPORT[package])
    return top in sys.stdlib_module_names or top in LIBRARIES[package]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_what_it_may(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        f"{f.relative_to(ROOT)}: {n}" for f in files for n in imported(f) if not allowed(n, package)
    }
    assert not wrong


def test_runtime_needs_numpy_only() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxruntime', 'PIL', 'tensorrt', "
        "'tensorrt_rtx', 'cuda'], None))\n"
        "import runtime, runtime.pipeline, runtime.himar_pipeline, runtime.trace, "
        "runtime.backends.onnxrt, runtime.backends.trt, runtime.engine_cache"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_asking_for_onnxruntime_where_it_is_missing() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from runtime.backends.onnxrt import choose_backend\n"
        "from runtime.errors import BackendUnavailableError\n"
        "try: choose_backend('auto')\n"
        "except BackendUnavailableError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert "pip install onnxruntime" in done.stdout
