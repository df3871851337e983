"""Checkpoints: our folders, official files made from random models, and everything that is none of them."""

import json
import re
import shutil

import huggingface_hub
import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

from blipcore.checkpoints import load as convert
from blipcore.checkpoints.load import load_model, read_official
from blipcore.checkpoints.names import official_names, to_official
from blipcore.checkpoints.save import save_huggingface, save_model
from blipcore.io.hub import fingerprint
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig, TextConfig, VisionConfig
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer

VOCAB = [*BERT_SPECIALS, "a", "dog", "red", "bus"]
CONFIG = BlipConfig(
    VisionConfig(image_size=16, patch_size=8, width=64, depth=2, heads=1),
    TextConfig(len(VOCAB) + 2, 128, 2, 2, 48, 12, encoder_width=64),
    embed_dim=8,
)
PARTS = {
    "pretrain": ("encode", "decode", "itc", "itm"),
    "caption": ("decode",),
    "features": ("encode",),
    "retrieval": ("encode", "itc", "itm"),
    "vqa": ("encode", "vqa"),
    "nlvr": ("encode", "nlvr"),
}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocab(VOCAB)


@pytest.fixture
def vocab(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return tmp_path / "vocab.txt"


@pytest.fixture
def official(tmp_path):
    """Writes a random model as an official .pth and returns its path and the model."""

    def write(kind: str, change=lambda state: None):
        model = random_model(kind)
        state = {name: tensor.clone() for name, tensor in to_official(model.state_dict()).items()}
        change(state)
        torch.save({"model": state, "epoch": 0}, tmp_path / f"{kind}.pth")
        return tmp_path / f"{kind}.pth", model

    return write


def random_model(kind: str) -> Blip:
    torch.manual_seed(0)
    model = Blip(CONFIG.only(*PARTS[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def same(a: Blip, b: Blip) -> None:
    assert (a.config.vision, a.config.text, a.config.heads) == (b.config.vision, b.config.text, b.config.heads)
    assert a.config.embed_dim == b.config.embed_dim or "itc" not in a.config.heads  # nothing else tells it
    for name, tensor in a.state_dict().items():
        assert_close(b.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kind", PARTS)
def test_official_file(official, vocab, kind):
    path, model = official(kind)
    loaded, tokenizer = load_model(path, tokenizer=vocab, needs=PARTS[kind])
    same(model, loaded)
    assert len(tokenizer) == len(VOCAB) + 2
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())


def test_training_state_of_an_official_file(tmp_path):
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
    assert "ptr_queue" in state and "queue_ptr" not in state  # retrieval files name it so
    assert_close(state["text_encoder_m.embeddings.word_embeddings.weight"], -model.text.embeddings.word.weight.detach())
    torch.save({"model": state}, tmp_path / "retrieval.pth")
    _, own, extra = read_official(tmp_path / "retrieval.pth")
    assert own.keys() == model.state_dict().keys()
    assert extra.keys() == momentum.keys() | queues.keys()
    for name, tensor in (momentum | queues).items():
        assert_close(extra[name], tensor, rtol=0, atol=0)


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
def test_a_tensor_that_sizes_are_read_from_has_a_shape_of_its_kind(official, vocab, name, shape):
    path, _ = official("pretrain", lambda state: state.update({name: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=re.escape(f"has {name} in the shape {shape}, which no such model has")):
        load_model(path, tokenizer=vocab)


DAMAGED = {
    "vision.width": (0, "a", None, 10**9, True),
    "vision.depth": (0, 10**9),
    "vision.mlp_ratio": (-1, None, 10**19, [1]),
    "text.hidden": (0, 10**19, True),
    "text.dropout": ("a", None, float("nan")),
    "vision": ("a", [1]),
    "embed_dim": (10**19,),
}
OF_TRANSFORMERS = {
    "vision_config.hidden_size": (0, "a", None, 10**9, True),
    "vision_config.num_hidden_layers": (0, 10**9),
    "vision_config.intermediate_size": (-1, None, 10**19, [1]),
    "text_config.vocab_size": (0, 10**19, True),
    "text_config.hidden_dropout_prob": ("a", [1]),
    "text_config": ("a", [1], 7),
    "temp": ("a", None),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("save", "damaged"), [(save_model, DAMAGED), (save_huggingface, OF_TRANSFORMERS)])
def test_a_damaged_config_is_a_sentence(tmp_path, tokenizer, save, damaged):
    save(tmp_path / "model", random_model("retrieval"), tokenizer)
    file = tmp_path / "model" / "config.json"
    whole = file.read_text()
    for name, values in damaged.items():
        for value in values:
            content = json.loads(whole)
            *sections, key = name.split(".") if save is save_huggingface else ("config", *name.split("."))
            part = content
            for section in sections:
                part = part[section]
            assert key in part, name
            part[key] = value
            file.write_text(json.dumps(content))
            with pytest.raises(ValueError, match=r"\S"):
                load_model(tmp_path / "model")


def test_number_of_official_tensors():
    """The released files' counts: pre-training 1272, captioning 474, features 467, ITM 473, retrieval 949."""
    with torch.device("meta"):
        full = Blip(PRESETS["base"])
        states = {kind: Blip(PRESETS["base"].only(*parts)).state_dict() for kind, parts in PARTS.items()}
    assert len(to_official(states["caption"])) == 474
    assert len(to_official(states["features"])) == 467
    assert len(to_official(states["retrieval"])) == 473 + 1  # the ITM inference class has no temp
    copies = {f"momentum.{n}": t for n, t in full.state_dict().items() if n in states["retrieval"]}
    copies = {n: t for n, t in copies.items() if "itm" not in n and "temp" not in n}
    queues = dict.fromkeys(("image_queue", "text_queue", "queue_ptr"), torch.empty(1))
    assert len(to_official({**full.state_dict(), **copies, **queues})) == 1272
    assert len(to_official({**states["retrieval"], **copies, **queues, "idx_queue": torch.empty(1)})) == 949


def test_every_name_of_every_part_has_an_official_one():
    for name in Blip(CONFIG).state_dict():
        for hf in (False, True):
            assert all(aliases and all(aliases) for aliases in official_names(name, hf=hf))
    _, key, _ = official_names("text.layers.3.encode.qkv.bias")
    assert key == ("text_encoder.encoder.layer.3.attention.self.key.bias",)
    assert official_names("text.embeddings.norm.bias", roles=["encode"]) == [
        ("text_encoder.embeddings.LayerNorm.bias",)
    ]


def test_missing_temperature_is_the_initial_one(official, vocab):
    path, _ = official("retrieval", lambda state: state.pop("temp"))
    assert load_model(path, tokenizer=vocab)[0].temp.item() == pytest.approx(0.07)


WORD = "text_decoder.bert.embeddings.word_embeddings.weight"
MERGE = "text_encoder.encoder.layer.1.crossattention.output.merge_layer.bias"
KEY = "text_decoder.bert.encoder.layer.1.crossattention.self.key.weight"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
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
def test_official_file_that_does_not_fit(official, vocab, kind, change, message):
    path, _ = official(kind, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path, tokenizer=vocab)
    assert str(path) in str(caught.value)


def test_sizes_and_heads_asked_for(official, vocab):
    path, _ = official("caption")
    model, _ = load_model(path, tokenizer=vocab, overrides={"vision": {"heads": 4}, "text": {"dropout": 0.0}})
    assert (model.config.vision.heads, model.config.text.heads, model.config.text.dropout) == (4, 2, 0.0)
    with pytest.raises(ValueError, match="vision width 64, not the 768 asked for"):
        read_official(path, {"vision": {"width": 768}})


class Trap:
    def __reduce__(self):
        return (open, ("trap.txt", "w"))


@pytest.fixture
def wrong_files(tmp_path, official):
    good = official("caption")[0].read_bytes()
    (tmp_path / "text.pth").write_text("this is a text file")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "cut.pth").write_bytes(good[: len(good) // 2])
    torch.save({"model": {"a": Trap()}}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({0: torch.zeros(1)}, tmp_path / "optimizer.pth")
    return tmp_path


@pytest.mark.parametrize("name", ["text.pth", "empty.pth", "cut.pth", "code.pth", "list.pth", "optimizer.pth"])
def test_files_that_are_no_checkpoint(wrong_files, vocab, name, monkeypatch):
    monkeypatch.chdir(wrong_files)
    with pytest.raises(ValueError, match=f"{name} is no PyTorch checkpoint|{name} is a PyTorch file, but no") as caught:
        load_model(wrong_files / name, tokenizer=vocab)
    assert "\n" not in str(caught.value)
    assert not (wrong_files / "trap.txt").exists()


def test_parts_that_a_checkpoint_lacks(official, vocab):
    with pytest.raises(ValueError, match="is a captioner; filtering needs the ITM head: use a retrieval checkpoint"):
        load_model(official("caption")[0], tokenizer=vocab, needs=("itm",))
    with pytest.raises(ValueError, match="is a retrieval model; captioning needs the text decoder"):
        load_model(official("retrieval")[0], tokenizer=vocab, needs=("decode",))
    with pytest.raises(ValueError, match="is a feature extractor; image-text similarity"):
        load_model(official("features")[0], tokenizer=vocab, needs=("encode", "itc"))


def test_tokenizer_of_another_size(official, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join(VOCAB[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"has 11 word embeddings, but the tokenizer .* has 10 tokens"):
        load_model(official("caption")[0], tokenizer=tmp_path / "other.txt")


def test_other_image_size_resizes_the_position_table(official, vocab):
    path, model = official("caption")
    larger, _ = load_model(path, tokenizer=vocab, image_size=32)
    assert larger.config.vision.image_size == 32
    assert larger.encode_image(torch.randn(1, 3, 32, 32)).shape == (1, 17, 64)
    assert_close(larger.visual_encoder.pos_embed[:, 0], model.visual_encoder.pos_embed[:, 0])
    with pytest.raises(ValueError, match="image_size 30 is not a multiple"):
        load_model(path, tokenizer=vocab, image_size=30)
    with pytest.raises(ValueError, match="image_size must be a whole number above 0, not 0"):
        load_model(path, tokenizer=vocab, image_size=0)
    for config, field in ((VisionConfig, "patch_size"), (TextConfig, "heads"), (BlipConfig, "embed_dim")):
        with pytest.raises(ValueError, match=f"{field} must be a whole number above 0"):
            config(**{field: 0})


@pytest.mark.parametrize("kind", PARTS)
def test_our_folder(tmp_path, tokenizer, kind):
    model = random_model(kind)
    save_model(tmp_path / "model", model, tokenizer)
    loaded, again = load_model(tmp_path / "model")
    same(model, loaded)
    assert again.backend.to_str() == tokenizer.backend.to_str()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_saving_replaces_a_model_but_nothing_else(tmp_path, tokenizer):
    model = random_model("caption")
    save_model(tmp_path / "model", model, tokenizer)
    first = fingerprint(tmp_path / "model")
    with torch.no_grad():
        model.text.lm_head.bias.add_(1)
    save_model(tmp_path / "model", model, tokenizer)
    assert fingerprint(tmp_path / "model") != first
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="is no blipcore model"):
        save_model(tmp_path / "photos", model, tokenizer)


def test_a_save_that_dies_leaves_the_old_model(tmp_path, tokenizer, monkeypatch):
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    before = fingerprint(tmp_path / "model")

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert.safetensors.torch, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "model", random_model("retrieval"), tokenizer)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "new", random_model("retrieval"), tokenizer)
    assert fingerprint(tmp_path / "model") == before
    assert not (tmp_path / "new").exists()


def damage_version(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"version": 99}))


def damage_config(folder):
    raw = json.loads((folder / "config.json").read_text())
    raw["config"]["text"]["with"] = 3
    (folder / "config.json").write_text(json.dumps(raw))


def damage_depth(folder):
    raw = json.loads((folder / "config.json").read_text())
    raw["config"]["text"]["depth"] = 1
    (folder / "config.json").write_text(json.dumps(raw))


def damage_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_version, "format version 99"),
        (damage_config, "unknown .* keys .*'with'"),
        (damage_depth, "unexpected: text.layers.1"),
        (damage_weights, "model.safetensors is cut short"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON file"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "type 'bert', not 'blip'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    ],
)
def test_damaged_folder(tmp_path, tokenizer, damage, message):
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    damage(tmp_path / "model")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_fingerprint_is_of_content_not_place(tmp_path, tokenizer, official):
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    before = fingerprint(tmp_path / "model")
    assert fingerprint(tmp_path / "copy") == before and len(before) == 16
    (tmp_path / "copy" / "tokenizer.json").write_text((tmp_path / "copy" / "tokenizer.json").read_text() + " ")
    assert fingerprint(tmp_path / "copy") != before
    path, _ = official("caption")
    (tmp_path / "vocab.txt").write_text("a")
    assert fingerprint(path) != fingerprint(path, tokenizer=tmp_path / "vocab.txt")


def test_hub_id(tmp_path, tokenizer, monkeypatch):
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, "config.json" in allow_patterns, "pytorch_model.bin" in allow_patterns))
        return str(tmp_path / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    same(random_model("caption"), load_model("someone/blip-tiny")[0])
    assert asked == [("someone/blip-tiny", True, False)]  # no pickle is fetched where safetensors are

    def offline(name, allow_patterns):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="someone/blip-tiny is no file or folder here"):
        load_model("someone/blip-tiny")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_model(tmp_path / "missing.pth")


def test_official_file_without_a_tokenizer_to_be_had(official, monkeypatch):
    def offline(name, allow_patterns):
        assert name == "bert-base-uncased"
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(official("caption")[0].parent)
    with pytest.raises(FileNotFoundError, match="pass --tokenizer with BERT's"):
        load_model("caption.pth")


def test_half_precision_weights_load_as_float32(tmp_path, tokenizer):
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    file = tmp_path / "model" / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(halves, file)
    assert {p.dtype for p in load_model(tmp_path / "model")[0].parameters()} == {torch.float32}
