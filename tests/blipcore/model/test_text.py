"""The text transformer: its roles, word vectors, decoding with a cache, and what the roles share (paper table 3)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from blipcore.checkpoints.load import load_model
from blipcore.checkpoints.names import to_official
from blipcore.checkpoints.save import save_model
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig, Share
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.task import Progress

TEXTS = ["a red dog", "a blue cat and a dog", "a dog"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "dog", "cat", "and"])


def make_config(share: Share, vocab_size: int) -> BlipConfig:
    vision = replace(PRESETS["tiny"].vision, image_size=16, width=32, depth=2, heads=2)
    text = replace(PRESETS["tiny"].text, vocab_size=vocab_size, width=32, heads=2, hidden=64, encoder_width=32)
    return replace(PRESETS["tiny"], vision=vision, text=replace(text, share=share), embed_dim=16)


@pytest.fixture(params=get_args(Share))
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Blip:
    torch.manual_seed(0)
    return Blip(make_config(request.param, len(tokenizer)))


@pytest.fixture
def batch(tokenizer: Tokenizer) -> dict[str, Tensor]:
    pixels = torch.randn(len(TEXTS), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ids, mask = tokenizer(TEXTS, max_length=30)
    return {"pixels": pixels, "input_ids": ids, "attention_mask": mask, "image_ids": torch.arange(len(TEXTS))}


def pretraining_losses(model: Blip, tokenizer: Tokenizer, batch: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(2)
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4, negatives="argmax"))
    return {name: value for name, value in task(batch, Progress(0, 1)).items() if name.startswith("loss")}


@torch.no_grad()
def test_word_vectors_give_the_states_of_their_ids(model: Blip, batch: dict[str, Tensor]) -> None:
    text, ids, mask = model.eval().text, batch["input_ids"], batch["attention_mask"]
    kv = text.image_kv(model.encode_image(batch["pixels"]))
    plain, flipped, decoded = text.look_up([ids, ids.flip(0)], [ids])
    assert_close(text.encode_words(plain, mask), text.encode(ids, mask))
    assert_close(text.fuse_words(flipped, mask, kv), text.fuse(ids.flip(0), mask, kv))
    assert_close(text.decode_words(decoded, mask, kv), text.decode(ids, mask, kv))


@torch.no_grad()
def test_the_encoder_sees_later_tokens_and_the_decoder_does_not(model: Blip, batch: dict[str, Tensor]) -> None:
    text, ids, mask = model.eval().text, batch["input_ids"], torch.ones_like(batch["attention_mask"])
    kv = text.image_kv(model.encode_image(batch["pixels"]))
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 5
    assert not torch.allclose(text.encode(changed, mask)[:, 0], text.encode(ids, mask)[:, 0])
    assert_close(text.decode(changed, mask, kv)[:, :-1], text.decode(ids, mask, kv)[:, :-1])


@torch.no_grad()
def test_padding_changes_no_state(model: Blip, batch: dict[str, Tensor]) -> None:
    text, ids, mask = model.eval().text, batch["input_ids"], batch["attention_mask"]
    length = int(mask[2].sum())
    kv = text.image_kv(model.encode_image(batch["pixels"]))
    for states, unpadded in (
        (text.fuse(ids, mask, kv), text.fuse(ids[2:, :length], mask[2:, :length], kv.select(torch.tensor([2])))),
        (text.decode(ids, mask, kv), text.decode(ids[2:, :length], None, kv.select(torch.tensor([2])))),
    ):
        assert_close(states[2:, :length], unpadded, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_decoding_with_a_cache_gives_the_states_of_whole_texts(model: Blip, batch: dict[str, Tensor]) -> None:
    text, ids = model.eval().text, batch["input_ids"]
    kv = text.image_kv(model.encode_image(batch["pixels"]))
    cache = text.new_cache(len(ids), ids.shape[1])
    states = [text.decode_next(ids[:, :3], kv, cache)]
    states += [text.decode_next(ids[:, i : i + 1], kv, cache) for i in range(3, ids.shape[1])]
    assert_close(torch.cat(states, dim=1), text.decode(ids, None, kv), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("share", "millions"), [("all", 224), ("all-but-sa", 252), ("all-but-ca", 252), ("none", 361)])
def test_parameter_counts_equal_those_of_table_3(share: Share, millions: int) -> None:
    with torch.device("meta"):
        model = Blip(replace(BlipConfig(), text=replace(BlipConfig().text, share=share)))
    assert sum(parameter.numel() for parameter in model.parameters()) // 10**6 == millions


def test_every_parameter_is_trained(model: Blip, tokenizer: Tokenizer, batch: dict[str, Tensor]) -> None:
    pretraining_losses(model, tokenizer, batch)["loss"].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_all_ways_of_sharing_agree_if_their_weights_are_equal(
    model: Blip, tokenizer: Tokenizer, batch: dict[str, Tensor]
) -> None:
    # In both models, copy the encoder's weights to the decoder's separate ones.
    plain = Blip(make_config("all-but-sa", len(tokenizer))).eval()
    state = plain.state_dict()
    for name in state:
        if ".decode." in name:
            state[name] = state[name.replace(".decode.", ".encode.")]
    plain.load_state_dict(state)
    sources = {name: name.replace(".decode_", ".").replace(".decode.", ".encode.") for name in model.state_dict()}
    model.load_state_dict({name: state[source] for name, source in sources.items()})
    model.eval()
    assert_close(pretraining_losses(model, tokenizer, batch), pretraining_losses(plain, tokenizer, batch))

    options = GenerateConfig(mode="greedy", prompt="a ", max_length=8, repetition_penalty=1.0)
    captions = [
        generate(captioner, captioner.encode_image(batch["pixels"]), tokenizer, options, ["0", "1", "2"]).ids
        for captioner in (model.select_parts("decode").eval(), plain)
    ]
    assert captions[0] == captions[1]


def test_a_saved_model_has_the_same_losses(
    model: Blip, tokenizer: Tokenizer, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    save_model(tmp_path / "model", model, tokenizer)
    loaded, _ = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert_close(pretraining_losses(loaded, tokenizer, batch), pretraining_losses(model.eval(), tokenizer, batch))


def test_only_blips_way_of_sharing_has_an_official_file(model: Blip) -> None:
    if model.config.text.share == "all-but-sa":
        assert len(to_official(model.state_dict())) > len(model.state_dict())
    else:
        with pytest.raises(ValueError, match="share all but self-attention"):
            to_official(model.state_dict())
        # A single role shares nothing.
        to_official(model.select_parts("encode", "itc", "itm").state_dict())
