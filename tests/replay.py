"""Replays recordings on the host: the plain reading of their format."""

from __future__ import annotations

import ctypes

import numpy as np

from runtime.bundle import Bundle
from runtime.recording import (
    NULL,
    Contents,
    Copy,
    Launch,
    Place,
    Pointer,
    Recording,
    RecordingFolder,
    read_piece,
)
from tests.host_device import HostDevice
from tests.host_library import HostLibrary


class Replay:
    """One recording with its memory, which begins as NaN where nothing fills it."""

    def __init__(
        self, bundle: Bundle, folder: RecordingFolder, recording: Recording, library: HostLibrary
    ) -> None:
        self._bundle, self._folder, self._library = bundle, folder, library
        self.recording, self._device = recording, HostDevice()
        scratch = Contents(nbytes=recording.scratch_nbytes)
        buffers = (scratch, recording.constants, *folder.index.weights)
        self._bases = [self._fill(contents) for contents in buffers]

    def _fill(self, contents: Contents) -> int:
        base = self._device.allocate(contents.nbytes)
        for piece in contents.pieces:
            values = read_piece(piece, self._bundle, self._folder.folder)
            ctypes.memmove(base + piece.at, values, piece.nbytes)
        for at, nbytes in contents.zeros:
            self._device.zero(base + at, nbytes)
        return base

    def address(self, place: Pointer | Place) -> int:
        return 0 if place == NULL else self._bases[place.buffer] + place.offset

    def write(self, **inputs: np.ndarray) -> None:
        assert set(inputs) == set(self.recording.inputs)
        for name, array in inputs.items():
            place = self.recording.inputs[name]
            assert array.nbytes == place.nbytes
            self._device.upload(self.address(place), array)

    def run(self) -> None:
        for operation in self.recording.operations:
            if isinstance(operation, Launch):
                values = [
                    self.address(a) if isinstance(a, Pointer) else a for a in operation.arguments
                ]
                part, name = self.recording.kernels[operation.kernel]
                self._library.launch_all(part, name, operation.grid, HostDevice.stream, values)
            elif isinstance(operation, Copy):
                target, source = self.address(operation.target), self.address(operation.source)
                self._device.copy(target, source, operation.nbytes)
            else:
                self._device.zero(self.address(operation.place), operation.place.nbytes)

    def read(self, place: Place, dtype: str, *shape: int) -> np.ndarray:
        array = np.empty(shape, dtype)
        assert array.nbytes == place.nbytes
        self._device.download(array, self.address(place))
        return array
