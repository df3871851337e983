"""Runs `transformers serve`, a real server with OpenAI's chat API: python serve_tiny_vlm.py FOLDER PORT."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image

from blipcore.torchvision_shim import heal_torchvision


def decode_image(data: torch.Tensor, **options: Any) -> torch.Tensor:
    """Replace torchvision's decoder, which is missing beside a CPU build of torch."""
    image = Image.open(io.BytesIO(bytes(data.tolist()))).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


if __name__ == "__main__":
    heal_torchvision()
    import torchvision.io

    torchvision.io.decode_image = decode_image
    from transformers.cli.transformers import main

    torch.set_num_threads(1)
    sys.argv[1:] = ["serve", sys.argv[1], "--host", "127.0.0.1", "--port", sys.argv[2], "--device", "cpu"]
    main()
