"""The decoder's kernels as the engines of the graphs that decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from plugins_trt.decoder.weights import prepare
from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.backends.planned_engine import (
    Planned,
    PlannedEngine,
    plan_graphs,
    share_weights,
    tensor_reader,
)
from runtime.bundle import Bundle, Kind, Manifest
from runtime.decoder_plan import WeightUse, check_weights, plan_decoder, read_sizes
from runtime.errors import BackendUnavailableError
from runtime.launches import KernelTable

DECODERS: tuple[Kind, ...] = ("decode", "decode_pivot")


def planned_decoders(
    manifest: Manifest, table: KernelTable, batches: Sequence[int]
) -> tuple[Planned, Mapping[str, WeightUse]]:
    """Profiles and plans of a bundle's decoders, and the weights that all of them read.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
    """
    graphs = [name for name, graph in manifest.graphs.items() if graph.kind in DECODERS]
    if not graphs:
        raise BackendUnavailableError("this bundle has no graph that decodes")
    sizes = {name: read_sizes(manifest, name) for name in graphs}
    weights = plan_decoder(sizes[graphs[0]], 1, table).weights
    check_weights(weights, manifest)
    planned = plan_graphs(
        manifest, DECODERS, batches, lambda name, dims: plan_decoder(sizes[name], dims["B"], table)
    )
    return planned, weights


def decoder_weights(
    uses: Mapping[str, WeightUse], read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """What the kernels read, from tensors as a bundle holds them."""
    return {
        name: prepare(
            np.concatenate([read(stored) for stored in use.stored(name)]), upsamples=use.upsamples
        )
        for name, use in uses.items()
    }


def decoder_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines that decode, with a profile for each number of images; they share their weights.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    planned, uses = planned_decoders(bundle.manifest, kernels.table, batches)
    arrays = decoder_weights(uses, tensor_reader(bundle))
    return share_weights(planned, kernels, device, arrays)
