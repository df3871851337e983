"""What encoder and decoder share (Table 3 of the paper), as one setting of the model."""

from dataclasses import replace

import pytest
import torch

from blipcore.checkpoints.load import load_model
from blipcore.checkpoints.names import to_official
from blipcore.checkpoints.save import save_model
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.task import Progress

VARIANTS = ("all", "all-but-sa", "all-but-ca", "none")
TEXTS = ["a red dog", "a blue cat and a dog", "a dog"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "dog", "cat", "and"])


def config(share: str, vocabulary: int) -> BlipConfig:
    vision = replace(PRESETS["tiny"].vision, image_size=16, width=32, depth=2, heads=2)
    text = replace(PRESETS["tiny"].text, vocab_size=vocabulary, width=32, heads=2, hidden=64, encoder_width=32)
    return replace(PRESETS["tiny"], vision=vision, text=replace(text, share=share), embed_dim=16)


@pytest.fixture(params=VARIANTS)
def model(request, tokenizer) -> Blip:
    torch.manual_seed(0)
    return Blip(config(request.param, len(tokenizer)))


@pytest.fixture
def batch(tokenizer) -> dict:
    pixels = torch.randn(len(TEXTS), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ids, mask = tokenizer(TEXTS, max_length=30)
    return {"pixels": pixels, "input_ids": ids, "attention_mask": mask, "image_ids": torch.arange(len(TEXTS))}


def losses(model: Blip, tokenizer: Tokenizer, batch: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4, negatives="argmax"))
    return {name: value for name, value in task(batch, Progress(0, 1)).items() if name.startswith("loss")}


@pytest.mark.parametrize(("share", "millions"), [("all", 224), ("all-but-sa", 252), ("all-but-ca", 252), ("none", 361)])
def test_parameters_of_table_3(share, millions):
    with torch.device("meta"):
        model = Blip(replace(BlipConfig(), text=replace(BlipConfig().text, share=share)))
    assert sum(parameter.numel() for parameter in model.parameters()) // 10**6 == millions


def test_every_parameter_is_trained(model, tokenizer, batch):
    losses(model, tokenizer, batch)["loss"].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_with_equal_weights_all_ways_compute_the_same(model, tokenizer, batch):
    """The variant's own weights of the decoder are made those of the encoder, as is BLIP's."""
    plain = Blip(config("all-but-sa", len(tokenizer))).eval()
    state = plain.state_dict()
    for name in state:
        if ".decode." in name:
            state[name] = state[name.replace(".decode.", ".encode.")]
    plain.load_state_dict(state)
    sources = {name: name.replace(".decode_", ".").replace(".decode.", ".encode.") for name in model.state_dict()}
    model.load_state_dict({name: state[source] for name, source in sources.items()})
    model.eval()
    torch.testing.assert_close(losses(model, tokenizer, batch), losses(plain, tokenizer, batch))

    options = GenerateConfig(mode="greedy", prompt="a ", max_length=8, repetition_penalty=1.0)
    captions = [
        generate(captioner, captioner.encode_image(batch["pixels"]), tokenizer, options, ["0", "1", "2"]).ids
        for captioner in (model.select_parts("decode").eval(), plain)
    ]
    assert captions[0] == captions[1]


def test_saved_and_read_again(model, tokenizer, batch, tmp_path):
    save_model(tmp_path / "model", model, tokenizer)
    again, _ = load_model(tmp_path / "model")
    assert again.config == model.config
    torch.testing.assert_close(losses(again, tokenizer, batch), losses(model.eval(), tokenizer, batch))


def test_only_what_official_files_can_hold_becomes_one(model):
    if model.config.text.share == "all-but-sa":
        assert len(to_official(model.state_dict())) > len(model.state_dict())
    else:
        with pytest.raises(ValueError, match="share all but self-attention"):
            to_official(model.state_dict())
        to_official(model.select_parts("encode", "itc", "itm").state_dict())  # one role shares nothing


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="share must be one of all, all-but-sa, all-but-ca, none, not 'some'"):
        config("some", 30)
