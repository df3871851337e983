"""Makes torchvision importable beside a torch built for another device; imports transformers, open_clip and timm.

torchvision's CUDA wheel cannot load its compiled operators into a CPU-only torch, and its import fails ("operator
torchvision::nms does not exist"). Declaring the schemas of two operators repairs the import; the operators cannot be
called, and nothing here calls them. transformers' vision classes and open_clip import torchvision.
"""

import importlib
import sys
from typing import Any

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# Kept alive: a collected Library withdraws its schemas.
_libraries: list[torch.library.Library] = []


def heal_torchvision() -> None:
    """Make `import torchvision` work if it is installed without its operators."""
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
        # Remove the modules of the failed import.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


def import_transformers() -> Any:
    """Import transformers. Raises ImportError with the install command if it is missing."""
    heal_torchvision()
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"This model needs transformers ({error}): pip install transformers") from None
    return transformers


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
