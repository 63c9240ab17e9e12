"""A folder of engines that nothing built, whose runs ONNX Runtime computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence

from runtime.bundle import Bundle, Kind
from runtime.engine_manifest import (
    ENGINES_FILE,
    FORMAT_VERSION,
    FUNCTION_BODY,
    EngineEntry,
    EngineFolder,
    EngineManifest,
    PlanEntry,
)
from runtime.engine_plan import EngineOptions, plan_engines
from tests.host_device import HostDevice, OrtEngine, whole_engine

LIBRARY, VERSION = "tensorrt", "10.14.1.48"


def make_engines(
    bundle: Bundle,
    gpu: str,
    options: EngineOptions,
    *,
    leave_out: Collection[Kind] = (),
    knows_scratch: bool = True,
) -> EngineFolder:
    """Writes it into the bundle; a plan's bytes are JSON that says what it is of.

    Args:
        knows_scratch: as engines that were built on their GPU, and not ahead of time.
    """
    folder = bundle.folder / "engines" / f"{gpu}_trt{VERSION}"
    folder.mkdir(parents=True)
    engines = {}
    for spec in plan_engines(bundle.manifest, options):
        if spec.kind in leave_out:
            continue
        plan = json.dumps({"graph": spec.graph, "profiles": spec.profiles}).encode()
        (folder / f"{spec.graph}.plan").write_bytes(plan)
        sizes = whole_engine(bundle, spec.graph, spec.profiles).activation_nbytes
        entry = PlanEntry(
            file=f"{spec.graph}.plan",
            sha256=hashlib.sha256(plan).hexdigest(),
            nbytes=len(plan),
            stage=None,
            activation_nbytes=sizes if knows_scratch else None,
        )
        engines[spec.graph] = EngineEntry(
            graph_sha256=bundle.manifest.graphs[spec.graph].sha256,
            key="0" * 64,
            attention=None,
            profiles=spec.profiles,
            plans=(entry,),
            why_staged="",
            build_seconds=0.0,
        )
    manifest = EngineManifest(
        format_version=FORMAT_VERSION,
        library=LIBRARY,
        library_version=VERSION,
        gpus=(gpu,),
        attention=FUNCTION_BODY,
        precision=bundle.manifest.precision,
        layout="profiles",
        batches=options.batches,
        stages={},
        workspace_bytes=None,
        weights_sha256=bundle.manifest.weights.sha256,
        engines=engines,
    )
    (folder / ENGINES_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return EngineFolder.open(folder)


class HostEngines:
    """Runs these engines on the host's memory."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._device = bundle, HostDevice()
        self._engines: dict[str, OrtEngine] = {}
        self.runs = 0

    def run(
        self,
        plan: bytes,
        profile: int,
        shapes: Mapping[str, Sequence[int]],
        addresses: Mapping[str, int],
        scratch: int | None,
    ) -> None:
        """Runs a plan.

        Args:
            scratch: address of its scratch memory; None = memory of its own.
        """
        of = json.loads(plan)
        engine = self._engines.get(of["graph"])
        if engine is None:
            engine = whole_engine(self._bundle, of["graph"], of["profiles"])
            self._engines[of["graph"]] = engine
        self.runs += 1
        if scratch is None:
            scratch = self._device.allocate(engine.activation_nbytes[profile])
        tuples = {name: tuple(shape) for name, shape in shapes.items()}
        engine.execute(profile, tuples, addresses, scratch, HostDevice.stream)
