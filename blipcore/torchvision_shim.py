"""Makes torchvision importable beside a torch built for another device, and imports timm and open_clip.

torchvision's CUDA wheel cannot load its compiled operators into a CPU-only torch. Its import then fails while it
registers shapes for two operators that nobody declared ("operator torchvision::nms does not exist"). Declaring their
schemas first repairs the import; the operators themselves cannot be called, and nothing here calls them. The vision
classes of transformers and open_clip import torchvision, so call `heal_torchvision` before them.
"""

import importlib
import sys
from typing import Any

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# Kept alive: a Library withdraws its schemas when it is garbage collected.
_libraries: list[torch.library.Library] = []


def heal_torchvision() -> None:
    """Make `import torchvision` work if its operators are missing. Do nothing if it works or is not installed."""
    if "torchvision" in sys.modules or _libraries:
        return
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name, schema in _SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                library.define(schema)
        _libraries.append(library)
        # Remove what the failed import left behind.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


def import_open_clip() -> Any:
    """Import open_clip. Raises ImportError with the install command if it is missing."""
    heal_torchvision()
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(f"CLIP models need open_clip ({error}): pip install open_clip_torch") from None
    return open_clip


def import_timm() -> Any:
    """Import timm. Raises ImportError with the install command if it is missing."""
    heal_torchvision()
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"Image encoders of timm need timm ({error}): pip install timm") from None
    return timm
