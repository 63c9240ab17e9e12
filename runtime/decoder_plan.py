"""Which kernels decode a batch of images, in order, and where in memory: a function of sizes.

The structure is that of `hmar.vae.Decoder`, of HMAR's tokenizer and of Hi-MAR's autoencoder
(`hmar.kl_vae`). Maps are (B, side, side, channels) float16, channels last; the kernels are
described in `plugins_trt/decoder/kernel.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.bundle import Family, Manifest
from runtime.errors import BackendUnavailableError
from runtime.launches import LaunchPlan, Scratch, Step, blocks

GROUPS, EPS = 32, 1e-6  # of every group norm
PLACES = ("map0", "map1", "map2")  # a residual block has no more than three maps at once
INPUTS: dict[Family, str] = {"hmar": "f_hat", "himar": "tokens"}
OUTPUT = "image"
CONVOLUTIONS = ("conv", "wide_conv")  # functions
PREFIXES = ("decoder.", "post_quant_conv.")  # of the tensors in a bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSizes:
    """Sizes of a decoder.

    Attributes:
        family: HMAR's takes maps, attends at the coarsest level, too, and clamps images; Hi-MAR's
            takes tokens, row by row, and does neither.
        latent_channels, latent_side: of its input.
        widths: channels of each level, finest first.
        num_blocks: residual blocks of a level.
        latent_scale: tokens are divided by this.
    """

    family: Family = "hmar"
    latent_channels: int
    latent_side: int
    widths: tuple[int, ...]
    num_blocks: int
    latent_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class WeightUse:
    """A tensor: its shape, whether it convolves an upsampled map, and which tensors of the bundle
    it consists of, one after the other, if not one of its own name."""

    shape: tuple[int, ...]
    upsamples: bool = False
    parts: tuple[str, ...] = ()

    def stored(self, name: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes in a bundle."""
        if not self.parts:
            return {name: self.shape}
        return {part: (self.shape[0] // len(self.parts), *self.shape[1:]) for part in self.parts}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPlan(LaunchPlan):
    """All launches of one batch size.

    Attributes:
        weights: what the steps read, by name.
    """

    weights: dict[str, WeightUse]


def read_sizes(manifest: Manifest, graph: str) -> DecoderSizes:
    """Sizes of a decoder of a bundle, from the names and shapes of its tensors.

    Args:
        graph: that decodes.

    Raises:
        BackendUnavailableError: it is not in float16, or its input or output is another.
    """
    tensors = {n: spec for n, spec in manifest.tensors.items() if n.startswith(PREFIXES)}
    if dtypes := {spec.dtype for spec in tensors.values()} - {"float16"}:
        raise BackendUnavailableError(
            f"the decoder's kernels compute in float16, the bundle has {', '.join(dtypes)}; "
            "export it with --precision fp16"
        )

    def width(level: int, block: int) -> int | None:
        spec = tensors.get(f"decoder.up.{level}.block.{block}.conv2.weight")
        return None if spec is None else spec.shape[0]

    widths: list[int] = []
    while (found := width(len(widths), 0)) is not None:
        widths.append(found)
    num_blocks = 0
    while width(0, num_blocks) is not None:
        num_blocks += 1
    spec = manifest.graphs[graph]
    if manifest.family == "hmar":
        C, P, scale = manifest.hmar.latent_channels, manifest.hmar.patch_nums[-1], 1.0
        shape: tuple[int | str, ...] = ("B", C, P, P)
    else:
        model = manifest.himar
        C, scale = model.token_channels, model.latent_scale
        P = model.pivot_side if spec.kind == "decode_pivot" else model.dense_side
        shape = ("B", P * P, C)
    side = P << max(len(widths) - 1, 0)
    got = [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*spec.inputs, *spec.outputs)]
    expected = [
        (INPUTS[manifest.family], "float32", shape),
        (OUTPUT, "float32", ("B", 3, side, side)),
    ]
    if got != expected:
        raise BackendUnavailableError(
            f"the decoder's kernels take and make {expected} where it has {len(widths)} levels, "
            f"this graph {got}"
        )
    return DecoderSizes(
        family=manifest.family,
        latent_channels=C,
        latent_side=P,
        widths=tuple(widths),
        num_blocks=num_blocks,
        latent_scale=scale,
    )


def check_weights(weights: Mapping[str, WeightUse], manifest: Manifest) -> None:
    """Raises BackendUnavailableError unless a bundle's decoder has exactly these weights."""
    got = {n: spec.shape for n, spec in manifest.tensors.items() if n.startswith(PREFIXES)}
    expected = {n: shape for name, use in weights.items() for n, shape in use.stored(name).items()}
    if got != expected:
        name = min(
            name for name in {*got, *expected} if got.get(name, ()) != expected.get(name, ())
        )
        raise BackendUnavailableError(
            f"the decoder's kernels expect {name} of {expected.get(name, 'no shape')}, the bundle "
            f"has it of {got.get(name, 'no shape')}: its decoder is of another structure"
        )


def plan_decoder(
    sizes: DecoderSizes, batch: int, kernels: Mapping[str, Mapping[str, Any]]
) -> DecoderPlan:
    """The launches for a batch of images.

    Args:
        kernels: those that there are, as the library describes them.

    Raises:
        BackendUnavailableError: one is missing.
    """
    is_hmar = sizes.family == "hmar"
    builder = _Builder(batch, kernels, splits_qkv=not is_hmar)
    coarsest = len(sizes.widths) - 1
    if is_hmar:
        x = builder.from_planes(sizes.latent_channels, sizes.latent_side)
    else:
        x = builder.from_tokens(sizes.latent_channels, sizes.latent_side, 1 / sizes.latent_scale)
    x = builder.convolve(
        x, "post_quant_conv", x.channels, side=3 if is_hmar else 1, epilogue="plain"
    )
    x = builder.convolve(x, "decoder.conv_in", sizes.widths[coarsest])
    x = builder.res_block(x, "decoder.mid.block_1", x.channels)
    x = builder.attend(x, "decoder.mid.attn_1")
    x = builder.res_block(x, "decoder.mid.block_2", x.channels)
    for level in reversed(range(len(sizes.widths))):
        name = f"decoder.up.{level}"
        for block in range(sizes.num_blocks):
            x = builder.res_block(x, f"{name}.block.{block}", sizes.widths[level])
            if level == coarsest and is_hmar:
                x = builder.attend(x, f"{name}.attn.{block}")
        if level > 0:
            x = builder.convolve(x, f"{name}.upsample.conv", x.channels, upsamples=True)
    x = builder.normalize(x, "decoder.norm_out", x)
    x = builder.convolve(x, "decoder.conv_out", 3, epilogue="plain")
    builder.to_image(x, clamps=is_hmar)
    return builder.plan()


@dataclass(frozen=True, slots=True)
class _Map:
    place: str
    channels: int
    side: int
    tiles: int = 0  # of the convolution that wrote it, which left sums of each


class _Builder:
    """Collects steps; a convolution gives back the place of its input.

    Args:
        splits_qkv: queries, keys and values of attention have weights of their own.
    """

    def __init__(
        self, batch: int, kernels: Mapping[str, Mapping[str, Any]], *, splits_qkv: bool
    ) -> None:
        self._batch, self._kernels, self._splits_qkv = batch, kernels, splits_qkv
        self._free = list(PLACES)
        self._scratch = Scratch(dict.fromkeys((*PLACES, "sums", "scale_shift"), 0))
        self._steps: list[Step] = []
        self._weights: dict[str, WeightUse] = {}

    def from_planes(self, channels: int, side: int) -> _Map:
        out = self._take(channels, side)
        kernel, constants = self._select("from_planes", CHANNELS=channels)
        grid = (blocks(side * side, constants["BLOCK"]), self._batch)
        pointers = {"planes": INPUTS["hmar"], "out": out.place}
        self._add(kernel, grid, pointers, num_pixels=side * side)
        return out

    def from_tokens(self, channels: int, side: int, factor: float) -> _Map:
        out = self._take(channels, side)
        kernel, constants = self._select("from_tokens")
        values = self._batch * side * side * channels
        pointers = {"tokens": INPUTS["himar"], "out": out.place}
        grid = (blocks(values, constants["BLOCK"]),)
        self._add(kernel, grid, pointers, num_values=values, factor=factor)
        return out

    def to_image(self, x: _Map, *, clamps: bool) -> None:
        kernel, constants = self._select("to_image", CLAMPS=clamps)
        grid = (blocks(x.side * x.side, constants["BLOCK"]), self._batch)
        self._add(kernel, grid, {"x": x.place, "image": OUTPUT}, num_pixels=x.side * x.side)

    def convolve(
        self,
        x: _Map,
        name: str,
        channels: int,
        *,
        side: Literal[1, 3] = 3,
        upsamples: bool = False,
        epilogue: Literal["plain", "sums"] = "sums",
        residual: _Map | None = None,
        parts: tuple[str, ...] = (),
    ) -> _Map:
        kernel, constants = self._select(
            CONVOLUTIONS,
            self._batch * x.side * x.side,
            CIN=x.channels,
            COUT=channels,
            SIDE=side,
            UPSAMPLES=upsamples,
            HAS_RESIDUAL=residual is not None,
            HAS_SUMS=epilogue == "sums",
        )
        tiles = blocks(x.side, constants["TILE_H"]) * blocks(x.side, constants["TILE_W"])
        channel_blocks = blocks(channels, constants["BLOCK_N"] + constants["REST_N"])
        phases = 4 if upsamples else 1
        out = self._take(channels, x.side * (2 if upsamples else 1), phases * tiles)
        pointers = {"x": x.place, "out": out.place}
        shape = (channels, x.channels, side, side)
        pointers |= self._read(name, WeightUse(shape, upsamples, parts), "weights", "bias")
        if residual is not None:
            pointers["residual"] = residual.place
        if epilogue == "sums":
            pointers["sums"] = "sums"
            self._reserve("sums", out.tiles * 2 * channels * 4)
        grid: tuple[int, ...] = (tiles * channel_blocks, phases, self._batch)
        size = {"height": x.side, "width": x.side}
        if (entry := self._kernels[kernel])["function"] == "wide_conv":
            cluster, most = constants["CLUSTER"], entry["programs"]
            clusters = blocks(tiles * self._batch, cluster) * phases * channel_blocks
            grid, size["batch"] = (min(cluster * clusters, most),), self._batch
            pointers |= {"x_rest": pointers["x"], "weights_rest": pointers["weights"]}
        self._add(kernel, grid, pointers, **size)
        self._free += [m.place for m in (x, residual) if m is not None]
        return out

    def normalize(self, x: _Map, name: str, out: _Map, *, has_silu: bool = True) -> _Map:
        """The group norm of what a convolution has just written with its sums."""
        kernel, _ = self._select("statistics", CHANNELS=x.channels, GROUPS=GROUPS)
        pointers = {"sums": "sums", "scale_shift": "scale_shift"}
        pointers |= self._read(name, WeightUse((x.channels,)), "gain", "bias")
        self._reserve("scale_shift", 2 * x.channels * 4)
        self._add(
            kernel,
            (GROUPS, self._batch),
            pointers,
            num_tiles=x.tiles,
            num_pixels=x.side * x.side,
            eps=EPS,
        )
        values = x.side * x.side * x.channels
        kernel, constants = self._select("normalize", CHANNELS=x.channels, HAS_SILU=has_silu)
        grid = (blocks(values, constants["BLOCK"]), self._batch)
        pointers = {"x": x.place, "scale_shift": "scale_shift", "out": out.place}
        self._add(kernel, grid, pointers, num_values=values)
        return out

    def res_block(self, x: _Map, name: str, channels: int) -> _Map:
        h = self.normalize(x, f"{name}.norm1", self._take(x.channels, x.side))
        h = self.convolve(h, f"{name}.conv1", channels)
        if x.channels != channels:
            x = self.convolve(x, f"{name}.nin_shortcut", channels, side=1, epilogue="plain")
        h = self.normalize(h, f"{name}.norm2", h)
        return self.convolve(h, f"{name}.conv2", channels, residual=x)

    def attend(self, x: _Map, name: str) -> _Map:
        C, pixels = x.channels, x.side * x.side
        normed = self.normalize(x, f"{name}.norm", self._take(C, x.side), has_silu=False)
        parts = tuple(f"{name}.{part}" for part in "qkv") if self._splits_qkv else ()
        qkv = self.convolve(normed, f"{name}.qkv", 3 * C, side=1, epilogue="plain", parts=parts)
        out = self._take(C, x.side)
        kernel, constants = self._select("attention", CHANNELS=C)
        grid = (blocks(pixels, constants["BLOCK_Q"]), C // constants["BLOCK_C"], self._batch)
        pointers = {"qkv": qkv.place, "out": out.place}
        self._add(kernel, grid, pointers, num_pixels=pixels, sm_scale=C**-0.5)
        self._free.append(qkv.place)
        return self.convolve(out, f"{name}.proj_out", C, side=1, residual=x)

    def plan(self) -> DecoderPlan:
        offsets, nbytes = self._scratch.lay_out()
        return DecoderPlan(
            steps=tuple(self._steps), weights=self._weights, offsets=offsets, nbytes=nbytes
        )

    def _take(self, channels: int, side: int, tiles: int = 0) -> _Map:
        place = self._free.pop()
        self._reserve(place, side * side * channels * 2)
        return _Map(place, channels, side, tiles)

    def _reserve(self, place: str, nbytes_of_image: int) -> None:
        self._scratch.add(place, self._batch * nbytes_of_image)

    def _read(self, name: str, use: WeightUse, weight: str, bias: str) -> dict[str, str]:
        """The parameters of a layer's weight and bias."""
        for part, shape in (("weight", use.shape), ("bias", use.shape[:1])):
            of = tuple(f"{stored}.{part}" for stored in use.parts)
            upsamples = use.upsamples and part == "weight"
            self._weights[f"{name}.{part}"] = WeightUse(shape, upsamples, of)
        return {weight: f"{name}.weight", bias: f"{name}.bias"}

    def _add(
        self, kernel: str, grid: Sequence[int], pointers: dict[str, str], **scalars: int | float
    ) -> None:
        self._steps.append(Step(kernel, tuple(grid), pointers, scalars))

    def _select(
        self, functions: str | tuple[str, ...], pixels: int = 0, **wanted: int
    ) -> tuple[str, Mapping[str, int]]:
        """The kernel for so many pixels, and its compile-time constants."""
        functions = (functions,) if isinstance(functions, str) else functions
        fitting = {
            name: entry
            for name, entry in self._kernels.items()
            if entry["function"] in functions
            and entry["from_pixels"] <= pixels
            and all(entry["constants"][key] == value for key, value in wanted.items())
        }
        if not fitting:
            sizes = ", ".join(f"{key}={int(value)}" for key, value in wanted.items())
            raise BackendUnavailableError(
                f"the library has no decoder kernel {functions[0]} with {sizes}: it holds those of "
                "the published tokenizer (plugins_trt/decoder/tiles.py)"
            )
        name = max(fitting, key=lambda name: fitting[name]["from_pixels"])
        return name, fitting[name]["constants"]
