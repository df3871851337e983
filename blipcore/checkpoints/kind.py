"""The kind of a checkpoint, from its config.json or its tensor names alone; no torch."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from blipcore.io.hub import locate_model, read_json_object

Kind = Literal["blip", "albef", "blip2 filter", "blip2 captioner"]
# ALBEF's BERT has token types; BLIP's has none.
ALBEF_TENSOR = b"token_type_embeddings.weight"
# Enough for the tensor names of a file, which come before the tensors.
MAX_HEAD_BYTES = 32 << 20
# What a checkpoint of another kind than BLIP is, and the command that takes it.
USES: dict[Kind, str] = {
    "albef": "an ALBEF model, which is a filter: give it to `capfilt filter --model {0}`",
    "blip2 filter": "a BLIP-2 filter: give it to `capfilt filter --model {0}`",
    "blip2 captioner": "a BLIP-2 captioner: give it to `capfilt caption --model hf:{0}`",
}


def checkpoint_kind(path_or_id: str | Path) -> Kind:
    """Return the kind of a checkpoint: a file by its tensor names, a folder by its config.json.

    A kind that no model here has is "blip", whose loader raises the error.
    """
    path = locate_model(path_or_id)
    if path.is_file():
        return "albef" if ALBEF_TENSOR in _read_names(path) else "blip"
    raw = read_json_object(path / "config.json")
    if raw.get("model_type") != "blip-2":
        return "blip"
    names = raw.get("architectures") or ["Blip2ForConditionalGeneration"]
    return "blip2 filter" if "ForImageTextRetrieval" in str(names[0]) else "blip2 captioner"


def describe_use(kind: Kind, path: object) -> str:
    """Return a sentence on what a checkpoint of another kind than BLIP is for."""
    return f"{path} is {USES[kind].format(path)}."


def albef_task(names: Iterable[str]) -> str | None:
    """Return "filter" for the tensors of an ALBEF with ITC and ITM, the model's kind for another ALBEF, else None.

    The kinds are those of ALBEF's models/ folder.
    """
    names = list(names)
    if not any(name.endswith(ALBEF_TENSOR.decode()) for name in names):
        return None
    groups = {name.partition(".")[0] for name in names}
    if "text_decoder" in groups:
        return "VQA model, which cannot score captions"
    if "ta_head" in groups:
        return "checkpoint of pre-training for NLVR2, which cannot score captions"
    if "cls_head" in groups:
        # NLVR2's text encoder has 18 layers.
        is_nlvr = any(".encoder.layer.17." in name for name in names)
        return f"{'NLVR2' if is_nlvr else 'visual entailment'} model, which cannot score captions"
    if {"itm_head", "vision_proj", "text_proj", "visual_encoder"} <= groups:
        return "filter"
    return "model without ITM and ITC heads, which cannot score captions"


def _read_names(path: Path) -> bytes:
    """Return the part of a file of tensors that holds their names."""
    with path.open("rb") as file:
        head = file.read(8)
        if head.startswith(b"PK"):
            try:
                with zipfile.ZipFile(file) as archive:
                    pickle = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
                    return archive.open(pickle).read(MAX_HEAD_BYTES) if pickle else b""
            except zipfile.BadZipFile:
                return b""
        if len(head) == 8 and head[4:] == b"\0\0\0\0":  # safetensors
            return file.read(min(struct.unpack("<Q", head)[0], MAX_HEAD_BYTES))
        return head + file.read(MAX_HEAD_BYTES)  # torch's old format
