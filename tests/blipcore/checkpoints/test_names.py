"""Tensor names: every tensor has an official one, and official files have the released numbers of tensors."""

import pytest
import torch
from random_checkpoints import CONFIG, random_model

from blipcore.checkpoints.load import TASK_PARTS
from blipcore.checkpoints.names import from_official, official_names, to_official
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS


def test_official_files_have_the_released_numbers_of_tensors() -> None:
    """Released: pre-training 1272, captioning 474, features 467, ITM 473, retrieval 949."""
    with torch.device("meta"):
        full = Blip(PRESETS["base"])
        states = {task: Blip(PRESETS["base"].select_parts(*parts)).state_dict() for task, parts in TASK_PARTS.items()}
    assert len(to_official(states["caption"])) == 474
    assert len(to_official(states["features"])) == 467
    # The ITM inference class has no temperature.
    assert len(to_official(states["retrieval"])) == 473 + 1
    copies = {f"momentum.{n}": t for n, t in full.state_dict().items() if n in states["retrieval"]}
    copies = {n: t for n, t in copies.items() if "itm" not in n and "temp" not in n}
    queues = dict.fromkeys(("image_queue", "text_queue", "queue_ptr"), torch.empty(1))
    assert len(to_official({**full.state_dict(), **copies, **queues})) == 1272
    assert len(to_official({**states["retrieval"], **copies, **queues, "idx_queue": torch.empty(1)})) == 949


@pytest.mark.parametrize("hf", [False, True])
def test_every_tensor_has_an_official_name(hf: bool) -> None:
    for name in Blip(CONFIG).state_dict():
        assert all(aliases and all(aliases) for aliases in official_names(name, hf=hf))


def test_official_names_of_stacked_and_shared_tensors() -> None:
    _, key, _ = official_names("text.layers.3.encode.qkv.bias")
    assert key == ("text_encoder.encoder.layer.3.attention.self.key.bias",)
    encoder_only = official_names("text.embeddings.norm.bias", roles=["encode"])
    assert encoder_only == [("text_encoder.embeddings.LayerNorm.bias",)]
    shared = official_names("text.embeddings.norm.bias")
    assert shared == [("text_decoder.bert.embeddings.LayerNorm.bias", "text_encoder.embeddings.LayerNorm.bias")]


@pytest.mark.parametrize("task", TASK_PARTS)
def test_a_state_dict_survives_the_way_to_official_names_and_back(task: str) -> None:
    model = random_model(task)
    state = from_official(to_official(model.state_dict()), model.config, "the file")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
