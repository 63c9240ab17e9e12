"""What makes training quick without changing what is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmar.quant import Quantizer
from hmar.vae import VQVAE


class MatrixQuantizer(Quantizer):
    """The quantizer with bicubic enlargement as two matrix products.

    PyTorch's bicubic kernel and its backward took 93 of 150 ms of a tokenizer step on an H100; the
    products take less than one.
    """

    def __init__(self, quant: Quantizer) -> None:
        super().__init__(quant.config, quant.patch_nums)
        self.load_state_dict(quant.state_dict())
        for pn in self.patch_nums[:-1]:
            # every column of the matrix is the enlargement of a unit vector, taken along one axis
            columns = quant.upsample(torch.eye(pn)[None, :, :, None].expand(1, pn, pn, pn))[
                0, :, :, 0
            ].T
            self.register_buffer(f"up_{pn}", columns.contiguous(), persistent=False)

    def upsample(self, h_BChw: Tensor) -> Tensor:
        pn = h_BChw.shape[-1]
        if pn == self.side:
            return h_BChw
        up_Pp = self.get_buffer(f"up_{pn}")
        return up_Pp @ h_BChw @ up_Pp.T


def use_matrix_quantizer_(tokenizer: VQVAE) -> None:
    """Gives the tokenizer a `MatrixQuantizer` with the same weights; call it on the CPU."""
    tokenizer.quantize = MatrixQuantizer(tokenizer.quantize)


def compile_(*modules: nn.Module) -> None:
    """Compiles modules in place.

    Channels stay in front: group norm over few channels per group reads scattered bytes otherwise.
    """
    import torch._inductor.config as inductor

    inductor.layout_optimization = False
    for module in modules:
        module.compile()
