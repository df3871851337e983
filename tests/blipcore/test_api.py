"""The Python interface gives the numbers of the model, for any batch size; heat maps follow their definition."""

import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from blipcore.api import Pipeline, load
from blipcore.checkpoints.load import TASK_PARTS
from blipcore.checkpoints.save import save_model
from blipcore.data.transforms import EvalTransform, load_image
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
def folder(tmp_path: Path) -> Path:
    """Return a saved model with random weights."""
    torch.manual_seed(0)
    model = Blip(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_model(tmp_path / "model", model, Tokenizer.from_vocab([*BERT_SPECIALS, *WORDS]))
    return tmp_path / "model"


@pytest.fixture
def blip(folder: Path) -> Pipeline:
    return load(folder, device="cpu")


@pytest.fixture
def images() -> list[Image.Image]:
    generator = random.Random(0)
    modes = ("RGB", "L", "RGBA", "P", "RGB")
    return [Image.effect_noise((20 + generator.randrange(9), 20), 90).convert(mode) for mode in modes]


def test_match_scores_pairs_and_similarity_scores_all_pairs(blip: Pipeline, images: list[Image.Image]) -> None:
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


def test_captions_are_strings_one_per_image(blip: Pipeline, images: list[Image.Image]) -> None:
    blip.batch_size = 3
    captions = blip.caption(images)
    assert len(captions) == 5 and all(isinstance(text, str) for text in captions)
    nucleus = GenerateConfig(num_captions=2, seed=4, prompt="")
    assert blip.caption(images, nucleus) == blip.caption(images, nucleus)


def test_answers_are_generated_or_chosen_from_candidates(blip: Pipeline, images: list[Image.Image]) -> None:
    vqa = Pipeline("vqa", blip.model.select_parts("encode", "vqa").eval(), blip.tokenizer, batch_size=2)
    questions = ["a red bus?", "what dog", "of a bus", "a?", "red"]
    generated = vqa.answer(images, questions)
    assert len(generated) == 5 and all(isinstance(text, str) for text in generated)
    chosen = vqa.answer(images, questions, ["red", "dogs", "a bus"])
    assert set(chosen) <= {"red", "dogs", "a bus"}
    assert chosen[3] == vqa.answer(images[3:4], questions[3:4], ["red", "dogs", "a bus"])[0]
    with pytest.raises(ValueError, match="capfilt finetune vqa"):
        blip.answer(images, questions)


def test_a_checkpoint_without_the_needed_part_is_refused(
    folder: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    complete = load(folder, device="cpu")
    save_model(tmp_path / "captioner", complete.model.select_parts(*TASK_PARTS["caption"]), complete.tokenizer)
    captioner = load(tmp_path / "captioner", device="cpu")
    with pytest.raises(ValueError, match="captioner is a captioner; filtering needs the ITM head"):
        captioner.match(images, TEXTS)
    with pytest.raises(ValueError, match="5 images and 4 texts"):
        complete.match(images, TEXTS[:4])


def test_heat_maps_do_not_depend_on_the_batch(blip: Pipeline, images: list[Image.Image]) -> None:
    expected = blip.heat_maps(images, TEXTS)
    blip.batch_size = 2
    assert_close(blip.heat_maps(images, TEXTS), expected)


def test_heat_maps_in_bf16_are_close_to_those_in_fp32(folder: Path, blip: Pipeline, images: list[Image.Image]) -> None:
    expected = blip.heat_maps(images, TEXTS)
    heat = load(folder, device="cpu", dtype="bf16").heat_maps(images, TEXTS)
    assert heat.dtype == torch.float32 and (heat - expected).norm() < 0.1 * expected.norm()


def test_images_are_prepared_as_in_the_commands(blip: Pipeline, tmp_path: Path) -> None:
    sideways, exif = Image.effect_noise((30, 20), 90).convert("RGB"), Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    sideways.save(tmp_path / "sideways.png", exif=exif)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    transform = EvalTransform(CONFIG.vision.image_size)
    for name in ("sideways.png", "clear.png"):
        assert_close(blip.pixels([Image.open(tmp_path / name)])[0], transform(load_image(tmp_path / name)))


@pytest.mark.parametrize("frozen", [False, True])
def test_heat_maps_are_attention_times_positive_gradient(
    blip: Pipeline, images: list[Image.Image], frozen: bool
) -> None:
    model = blip.model.requires_grad_(not frozen)
    heat = blip.heat_maps(images[:2], TEXTS[:2], layer=2)
    ids, mask = blip.tokenizer(["a red bus", "a dog"], 20, "enc")
    assert heat.shape == (2, ids.shape[1], 2, 2)
    assert (heat >= 0).all() and heat.sum() > 0 and not heat.requires_grad
    assert (heat[1, mask[1].sum() :] == 0).all(), "padding has heat"
    kv = model.text.image_kv(model.encode_image(blip.pixels(images[:2])))
    fused, maps = cross_attention_maps(model.text, ids, mask, kv)
    (gradient,) = torch.autograd.grad(model.itm_logits(fused)[1, 1], maps[2])
    expected = (maps[2] * gradient.clamp(min=0)).mean(1)[1, :4, 1:].view(4, 2, 2)
    assert_close(heat[1, :4], expected.detach(), atol=1e-6, rtol=1e-5)
    assert_close(grad_cam(model, blip.tokenizer, blip.pixels(images[:2]), ["a red bus", "a dog"], 2), heat)
    assert all(parameter.grad is None for parameter in model.parameters())
