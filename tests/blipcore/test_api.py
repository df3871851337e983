"""The Python interface gives the numbers of the model, for any batch size; heat maps follow their definition."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import blipcore
from blipcore.api import Pipeline, load
from blipcore.checkpoints.load import TASK_PARTS
from blipcore.checkpoints.save import save_model
from blipcore.data.transforms import EvalTransform, load_image
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
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


def test_a_sideways_picture_is_turned_once(blip: Pipeline, tmp_path: Path) -> None:
    sideways, exif = Image.effect_noise((30, 20), 90).convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "sideways.png", exif=exif)
    upright = sideways.transpose(Image.Transpose.ROTATE_270)
    expected = blip.encode_images([upright])
    for picture in (tmp_path / "sideways.png", Image.open(tmp_path / "sideways.png")):
        assert_close(blip.encode_images([picture]), expected)
        assert_close(torch.tensor(blip.match(picture, "a dog")), torch.tensor(blip.match(upright, "a dog")))


def test_all_captions_are_returned_with_their_log_probabilities(blip: Pipeline, images: list[Image.Image]) -> None:
    blip.batch_size = 2
    beam = GenerateConfig(mode="beam", beams=3, num_captions=3, max_length=12)
    captions = blip.captions(images, beam)
    assert [len(row) for row in captions] == [3] * 5
    assert [row[0][0] for row in captions] == blip.caption(images, beam)
    greedy = GenerateConfig(mode="greedy", max_length=12, min_length=0, prompt="", repetition_penalty=1)
    [[(text, logprob)]] = blip.captions(images[0], greedy)
    image_embeds = blip.model.encode_image(blip.pixels(images[0]))
    [ids] = generate(blip.model, image_embeds, blip.tokenizer, greedy, ["0"]).ids
    assert text == blip.tokenizer.decode(ids)
    row = torch.tensor([[blip.tokenizer.bos, *ids, blip.tokenizer.sep]])[:, :12]  # [SEP] is cut if the text has none
    with torch.no_grad():
        hidden = blip.model.text.decode(row, None, blip.model.text.image_kv(image_embeds))
        steps = blip.model.text.logits(hidden).log_softmax(-1)
    assert logprob == pytest.approx(steps[0, :-1].gather(1, row[0, 1:, None]).sum().item(), abs=1e-4)


def test_one_picture_and_one_text_are_lists_of_one(blip: Pipeline, images: list[Image.Image]) -> None:
    assert blip.match(images[0], "a dog") == blip.match(images[:1], ["a dog"])
    assert blip.similarity(images[0], "a dog").shape == (1, 1)
    assert len(blip.caption(images[0])) == 1
    assert blip.heat_maps(images[0], "a dog").shape[0] == 1
    generator = (image for image in images)
    assert_close(blip.encode_images(generator), blip.encode_images(images))
    assert blip.match((image for image in images), iter(TEXTS)) == pytest.approx(blip.match(images, TEXTS), abs=1e-5)


def test_nothing_in_is_nothing_out(blip: Pipeline) -> None:
    vqa = Pipeline("vqa", blip.model.select_parts("encode", "vqa").eval(), blip.tokenizer)
    for empty in ([], (), iter(())):
        assert blip.caption(empty) == [] and blip.captions([]) == []
    assert blip.match([], []) == [] and vqa.answer([], []) == [] and vqa.answer([], [], ["a"]) == []
    assert blip.encode_images([]).shape == (0, 8) and blip.encode_texts([]).shape == (0, 8)
    assert blip.heat_maps([], []).shape == (0, 0, 2, 2) and blip.pixels([]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("texts", [[None], None, [b"a dog"], 3, [["a", "b"]]])
def test_what_is_no_text_is_named(blip: Pipeline, images: list[Image.Image], texts: object) -> None:
    with pytest.raises(TypeError, match=r"not a string|A text is a string, not a"):
        blip.match(images[:1], texts)


@pytest.mark.parametrize("layer", [3, 9, -1, True, "2", 1.0])
def test_a_layer_that_the_model_lacks_is_refused(blip: Pipeline, images: list[Image.Image], layer: int) -> None:
    with pytest.raises(ValueError, match="must be from 0 to 2 for this model, not"):
        blip.heat_maps(images[:1], TEXTS[:1], layer=layer)


def test_a_first_token_and_numerics_of_other_names_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="first is 'enc' or 'cls', not 'dec'"):
        load(folder, device="cpu").match([], [], first="dec")  # type: ignore[arg-type] # what a user may write
    with pytest.raises(ValueError, match="numerics is 'official' or 'transformers', not 'hf'"):
        load(folder, device="cpu", numerics="hf")  # type: ignore[arg-type] # what a user may write


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "gpu", "cuda:99", "cuda", "0", 0, "cpu:x", ""])
def test_a_missing_device_is_one_sentence(folder: Path, device: str) -> None:
    if str(device).startswith("cuda") and torch.cuda.device_count() > 99:
        pytest.skip("this machine has that device")
    with pytest.raises(ValueError, match="device"):
        load(folder, device=device)


def test_load_is_a_function_of_the_package(folder: Path) -> None:
    assert isinstance(blipcore.load(folder, device="cpu"), Pipeline)
    with pytest.raises(AttributeError, match="module 'blipcore' has no attribute 'train_now'"):
        _ = blipcore.train_now


def test_threads_share_a_pipeline(blip: Pipeline, images: list[Image.Image]) -> None:
    greedy = GenerateConfig(mode="greedy", max_length=8)
    calls = [
        lambda: blip.match(images, TEXTS),
        lambda: blip.heat_maps(images, TEXTS),
        lambda: blip.heat_maps(images, TEXTS, layer=0),
        lambda: blip.similarity(images, TEXTS),
        lambda: torch.tensor([logprob for [(_, logprob)] in blip.captions(images, greedy)]),
    ]
    expected = [call() for call in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [[pool.submit(call) for call in calls] for _ in range(8)]
        for round_of_calls in futures:
            for future, result in zip(round_of_calls, expected, strict=True):
                assert_close(future.result(), result, atol=1e-5, rtol=1e-5)


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
