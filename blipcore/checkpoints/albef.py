"""Loads ALBEF's own checkpoints: files of pre-training and of retrieval.

Facts of names and sizes: models/model_pretrain.py, model_retrieval.py, xbert.py and configs/ of salesforce/ALBEF.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blipcore.checkpoints.files import load_pickle, read_tensors, select_state
from blipcore.checkpoints.kind import albef_task
from blipcore.checkpoints.load import load_tokenizer
from blipcore.checkpoints.names import from_official, remove_prefix, split_training_state
from blipcore.checkpoints.sizes import official_config
from blipcore.io.hub import locate_model
from blipcore.model.albef import Albef
from blipcore.model.tokenizer import Tokenizer

_CROSS = re.compile(r"^text_encoder\.encoder\.layer\.(\d+)\.crossattention\.self\.query\.weight$")
# A key of the config in files of Grounding.py, whose tensors are those of a retrieval model.
GROUNDING = "refcoco_data"


def load_albef(path_or_id: str | Path, tokenizer: str | Path | None = None) -> tuple[Albef, Tokenizer]:
    """Return the model of an ALBEF file, in float32 on the CPU in eval mode, and its tokenizer.

    Raises ValueError for files of other ALBEF models, and for missing, unexpected or misshapen tensors.
    """
    path = locate_model(path_or_id)
    state = _read_student(path)
    config, fusion_layer = official_config(state, {}, path), _find_fusion_layer(state, path)
    with torch.device("meta"):
        model = Albef(config, fusion_layer)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights = from_official(state, config, path, shapes=shapes)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    # ALBEF's vocabulary is that of BERT: it lacks BLIP's tokens [DEC] and [ENC].
    return model.eval(), load_tokenizer(config, path_or_id, path, tokenizer, unused=2)


def _read_student(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the model under the names of a retrieval file, without token types and the MLM head."""
    content: Any = read_tensors(path) if path.suffix == ".safetensors" else load_pickle(path)
    if isinstance(content, dict) and GROUNDING in (content.get("config") or {}):
        raise ValueError(f"{path} is an ALBEF model for grounding (RefCOCO+), which cannot score captions.")
    student, _, _ = split_training_state(remove_prefix(select_state(content, path), path))
    task = albef_task(student)
    if task != "filter":
        raise ValueError(f"{path} is an ALBEF {task}." if task else f"{path} holds no ALBEF model.")
    student = {re.sub(r"^text_encoder\.bert\.", "text_encoder.", name): student[name] for name in student}
    # The texts are one segment, so its type embedding is a constant; the MLM head is not used.
    types = student.pop("text_encoder.embeddings.token_type_embeddings.weight")
    positions = "text_encoder.embeddings.position_embeddings.weight"
    if positions in student:
        student[positions] = student[positions].float() + types[0].float()
    unused = re.compile(r"^text_encoder\.(cls|pooler)\.")
    return {name: tensor for name, tensor in student.items() if not unused.match(name)}


def _find_fusion_layer(state: dict[str, Tensor], path: Path) -> int:
    """Return the first text layer with cross-attention, which all later layers have too."""
    layers = len({name.split(".")[3] for name in state if name.startswith("text_encoder.encoder.layer.")})
    fused = sorted(int(match[1]) for match in map(_CROSS.match, state) if match)
    if not fused or fused != list(range(fused[0], layers)):
        raise ValueError(f"{path} holds no ALBEF model: its upper text layers have no cross-attention.")
    return fused[0]
