"""Tensor maps: how the copy engine of a GPU reads an array, as parameters of kernels.

Made by the driver itself: what cuda.bindings returns need not be aligned as the driver wants it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from runtime.errors import BackendError

NBYTES, ALIGNMENT = 128, 64
HALF = 2  # bytes
# of cuda.h
FLOAT16, NOT_INTERLEAVED, PROMOTE_128, FILL_ZEROS = 6, 0, 2, 0
SWIZZLES = {64: 2, 128: 3}  # by bytes of a row
ARGUMENT_TYPES = (
    *(ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p),
    *(ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint64)),
    *(ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint32)),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int),
)


class TensorMap:
    """A tensor map of a contiguous float16 array on the device.

    Args:
        array: address of the array.
        sizes: of its dimensions, innermost first.
        box: of one copy, in values; its innermost dimension has 64 or 128 bytes, over which the
            rows are swizzled in shared memory.

    Attributes:
        address: of its bytes on the host, as long as this lives.

    Raises:
        BackendError: the driver refuses it, or is too old to have tensor maps.
    """

    def __init__(self, array: int, sizes: Sequence[int], box: Sequence[int]) -> None:
        rank = len(sizes)
        self._memory = (ctypes.c_uint8 * (NBYTES + ALIGNMENT))()
        self.address = -(-ctypes.addressof(self._memory) // ALIGNMENT) * ALIGNMENT
        strides = [HALF * math.prod(sizes[: i + 1]) for i in range(rank)]
        status = _encode()(
            self.address,
            FLOAT16,
            rank,
            array,
            (ctypes.c_uint64 * rank)(*sizes),
            (ctypes.c_uint64 * rank)(*strides),  # the last one is not read
            (ctypes.c_uint32 * rank)(*box),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            NOT_INTERLEAVED,
            SWIZZLES[HALF * box[0]],
            PROMOTE_128,
            FILL_ZEROS,
        )
        if status:
            raise BackendError(
                f"cuTensorMapEncodeTiled: error {status}, for sizes {list(sizes)} in boxes of "
                f"{list(box)} at {array:#x}"
            )

    @classmethod
    def of(
        cls, rule: Mapping[str, Any], array: int, arguments: Mapping[str, int | float]
    ) -> TensorMap:
        """The map that a kernel's table describes, given the other arguments of a launch.

        Args:
            rule: `plugins_trt.ahead_of_time.cuda.TensorMap` as the table has it.
        """
        sizes = [
            times * (1 if name is None else int(arguments.get(name, 0)))
            for times, name in rule["sizes"]
        ]
        return cls(array, sizes, rule["box"])


@cache
def _encode() -> Any:
    try:
        function = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    except (OSError, AttributeError) as error:
        raise BackendError(f"the driver of CUDA 12 or newer is needed: {error}") from error
    function.argtypes, function.restype = ARGUMENT_TYPES, ctypes.c_int
    return function
