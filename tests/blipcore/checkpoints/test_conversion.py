"""From one kind of checkpoint to another and back: same tensors, same sizes; what cannot be, in one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import GOLDEN
from safetensors.torch import load_file
from torch.testing import assert_close
from typer.testing import CliRunner

from blipcore.checkpoints.convert import ConvertRun, convert
from blipcore.checkpoints.files import read_pickle
from blipcore.checkpoints.load import TASK_PARTS, load_model
from blipcore.checkpoints.names import to_official
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig, TextConfig, VisionConfig
from blipcore.model.tokenizer import BERT_SPECIALS
from blipcore.tasks.contrastive import momentum_copy
from capfilt.cli import app

VOCAB = [*BERT_SPECIALS, "a", "dog", "red", "bus"]
CONFIG = BlipConfig(
    VisionConfig(image_size=16, patch_size=8, width=64, depth=2, heads=1),
    TextConfig(len(VOCAB) + 2, 128, 2, 2, 48, 12, encoder_width=64),
    embed_dim=8,
)


@pytest.fixture
def official(tmp_path):
    """Writes an official .pth of random weights and returns its path; the vocabulary lies beside it."""

    def write(kind: str, change=lambda state: None, config: BlipConfig = CONFIG) -> Path:
        torch.manual_seed(0)
        model = Blip(config.select_parts(*TASK_PARTS[kind]))
        state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        state = {name: tensor.clone() for name, tensor in to_official(state).items()}
        change(state)
        torch.save({"model": state, "epoch": 3}, tmp_path / f"{kind}.pth")
        (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
        return tmp_path / f"{kind}.pth"

    return write


def run(*arguments: object) -> dict:
    """What `capfilt convert` prints as JSON."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def mistake(*arguments: object) -> str:
    """The one sentence of a command that cannot be done."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("Error: ").strip()


def there_and_back(first: Path, work: Path, vocab: Path, *sizes: str, huggingface: bool = True) -> None:
    """official -> blipcore -> Hugging Face -> blipcore -> official: every tensor, and no other."""
    run(first, work / "ours", "--tokenizer", vocab, *sizes)
    last = work / "ours"
    if huggingface:
        run(work / "ours", work / "theirs", "--to", "hf")
        last = work / "again"
        run(work / "theirs", last)
    run(last, work / "last.pth", "--to", "official")
    training = lambda name: name.partition(".")[0].endswith(("_m", "_queue", "_ptr"))  # noqa: E731
    expected = {name: tensor for name, tensor in read_pickle(first).items() if not training(name)}
    if expected.get("temp") == 0.07 and not any(name.startswith("text_decoder") for name in expected):
        del expected["temp"]  # its initial value goes without saying
    found = read_pickle(work / "last.pth")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, rtol=0, atol=0)
    ours, again = load_model(work / "ours"), load_model(last)
    assert ours[1].backend.to_str() == again[1].backend.to_str()


@pytest.mark.parametrize("kind", ["caption", "retrieval", "itm", "vqa"])
def test_round_trip(official, tmp_path, kind):
    """The four kinds that transformers knows; an ITM inference file is a retrieval model's without the temperature."""
    without_temperature = (lambda state: state.pop("temp")) if kind == "itm" else (lambda state: None)
    # Text and image of one width, as in ViT-B: transformers wants it so for VQA.
    config = replace(CONFIG, vision=replace(CONFIG.vision, width=128), text=replace(CONFIG.text, encoder_width=128))
    config.vision.heads = 2
    first = official("retrieval" if kind == "itm" else kind, without_temperature, config)
    there_and_back(first, tmp_path, tmp_path / "vocab.txt")
    ours, again = (load_model(tmp_path / name)[0] for name in ("ours", "again"))
    assert (ours.config.vision, ours.config.text) == (again.config.vision, again.config.text)


@pytest.mark.parametrize("kind", ["pretrain", "features", "nlvr"])
def test_round_trip_without_transformers(official, tmp_path, kind):
    first = official(kind)
    there_and_back(first, tmp_path, tmp_path / "vocab.txt", huggingface=False)
    assert "transformers has no BLIP class" in mistake("convert", tmp_path / "ours", tmp_path / "x", "--to", "hf")


@pytest.mark.parametrize("kind", ["caption", "itm", "nlvr", "pretrain", "retrieval", "vqa"])
def test_golden_round_trip(tmp_path, kind):
    facts = json.loads((GOLDEN / "golden.json").read_text())
    heads = {"vision": facts["vit"]["vit_heads"], "text": facts["text"]["heads"]}
    sizes = [word for part, number in heads.items() for word in ("--set", f"model.{part}.heads={number}")]
    narrow = kind == "vqa" and facts["vit"]["vit_width"] != facts["text"]["hidden"]
    known = kind in ("caption", "itm", "retrieval", "vqa") and not narrow
    there_and_back(GOLDEN / f"{kind}.pth", tmp_path, GOLDEN / "vocab.txt", *sizes, huggingface=known)
    if narrow:
        assert "width" in mistake("convert", tmp_path / "ours", tmp_path / "x", "--to", "hf")


def test_a_captioner_and_a_filter_out_of_a_pretrained_model(official, tmp_path):
    first = official("pretrain", lambda state: state.update(image_queue=torch.zeros(8, 4)))
    vocab = tmp_path / "vocab.txt"
    whole = run(first, tmp_path / "whole", "--tokenizer", vocab)
    assert (whole["model"], whole["left_out"]) == ("a pre-training model", ["image_queue"])
    captioner = run(tmp_path / "whole", tmp_path / "captioner", "--task", "caption")
    assert (captioner["model"], captioner["left_out"]) == ("a captioner", ["encode", "itc", "itm"])
    run(tmp_path / "whole", tmp_path / "filter.pth", "--task", "retrieval", "--to", "official")
    pretrained, kept = read_pickle(first), read_pickle(tmp_path / "filter.pth")
    assert {name.partition(".")[0] for name in kept} == {
        "visual_encoder", "text_encoder", "vision_proj", "text_proj", "itm_head", "temp"
    }  # fmt: skip
    for name, tensor in kept.items():
        assert_close(tensor, pretrained[name], rtol=0, atol=0)


def test_another_image_size_is_written_into_the_checkpoint(official, tmp_path):
    first = official("caption")
    run(first, tmp_path / "large", "--image-size", "32", "--tokenizer", tmp_path / "vocab.txt")
    assert load_file(tmp_path / "large" / "model.safetensors")["visual_encoder.pos_embed"].shape == (1, 17, 64)
    assert load_model(tmp_path / "large")[0].config.vision.image_size == 32


def test_an_official_file_needs_no_tokenizer_to_become_another(official, tmp_path):
    run(official("pretrain"), tmp_path / "captioner.pth", "--task", "caption", "--to", "official")
    assert "text_encoder" not in {name.partition(".")[0] for name in read_pickle(tmp_path / "captioner.pth")}


# --- what cannot be done, as the command says it ---------------------------------------------------------------------


def test_wrong_checkpoint_for_the_task(official, tmp_path):
    captioner, vocab = official("caption"), tmp_path / "vocab.txt"
    filter_ = official("retrieval")
    told = mistake("convert", captioner, tmp_path / "x", "--task", "retrieval", "--tokenizer", vocab)
    assert told.endswith(
        "is a captioner; the task needs the text encoder: use a retrieval or a pre-training checkpoint."
    )
    told = mistake("convert", filter_, tmp_path / "x", "--task", "caption", "--tokenizer", vocab)
    assert "is a retrieval model; captioning needs the text decoder" in told
    told = mistake("convert", official("pretrain"), tmp_path / "x", "--to", "hf", "--tokenizer", vocab)
    assert "--task caption" in told and "--task retrieval" in told
    assert not (tmp_path / "x").exists()


def test_large_weights_in_a_folder_of_a_smaller_config(official, tmp_path):
    """As ViT-L weights under a ViT-B config: width and depth both differ."""
    small, vocab = tmp_path / "small", tmp_path / "vocab.txt"
    run(official("caption"), small, "--tokenizer", vocab)
    vision = VisionConfig(image_size=16, patch_size=8, width=128, depth=3, heads=2)
    large = BlipConfig(vision, TextConfig(len(VOCAB) + 2, 128, 2, 2, 48, 12, encoder_width=128))
    run(official("caption", config=large), tmp_path / "large", "--tokenizer", vocab)
    (tmp_path / "large" / "config.json").write_text((small / "config.json").read_text())
    told = mistake("convert", tmp_path / "large", tmp_path / "x")
    assert "unexpected: visual_encoder.blocks.2" in told
    assert "of another shape: visual_encoder.cls_token (1, 1, 128) for (1, 1, 64)" in told
    told = mistake("convert", tmp_path / "caption.pth", tmp_path / "x", "--set", "model.vision.width=64")
    assert told.endswith("has vision width 128, not 64: leave out this override.")


class Trap:
    def __reduce__(self):
        return (open, ("trap.txt", "w"))


def test_files_that_are_no_checkpoint(official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("this is a text file")
    torch.save({"model": {"a": Trap()}}, "code.pth")
    for name in ("text.pth", "code.pth"):
        assert f"{name} is no PyTorch checkpoint of plain tensors" in mistake("convert", name, "x")
    assert not Path("trap.txt").exists()
    run(official("caption"), "whole", "--tokenizer", "vocab.txt")
    weights = Path("whole/model.safetensors")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "whole/model.safetensors is truncated" in mistake("convert", "whole", "x")
    # a text encoder alone, as BERT's file on the hub
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(3, 4)}, "bert.pth")
    assert "bert.pth holds no BLIP model: it has no image encoder with" in mistake("convert", "bert.pth", "x")
    assert "there is no file or folder" in mistake("convert", "nowhere.pth", "x")
    assert not Path("x").exists()


def test_nothing_is_written_over(official, tmp_path):
    first, there = official("caption"), tmp_path / "there"
    there.mkdir()
    (there / "thesis.txt").write_text("mine")
    for to in ("blipcore", "hf", "official"):
        assert "there exists" in mistake("convert", first, there, "--to", to, "--tokenizer", tmp_path / "vocab.txt")
    assert [path.name for path in there.iterdir()] == ["thesis.txt"]


def test_sizes_are_set_for_official_files_alone(official, tmp_path):
    run(official("caption"), tmp_path / "ours", "--tokenizer", tmp_path / "vocab.txt")
    told = mistake("convert", tmp_path / "ours", tmp_path / "x", "--set", "model.vision.heads=4")
    assert "cannot be set" in told


def test_a_width_that_does_not_tell_its_heads(official, tmp_path):
    odd = BlipConfig(VisionConfig(16, 8, 48, 1, 3), TextConfig(len(VOCAB) + 2, 32, 1, 4, 48, 12, encoder_width=48))
    first, vocab = official("caption", config=odd), tmp_path / "vocab.txt"
    told = mistake("convert", first, tmp_path / "x", "--tokenizer", vocab)
    assert "capfilt convert --set model.vision.heads=N" in told
    heads = ("--set", "model.vision.heads=3", "--set", "model.text.heads=4")
    run(first, tmp_path / "x", "--tokenizer", vocab, *heads)
    assert load_model(tmp_path / "x")[0].config.vision.heads == 3


def test_a_conversion_that_dies_leaves_nothing(official, tmp_path, monkeypatch):
    first = official("caption")

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        convert(ConvertRun(str(first), tmp_path / "new.pth", to="official"))
    assert not (tmp_path / "new.pth").exists()


# --- sizes and numbers of the released models ------------------------------------------------------------------------

COUNTS = {  # unique trainable parameters, measured on the official code, and the image size they were measured at
    ("pretrain", "base"): (252_441_919, 224),
    ("caption", "base"): (223_971_644, 384),
    ("caption", "large"): (446_290_492, 384),
    ("features", "base"): (223_057_152, 224),
    ("features", "large"): (445_278_720, 224),
    ("retrieval", "base"): (223_744_259, 384),
    ("retrieval", "large"): (446_128_643, 384),
    ("vqa", "base"): (361_478_972, 480),
    ("vqa", "large"): (583_880_764, 480),
    ("nlvr", "base"): (259_372_034, 384),
    ("nlvr", "large"): (486_409_474, 384),
}
WITH_MOMENTUM = {("pretrain", "base"): 475_892_799, ("retrieval", "base"): 447_486_979}
WITH_MOMENTUM |= {("retrieval", "large"): 892_255_747}


@pytest.mark.parametrize(("kind", "preset"), COUNTS)
def test_parameter_counts(kind, preset):
    count, side = COUNTS[kind, preset]
    config = PRESETS[preset].select_parts(*TASK_PARTS[kind])
    with torch.device("meta"):
        model = Blip(replace(config, vision=replace(config.vision, image_size=side)))
        momentum = momentum_copy(model) if (kind, preset) in WITH_MOMENTUM else None
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    if momentum is not None:
        copied = sum(parameter.numel() for parameter in momentum.parameters())
        assert count + copied == WITH_MOMENTUM[kind, preset]
    if kind == "retrieval":  # the ITM inference class is this without the temperature
        assert count - 1 in (223_744_258, 446_128_642)
