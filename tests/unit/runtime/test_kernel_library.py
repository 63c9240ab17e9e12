"""What the runtime passes to the driver when it launches a kernel; the driver is a stand-in."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.backends import tensor_maps
from runtime.backends.kernel_library import KernelLibrary

driver = pytest.importorskip("cuda.bindings.driver", reason="no cuda.bindings")

TABLE = {
    "layer": {
        "threads": 384,
        "shared_bytes": 1 << 16,
        "overlaps": True,
        "parameters": {"x": "tensor_map", "out": "pointer", "rows": "i32", "eps": "fp32"},
        "tensor_maps": {"x": {"sizes": [[2, "rows"], [24, None], [1, "rows"]], "box": [32, 8, 1]}},
    }
}
POINTER, MAP = 1 << 40, 1 << 41
MAP_BYTES = bytes(range(128))


class Driver:
    """Keeps what it is called with, and reads arguments as the real one does."""

    def __init__(self) -> None:
        self.launched: list[tuple[int, list[bytes]]] = []
        self.maps: list[list[Any]] = []

    def encode(self, target: int, *arguments: Any) -> int:
        assert target % 64 == 0
        ctypes.memmove(target, MAP_BYTES, 128)
        self.maps.append([list(a) if isinstance(a, ctypes.Array) else a for a in arguments])
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(driver, name)

    def cuLaunchKernelEx(
        self, config: Any, function: Any, arguments: int, extra: int
    ) -> tuple[Any]:
        sizes = (128, 8, 4, 4)
        addresses = (ctypes.c_void_p * len(sizes)).from_address(arguments)
        values = [ctypes.string_at(a or 0, n) for a, n in zip(addresses, sizes, strict=True)]
        self.launched.append((config.gridDimX, values))
        return (driver.CUresult.CUDA_SUCCESS,)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> KernelLibrary:
    nothing: Callable[[KernelLibrary], None] = lambda self: None  # noqa: E731
    monkeypatch.setattr(KernelLibrary, "__init__", nothing)
    made = KernelLibrary()  # type: ignore[call-arg]
    made._cuda, made._part, made.table = Driver(), "transformer", TABLE
    monkeypatch.setattr(tensor_maps, "_encode", lambda: made._cuda.encode)
    made._functions = {"layer": SimpleNamespace()}
    return made


def test_arguments_and_tensor_maps(library: KernelLibrary) -> None:
    arguments = {"x": MAP, "out": POINTER, "rows": 40, "eps": 0.5}
    library.launch("layer", (7,), 0, arguments)
    ((programs, values),) = library._cuda.launched
    assert programs == 7
    assert values[0] == MAP_BYTES
    assert values[1:] == [POINTER.to_bytes(8, "little"), b"\x28\0\0\0", b"\0\0\0\x3f"]
    ((dtype, rank, address, sizes, strides, box, steps, _, swizzle, *_),) = library._cuda.maps
    assert dtype == int(driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16)
    assert (rank, address) == (3, MAP)
    assert (sizes, strides[:2]) == ([80, 24, 40], [160, 3840])
    assert (box, steps) == ([32, 8, 1], [1, 1, 1])
    assert swizzle == int(driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B)


def test_constants_are_those_of_cuda() -> None:
    swizzles, promotions = driver.CUtensorMapSwizzle, driver.CUtensorMapL2promotion
    assert tensor_maps.SWIZZLES[128] == int(swizzles.CU_TENSOR_MAP_SWIZZLE_128B)
    assert tensor_maps.PROMOTE_128 == int(promotions.CU_TENSOR_MAP_L2_PROMOTION_L2_128B)
    assert tensor_maps.NOT_INTERLEAVED == int(
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE
    )
    assert tensor_maps.FILL_ZEROS == int(
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
    )


def test_arguments_left_out_are_zero(library: KernelLibrary) -> None:
    library.launch("layer", (1, 2, 3), 0, {"x": MAP, "rows": 1})
    ((_, values),) = library._cuda.launched
    assert values[1:] == [bytes(8), b"\1\0\0\0", bytes(4)]


def test_unknown_arguments(library: KernelLibrary) -> None:
    with pytest.raises(ValueError, match=r"no parameters \['gain'\]"):
        library.launch("layer", (1,), 0, {"x": MAP, "rows": 1, "gain": 1})
