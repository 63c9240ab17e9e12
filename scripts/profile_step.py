"""Time the layers of one TensorRT engine at one of its sizes, as trtexec --dumpProfile does.

Without --graph, lists the engines of a bundle and their profiles; that needs no GPU. The file that
--json writes has the fields of trtexec --exportProfile: the number of runs, then each layer's name,
timeMs (of all runs), averageMs, medianMs and percentage. Inputs are random.

example:
  python scripts/profile_step.py --bundle bundles/hmar-d16
  python scripts/profile_step.py --bundle bundles/hmar-d16 --graph ns_trunk --profile N=2,l=256
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from runtime.backends.trt import TensorRTRunner
from runtime.bundle import STORED_AS, Bundle, GraphSpec, TensorSpec
from runtime.config import BackendConfig
from runtime.engine_manifest import ENGINES, ENGINES_FILE, EngineFolder
from runtime.engine_plan import Dims, resolve, with_totals
from runtime.errors import DeployError
from scripts.cli import parser, run
from scripts.layer_times import LayerTimes, table

WARMUP = 10


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="with engines")
    p.add_argument(
        "--engines", type=Path, metavar="DIR", help="folder of engines (default: the bundle's)"
    )
    p.add_argument("--graph", metavar="NAME", help="which engine, such as ns_trunk or decode")
    p.add_argument(
        "--profile",
        metavar="SIZES",
        help="its sizes, such as N=2,l=256 (default: the first profile)",
    )
    p.add_argument("--runs", type=int, default=50, help="profiled runs, after ten others")
    p.add_argument("--top", type=int, default=30, metavar="N", help="layers to print, 0 = all")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all layers there")
    return p.parse_args()


def open_folders(bundle: Bundle, folder: Path | None) -> list[EngineFolder]:
    """The folders of engines that can be read.

    Raises:
        ValueError: there are none.
    """
    places = [folder] if folder else sorted((bundle.folder / ENGINES).glob(f"*/{ENGINES_FILE}"))
    found = [EngineFolder.open(p.parent if p.name == ENGINES_FILE else p) for p in places]
    if not found:
        raise ValueError(
            f"{bundle.folder} has no engines; "
            f"build them with scripts/build_engines.py --bundle {bundle.folder}"
        )
    return found


def show(dims: Dims) -> str:
    return ",".join(f"{symbol}={size}" for symbol, size in dims.items()) or "no sizes"


def listing(folders: Sequence[EngineFolder]) -> str:
    """Engines and profiles, one line each."""
    lines = []
    for found in folders:
        lines.append(str(found.folder))
        for graph, entry in found.manifest.engines.items():
            lines.append(f"  {graph}: {'  '.join(map(show, entry.profiles))}")
    return "\n".join(lines)


def profiles_of(graph: str, folders: Sequence[EngineFolder]) -> list[Dims]:
    """Sizes that a graph has engines for.

    Raises:
        ValueError: there is no engine of it.
    """
    entries = [f.manifest.engines[graph] for f in folders if graph in f.manifest.engines]
    if not entries:
        raise ValueError(f"--graph {graph}: there is no engine of it, but of\n{listing(folders)}")
    found: list[Dims] = []
    for entry in entries:
        found += [profile for profile in entry.profiles if profile not in found]
    return found


def choose_sizes(text: str | None, graph: str, profiles: Sequence[Dims]) -> Dims:
    """The profile with the sizes named, the first one if none are.

    Raises:
        ValueError: no profile fits, or several do.
    """
    if text is None:
        return profiles[0]
    pairs = [part.partition("=") for part in text.split(",")]
    fitting = [p for p in profiles if all(str(p.get(s.strip())) == v for s, _, v in pairs)]
    if len(fitting) != 1:
        raise ValueError(
            f"--profile {text}: {len(fitting)} profiles of {graph} fit; "
            f"there are {'  '.join(map(show, profiles))}"
        )
    return fitting[0]


def random_feeds(spec: GraphSpec, dims: Dims) -> dict[str, np.ndarray]:
    """Inputs of a graph at these sizes: normal numbers, token and class 0, one block per gap."""
    rng, sizes = np.random.default_rng(0), with_totals(dims)
    return {tensor.name: _random(rng, tensor, sizes) for tensor in spec.inputs}


def _random(rng: np.random.Generator, spec: TensorSpec, sizes: Dims) -> np.ndarray:
    shape = resolve(spec, sizes)
    if spec.name == "cu_seqlens":
        tokens = sizes.get("T", sizes.get("l", 1))
        return np.linspace(0, tokens, shape[0]).astype(np.int32)
    if spec.dtype in ("float32", "float16"):
        return rng.standard_normal(shape, np.float32).astype(STORED_AS[spec.dtype])
    return np.zeros(shape, STORED_AS[spec.dtype])


def profile_layers(runner: TensorRTRunner, graph: str, dims: Dims, runs: int) -> LayerTimes:
    """Times of an engine's layers on the GPU."""
    feeds = random_feeds(runner.manifest.graphs[graph], dims)
    for _ in range(WARMUP):
        runner.run(graph, feeds)
    times = LayerTimes()
    runner.report_layers(graph, times.report)
    for _ in range(runs):
        times.begin_run()
        runner.run(graph, feeds)
    return times


def main() -> None:
    args = parse_args()
    if args.runs < 1 or args.top < 0:
        raise ValueError(f"--runs must be >= 1 and --top >= 0, got {args.runs} and {args.top}")
    bundle = Bundle.open(args.bundle)
    folders = open_folders(bundle, args.engines)
    if args.graph is None:
        print(listing(folders))
        return
    profiles = profiles_of(args.graph, folders)
    dims = choose_sizes(args.profile, args.graph, profiles)
    runner = TensorRTRunner.load(bundle, BackendConfig(name="trt", engines=args.engines))
    try:
        exported = profile_layers(runner, args.graph, dims, args.runs).export()
    finally:
        runner.close()
    if len(exported) == 1:
        raise ValueError(f"{args.graph}: this TensorRT reports no layers")
    print(f"{args.graph} at {show(dims)}")
    print(table(exported, args.top))
    if args.json is not None:
        args.json.write_text(json.dumps(exported, indent=1) + "\n")


if __name__ == "__main__":
    run(main, DeployError, OSError)
