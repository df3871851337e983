"""Loading: official files and blipcore folders give the saved model; unsuitable ones are refused in one sentence."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from random_checkpoints import VOCAB, assert_same_model, random_model
from torch.testing import assert_close

from blipcore.checkpoints.load import TASK_PARTS, load_model, read_official
from blipcore.checkpoints.names import to_official
from blipcore.checkpoints.save import save_huggingface, save_model
from blipcore.io.hub import model_fingerprint
from blipcore.model.tokenizer import Tokenizer

WriteOfficial = Callable[..., tuple[Path, Any]]


@pytest.mark.parametrize("task", TASK_PARTS)
def test_an_official_file_gives_its_model(write_official: WriteOfficial, vocab: Path, task: str) -> None:
    path, model = write_official(task)
    loaded, tokenizer = load_model(path, tokenizer=vocab, needs=TASK_PARTS[task])
    assert_same_model(loaded, model)
    assert len(tokenizer) == len(VOCAB) + 2
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())


def test_the_training_state_of_an_official_file_is_read(tmp_path: Path) -> None:
    model = random_model("retrieval")
    momentum = {f"momentum.{name}": -tensor for name, tensor in model.state_dict().items() if "itm" not in name}
    del momentum["momentum.temp"]
    queues = {
        "image_queue": torch.randn(8, 4),
        "text_queue": torch.randn(8, 4),
        "idx_queue": torch.arange(4)[None],
        "queue_ptr": torch.tensor([3]),
    }
    state = to_official({**model.state_dict(), **momentum, **queues})
    assert "ptr_queue" in state and "queue_ptr" not in state, "official retrieval files call it ptr_queue"
    assert_close(state["text_encoder_m.embeddings.word_embeddings.weight"], -model.text.embeddings.word.weight.detach())
    torch.save({"model": state}, tmp_path / "retrieval.pth")
    _, student, training_state = read_official(tmp_path / "retrieval.pth")
    assert student.keys() == model.state_dict().keys()
    assert training_state.keys() == momentum.keys() | queues.keys()
    for name, tensor in (momentum | queues).items():
        assert_close(training_state[name], tensor, rtol=0, atol=0)


def test_a_lavis_file_with_remains_of_its_momentum_half_is_a_filter(
    write_official: WriteOfficial, vocab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queues = {"image_queue": torch.randn(8, 16), "text_queue": torch.randn(8, 16), "queue_ptr": torch.zeros(1)}
    remains = {"text_encoder_m.embeddings.position_ids": torch.arange(12)[None], **queues}
    path, model = write_official("retrieval", lambda state: state.update(remains))
    assert_same_model(load_model(path, tokenizer=vocab, needs=("itm", "itc"))[0], model)
    assert read_official(path)[2].keys() == queues.keys() and not caplog.text
    incomplete = {"text_proj_m.bias": torch.zeros(8), "visual_encoder_m.cls_token": torch.zeros(1, 1, 64)}
    path, model = write_official("retrieval", lambda state: state.update(incomplete))
    assert_same_model(load_model(path, tokenizer=vocab)[0], model)
    assert "its momentum half is left out; training would start with a copy" in caplog.text


@pytest.mark.parametrize("prefix", ["model.", "net.blip.", "module.model.", "_orig_mod."])
def test_a_common_prefix_of_all_names_is_removed(
    write_official: WriteOfficial, vocab: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    def add_prefix(state: dict[str, torch.Tensor]) -> None:
        renamed = {prefix + name: tensor for name, tensor in state.items()}
        state.clear()
        state |= renamed

    path, model = write_official("caption", add_prefix)
    assert_same_model(load_model(path, tokenizer=vocab)[0], model)
    assert not caplog.text


def test_tensors_beside_the_model_are_named_and_several_models_are_refused(
    write_official: WriteOfficial, vocab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, model = write_official("caption")
    state = {f"model.{name}": tensor for name, tensor in torch.load(path)["model"].items()}
    torch.save({"state_dict": state | {"criterion.weight": torch.ones(1)}}, path)
    assert_same_model(load_model(path, tokenizer=vocab)[0], model)
    assert "criterion.weight beside the model 'model' are left out" in caplog.text
    torch.save({"state_dict": state | {f"teacher.{name[6:]}": tensor for name, tensor in state.items()}}, path)
    with pytest.raises(ValueError, match=r"holds several models, under the prefixes model\., teacher\.: save one"):
        load_model(path, tokenizer=vocab)


def test_a_single_safetensors_file_under_official_names_is_an_official_file(
    write_official: WriteOfficial, vocab: Path, tmp_path: Path
) -> None:
    path, model = write_official("caption")
    state = {name: tensor.clone() for name, tensor in torch.load(path)["model"].items()}
    safetensors.torch.save_file(state, tmp_path / "caption.safetensors")
    assert_same_model(load_model(tmp_path / "caption.safetensors", tokenizer=vocab)[0], model)


@pytest.mark.parametrize("save", [save_model, save_huggingface])
def test_a_weight_file_out_of_its_folder_asks_for_the_folder(
    tmp_path: Path, tokenizer: Tokenizer, save: Callable[..., None]
) -> None:
    save(tmp_path / "model", random_model("caption"), tokenizer)
    with pytest.raises(ValueError, match=r"holds the weights of a .* folder, .*: give the folder .*/model instead"):
        load_model(tmp_path / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "form", ["whole pickle", "sharded pickle", "sharded safetensors", "wrapped names", "stale index"]
)
def test_the_weights_of_a_folder_may_be_stored_in_any_form(tmp_path: Path, tokenizer: Tokenizer, form: str) -> None:
    model, folder = random_model("retrieval"), tmp_path / "model"
    save_huggingface(folder, model, tokenizer)
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    if form == "wrapped names":
        safetensors.torch.save_file({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, file)
    elif form == "stale index":
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        file.unlink()
        halves = {number: dict(list(state.items())[number::2]) for number in (0, 1)}
        if form == "whole pickle":
            torch.save(state, folder / "pytorch_model.bin")
        elif form == "sharded pickle":
            index = {"weight_map": {name: f"{n}.bin" for n, half in halves.items() for name in half}}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
            for number, half in halves.items():
                torch.save(half, folder / f"{number}.bin")
        else:
            index = {"weight_map": {name: f"{n}.safetensors" for n, half in halves.items() for name in half}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            for number, half in halves.items():
                safetensors.torch.save_file(half, folder / f"{number}.safetensors")
    assert_same_model(load_model(folder, numerics="transformers")[0], model)
    assert len(model_fingerprint(folder)) == 16


def test_quantised_and_diverged_weights_are_refused(write_official: WriteOfficial, vocab: Path) -> None:
    path, _ = write_official("caption", lambda state: state.update({KEY: state[KEY].to(torch.int8)}))
    with pytest.raises(ValueError, match=r"holds torch\.int8, as in a quantised model"):
        load_model(path, tokenizer=vocab)
    path, _ = write_official("caption", lambda state: state[KEY].fill_(float("nan")))
    with pytest.raises(ValueError, match="has numbers that are not finite: its training diverged"):
        load_model(path, tokenizer=vocab)


def test_lavis_classification_and_other_models_are_refused_by_name(
    write_official: WriteOfficial, vocab: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    head = {"cls_head.0.weight": torch.ones(128, 128), "cls_head.2.weight": torch.ones(10, 128)}
    path, _ = write_official("features", lambda state: state.update(head))
    with pytest.raises(ValueError, match="is LAVIS's classification model"):
        load_model(path, tokenizer=vocab)
    path, _ = write_official(
        "retrieval",
        lambda state: state.update({"text_encoder.embeddings.token_type_embeddings.weight": torch.ones(2, 8)}),
    )
    with pytest.raises(ValueError, match="is an ALBEF model, which is a filter: give it to `capfilt filter --model"):
        load_model(path, tokenizer=vocab)
    save_huggingface(tmp_path / "model", random_model("retrieval"), tokenizer)
    for names, message in (
        (["Blip2ForImageTextRetrieval"], "is a BLIP-2 filter: give it to `capfilt filter --model"),
        (["Blip2ForConditionalGeneration"], "is a BLIP-2 captioner: give it to `capfilt caption --model hf:"),
    ):
        change_config(model_type="blip-2", architectures=names)(tmp_path / "model")
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "model")


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (1, 0, 64), (0, 0, 0, 0), (64, 3, 0, 0)], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "visual_encoder.patch_embed.proj.weight",
        "visual_encoder.pos_embed",
        "visual_encoder.blocks.0.mlp.fc1.weight",
        "vision_proj.weight",
        "text_decoder.bert.embeddings.word_embeddings.weight",
        "text_decoder.bert.embeddings.position_embeddings.weight",
        "text_decoder.bert.encoder.layer.0.intermediate.dense.weight",
    ],
)
def test_a_tensor_that_sizes_are_read_from_must_have_a_sensible_shape(
    write_official: WriteOfficial, vocab: Path, name: str, shape: tuple[int, ...]
) -> None:
    path, _ = write_official("pretrain", lambda state: state.update({name: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=f"{re.escape(name)} in .* has the shape {re.escape(str(shape))}; it must"):
        load_model(path, tokenizer=vocab)


# Impossible values of each key.
DAMAGED_BLIPCORE: dict[str, tuple[Any, ...]] = {
    "vision.width": (0, "a", None, 10**9, True),
    "vision.depth": (0, 10**9),
    "vision.mlp_ratio": (-1, None, 10**19, [1]),
    "text.hidden": (0, 10**19, True),
    "text.dropout": ("a", None, float("nan")),
    "vision": ("a", [1]),
    "embed_dim": (10**19,),
}
DAMAGED_HUGGINGFACE: dict[str, tuple[Any, ...]] = {
    "vision_config.hidden_size": (0, "a", None, 10**9, True),
    "vision_config.num_hidden_layers": (0, 10**9),
    "vision_config.intermediate_size": (-1, None, 10**19, [1]),
    "text_config.vocab_size": (0, 10**19, True),
    "text_config.hidden_dropout_prob": ("a", [1]),
    "text_config": ("a", [1], 7),
    "temp": ("a", None),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("save", "damaged"), [(save_model, DAMAGED_BLIPCORE), (save_huggingface, DAMAGED_HUGGINGFACE)])
def test_a_damaged_config_raises_value_error(
    tmp_path: Path, tokenizer: Tokenizer, save: Callable[..., None], damaged: dict[str, tuple[Any, ...]]
) -> None:
    save(tmp_path / "model", random_model("retrieval"), tokenizer)
    file = tmp_path / "model" / "config.json"
    original = file.read_text()
    for name, values in damaged.items():
        for value in values:
            content = json.loads(original)
            *sections, key = name.split(".") if save is save_huggingface else ("config", *name.split("."))
            part = content
            for section in sections:
                part = part[section]
            assert key in part, name
            part[key] = value
            file.write_text(json.dumps(content))
            with pytest.raises(ValueError, match=r"\S"):
                load_model(tmp_path / "model")


def test_a_missing_temperature_becomes_the_initial_one(write_official: WriteOfficial, vocab: Path) -> None:
    path, _ = write_official("retrieval", lambda state: state.pop("temp"))
    temperature = load_model(path, tokenizer=vocab)[0].temp
    assert temperature is not None and temperature.item() == pytest.approx(0.07)


WORD = "text_decoder.bert.embeddings.word_embeddings.weight"
MERGE = "text_encoder.encoder.layer.1.crossattention.output.merge_layer.bias"
KEY = "text_decoder.bert.encoder.layer.1.crossattention.self.key.weight"


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("caption", lambda s: s.pop(KEY), f"missing: {KEY}"),
        ("caption", lambda s: s.update(extra_head=torch.zeros(1)), "unexpected: extra_head"),
        ("caption", lambda s: s.update({KEY: torch.zeros(128, 32)}), f"another shape: {KEY}"),
        ("pretrain", lambda s: s[f"text_encoder{WORD[17:]}"].add_(1), "differ, but in BLIP they are one tensor"),
        ("caption", lambda s: s.pop("visual_encoder.pos_embed"), "lacks the tensor visual_encoder.pos_embed"),
        ("vqa", lambda s: s.pop(KEY), f"missing: {KEY}"),
        ("nlvr", lambda s: s.pop(MERGE), f"missing: {MERGE}"),
        ("features", lambda s: [s.pop(n) for n in list(s) if n.startswith("text")], "no BLIP model"),
    ],
)
def test_an_official_file_with_wrong_tensors_is_refused(
    write_official: WriteOfficial, vocab: Path, task: str, change: Callable[..., Any], message: str
) -> None:
    path, _ = write_official(task, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path, tokenizer=vocab)
    assert str(path) in str(caught.value)


def test_overrides_set_sizes_that_an_official_file_does_not_tell(write_official: WriteOfficial, vocab: Path) -> None:
    path, _ = write_official("caption")
    model, _ = load_model(path, tokenizer=vocab, overrides={"vision": {"heads": 4}, "text": {"dropout": 0.0}})
    assert (model.config.vision.heads, model.config.text.heads, model.config.text.dropout) == (4, 2, 0.0)
    with pytest.raises(ValueError, match="vision width 64, not 768"):
        read_official(path, {"vision": {"width": 768}})


def test_a_missing_part_is_named_with_a_suitable_checkpoint(write_official: WriteOfficial, vocab: Path) -> None:
    with pytest.raises(ValueError, match="is a captioner; filtering needs the ITM head: use a retrieval checkpoint"):
        load_model(write_official("caption")[0], tokenizer=vocab, needs=("itm",))
    with pytest.raises(ValueError, match="is a retrieval model; captioning needs the text decoder"):
        load_model(write_official("retrieval")[0], tokenizer=vocab, needs=("decode",))
    with pytest.raises(ValueError, match="is a feature extractor; image-text similarity"):
        load_model(write_official("features")[0], tokenizer=vocab, needs=("encode", "itc"))


def test_a_tokenizer_of_another_size_is_refused(write_official: WriteOfficial, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("\n".join(VOCAB[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"has 11 word embeddings, but the tokenizer .* has 10 tokens"):
        load_model(write_official("caption")[0], tokenizer=tmp_path / "other.txt")


def test_another_image_size_resizes_the_position_table(write_official: WriteOfficial, vocab: Path) -> None:
    path, model = write_official("caption")
    larger, _ = load_model(path, tokenizer=vocab, image_size=32)
    assert larger.config.vision.image_size == 32
    assert larger.encode_image(torch.randn(1, 3, 32, 32)).shape == (1, 17, 64)
    assert_close(larger.visual_encoder.pos_embed[:, 0], model.visual_encoder.pos_embed[:, 0])
    with pytest.raises(ValueError, match="image_size 30 is not a multiple"):
        load_model(path, tokenizer=vocab, image_size=30)
    with pytest.raises(ValueError, match="image_size must be a whole number above 0, not 0"):
        load_model(path, tokenizer=vocab, image_size=0)


def change_config(**changes: Any) -> Callable[[Path], None]:
    """Return a function that updates the top level of a folder's config.json."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | changes))

    return change


def change_text_config(**changes: Any) -> Callable[[Path], None]:
    """Return a function that updates the text sizes in a folder's config.json."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        raw["config"]["text"] |= changes
        (folder / "config.json").write_text(json.dumps(raw))

    return change


def truncate_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_config(version=99), "format version 99"),
        (change_text_config(colour=3), "Unknown .* keys .*'colour'"),
        (change_text_config(depth=1), "unexpected: text.layers.1"),
        (truncate_weights, "model.safetensors is truncated"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            "type 'bert', not 'blip'.* --model hf:",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(
    tmp_path: Path, tokenizer: Tokenizer, damage: Callable[[Path], Any], message: str
) -> None:
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    damage(tmp_path / "model")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_fingerprint_depends_on_content_alone(
    tmp_path: Path, tokenizer: Tokenizer, write_official: WriteOfficial
) -> None:
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    before = model_fingerprint(tmp_path / "model")
    assert model_fingerprint(tmp_path / "copy") == before and len(before) == 16
    (tmp_path / "copy" / "tokenizer.json").write_text((tmp_path / "copy" / "tokenizer.json").read_text() + " ")
    assert model_fingerprint(tmp_path / "copy") != before
    path, _ = write_official("caption")
    (tmp_path / "vocab.txt").write_text("a")
    assert model_fingerprint(path) != model_fingerprint(path, tokenizer=tmp_path / "vocab.txt")


def test_a_hub_id_is_downloaded_without_pickles(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    requests = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        requests.append((name, "config.json" in allow_patterns, "pytorch_model.bin" in allow_patterns))
        return str(tmp_path / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert_same_model(load_model("someone/blip-tiny")[0], random_model("caption"))
    assert requests == [("someone/blip-tiny", True, False)]

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="someone/blip-tiny"):
        load_model("someone/blip-tiny")
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        load_model(tmp_path / "missing.pth")


def test_an_official_file_without_a_tokenizer_asks_for_one(
    write_official: WriteOfficial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str, allow_patterns: list[str]) -> str:
        assert name == "bert-base-uncased"
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(write_official("caption")[0].parent)
    with pytest.raises(FileNotFoundError, match="pass --tokenizer with BERT's"):
        load_model("caption.pth")


def test_half_precision_weights_load_as_float32(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    file = tmp_path / "model" / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(halves, file)
    assert {p.dtype for p in load_model(tmp_path / "model")[0].parameters()} == {torch.float32}
