"""Builds one engine in a process of its own, since a failed build can spoil the next one.

`build_engine` starts `python -m runtime.backends.trt_build JOB.json`, which writes its report
beside the job.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends.trt_library import (
    Flavour,
    configure,
    context_settings,
    create_network,
    import_tensorrt,
    keeps_timing_cache,
    library_links,
    load_plugins,
    make_logger,
)
from runtime.errors import DeployError, EngineBuildError

ROOT = Path(__file__).resolve().parents[2]
JOB, REPORT = "job.json", "report.json"
KEPT_MESSAGES = 5  # of TensorRT's log in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """What to build.

    Attributes:
        graph: ONNX file.
        part: file that holds the part of the graph to build, None = all; its weights are found
            from where the graph is.
        plan: file to write.
        profiles: shape of every input; minimum, optimum and maximum are the same.
        targets: compute capabilities as `sm80`, None for what TensorRT builds for by default.
        is_for_this_gpu: the plan can be loaded here, to read how much memory it needs.
        try_context: also make an execution context, where the plan can be loaded.
        workspace_bytes: limit on scratch memory, None for the GPU's.
        plugin: plugin library to register, None for the function body.
        timing_cache: file to read and write where the library keeps timings.
    """

    flavour: Flavour
    graph: str
    plan: str
    profiles: tuple[dict[str, tuple[int, ...]], ...]
    targets: tuple[str, ...] | None = None
    part: str | None = None
    is_for_this_gpu: bool = False
    try_context: bool = False
    workspace_bytes: int | None = None
    plugin: str | None = None
    timing_cache: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What became of a build.

    Attributes:
        error: empty if the plan was written.
        messages: warnings and errors of TensorRT's log.
        layers: how many there are of each type, before fusion.
        activation_nbytes: scratch memory of every profile; None where the plan cannot be loaded,
            as on a machine without the GPU that it is for.
        makes_context: whether the engine can run here; None = not tried.
    """

    error: str
    messages: tuple[str, ...]
    layers: dict[str, int]
    activation_nbytes: tuple[int, ...] | None
    seconds: float
    makes_context: bool | None = None

    @property
    def plugin_layers(self) -> int:
        return sum(n for name, n in self.layers.items() if name.startswith("PLUGIN"))


def build_engine(job: BuildJob) -> BuildReport:
    """Builds an engine in another process.

    Raises:
        EngineBuildError: the graph is not accepted, nothing can be built, or the process died.
    """
    with tempfile.TemporaryDirectory(prefix="hmar-trt-") as name:
        folder = Path(name)
        (folder / JOB).write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "runtime.backends.trt_build", str(folder / JOB)],
            env=_environment(job.flavour, folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        path = folder / REPORT
        if not path.is_file():
            raise EngineBuildError(
                f"{job.graph}: the build process ended with code {done.returncode} and no report: "
                f"{done.stderr.strip()[-2000:] or 'it printed nothing'}"
            )
        data = json.loads(path.read_text(encoding="utf-8"))
    activations = data.pop("activation_nbytes")
    report = BuildReport(
        **data | {"messages": tuple(data["messages"])},
        activation_nbytes=None if activations is None else tuple(activations),
    )
    if report.error:
        log = "; ".join(report.messages[-KEPT_MESSAGES:]) or "its log is empty"
        raise EngineBuildError(f"{job.graph}: {report.error} ({job.flavour} says: {log})")
    return report


def _environment(flavour: Flavour, folder: Path) -> dict[str, str]:
    links = library_links(flavour, folder)
    paths = {"PYTHONPATH": ROOT, **({} if links is None else {"LD_LIBRARY_PATH": links})}
    joined = {
        name: os.pathsep.join([str(path), *filter(None, [os.environ.get(name)])])
        for name, path in paths.items()
    }
    return {**os.environ, **joined}


def run(job: BuildJob) -> BuildReport:
    """Does a job in this process."""
    start = time.perf_counter()
    messages: list[str] = []
    layers: Counter[str] = Counter()

    def report(
        error: str, activations: tuple[int, ...] | None = None, makes_context: bool | None = None
    ) -> BuildReport:
        return BuildReport(
            error=error,
            messages=tuple(messages),
            layers=dict(layers),
            activation_nbytes=activations,
            seconds=time.perf_counter() - start,
            makes_context=makes_context,
        )

    try:
        library = import_tensorrt(job.flavour)
        trt, logger = library.module, make_logger(library, messages)
        builder = trt.Builder(logger)
        if job.plugin is not None:
            load_plugins(library, job.plugin)
    except DeployError as error:
        return report(str(error))
    except TypeError as error:  # TensorRT's answer where there is no usable driver
        return report(f"{job.flavour} cannot make a builder: {error}")
    network = create_network(library, builder)
    parser = trt.OnnxParser(network, logger)
    if job.part is None:
        is_parsed = parser.parse_from_file(job.graph)
    else:
        is_parsed = parser.parse(Path(job.part).read_bytes(), job.graph)
    if not is_parsed:
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return report(f"the graph is not accepted: {'; '.join(errors) or 'no reason given'}")
    layers.update(network.get_layer(i).type.name for i in range(network.num_layers))
    config = builder.create_builder_config()
    configure(library, config, job.targets, job.workspace_bytes)
    for shapes in job.profiles:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
    cache = Path(job.timing_cache) if job.timing_cache and keeps_timing_cache(library) else None
    if cache is not None:
        config.set_timing_cache(
            config.create_timing_cache(cache.read_bytes() if cache.is_file() else b""), False
        )
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return report("no engine can be built")
    data = bytes(plan)
    Path(job.plan).write_bytes(data)
    if cache is not None:
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(data) if job.is_for_this_gpu else None
    if engine is None:
        return report("")
    makes_context = None
    if job.try_context:
        settings = context_settings(library, engine)
        makes_context = engine.create_execution_context(settings) is not None
    return report("", _activations(engine), makes_context)


def _activations(engine: Any) -> tuple[int, ...]:
    return tuple(
        engine.get_device_memory_size_for_profile_v2(i)
        for i in range(engine.num_optimization_profiles)
    )


def _job(data: Mapping[str, Any]) -> BuildJob:
    profiles = tuple({name: tuple(s) for name, s in p.items()} for p in data["profiles"])
    targets = data["targets"]
    return BuildJob(
        **{**data, "profiles": profiles, "targets": None if targets is None else tuple(targets)}
    )


def main() -> None:
    path = Path(sys.argv[1])
    report = run(_job(json.loads(path.read_text(encoding="utf-8"))))
    (path.parent / REPORT).write_text(json.dumps(dataclasses.asdict(report)), encoding="utf-8")


if __name__ == "__main__":
    main()
