"""Which kernels do the work between the transformer passes, in order: a function of sizes.

The graphs are those of the kinds `GLUE`; the kernels are described in `plugins_trt/glue/kernel.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from plugins_trt.glue.tiles import bicubic_taps, window
from runtime.bundle import GraphSpec, Kind, Manifest
from runtime.errors import BackendUnavailableError
from runtime.launches import KernelTable, LaunchPlan, Scratch, Step, blocks

GLUE: tuple[Kind, ...] = ("cond", "embed_first", "embed_ns", "embed_mask", "quant", "mask_input")
HALF, FLOAT = 2, 4  # bytes


def phi_index(scale_idx: int, num_scales: int, num_phi: int) -> int:
    """Which of the convolutions phi a scale uses: the one with the nearest tick, first on a tie."""
    ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi)
    return int(np.argmin(np.abs(ticks - scale_idx / (num_scales - 1))))


def glue_weights(manifest: Manifest, read: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """What the kernels read, in the order in which it lies in memory.

    Layers of one group lie one behind the other, each weight before its bias; `modulation_kernel`
    relies on it.

    Args:
        read: a tensor of the bundle.
    """
    names = ["class_emb", "pos", "word_embed.weight", "mask_embed", "codebook"]
    names += _modulations(manifest)
    arrays = {name: read(name) for name in names if name in manifest.tensors}
    for j in range(_num_phi(manifest)):
        # (3, 3, in, out)
        arrays[f"phi.{j}.weight"] = read(f"phi.{j}.weight").transpose(2, 3, 1, 0)
        arrays[f"phi.{j}.bias"] = read(f"phi.{j}.bias")
    patch_nums = manifest.hmar.patch_nums
    for pn in patch_nums:
        arrays[f"taps.{pn}"], arrays[f"shares.{pn}"] = bicubic_taps(patch_nums[-1], pn)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def check_tensors(manifest: Manifest) -> None:
    """Raises BackendUnavailableError unless the kernels can read a bundle's tensors."""
    if manifest.family != "hmar":
        raise BackendUnavailableError("the transformer's kernels are for HMAR")
    if manifest.precision != "fp16":
        raise BackendUnavailableError(
            f"the kernels compute in float16, the bundle in {manifest.precision}; export it with "
            "--precision fp16"
        )
    if manifest.hmar.embed_dim % 64:  # layers would not lie without gaps, either
        raise BackendUnavailableError(
            f"the kernels need a width that is a multiple of 64, this model's is "
            f"{manifest.hmar.embed_dim}"
        )


def plan_glue(
    manifest: Manifest, graph: str, dims: Mapping[str, int], kernels: KernelTable
) -> LaunchPlan:
    """The launches of one graph for some sizes of its symbolic dimensions.

    Raises:
        BackendUnavailableError: a kernel is missing.
    """
    return _Planner(manifest, kernels).plan(manifest.graphs[graph], dims)


def _modulations(manifest: Manifest) -> list[str]:
    """Weights and biases of all modulations, layer after layer."""
    return [n for n in manifest.tensors if ".ada." in n or n.startswith("shared_ada.")]


def _num_phi(manifest: Manifest) -> int:
    return sum(n.startswith("phi.") and n.endswith(".weight") for n in manifest.tensors)


class _Planner:
    """Collects the steps of one graph."""

    def __init__(self, manifest: Manifest, kernels: KernelTable) -> None:
        self.manifest, self.model, self._kernels = manifest, manifest.hmar, kernels
        self._steps: list[Step] = []
        self._scratch = Scratch()

    def plan(self, spec: GraphSpec, dims: Mapping[str, int]) -> LaunchPlan:
        getattr(self, f"_{spec.kind}")(spec, dims)
        offsets, nbytes = self._scratch.lay_out()
        return LaunchPlan(steps=tuple(self._steps), offsets=offsets, nbytes=nbytes)

    def _cond(self, spec: GraphSpec, dims: Mapping[str, int]) -> None:
        N, C = dims["N"], self.model.embed_dim
        self._scratch.add("act", N * C * HALF)
        places = {"labels": "label", "class_emb": "class_emb", "cond": "cond", "act": "act"}
        self._columns("class", C, (N,), places, width=C)
        if self.model.shared_aln:
            self._scratch.add("shared", N * 6 * C * HALF)
            self._modulation("shared_ada", "shared", N, layers=1, width=6 * C)
        for output in spec.outputs[1:]:
            group, branch = output.name.split("_")
            layers, width = (int(d) for d in output.shape[1:])
            if group == "head":
                self._modulation(f"{branch}_head.ada", output.name, N, layers=1, width=width)
            elif self.model.shared_aln:
                own = f"{branch}_blocks.0.ada.own"
                places = {"shared": "shared", "own": own, "out": output.name}
                stride = {"layer_stride": width, "width": width}
                self._columns("shared_modulation", width, (layers, N), places, **stride)
            else:
                name = f"{branch}_blocks.0.ada"
                self._modulation(name, output.name, N, layers=layers, width=width)

    def _modulation(self, name: str, out: str, rows: int, *, layers: int, width: int) -> None:
        C = self.model.embed_dim
        kernel, of = self._smallest("modulation", "BLOCK_M", rows)
        self._add(
            kernel,
            (blocks(width, of["BLOCK_N"]), layers, blocks(rows, of["BLOCK_M"])),
            {"act": "act", "weights": f"{name}.weight", "biases": f"{name}.bias", "out": out},
            rows=rows,
            depth=C,
            width=width,
            layer_stride=C * width + width,
        )

    def _embed_first(self, spec: GraphSpec, dims: Mapping[str, int]) -> None:
        C = self.model.embed_dim
        places = {"cond": "cond", "pos": "pos", "out": "x"}
        self._columns("first", C, (dims["N"],), places, width=C)

    def _embed_ns(self, spec: GraphSpec, dims: Mapping[str, int]) -> None:
        self._embed(dims, {})

    def _embed_mask(self, spec: GraphSpec, dims: Mapping[str, int]) -> None:
        self._embed(dims, {"h": "h", "token_mask": "token_mask", "mask_embed": "mask_embed"})

    def _embed(self, dims: Mapping[str, int], masked: dict[str, str]) -> None:
        C, rows = self.model.embed_dim, dims["N"] * dims["l"]
        kernel, of = self._select(
            "embed", HAS_MASK=bool(masked), CHANNELS=self.model.latent_channels
        )
        self._add(
            kernel,
            (blocks(C, of["BLOCK_N"]), blocks(rows, of["BLOCK_M"])),
            {
                "x": "map",
                "word_embed": "word_embed.weight",
                "pos": "pos",
                "positions": "positions",
                "out": "x",
                **masked,
            },
            rows=rows,
            length=dims["l"],
            width=C,
        )

    def _quant(self, spec: GraphSpec, dims: Mapping[str, int]) -> None:
        assert spec.scale_idx is not None
        self._phi(spec.scale_idx, dims["B"], "f_hat_out", f_hat="f_hat")
        if spec.scale_idx + 1 < len(self.model.patch_nums):
            reduced = self.model.patch_nums[spec.scale_idx + 1]
            self._reduce("f_hat_out", "map", dims["B"], reduced)

    def _mask_input(self, spec: GraphSpec, dims: Mapping[str, int]) -> None:
        assert spec.scale_idx is not None
        self._scratch.add("planes", dims["B"] * self._map_nbytes)
        self._phi(spec.scale_idx, dims["B"], "planes")
        self._reduce("planes", "h", dims["B"], self.model.patch_nums[spec.scale_idx])

    @property
    def _map_nbytes(self) -> int:
        return self.model.patch_nums[-1] ** 2 * self.model.latent_channels * FLOAT

    def _phi(self, scale_idx: int, batch: int, out: str, f_hat: str | None = None) -> None:
        patch_nums = self.model.patch_nums
        pn, side = patch_nums[scale_idx], patch_nums[-1]
        self._scratch.add("enlarged", batch * self._map_nbytes)
        self._pixels(
            "enlarge",
            batch,
            {
                "tokens": "tokens",
                "codebook": "codebook",
                "taps": f"taps.{pn}",
                "shares": f"shares.{pn}",
                "out": "enlarged",
            },
            side=side,
            pn=pn,
        )
        phi = f"phi.{phi_index(scale_idx, len(patch_nums), _num_phi(self.manifest))}"
        places = {"h": "enlarged", "weights": f"{phi}.weight", "bias": f"{phi}.bias", "out": out}
        places |= {} if f_hat is None else {"f_hat": f_hat}
        self._pixels("phi", batch, places, {"ADDS": f_hat is not None}, side=side)

    def _reduce(self, planes: str, out: str, batch: int, reduced: int) -> None:
        side = self.model.patch_nums[-1]
        kernel, _ = self._smallest(
            "reduce", "WINDOW", window(side, reduced), CHANNELS=self.model.latent_channels
        )
        grid = (reduced * reduced, batch)
        self._add(kernel, grid, {"planes": planes, "out": out}, side=side, reduced=reduced)

    # --- launches ---

    def _columns(
        self,
        function: str,
        columns: int,
        rest: tuple[int, ...],
        pointers: dict[str, str],
        **scalars: int,
    ) -> None:
        kernel, of = self._select(function)
        self._add(kernel, (blocks(columns, of["BLOCK"]), *rest), pointers, **scalars)

    def _pixels(
        self,
        function: str,
        batch: int,
        pointers: dict[str, str],
        constants: Mapping[str, int] | None = None,
        **scalars: int,
    ) -> None:
        kernel, of = self._select(
            function, CHANNELS=self.model.latent_channels, **(constants or {})
        )
        grid = (blocks(self.model.patch_nums[-1] ** 2, of["BLOCK"]), batch)
        self._add(kernel, grid, pointers, **scalars)

    def _add(
        self, kernel: str, grid: tuple[int, ...], pointers: dict[str, str], **scalars: int
    ) -> None:
        self._steps.append(Step(kernel, grid, pointers, dict(scalars)))

    def _smallest(
        self, function: str, constant: str, size: int, **wanted: int
    ) -> tuple[str, Mapping[str, int]]:
        """The kernel with the smallest constant of at least this size, else the largest."""
        fitting = self._fitting(function, wanted)
        sizes = {name: of[constant] for name, of in fitting.items()}
        enough = [name for name in sizes if sizes[name] >= size]
        name = min(enough, key=sizes.__getitem__) if enough else max(sizes, key=sizes.__getitem__)
        return name, fitting[name]

    def _select(self, function: str, **wanted: int) -> tuple[str, Mapping[str, int]]:
        return next(iter(self._fitting(function, wanted).items()))

    def _fitting(self, function: str, wanted: Mapping[str, int]) -> dict[str, Mapping[str, Any]]:
        """Compile-time constants of the kernels of a function, by name."""
        fitting = {
            name: entry["constants"]
            for name, entry in self._kernels.items()
            if entry["function"] == function
            and all(entry["constants"][key] == value for key, value in wanted.items())
        }
        if not fitting:
            sizes = ", ".join(f"{key}={int(value)}" for key, value in wanted.items())
            raise BackendUnavailableError(
                f"the library has no kernel {function} with {sizes}: it holds those for the maps "
                "of the published tokenizer (plugins_trt/glue/aot.py)"
            )
        return fitting
