"""The ahead-of-time kernels, started by the C launcher, on a GPU."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from plugins_trt.block_sparse_attn.launcher import Launcher, params_of
from plugins_trt.block_sparse_attn.spec import PATTERNS, Pattern
from plugins_trt.block_sparse_attn.variants import HEAD_DIMS
from tests.attention_cases import LARGE_PACKS, PACKS, Inputs, make_inputs
from tests.gpu.test_block_sparse_attn import DTYPES, check
from tests.plugin_build import PluginBuild

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def launcher(plugin_build: PluginBuild) -> Launcher:
    return Launcher(plugin_build.library)


class Call:
    """One call and its buffers; the output is full of NaN until it has run."""

    def __init__(self, launcher: Launcher, inputs: Inputs, packed: bool = True) -> None:
        self.launcher, self.inputs = launcher, inputs
        B, T, _, H, d = inputs.qkv.shape
        parts = inputs.qkv.unbind(2)
        self.qkv = parts if packed else tuple(x.contiguous() for x in parts)
        self.out = torch.full(
            (B, T, H * d), torch.nan, dtype=inputs.qkv.dtype, device=inputs.qkv.device
        )
        num_bytes = launcher.workspace_bytes(
            inputs.qkv.dtype, inputs.attributes.qk_l2_norm, parts[0].shape
        )
        self.workspace = inputs.qkv.new_full((num_bytes // inputs.qkv.itemsize,), torch.nan)

    def __call__(self) -> torch.Tensor:
        params = params_of(
            *self.qkv,
            self.out,
            self.inputs.cu_seqlens,
            self.inputs.scale_mul,
            self.workspace,
            self.inputs.attributes,
        )
        assert self.launcher.launch(params, torch.cuda.current_stream().cuda_stream) == 0
        return self.out


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "l2"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_launcher_gives_the_reference(
    launcher: Launcher, pattern: Pattern, norm: bool, dtype: str, head_dim: int
) -> None:
    packs = [*PACKS.values(), *LARGE_PACKS.values()]
    # the heads decide which tile is taken
    for (seed, lengths), heads in itertools.product(enumerate(packs), (1, 3, 16)):
        inputs = make_inputs(
            lengths,
            DTYPES[dtype],
            pattern,
            norm,
            heads=heads,
            head_dim=head_dim,
            seed=seed,
            device="cuda",
        )
        check(inputs, Call(launcher, inputs)())


def test_separate_tensors_give_what_packed_ones_give(launcher: Launcher) -> None:
    inputs = make_inputs(PACKS["pyramid"], torch.float16, "block_causal", True, device="cuda")
    assert torch.equal(Call(launcher, inputs, packed=False)(), Call(launcher, inputs)())


@pytest.mark.parametrize("pack", ["pyramid", "on-the-tile"])
def test_first_launch_inside_of_a_capture_and_replay(
    plugin_build: PluginBuild, pack: str, tmp_path: Path
) -> None:
    # a copy has not loaded its kernels yet
    launcher = Launcher(Path(shutil.copy(plugin_build.library, tmp_path)))
    inputs, other = (
        make_inputs(
            PACKS[pack], torch.bfloat16, "block_diagonal", True, heads=16, seed=s, device="cuda"
        )
        for s in (0, 7)
    )
    call = Call(launcher, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    inputs.qkv.copy_(other.qkv)
    graph.replay()
    check(other, out)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_in_one_process(launcher: Launcher) -> None:
    for device in ("cuda:0", "cuda:1", "cuda:0"):
        with torch.cuda.device(device):
            inputs = make_inputs(
                PACKS["on-the-tile"], torch.float16, "block_causal", True, heads=16, device=device
            )
            check(inputs, Call(launcher, inputs)())


def test_bad_call_is_refused_before_the_gpu_sees_it(launcher: Launcher) -> None:
    inputs = make_inputs((4,), torch.float16, "block_diagonal", False, head_dim=96, device="cuda")
    with pytest.raises(AssertionError):
        Call(launcher, inputs)()
    torch.cuda.synchronize()
