"""Starting weights for parts of a model: a supervised image encoder, as the paper starts from DeiT."""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from blipcore.model.vit import VisionTransformer, resize_pos_embed


def load_image_encoder(encoder: VisionTransformer, path: str | Path) -> None:
    """Load a ViT's state dict with timm's names (.safetensors or .pth) into `encoder`.

    The classifier head is left out and the position table is resized; anything else missing or misshapen is an error.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no image encoder weights at {path}")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a file of weights: {error}") from error
    except Exception as error:  # pickle.UnpicklingError: weights_only refuses everything but tensors
        raise ValueError(f"{path} holds more than tensors and was not opened: give a plain state dict") from error
    state = state.get("model", state)
    state = {name: value for name, value in state.items() if not name.startswith("head.")}
    if "pos_embed" in state:
        config = encoder.config
        state["pos_embed"] = resize_pos_embed(state["pos_embed"], config.image_size, config.patch_size)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        problems = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"{path} does not fit the image encoder: {problems}") from error
