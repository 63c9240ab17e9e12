"""One teacher-forced run of the PyTorch model: inputs and expected outputs of every graph.

All numbers are float32. Tokens are drawn once by the reference; every graph is then given the
reference's inputs, so that one flipped token cannot hide or cause later differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hmar import reference
from hmar.config import PublishedSampling
from hmar.hmar import HMAR
from hmar.quant import flatten_map
from hmar.vae import VQVAE
from runtime.bundle import GraphSpec

Arrays = dict[str, np.ndarray]
SEED = 20250611


class TeacherRun:
    """Feeds and references by graph, computed from one recorded generation."""

    def __init__(
        self, model: HMAR, tokenizer: VQVAE, labels: Sequence[int], sampling: PublishedSampling
    ) -> None:
        self.model, self.tokenizer, self.labels = model, tokenizer, list(labels)
        self.patch_nums = model.config.patch_nums
        self.last = len(self.patch_nums) - 1
        self.sampling = sampling
        # one masked pass per scale, over half of its tokens
        self.schedule = [[1]] + [
            [pn * pn - pn * pn // 2, pn * pn // 2] for pn in self.patch_nums[1:]
        ]
        rng = np.random.default_rng(SEED)
        shapes = {
            f"s{k}_{p}": (len(labels), pn * pn)
            for k, pn in enumerate(self.patch_nums)
            for p in ("ns", "m1")
        }
        self.uniforms = {name: rng.random(shape) for name, shape in shapes.items()}
        self.seen: dict[str, Tensor] = {}
        config = reference.ReferenceConfig(
            cfg=sampling.cfg,
            top_k=min(sampling.top_k, model.config.vocab_size),
            top_p=sampling.top_p,
            mask_schedule=self.schedule if model.config.has_mask_branch else None,
        )
        self.config = config
        reference.generate(
            model,
            tokenizer,
            self.labels,
            config,
            reference.draw_inverse_cdf(self.uniforms),
            self._record,
        )

    def _record(self, name: str, value: Tensor) -> None:
        if not name.endswith(("_guided", "_kept", "_conf")):
            self.seen[name] = value

    @property
    def label_N(self) -> Tensor:
        return reference.guided_labels(self.model, self.labels).int()

    @torch.inference_mode()
    def case(self, spec: GraphSpec) -> tuple[Arrays, Arrays]:
        """Feeds and expected outputs of one graph, by name."""
        feeds, expected = getattr(self, f"_{spec.kind}")(spec.scale_idx)
        wanted = {i.name for i in spec.inputs}
        feeds |= {n: t for n, t in self._modulations(len(self._rows(spec))).items() if n in wanted}
        return _arrays(feeds), _arrays(expected)

    def _rows(self, spec: GraphSpec) -> Tensor:
        """Labels of the rows that a graph is run on: the score is taken without guidance."""
        return self.label_N[: len(self.labels)] if spec.kind == "score" else self.label_N

    def _modulations(self, rows: int) -> dict[str, Tensor]:
        cond = self.model.cond(self.label_N[:rows])
        base, values = self.model.config.base_layers, {"cond": cond}
        for branch in ("ns", "mask") if self.model.config.has_mask_branch else ("ns",):
            ada = torch.cat([a.flatten(2) for a in self.model.modulation(cond, branch)], dim=1)
            values |= {"ada_base": ada[:, :base], f"ada_{branch}": ada[:, base:]}
            norm = self.model.ns_head_nm if branch == "ns" else self.model.mask_head_nm
            values[f"head_{branch}"] = norm.ada_lin(cond)[:, None]
        return values

    # --- one method per kind of graph: (feeds, expected outputs) ---

    def _cond(self, k: None) -> tuple[dict, dict]:
        return {"label": self.label_N}, self._modulations(len(self.label_N))

    def _embed_first(self, k: None) -> tuple[dict, dict]:
        return {}, {"x": self.seen["s0_ns_x"]}

    def _embed_ns(self, k: None) -> tuple[dict, dict]:
        return {**self._map(1), "positions": self._positions(1)}, {"x": self.seen["s1_ns_x"]}

    def _embed_mask(self, k: None) -> tuple[dict, dict]:
        return {**self._masked_operands(1), "positions": self._positions(1)}, {
            "x": self.seen["s1_m1_x"]
        }

    def _ns_trunk(self, k: None) -> tuple[dict, dict]:
        return {"x": self.seen["s1_ns_x"], "cu_seqlens": _blocks(self.patch_nums[1] ** 2)}, {
            "logits": self.seen["s1_ns_raw"]
        }

    def _mask_trunk(self, k: None) -> tuple[dict, dict]:
        return {"x": self.seen["s1_m1_x"], "cu_seqlens": _blocks(self.patch_nums[1] ** 2)}, {
            "logits": self.seen["s1_m1_raw"]
        }

    def _ns_prefix(self, k: None) -> tuple[dict, dict]:
        """Scales 0 to 2 (or 1, if there are only two), causal over scales."""
        stop = min(3, len(self.patch_nums))
        lengths = [pn * pn for pn in self.patch_nums[:stop]]
        scale = torch.repeat_interleave(torch.arange(stop), torch.tensor(lengths))
        x = torch.cat([self.seen[f"s{k}_ns_x"] for k in range(stop)], dim=1)
        logits = self.model(
            x, self.model.cond(self.label_N), "ns", scale[:, None] >= scale[None, :]
        )
        maps = torch.cat([self._map(k)["map"] for k in range(1, stop)], dim=1)
        return {"map": maps, "cu_seqlens": _blocks(*lengths)}, {"logits": logits}

    def _ns(self, k: int) -> tuple[dict, dict]:
        return ({} if k == 0 else self._map(k)), {"logits": self.seen[f"s{k}_ns_raw"]}

    def _mask(self, k: int) -> tuple[dict, dict]:
        return self._masked_operands(k), {"logits": self.seen[f"s{k}_m1_raw"]}

    def _mask_input(self, k: int) -> tuple[dict, dict]:
        return {"tokens": self._tokens(f"s{k}_ns_tokens")}, {
            "h": flatten_map(self.seen[f"s{k}_m1_h_in"])
        }

    def _quant(self, k: int) -> tuple[dict, dict]:
        f_hat = self.seen[f"s{k}_f_hat"]
        before = torch.zeros_like(f_hat) if k == 0 else self.seen[f"s{k - 1}_f_hat"]
        expected = {"f_hat_out": f_hat}
        if k < self.last:
            expected["map"] = flatten_map(self.seen[f"s{k}_next"])
        return {"tokens": self._tokens(f"s{k}_tokens"), "f_hat": before}, expected

    def _decode(self, k: None) -> tuple[dict, dict]:
        return {"f_hat": self.seen[f"s{self.last}_f_hat"]}, {"image": self.seen["image"]}

    def _encode(self, k: None) -> tuple[dict, dict]:
        tokens, f_hats = self.tokenizer.quantize.encode(
            self.tokenizer.latent(self.seen["image"] * 2 - 1)
        )
        return {"image": self.seen["image"]}, {
            "tokens": torch.cat(tokens, dim=1).int(),
            "f_hat": f_hats[-1],
        }

    def _score(self, k: None) -> tuple[dict, dict]:
        tokens = [self.seen[f"s{k}_tokens"] for k in range(len(self.patch_nums))]
        packed = torch.cat(tokens, dim=1)
        token_mask = torch.arange(packed.shape[1]).expand_as(packed) % 2 == 1
        feeds: dict[str, Tensor] = {"tokens": packed.int()}
        if self.model.config.has_mask_branch:
            feeds["token_mask"] = token_mask
            scores = reference.score(self.model, self.tokenizer, self.labels, tokens, token_mask)
        else:
            scores = reference.score(self.model, self.tokenizer, self.labels, tokens, None)
        expected = {"map": scores["x_ns"], "h": scores.get("x_mask")}
        for branch in ("ns", "mask"):
            if (logits := scores.get(f"{branch}_logits")) is not None:
                expected[f"{branch}_logits"] = logits
                expected[f"{branch}_log_prob"] = logits.log_softmax(-1).gather(
                    -1, packed[..., None]
                )[..., 0]
        return feeds, {n: t for n, t in expected.items() if t is not None}

    def _map(self, k: int) -> dict[str, Tensor]:
        return {"map": flatten_map(self.seen[f"s{k - 1}_next"]).repeat(2, 1, 1)}

    def _masked_operands(self, k: int) -> dict[str, Tensor]:
        idx, pn = self.seen[f"s{k}_m1_idx_to_mask"], self.patch_nums[k]
        token_mask = torch.zeros(len(self.labels), pn * pn, dtype=torch.bool).scatter(1, idx, True)
        h = flatten_map(self.seen[f"s{k}_m1_h_in"]).repeat(2, 1, 1)
        return {**self._map(k), "h": h, "token_mask": token_mask.repeat(2, 1)}

    def _positions(self, k: int) -> Tensor:
        positions = self.model.config.scale_slices()[k]
        return torch.arange(positions.start, positions.stop, dtype=torch.int32)

    def _tokens(self, name: str) -> Tensor:
        pn = round(self.seen[name].shape[1] ** 0.5)
        return self.seen[name].int().unflatten(1, (pn, pn))


def _blocks(*lengths: int) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
