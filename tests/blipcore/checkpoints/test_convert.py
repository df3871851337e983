"""`capfilt convert`: round trips keep tensors and sizes; impossible conversions are refused in one sentence."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import GOLDEN
from random_checkpoints import CONFIG, VOCAB
from safetensors.torch import load_file
from torch.testing import assert_close
from typer.testing import CliRunner

from blipcore.checkpoints.convert import ConvertRun, convert
from blipcore.checkpoints.files import read_pickle
from blipcore.checkpoints.load import TASK_PARTS, load_model
from blipcore.checkpoints.names import to_official
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from capfilt.cli import app

State = dict[str, torch.Tensor]
WriteOfficial = Callable[..., Path]


@pytest.fixture
def write_official(tmp_path: Path) -> WriteOfficial:
    """Return a function that writes an official .pth of random weights, with vocab.txt beside it."""

    def write(task: str, change: Callable[[State], Any] = lambda state: None, config: BlipConfig = CONFIG) -> Path:
        torch.manual_seed(0)
        model = Blip(config.select_parts(*TASK_PARTS[task]))
        state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        state = {name: tensor.clone() for name, tensor in to_official(state).items()}
        change(state)
        torch.save({"model": state, "epoch": 3}, tmp_path / f"{task}.pth")
        (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
        return tmp_path / f"{task}.pth"

    return write


def run(*arguments: object) -> dict[str, Any]:
    """Return the summary that `capfilt convert` prints as JSON."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: object) -> str:
    """Return the one sentence with which a command is refused."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("Error: ").strip()


def convert_round_trip(first: Path, work: Path, vocab: Path, *sizes: str, huggingface: bool = True) -> None:
    """Convert official -> blipcore -> Hugging Face -> blipcore -> official and compare all tensors."""
    run(first, work / "ours", "--tokenizer", vocab, *sizes)
    last = work / "ours"
    if huggingface:
        run(work / "ours", work / "huggingface", "--to", "hf")
        last = work / "again"
        run(work / "huggingface", last)
    run(last, work / "last.pth", "--to", "official")
    training_state = ("_m", "_queue", "_ptr")
    expected = {n: t for n, t in read_pickle(first).items() if not n.partition(".")[0].endswith(training_state)}
    if expected.get("temp") == 0.07 and not any(name.startswith("text_decoder") for name in expected):
        del expected["temp"]  # not written if it has its initial value
    written = read_pickle(work / "last.pth")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(written[name], tensor, rtol=0, atol=0)
    ours, again = load_model(work / "ours"), load_model(last)
    assert ours[1].backend.to_str() == again[1].backend.to_str()


@pytest.mark.parametrize("kind", ["caption", "retrieval", "itm", "vqa"])
def test_a_round_trip_through_transformers_keeps_everything(
    write_official: WriteOfficial, tmp_path: Path, kind: str
) -> None:
    # An ITM inference file is a retrieval model without the temperature.
    change: Callable[[State], Any] = (lambda state: state.pop("temp")) if kind == "itm" else (lambda state: None)
    # Equal widths of text and image, which transformers requires for VQA.
    config = replace(CONFIG, vision=replace(CONFIG.vision, width=128), text=replace(CONFIG.text, encoder_width=128))
    config.vision.heads = 2
    first = write_official("retrieval" if kind == "itm" else kind, change, config)
    convert_round_trip(first, tmp_path, tmp_path / "vocab.txt")
    ours, again = (load_model(tmp_path / name)[0] for name in ("ours", "again"))
    assert (ours.config.vision, ours.config.text) == (again.config.vision, again.config.text)


@pytest.mark.parametrize("kind", ["pretrain", "features", "nlvr"])
def test_a_round_trip_without_transformers_keeps_everything(
    write_official: WriteOfficial, tmp_path: Path, kind: str
) -> None:
    first = write_official(kind)
    convert_round_trip(first, tmp_path, tmp_path / "vocab.txt", huggingface=False)
    assert "transformers has no BLIP class" in refusal("convert", tmp_path / "ours", tmp_path / "x", "--to", "hf")


@pytest.mark.parametrize("kind", ["caption", "itm", "nlvr", "pretrain", "retrieval", "vqa"])
def test_golden_checkpoints_survive_the_round_trip(tmp_path: Path, kind: str) -> None:
    facts = json.loads((GOLDEN / "golden.json").read_text())
    heads = {"vision": facts["vit"]["vit_heads"], "text": facts["text"]["heads"]}
    sizes = [word for part, number in heads.items() for word in ("--set", f"model.{part}.heads={number}")]
    narrow = kind == "vqa" and facts["vit"]["vit_width"] != facts["text"]["hidden"]
    known = kind in ("caption", "itm", "retrieval", "vqa") and not narrow
    convert_round_trip(GOLDEN / f"{kind}.pth", tmp_path, GOLDEN / "vocab.txt", *sizes, huggingface=known)
    if narrow:
        assert "width" in refusal("convert", tmp_path / "ours", tmp_path / "x", "--to", "hf")


def test_a_pretrained_model_gives_a_captioner_and_a_filter(write_official: WriteOfficial, tmp_path: Path) -> None:
    first = write_official("pretrain", lambda state: state.update(image_queue=torch.zeros(8, 4)))
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


def test_another_image_size_is_written_into_the_checkpoint(write_official: WriteOfficial, tmp_path: Path) -> None:
    first = write_official("caption")
    run(first, tmp_path / "large", "--image-size", "32", "--tokenizer", tmp_path / "vocab.txt")
    assert load_file(tmp_path / "large" / "model.safetensors")["visual_encoder.pos_embed"].shape == (1, 17, 64)
    assert load_model(tmp_path / "large")[0].config.vision.image_size == 32


def test_official_to_official_needs_no_tokenizer(write_official: WriteOfficial, tmp_path: Path) -> None:
    run(write_official("pretrain"), tmp_path / "captioner.pth", "--task", "caption", "--to", "official")
    assert "text_encoder" not in {name.partition(".")[0] for name in read_pickle(tmp_path / "captioner.pth")}


def test_a_checkpoint_without_the_tasks_parts_is_refused(write_official: WriteOfficial, tmp_path: Path) -> None:
    captioner, vocab = write_official("caption"), tmp_path / "vocab.txt"
    filter_ = write_official("retrieval")
    message = refusal("convert", captioner, tmp_path / "x", "--task", "retrieval", "--tokenizer", vocab)
    assert message.endswith(
        "is a captioner; the task needs the text encoder: use a retrieval or a pre-training checkpoint."
    )
    message = refusal("convert", filter_, tmp_path / "x", "--task", "caption", "--tokenizer", vocab)
    assert "is a retrieval model; captioning needs the text decoder" in message
    message = refusal("convert", write_official("pretrain"), tmp_path / "x", "--to", "hf", "--tokenizer", vocab)
    assert "--task caption" in message and "--task retrieval" in message
    assert not (tmp_path / "x").exists()


def test_large_weights_with_a_smaller_config_are_refused(write_official: WriteOfficial, tmp_path: Path) -> None:
    small, vocab = tmp_path / "small", tmp_path / "vocab.txt"
    run(write_official("caption"), small, "--tokenizer", vocab)
    vision = VisionConfig(image_size=16, patch_size=8, width=128, depth=3, heads=2)
    large = BlipConfig(vision, TextConfig(len(VOCAB) + 2, 128, 2, 2, 48, 12, encoder_width=128))
    run(write_official("caption", config=large), tmp_path / "large", "--tokenizer", vocab)
    (tmp_path / "large" / "config.json").write_text((small / "config.json").read_text())
    message = refusal("convert", tmp_path / "large", tmp_path / "x")
    assert "unexpected: visual_encoder.blocks.2" in message
    assert "of another shape: visual_encoder.cls_token (1, 1, 128) for (1, 1, 64)" in message
    message = refusal("convert", tmp_path / "caption.pth", tmp_path / "x", "--set", "model.vision.width=64")
    assert message.endswith("has vision width 128, not 64: leave out this override.")


class Trap:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("trap.txt", "w"))


def test_files_that_are_no_checkpoint_are_refused(
    write_official: WriteOfficial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("this is a text file")
    torch.save({"model": {"a": Trap()}}, "code.pth")
    for name in ("text.pth", "code.pth"):
        assert f"{name} is no PyTorch checkpoint of plain tensors" in refusal("convert", name, "x")
    assert not Path("trap.txt").exists()
    run(write_official("caption"), "whole", "--tokenizer", "vocab.txt")
    weights = Path("whole/model.safetensors")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "whole/model.safetensors is truncated" in refusal("convert", "whole", "x")
    # A text encoder alone, like BERT's file on the hub.
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(3, 4)}, "bert.pth")
    assert "bert.pth holds no BLIP model: it has no image encoder with" in refusal("convert", "bert.pth", "x")
    assert "No file or folder at" in refusal("convert", "nowhere.pth", "x")
    assert not Path("x").exists()


def test_existing_files_are_not_overwritten(write_official: WriteOfficial, tmp_path: Path) -> None:
    first, folder = write_official("caption"), tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("important")
    for to in ("blipcore", "hf", "official"):
        assert "folder exists" in refusal("convert", first, folder, "--to", to, "--tokenizer", tmp_path / "vocab.txt")
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_sizes_can_be_set_for_official_files_only(write_official: WriteOfficial, tmp_path: Path) -> None:
    run(write_official("caption"), tmp_path / "ours", "--tokenizer", tmp_path / "vocab.txt")
    message = refusal("convert", tmp_path / "ours", tmp_path / "x", "--set", "model.vision.heads=4")
    assert "cannot be set" in message


def test_an_odd_width_needs_the_number_of_heads(write_official: WriteOfficial, tmp_path: Path) -> None:
    odd = BlipConfig(VisionConfig(16, 8, 48, 1, 3), TextConfig(len(VOCAB) + 2, 32, 1, 4, 48, 12, encoder_width=48))
    first, vocab = write_official("caption", config=odd), tmp_path / "vocab.txt"
    message = refusal("convert", first, tmp_path / "x", "--tokenizer", vocab)
    assert "capfilt convert --set model.vision.heads=N" in message
    heads = ("--set", "model.vision.heads=3", "--set", "model.text.heads=4")
    run(first, tmp_path / "x", "--tokenizer", vocab, *heads)
    assert load_model(tmp_path / "x")[0].config.vision.heads == 3


def test_an_interrupted_conversion_leaves_no_file(
    write_official: WriteOfficial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_official("caption")

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(ConvertRun(str(first), tmp_path / "new.pth", to="official"))
    assert not (tmp_path / "new.pth").exists()
