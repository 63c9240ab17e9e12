"""The decoder's kernels as the engine of the graph `decode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from plugins_trt.decoder.weights import prepare
from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.backends.planned_engine import DeviceArrays, PlannedEngine, tensor_reader
from runtime.bundle import Bundle, Manifest
from runtime.decoder_plan import DecoderSizes, check_weights, plan_decoder, read_sizes
from runtime.launches import KernelTable


def decoder_engine(
    kernels: Kernels,
    device: Device,
    sizes: DecoderSizes,
    batches: Sequence[int],
    read: Callable[[str], np.ndarray],
) -> PlannedEngine:
    """An engine that decodes, with a profile for each number of images.

    Args:
        read: a tensor of the decoder, as a bundle holds it.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    plans = [plan_decoder(sizes, batch, kernels.table) for batch in batches]
    arrays = {
        name: prepare(read(name), upsamples=use.upsamples) for name, use in plans[0].weights.items()
    }
    weights = DeviceArrays(device, arrays)
    profiles = [{"B": batch} for batch in batches]
    return PlannedEngine(kernels, device, profiles, plans, weights, weights.nbytes)


def checked_sizes(manifest: Manifest, table: KernelTable) -> DecoderSizes:
    """Sizes of a bundle's decoder.

    Raises:
        BackendUnavailableError: there are no kernels for it.
    """
    sizes = read_sizes(manifest)
    check_weights(plan_decoder(sizes, 1, table).weights, manifest)
    return sizes


def decoder_of_bundle(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> PlannedEngine:
    """The decoder of a bundle; raises as `decoder_engine` does."""
    sizes = checked_sizes(bundle.manifest, kernels.table)
    return decoder_engine(kernels, device, sizes, batches, tensor_reader(bundle))
