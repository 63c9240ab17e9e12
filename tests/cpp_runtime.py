"""libhmar_runtime through ctypes: its C interface as a caller in another language sees it."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from ctypes import (
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_size_t,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from runtime.config import SamplingConfig
from runtime.draws import ArgmaxDraws, Draws, RecordedDraws

BACKENDS = {"auto": 0, "ort-cpu": 1, "ort-cuda": 2, "gpu": 3}
SEED, UNIFORMS, ARGMAX = 0, 1, 2
OK = 0


class BundleInfo(ctypes.Structure):
    _fields_ = (
        *((name, c_char_p) for name in ("family", "preset", "precision", "producer")),
        *((name, c_int32) for name in ("num_classes", "image_side_px", "num_tokens")),
        *((name, c_int32) for name in ("vocab_size", "num_scales")),
        ("patch_nums", ctypes.POINTER(c_int32)),
        ("has_mask_branch", c_int32),
        *((name, c_int32) for name in ("embed_dim", "token_channels", "pivot_side", "dense_side")),
    )


class SessionOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("backend", c_int),
        ("library", c_char_p),
        ("threads", c_int32),
        ("max_batch", c_int32),
        ("plugins", c_char_p),
        ("tensorrt", c_char_p),
    )


class ScaleEvent(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("scale_idx", "pn", "num_scales")),
        ("first_image", c_size_t),
        ("num_images", c_size_t),
        ("tokens", ctypes.POINTER(c_int32)),
        ("preview", c_void_p),
    )


OnScale = ctypes.CFUNCTYPE(c_int, ctypes.POINTER(ScaleEvent), c_void_p)


class Request(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("labels", c_void_p),
        ("num_images", c_size_t),
        ("cfg", c_double),
        ("top_k", c_int32),
        ("top_p", c_double),
        ("skip_guidance_below", c_double),
        ("context", c_int),
        ("schedule_counts", c_void_p),
        ("schedule_lengths", c_void_p),
        ("schedule_scales", c_size_t),
        ("draws", c_int),
        ("seed", c_uint64),
        ("image_index", c_void_p),
        ("uniforms", c_void_p),
        ("num_uniforms", c_size_t),
        ("known_tokens", c_void_p),
        ("keep", c_void_p),
        ("num_known", c_size_t),
        ("on_scale", OnScale),
        ("user_data", c_void_p),
        ("cancel", c_void_p),
    )


class Output(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("pixels", c_void_p),
        ("pixels_size", c_size_t),
        ("image", c_void_p),
        ("image_size", c_size_t),
        ("tokens", c_void_p),
        ("tokens_size", c_size_t),
    )


class StatusError(Exception):
    """A call that did not return HMAR_OK."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


def onnxruntime_library() -> Path | None:
    """ONNX Runtime's C library inside the Python package."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or package.origin is None:
        return None
    return next(iter((Path(package.origin).parent / "capi").glob("libonnxruntime.so.*")), None)


class Library:
    """The functions, with a StatusError where one fails."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name in ("version", "status_name", "error_message"):
            getattr(self._library, f"hmar_{name}").restype = c_char_p
        self._library.hmar_error_message.argtypes = (c_void_p,)
        self._library.hmar_error_free.argtypes = (c_void_p,)

    @property
    def version(self) -> str:
        return self._library.hmar_version().decode()

    def __call__(self, name: str, *arguments: Any) -> None:
        """Calls hmar_NAME, with the error as its last argument."""
        error = c_void_p()
        status = getattr(self._library, f"hmar_{name}")(*arguments, ctypes.byref(error))
        if status == OK:
            assert not error
            return
        message = self._library.hmar_error_message(error).decode()
        self._library.hmar_error_free(error)
        raise StatusError(self._library.hmar_status_name(status).decode(), message)


class CppSession:
    """A session on a bundle. The arguments are those of `Pipeline`."""

    def __init__(
        self,
        library: Library,
        bundle: Path,
        *,
        backend: str = "ort-cpu",
        threads: int = 1,
        max_batch: int = 8,
        plugins: Path | None = None,
        tensorrt: Path | None = None,
        check: int = 0,
    ) -> None:
        self.library, self.info = library, BundleInfo()
        self.bundle, self.session = c_void_p(), c_void_p()
        library("bundle_open", str(bundle).encode(), check, ctypes.byref(self.bundle))
        library("bundle_get_info", self.bundle, ctypes.byref(self.info))
        options = SessionOptions(
            ctypes.sizeof(SessionOptions),
            BACKENDS[backend],
            str(onnxruntime_library()).encode(),
            threads,
            max_batch,
            None if plugins is None else str(plugins).encode(),
            None if tensorrt is None else str(tensorrt).encode(),
        )
        library("session_open", self.bundle, ctypes.byref(options), ctypes.byref(self.session))

    @property
    def backend(self) -> str:
        return self._text("session_backend")

    @property
    def why_not_gpu(self) -> str:
        return self._text("session_why_not_gpu")

    def _text(self, function: str) -> str:
        text = c_char_p()
        self.library(function, self.session, ctypes.byref(text))
        assert text.value is not None
        return text.value.decode()

    def generate(
        self,
        labels: Sequence[int],
        *,
        seed: int = 0,
        image_index: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        draws: Draws | None = None,
        known: tuple[np.ndarray, np.ndarray] | None = None,
        on_scale: Callable[[ScaleEvent], int] | None = None,
    ) -> dict[str, np.ndarray]:
        """`image` float32, `pixels` uint8 and `s{k}_tokens` of a generation.

        Args:
            known: tokens (B, L) and which of them to keep.
        """
        request, kept = Request(), []

        def address(values: Any, dtype: Any) -> int:
            kept.append(np.ascontiguousarray(values, dtype))
            return kept[-1].ctypes.data

        self.library("request_init", self.bundle, ctypes.byref(request))
        request.labels, request.num_images = address(labels, np.int32), len(labels)
        request.seed = seed
        if image_index is not None:
            request.image_index = address(image_index, np.uint64)
        if sampling is not None:
            request.cfg, request.top_k, request.top_p = sampling.cfg, sampling.top_k, sampling.top_p
            request.skip_guidance_below = sampling.skip_guidance_below
            request.context = sampling.context == "prefix"
            schedule = sampling.mask_schedule
            request.schedule_lengths = None
            if schedule is not None:
                request.schedule_counts = address([n for e in schedule for n in e], np.int32)
                request.schedule_lengths = address([len(e) for e in schedule], np.int32)
                request.schedule_scales = len(schedule)
        if isinstance(draws, RecordedDraws):
            values = in_order(draws.recorded)
            request.draws, request.num_uniforms = UNIFORMS, len(values)
            request.uniforms = address(values, np.float64)
        elif isinstance(draws, ArgmaxDraws):
            request.draws = ARGMAX
        if known is not None:
            tokens, keep_BL = known
            request.known_tokens = address(tokens, np.int32)
            request.keep, request.num_known = address(keep_BL, np.uint8), tokens.size
        if on_scale is not None:
            request.on_scale = OnScale(lambda event, _: on_scale(event.contents))
        B, side = len(labels), self.info.image_side_px
        image = np.full((B, 3, side, side), np.nan, np.float32)
        pixels = np.zeros((B, side, side, 3), np.uint8)
        tokens = np.full((B, self.info.num_tokens), -1, np.int32)
        output = Output(
            ctypes.sizeof(Output),
            *(x for array in (pixels, image, tokens) for x in (array.ctypes.data, array.size)),
        )
        self.library("generate", self.session, ctypes.byref(request), ctypes.byref(output))
        return {"image": image, "pixels": pixels, **self._by_scale(tokens)}

    def encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """`s{k}_tokens` of images (B, side, side, 3) uint8."""
        tokens = np.empty((len(images), self.info.num_tokens), np.int32)
        arrays = (x for a in (images, tokens) for x in (c_void_p(a.ctypes.data), c_size_t(a.size)))
        self.library("encode", self.session, *arrays)
        return self._by_scale(tokens)

    def _by_scale(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        sides = self.info.patch_nums[: self.info.num_scales]
        maps = np.split(tokens, np.cumsum([pn * pn for pn in sides])[:-1], axis=1)
        return {f"s{k}_tokens": tokens for k, tokens in enumerate(maps)}

    def __enter__(self) -> CppSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.library("session_close", ctypes.byref(self.session))
        self.library("bundle_close", ctypes.byref(self.bundle))


def in_order(recorded: Mapping[str, np.ndarray]) -> np.ndarray:
    """Recorded uniforms, in the order of the passes that they are for."""

    def place(name: str) -> tuple[int, int]:
        scale, draw = name.removesuffix("_u").split("_")
        return int(scale[1:]), 0 if draw == "ns" else int(draw[1:])

    return np.concatenate([recorded[name].ravel() for name in sorted(recorded, key=place)])
