"""Calls every kernel of the plugin library once on awkward packs, for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \\
        python -m tests.gpu.sanitizer_target build/plugins/libhmar_plugins.so

The tool racecheck takes minutes for each dtype: name one, and a head dimension, behind the library.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

from plugins_trt.block_sparse_attn.launcher import Launcher, params_of
from plugins_trt.block_sparse_attn.spec import PATTERNS
from plugins_trt.block_sparse_attn.variants import DTYPES, HEAD_DIMS
from tests.attention_cases import make_inputs

# few programs, short blocks, blocks that fill a tile, long blocks: one for each tile
CALLS = (
    ((1, 4, 9, 0, 16), 1, 2),
    ((9,) * 60, 2, 16),
    ((70, 0, 200, 33), 2, 16),
    ((1100,), 2, 16),
)


def main() -> None:
    library, *chosen = sys.argv[1:]
    launcher = Launcher(Path(library))
    dtypes = [getattr(torch, name) for name in chosen[:1] or DTYPES]
    head_dims = [int(d) for d in chosen[1:]] or HEAD_DIMS
    names = set()
    for dtype, head_dim, pattern, norm, (lengths, batch, heads) in itertools.product(
        dtypes, head_dims, PATTERNS, (False, True), CALLS
    ):
        inputs = make_inputs(
            lengths, dtype, pattern, norm,
            batch=batch, heads=heads, head_dim=head_dim, device="cuda",
        )  # fmt: skip
        parts = inputs.qkv.unbind(2)
        B, T, H, d = parts[0].shape
        out = torch.full((B, T, H * d), torch.nan, dtype=dtype, device="cuda")
        num_bytes = launcher.workspace_bytes(dtype, norm, parts[0].shape)
        workspace = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
        params = params_of(
            *parts, out, inputs.cu_seqlens, inputs.scale_mul, workspace, inputs.attributes
        )
        status = launcher.launch(params, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        if status or out.isnan().any():
            raise RuntimeError(f"{lengths} {dtype} {head_dim}: status {status}")
        names.add(launcher.kernel_name(params, 90))
    sys.stdout.write(f"{len(names)} kernels: {', '.join(sorted(map(str, names)))}\n")


if __name__ == "__main__":
    main()
