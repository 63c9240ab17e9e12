"""Builds one TensorRT-RTX engine in a process of its own, since a failed build can spoil the next.

`build_engine` starts `python -m tests.tensorrt_build`, which reads its job from standard input.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Profile = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a build.

    Attributes:
        layers: how many there are of each type, empty if the graph was not parsed.
        messages: warnings and errors of the log.
        plan: the engine, empty if none was built.
    """

    layers: dict[str, int]
    messages: list[str]
    plan: bytes


def rtx_version() -> tuple[int, ...] | None:
    """Version of the TensorRT-RTX package, None if there is none."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return None
    # the bindings are there without the package that pulls them in where wheels were unpacked
    version = importlib.metadata.version("tensorrt-rtx-cu13-bindings")
    return tuple(int(part) for part in version.split("."))


def build_engine(
    graph: Path,
    folder: Path,
    *,
    library: Path | None,
    profiles: Sequence[Profile],
    arches: Sequence[int] | None,
) -> Report:
    """Builds an engine of an ONNX file.

    Args:
        folder: for the plan and what else the build needs.
        library: plugin library to load.
        profiles: shape of every input; minimum, optimum and maximum are the same.
        arches: compute capabilities to build for, None for this machine's GPU.
    """
    plan = folder / "engine.plan"
    job = {
        "graph": str(graph),
        "plan": str(plan),
        "library": None if library is None else str(library),
        "profiles": [{name: list(shape) for name, shape in p.items()} for p in profiles],
        "arches": arches,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.tensorrt_build"],
        cwd=ROOT,
        env=os.environ | {"LD_LIBRARY_PATH": str(_library_folder(folder))},
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    report = json.loads(done.stdout.splitlines()[-1])
    return Report(plan=plan.read_bytes() if plan.exists() else b"", **report)


def _library_folder(folder: Path) -> Path:
    """A folder with libtensorrt_rtx.so, which the parser opens for a plugin; the wheel has it as
    libtensorrt_rtx.so.1 only."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None and spec.submodule_search_locations
    links = folder / "lib"
    links.mkdir(exist_ok=True)
    link = links / "libtensorrt_rtx.so"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(spec.submodule_search_locations[0]) / "libtensorrt_rtx.so.1")
    return links


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Does a job in this process."""
    import tensorrt_rtx as trt

    messages: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                messages.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    if job["library"]:
        trt.get_plugin_registry().load_library(job["library"])
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job["graph"]):
        return {"layers": {}, "messages": messages}
    config = builder.create_builder_config()
    if job["arches"]:
        config.num_compute_capabilities = len(job["arches"])
        for i, arch in enumerate(job["arches"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{arch}"), i)
    for shapes in job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is not None:
        Path(job["plan"]).write_bytes(bytes(plan))
    layers = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    return {"layers": layers, "messages": messages}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(json.load(sys.stdin))) + "\n")
