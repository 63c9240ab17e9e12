"""Hi-MAR's part of libhmar_runtime through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np

from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_draws import HiMARDraws
from runtime.himar_schedule import Phase
from tests.cpp_runtime import CppSession

PHASES: tuple[Phase, ...] = ("pivot", "dense")


class StepEvent(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("phase", "step_idx", "num_steps")),
        ("first_image", c_size_t),
        ("num_images", c_size_t),
        ("tokens", ctypes.POINTER(c_float)),
        ("preview", c_void_p),
    )


class Draw(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("phase", "step_idx", "draw")),
        *((name, c_size_t) for name in ("first_image", "num_images", "num_tokens")),
        ("positions", ctypes.POINTER(c_int32)),
        ("noise", ctypes.POINTER(c_float)),
    )


OnStep = ctypes.CFUNCTYPE(c_int, ctypes.POINTER(StepEvent), c_void_p)
Noise = ctypes.CFUNCTYPE(c_int, ctypes.POINTER(Draw), c_void_p)


class HimarRequest(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("labels", c_void_p),
        ("cond", c_void_p),
        ("num_images", c_size_t),
        ("num_iter", c_int32),
        ("cfg", c_double),
        ("re_cfg", c_double),
        ("has_linear_cfg", c_int32),
        ("temperature", c_double),
        ("pivot_diffusion_steps", c_char_p),
        ("dense_diffusion_steps", c_char_p),
        ("seed", c_uint64),
        ("image_index", c_void_p),
        ("orders", c_void_p),
        ("noise", Noise),
        ("on_step", OnStep),
        ("user_data", c_void_p),
        ("cancel", c_void_p),
    )


class HimarOutput(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        *(
            field
            for name in ("pixels", "image", "small_pixels", "pivots", "dense")
            for field in ((name, c_void_p), (f"{name}_size", c_size_t))
        ),
    )


class CppHimarSession(CppSession):
    """A session on a bundle of Hi-MAR. The arguments are those of `HiMARPipeline`."""

    def encode(self, images: np.ndarray) -> np.ndarray:  # type: ignore[override]
        """Dense tokens of images (B, side, side, 3) uint8."""
        info = self.info
        dense = np.full((len(images), info.dense_side**2, info.token_channels), np.nan, np.float32)
        arrays = (x for a in (images, dense) for x in (c_void_p(a.ctypes.data), c_size_t(a.size)))
        self.library("himar_encode", self.session, *arrays)
        return dense

    def generate(  # type: ignore[override]
        self,
        labels: Sequence[int] | None = None,
        *,
        cond: np.ndarray | None = None,
        seed: int = 0,
        image_index: Sequence[int] | None = None,
        sampling: HiMARSamplingConfig | None = None,
        draws: HiMARDraws | None = None,
        on_step: Callable[[StepEvent], int] | None = None,
    ) -> dict[str, np.ndarray]:
        """`pixels`, `image`, `small_pixels`, `pivots` and `dense` of a generation."""
        request, keep = HimarRequest(), []

        def address(values: Any, dtype: Any) -> int:
            keep.append(np.ascontiguousarray(values, dtype))
            return keep[-1].ctypes.data

        self.library("himar_request_init", self.bundle, ctypes.byref(request))
        given = cond if cond is not None else labels
        assert given is not None
        request.num_images, request.seed = len(given), seed
        if cond is not None:
            request.cond = address(cond, np.float32)
        else:
            request.labels = address(labels, np.int32)
        if image_index is not None:
            request.image_index = address(image_index, np.uint64)
        if sampling is not None:
            for name in ("num_iter", "cfg", "re_cfg", "temperature"):
                setattr(request, name, getattr(sampling, name))
            request.has_linear_cfg = sampling.cfg_schedule == "linear"
            request.pivot_diffusion_steps = sampling.pivot_diffusion_steps.encode()
            request.dense_diffusion_steps = sampling.dense_diffusion_steps.encode()
        P, N, C = self.info.pivot_side**2, self.info.dense_side**2, self.info.token_channels
        if draws is not None:
            orders = [draws.orders(phase, n) for phase, n in zip(PHASES, (P, N), strict=True)]
            request.orders = address(np.concatenate(orders, axis=1), np.int32)
            request.noise = _noise_of(draws, C)
        if on_step is not None:
            request.on_step = OnStep(lambda event, _: on_step(event.contents))
        B, side = len(given), self.info.image_side_px
        arrays = {
            "pixels": np.zeros((B, side, side, 3), np.uint8),
            "image": np.full((B, 3, side, side), np.nan, np.float32),
            "small_pixels": np.zeros((B, 64, 64, 3), np.uint8),
            "pivots": np.full((B, P, C), np.nan, np.float32),
            "dense": np.full((B, N, C), np.nan, np.float32),
        }
        output = HimarOutput(
            ctypes.sizeof(HimarOutput),
            *(x for array in arrays.values() for x in (array.ctypes.data, array.size)),
        )
        self.library("himar_generate", self.session, ctypes.byref(request), ctypes.byref(output))
        return arrays


def _noise_of(draws: HiMARDraws, channels: int) -> Any:
    def fill(pointer: Any, _: Any) -> int:
        draw = pointer.contents
        shape = (draw.num_images, draw.num_tokens)
        positions = np.ctypeslib.as_array(draw.positions, shape)
        noise = draws.noise(PHASES[draw.phase], draw.step_idx, draw.draw, positions, channels)
        np.ctypeslib.as_array(draw.noise, (*shape, channels))[:] = noise
        return 0

    return Noise(fill)
