"""Loads an `hf:` model and its processor; refuses incomplete ones, each with one sentence.

transformers fills missing weights with random numbers and accepts many folders of other models. Both are
refused here, by the class of the config and by the list of the weights that were not in the files.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from blipcore.checkpoints.files import refuse_other_file
from blipcore.io.hub import read_json_object
from blipcore.io.messages import one_line, shorten
from blipcore.torchvision_shim import import_transformers
from capfilt.vlm.hf_files import ADAPTER, find_folders


class LoadedModel(NamedTuple):
    """A model and its processor; `uninitialized` names the weights that no file has, which are random numbers."""

    model: Any
    processor: Any
    uninitialized: list[str]


def load_hf(model: str, *, trust_remote_code: bool, device: str, dtype: torch.dtype) -> LoadedModel:
    """Load the image-text-to-text model in a folder or hub repository, or a LoRA adapter merged into its base model.

    Raises ValueError for a model of another task, damaged files and code that is not trusted.
    """
    folders = find_folders(model, trust_remote_code)
    hf = import_transformers()
    hf.logging.disable_progress_bar()
    hf.logging.set_verbosity_error()
    name = model if folders.adapter is None else str(folders.base)
    for folder in filter(None, folders):
        _check_files(folder)
    with _one_sentence(name, hf.__version__):
        _check_class(hf, name, folders.base, trust_remote_code)
        processor = _load_processor(hf, name, folders.base, trust_remote_code)
        loaded, info = hf.AutoModelForImageTextToText.from_pretrained(
            folders.base,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    if wrong := [*map(_first, info.get("mismatched_keys") or []), *map(str, info.get("error_msgs") or [])]:
        raise ValueError(f"{name} has weights of another shape than its config.json says: {shorten(wrong)}.")
    if folders.adapter:
        with _one_sentence(model, hf.__version__):
            loaded = _merge_adapter(loaded, model, folders.adapter)
    if device.startswith("cuda:"):
        # the code of some models moves tensors to "cuda", without a number
        torch.cuda.set_device(device)
    return LoadedModel(loaded.to(device).eval(), processor, sorted(info.get("missing_keys") or []))


def check_uninitialized(model: str, names: list[str]) -> None:
    """Raise ValueError if weights that matter are missing."""
    if names:
        raise ValueError(
            f"{model} is incomplete: {len(names)} of its weights are in none of its files ({shorten(names)}), and "
            "random numbers would take their place. Copy or download it again, or use a model of this class."
        )


def _check_files(folder: Path) -> None:
    """Raise ValueError for a web page or a Git LFS pointer in place of weights."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        with path.open("rb") as file:
            refuse_other_file(path, file.read(64))


def _check_class(hf: Any, model: str, folder: Path, trust_remote_code: bool) -> None:
    """Raise ValueError if the config is not that of a captioner."""
    content = read_json_object(folder / "config.json")
    if trust_remote_code and "AutoModelForImageTextToText" in (content.get("auto_map") or {}):
        return
    if not content.get("model_type"):
        raise ValueError(
            f"{model} is no model of transformers: its config.json has no model_type. Give a checkpoint of BLIP "
            "without 'hf:'."
        )
    if (folder / "generation_config.json").is_file():
        # transformers ignores a damaged one, and with it the end tokens
        read_json_object(folder / "generation_config.json")
    if content["model_type"] == "florence2" and "auto_map" in content:
        raise ValueError(
            f"{model} is Florence-2 in Microsoft's layout, whose code and weights do not fit transformers "
            f"{hf.__version__}; use the same model as converted for transformers (florence-community on the Hugging "
            "Face hub)."
        )
    listed = content.get("architectures") or []
    architectures = [str(item) for item in listed] if isinstance(listed, list) else [str(listed)]
    config = hf.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    classes = hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if type(config) not in classes:
        raise ValueError(
            f"{model} is a {' or '.join(architectures) or config.model_type}, which is none of the image-text-to-text "
            f"models of transformers {hf.__version__}; examples/vlm.md lists the families that caption."
        )
    expected = classes[type(config)].__name__
    if architectures and expected not in architectures:
        raise ValueError(
            f"{model} is a {' or '.join(architectures)} and not a captioner ({expected}), so a part of the captioner "
            f"would be random numbers. {_remedy_of_class(config.model_type, architectures[0])}"
        )


def _remedy_of_class(family: str, architecture: str) -> str:
    if "Retrieval" in architecture and family in ("blip", "blip-2"):
        return "Use it as a filter: capfilt filter --model FOLDER."
    if architecture.startswith(("LlavaLlama", "LlavaMistral", "LlavaQwen")):
        return "Use the same model as converted for transformers (llava-hf on the Hugging Face hub)."
    return "Give the captioning model of this family."


def _load_processor(hf: Any, model: str, folder: Path, trust_remote_code: bool) -> Any:
    """Return the processor, or a pair of image processor and tokenizer for models without a processor class."""
    processor = hf.AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if getattr(processor, "image_processor", None) is None and not hasattr(processor, "tokenizer"):
        try:
            pictures = hf.AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
            tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{model} has no image processor or no tokenizer ({one_line(error)}); copy preprocessor_config.json "
                "and the tokenizer's files of the original model into its folder."
            ) from None
        processor = PictureAndText(pictures, tokenizer)
    return processor


class PictureAndText:
    """An image processor and a tokenizer, for models without a processor class."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer


def _merge_adapter(loaded: Any, model: str, adapter: Path) -> Any:
    """Return the base model with the weights of a LoRA adapter added."""
    kind = read_json_object(adapter / ADAPTER).get("peft_type")
    if kind not in ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "VERA", "RANDLORA"):
        raise ValueError(f"{model} is an adapter of kind {kind}, which cannot be merged into its model; use LoRA.")
    try:
        import peft
    except ImportError:
        raise ImportError(f"{model} is an adapter, which needs: pip install 'capfilt[peft]'") from None
    if not any(adapter.glob("adapter_model.*")):
        raise FileNotFoundError(
            f"{model} has no adapter_model.safetensors: the adapter was not saved or copied completely."
        )
    with warnings.catch_warnings():
        # otherwise the layers that are not in the file would be left untrained
        warnings.filterwarnings("error", message=".*(missing|unexpected|mismatched).*keys.*")
        return peft.PeftModel.from_pretrained(loaded, str(adapter)).merge_and_unload()


@contextmanager
def _one_sentence(model: str, version: str) -> Iterator[None]:
    """Turn every exception of transformers into a ValueError of one sentence, with a remedy."""
    try:
        yield
    except Exception as error:
        message = str(error)
        if isinstance(error, ValueError | FileNotFoundError) and message.startswith(model):
            raise
        if isinstance(error, ImportError) and "capfilt[" in message:
            raise
        raise ValueError(
            f"transformers {version} cannot load {model}: {type(error).__name__}: {one_line(error).rstrip('.')}. "
            f"{_remedy(error)}"
        ) from None


def _remedy(error: Exception) -> str:
    text, kind = str(error), type(error).__name__
    if "trust_remote_code" in text:
        return "The model has Python code of its own; if you trust it, run it with --set trust_remote_code=true."
    if "weights_only" in text or kind == "UnpicklingError":
        return "Its weights are a pickle with other objects, which is never loaded: save them as safetensors."
    if kind in ("SafetensorError", "EOFError", "JSONDecodeError") or "safetensors" in text or "zip archive" in text:
        return "A file is damaged or incomplete: copy or download the model again."
    if isinstance(error, ImportError):
        return "Install the package that the message names."
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return "Use a smaller model, --dtype bf16 or a device with more memory."
    return "Check the folder's files, and the version of transformers that the model's page asks for."


def _first(item: Any) -> str:
    return str(item[0] if isinstance(item, list | tuple) else item)
