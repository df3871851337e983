"""The Python interface: the numbers of the model underneath, whatever the batches; maps that leave nothing behind."""

import random

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from blipcore.api import Pipeline, load
from blipcore.checkpoints.load import TASK_PARTS
from blipcore.checkpoints.save import save_model
from blipcore.data.transforms import eval_transform, load_image
from blipcore.generate.config import GenerateConfig
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.explain import cross_attention_maps, grad_cam
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer

WORDS = ["a", "picture", "of", "dog", "red", "bus", "##s"]
CONFIG = BlipConfig(
    VisionConfig(image_size=16, patch_size=8, width=24, depth=1, heads=2),
    TextConfig(len(BERT_SPECIALS) + len(WORDS) + 2, 32, 3, 2, 48, 24, encoder_width=24, dropout=0.3),
    embed_dim=8,
)
TEXTS = ["A red bus!", "a dog", "a picture of a dog", "dogs", "red"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = Blip(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_model(tmp_path / "model", model, Tokenizer.from_vocab([*BERT_SPECIALS, *WORDS]))
    return tmp_path / "model"


@pytest.fixture
def blip(folder) -> Pipeline:
    return load(folder, device="cpu")


@pytest.fixture
def images() -> list[Image.Image]:
    draw = random.Random(0)
    modes = ("RGB", "L", "RGBA", "P", "RGB")
    return [Image.effect_noise((20 + draw.randrange(9), 20), 90).convert(mode) for mode in modes]


def test_pairs_and_all_pairs(blip, images):
    blip.batch_size = 2
    assert len(blip.match(images, TEXTS)) == 5
    alone = [blip.match([image], [text])[0] for image, text in zip(images, TEXTS, strict=True)]
    assert_close(blip.match(images, TEXTS), alone, atol=1e-5, rtol=1e-5)
    assert blip.match(images, TEXTS, first="cls") != alone
    cosines = blip.similarity(images, TEXTS[:2])
    assert cosines.shape == (5, 2)
    feats = blip.encode_images(images), blip.encode_texts(TEXTS)
    assert_close(cosines, feats[0] @ feats[1][:2].T)
    assert_close(feats[1].norm(dim=1), torch.ones(5))
    model = blip.model
    hidden = model.text.encode(*blip.tokenizer(["a red bus"], 35))
    assert_close(feats[1][:1], model.text_feat(hidden).detach())
    assert blip.similarity([], TEXTS).shape == (0, 5)


def test_captions_are_strings_one_a_picture(blip, images):
    blip.batch_size = 3
    said = blip.caption(images)
    assert len(said) == 5 and all(isinstance(text, str) for text in said)
    nucleus = GenerateConfig(num_captions=2, seed=4, prompt="")
    assert blip.caption(images, nucleus) == blip.caption(images, nucleus)


def test_answers_written_and_chosen(blip, images):
    vqa = Pipeline("vqa", blip.model.select_parts("encode", "vqa").eval(), blip.tokenizer, batch_size=2)
    questions = ["a red bus?", "what dog", "of a bus", "a?", "red"]
    written = vqa.answer(images, questions)
    assert len(written) == 5 and all(isinstance(text, str) for text in written)
    chosen = vqa.answer(images, questions, ["red", "dogs", "a bus"])
    assert set(chosen) <= {"red", "dogs", "a bus"}
    assert chosen[3] == vqa.answer(images[3:4], questions[3:4], ["red", "dogs", "a bus"])[0]
    with pytest.raises(ValueError, match="capfilt finetune vqa"):
        blip.answer(images, questions)


def test_what_a_checkpoint_cannot_do_is_said(folder, images, tmp_path):
    whole = load(folder, device="cpu")
    save_model(tmp_path / "captioner", whole.model.select_parts(*TASK_PARTS["caption"]), whole.tokenizer)
    captioner = load(tmp_path / "captioner", device="cpu")
    with pytest.raises(ValueError, match="captioner is a captioner; filtering needs the ITM head"):
        captioner.match(images, TEXTS)
    with pytest.raises(ValueError, match="5 pictures and 4 texts"):
        whole.match(images, TEXTS[:4])


def test_heat_maps_do_not_depend_on_the_batch(blip, images):
    whole = blip.heat_maps(images, TEXTS)
    blip.batch_size = 2
    assert_close(blip.heat_maps(images, TEXTS), whole)


def test_heat_maps_in_bf16_are_near_those_in_fp32(folder, blip, images):
    whole, near = (pipeline.heat_maps(images, TEXTS) for pipeline in (blip, load(folder, device="cpu", dtype="bf16")))
    assert near.dtype == torch.float32 and (near - whole).norm() < 0.1 * whole.norm()


def test_pictures_are_seen_as_the_commands_see_them(blip, tmp_path):
    lying, exif = Image.effect_noise((30, 20), 90).convert("RGB"), Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    lying.save(tmp_path / "lying.png", exif=exif)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    transform = eval_transform(CONFIG.vision.image_size)
    for name in ("lying.png", "clear.png"):
        assert_close(blip.pixels([Image.open(tmp_path / name)])[0], transform(load_image(tmp_path / name)))


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_is_map_times_positive_gradient(blip, images, frozen):
    model = blip.model.requires_grad_(not frozen)
    heat = blip.heat_maps(images[:2], TEXTS[:2], layer=2)
    ids, mask = blip.tokenizer(["a red bus", "a dog"], 20, "enc")
    assert heat.shape == (2, ids.shape[1], 2, 2)
    assert (heat >= 0).all() and heat.sum() > 0 and not heat.requires_grad
    assert (heat[1, mask[1].sum() :] == 0).all()  # of padding
    kv = model.text.image_kv(model.encode_image(blip.pixels(images[:2])))
    fused, maps = cross_attention_maps(model.text, ids, mask, kv)
    (gradient,) = torch.autograd.grad(model.itm_logits(fused)[1, 1], maps[2])
    expected = (maps[2] * gradient.clamp(min=0)).mean(1)[1, :4, 1:].view(4, 2, 2)
    assert_close(heat[1, :4], expected.detach(), atol=1e-6, rtol=1e-5)
    assert_close(grad_cam(model, blip.tokenizer, blip.pixels(images[:2]), ["a red bus", "a dog"], 2), heat)
    assert all(parameter.grad is None for parameter in model.parameters())
