"""Lets torchvision be imported beside a torch built for another device; the door to what needs it, timm and open_clip.

torchvision's wheel for CUDA cannot load its compiled operators into a CPU-only torch, and then its import fails
while it registers shapes for two operators nobody declared ("operator torchvision::nms does not exist").
Declaring their schemas first heals the import; the operators themselves stay uncallable, and nothing here calls them.
Used before transformers' vision classes or open_clip are imported.
"""

import importlib
import sys
from typing import Any

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library takes its schemas back when it is collected


def heal_torchvision() -> None:
    """Make `import torchvision` work if it is installed and broken by missing operators; otherwise do nothing."""
    if "torchvision" in sys.modules or _declared:
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
        _declared.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left half-made
        importlib.import_module("torchvision")


def import_open_clip() -> Any:
    """The module open_clip; ImportError that says how to install it."""
    heal_torchvision()
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(f"CLIP models need open_clip ({error}); pip install open_clip_torch") from None
    return open_clip


def import_timm() -> Any:
    """The module timm; ImportError that says how to install it."""
    heal_torchvision()
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"timm's image encoders need timm ({error}); pip install timm") from None
    return timm
