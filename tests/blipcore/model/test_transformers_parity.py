"""blipcore and transformers agree with the same random weights, and read each other's folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from blipcore.checkpoints.load import load_model
from blipcore.checkpoints.names import to_official
from blipcore.checkpoints.save import save_huggingface
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer
from blipcore.model.vit import CLIP_MEAN, CLIP_STD
from blipcore.torchvision_shim import heal_torchvision

heal_torchvision()
transformers = pytest.importorskip("transformers")

VOCAB = [*BERT_SPECIALS, "a", "picture", "of", *(f"w{i}" for i in range(20)), "##s", ",", "'", "n", "t", "cafe", "猫"]
SaveReference = Callable[..., tuple[Any, Path]]
PAD, SEP, DEC, ENC = 0, 3, len(VOCAB), len(VOCAB) + 1
IDS = torch.tensor([[DEC, 5, 6, 7, 9, 12, SEP], [DEC, 5, 6, 11, SEP, PAD, PAD]])
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])


def make_config(**text: Any) -> "transformers.BlipConfig":
    return transformers.BlipConfig(
        text_config={
            "vocab_size": len(VOCAB) + 2,
            "hidden_size": 24,
            "encoder_hidden_size": 36,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "projection_dim": 24,
            "label_smoothing": 0.1,
            "pad_token_id": PAD,
            "sep_token_id": SEP,
            "eos_token_id": SEP,
            "bos_token_id": DEC,
            **text,
        },
        vision_config={
            "hidden_size": 36,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 24,
            "patch_size": 8,
        },
        image_text_hidden_size=12,
        projection_dim=12,
    )


@pytest.fixture
def save_reference(tmp_path: Path) -> SaveReference:
    """Return a function that saves a random model of a transformers class and returns it with its folder.

    Its weights are large enough that outputs for different inputs differ.
    """

    def build(name: str, **options: Any) -> tuple[Any, Path]:
        torch.manual_seed(3)
        # transformers' answer decoder reads question states, but expects the image's width.
        equal = {"hidden_size": 36} if name == "BlipForQuestionAnswering" else {}
        model = getattr(transformers, name)(make_config(**equal)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(tmp_path, **options)
        (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
        return model, tmp_path

    return build


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_caption_logits_agree(save_reference: SaveReference, pixels: torch.Tensor) -> None:
    reference, folder = save_reference("BlipForConditionalGeneration")
    ours, tokenizer = load_model(folder, needs=("decode",))
    assert (tokenizer.bos, tokenizer.enc, len(tokenizer)) == (DEC, ENC, len(VOCAB) + 2)
    assert ours.config.vision.eps == 1e-5  # transformers' default, not the official 1e-6
    expected = reference(pixel_values=pixels, input_ids=IDS, attention_mask=MASK)
    image_embeds = ours.encode_image(pixels)
    assert_close(image_embeds, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    logits = ours.text.logits(ours.text.decode(IDS, MASK, ours.text.image_kv(image_embeds)))
    assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.1


@torch.no_grad()
def test_itm_logits_and_itc_cosines_agree(save_reference: SaveReference, pixels: torch.Tensor) -> None:
    reference, folder = save_reference("BlipForImageTextRetrieval")
    ours, _ = load_model(folder, needs=("encode", "itc", "itm"))
    ids = IDS.clone()
    ids[:, 0] = ENC
    image_embeds = ours.encode_image(pixels)
    logits = ours.itm_logits(ours.text.fuse(ids, MASK, ours.text.image_kv(image_embeds)))
    assert_close(logits, reference(ids, pixels, attention_mask=MASK).itm_score, atol=1e-5, rtol=1e-5)
    cosine = ours.image_feat(image_embeds) @ ours.text_feat(ours.text.encode(IDS, MASK)).T
    expected = reference(IDS, pixels, attention_mask=MASK, use_itm_head=False).itm_score
    assert_close(cosine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_ids_agree(save_reference: SaveReference, pixels: torch.Tensor, beams: int) -> None:
    reference, folder = save_reference("BlipForConditionalGeneration")
    ours, tokenizer = load_model(folder)
    prompt = tokenizer.prompt("a picture of ")
    longest = 12
    # transformers divides a beam's score by the generated tokens alone; lengths here are equal, so the ranking agrees.
    answer = reference.generate(
        pixel_values=pixels,
        input_ids=torch.tensor([[*prompt, SEP]] * 2),  # generate() drops the last token
        num_beams=beams,
        do_sample=False,
        max_length=longest,
        min_length=longest,
    )
    options = GenerateConfig(
        mode="beam" if beams > 1 else "greedy",
        beams=beams,
        max_length=longest,
        min_length=longest,
        repetition_penalty=1.0,
    )
    with torch.no_grad():
        image_embeds = ours.encode_image(pixels)
    result = generate(ours, image_embeds, tokenizer, options, ["0", "1"])
    assert [prompt + ids for ids in result.ids] == answer[:, :longest].tolist()


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"safe_serialization": False}])
def test_sharded_and_pickled_weights_are_read(
    save_reference: SaveReference, pixels: torch.Tensor, options: dict[str, Any]
) -> None:
    reference, folder = save_reference("BlipForImageTextRetrieval", **options)
    if "safe_serialization" in options:  # as in older repositories on the hub
        (folder / "model.safetensors").unlink(missing_ok=True)
        torch.save(reference.state_dict(), folder / "pytorch_model.bin")
    ours, _ = load_model(folder)
    assert_close(ours.text.embeddings.word.weight, reference.text_encoder.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(
    "name", ["BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipForQuestionAnswering"]
)
def test_tensor_names_survive_the_round_trip(save_reference: SaveReference, name: str) -> None:
    reference, folder = save_reference(name)
    ours, _ = load_model(folder)
    back = to_official(ours.state_dict(), hf=True)
    expected = {key: tensor for key, tensor in reference.state_dict().items() if not key.endswith("position_ids")}
    assert back.keys() == expected.keys()
    for key, tensor in expected.items():
        assert_close(back[key], tensor, rtol=0, atol=0)


def open_in_transformers(folder: Path, name: str) -> tuple[Any, Any]:
    """Return the model and the processor that transformers reads from a folder."""
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), f"missing, unexpected or misshapen: {info}"
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def test_a_written_captioner_opens_in_transformers(
    save_reference: SaveReference, pixels: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ours, tokenizer = load_model(save_reference("BlipForConditionalGeneration")[1])
    folder = tmp_path_factory.mktemp("written") / "captioner"
    save_huggingface(folder, ours, tokenizer)
    reference, processor = open_in_transformers(folder, "BlipForConditionalGeneration")
    logits = ours.text.logits(ours.text.decode(IDS, MASK, ours.text.image_kv(ours.encode_image(pixels))))
    answer = reference(pixel_values=pixels, input_ids=IDS, attention_mask=MASK)
    assert_close(answer.logits, logits, atol=1e-5, rtol=1e-5)
    assert reference.config.text_config.label_smoothing == 0.1

    text = "A picture of W1s, isn't it 猫"
    assert type(processor).__name__ == "BlipProcessor"
    assert processor.tokenizer(text)["input_ids"] == tokenizer([text], 40)[0][0].tolist()
    assert len(processor.tokenizer) == len(tokenizer)
    assert processor.tokenizer.decode([DEC, 5, 6, SEP], skip_special_tokens=True) == "a picture"
    images = processor.image_processor
    assert (dict(images.size), images.resample) == ({"height": 24, "width": 24}, 3)
    assert (tuple(images.image_mean), tuple(images.image_std)) == (CLIP_MEAN, CLIP_STD)
    greedy = GenerateConfig(mode="greedy", prompt="", max_length=9, min_length=1, repetition_penalty=1.0)
    ids_per_row = generate(ours, ours.encode_image(pixels), tokenizer, greedy, ["0", "1"]).ids
    rows = reference.generate(
        pixel_values=pixels, max_length=9
    ).tolist()  # from [DEC] to [SEP], by generation_config.json
    assert [row[1:].index(SEP) if SEP in row else 8 for row in rows] == [len(ids) for ids in ids_per_row]
    assert [row[1 : 1 + len(ids)] for row, ids in zip(rows, ids_per_row, strict=True)] == ids_per_row


@torch.no_grad()
def test_a_written_retrieval_model_opens_in_transformers(
    save_reference: SaveReference, pixels: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ours, tokenizer = load_model(save_reference("BlipForImageTextRetrieval")[1])
    ours.temp.fill_(0.05)
    folder = tmp_path_factory.mktemp("written") / "filter"
    save_huggingface(folder, ours, tokenizer)
    reference, _ = open_in_transformers(folder, "BlipForImageTextRetrieval")
    image_embeds = ours.encode_image(pixels)
    logits = ours.itm_logits(ours.text.fuse(IDS, MASK, ours.text.image_kv(image_embeds)))
    assert_close(reference(IDS, pixels, attention_mask=MASK).itm_score, logits, atol=1e-5, rtol=1e-5)
    cosine = ours.image_feat(image_embeds) @ ours.text_feat(ours.text.encode(IDS, MASK)).T
    answer = reference(IDS, pixels, attention_mask=MASK, use_itm_head=False).itm_score
    assert_close(answer, cosine, atol=1e-5, rtol=1e-5)
    assert load_model(folder)[0].temp == ours.temp  # transformers ignores it


@torch.no_grad()
def test_a_written_vqa_model_opens_in_transformers(
    save_reference: SaveReference, pixels: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ours, tokenizer = load_model(save_reference("BlipForQuestionAnswering")[1])
    folder = tmp_path_factory.mktemp("written") / "vqa"
    save_huggingface(folder, ours, tokenizer)
    reference, _ = open_in_transformers(folder, "BlipForQuestionAnswering")
    states = ours.text.fuse(IDS, MASK, ours.text.image_kv(ours.encode_image(pixels)))
    reference_states = reference.text_encoder(IDS, MASK, encoder_hidden_states=reference.vision_model(pixels)[0])[0]
    decoder, answers = ours.answer_decoder, (IDS[:, :4], MASK[:, :4])
    # Without the question's mask; see test_question_states_and_answer_logits_agree.
    logits = decoder.logits(decoder.decode(*answers, decoder.image_kv(states)))
    assert_close(
        reference.text_decoder(*answers, encoder_hidden_states=reference_states).logits, logits, atol=1e-5, rtol=1e-5
    )


def test_missing_config_keys_get_the_defaults_of_transformers(save_reference: SaveReference) -> None:
    _, folder = save_reference("BlipForConditionalGeneration")
    raw = json.loads((folder / "config.json").read_text())
    del raw["text_config"]["num_attention_heads"], raw["vision_config"]["layer_norm_eps"]
    (folder / "config.json").write_text(json.dumps(raw))
    ours, _ = load_model(folder)
    assert ours.config.text.heads == transformers.BlipTextConfig().num_attention_heads
    assert ours.config.vision.eps == transformers.BlipVisionConfig().layer_norm_eps


@torch.no_grad()
def test_question_states_and_answer_logits_agree(save_reference: SaveReference, pixels: torch.Tensor) -> None:
    reference, folder = save_reference("BlipForQuestionAnswering")
    ours, _ = load_model(folder, needs=("encode", "vqa"))
    questions, answers = IDS.clone(), IDS[:, :4]
    questions[:, 0] = ENC
    image_embeds = ours.encode_image(pixels)
    states = ours.text.fuse(questions, MASK, ours.text.image_kv(image_embeds))
    ones = torch.ones(image_embeds.shape[:2], dtype=torch.long)
    expected = reference.text_encoder(
        questions, MASK, encoder_hidden_states=image_embeds, encoder_attention_mask=ones
    ).last_hidden_state
    assert_close(states, expected, atol=1e-5, rtol=1e-5)
    decoder = ours.answer_decoder
    # Without the question's mask, which transformers (5.23) accepts but does not pass to cross-attention.
    logits = decoder.logits(decoder.decode(answers, MASK[:, :4], decoder.image_kv(states)))
    expected = reference.text_decoder(answers, MASK[:, :4], encoder_hidden_states=states, is_decoder=True).logits
    assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.1


def test_token_ids_and_decoded_texts_agree(save_reference: SaveReference) -> None:
    _, folder = save_reference("BlipForConditionalGeneration")
    reference = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(VOCAB)}, do_lower_case=True)
    ours = Tokenizer.load(folder)
    for text in ["A picture of W1s, isn't it", "Café 猫猫", "w1\tw2\n w3\u200b", "", "w10w11", "a" * 300]:
        ids, _ = ours([text], max_length=40)
        assert ids[0].tolist() == reference(text)["input_ids"]
        decoded = reference.decode(reference(text)["input_ids"], skip_special_tokens=True)
        # transformers leaves spaces between Chinese characters.
        assert ours.decode(ids[0]) == decoded.replace("猫 猫", "猫猫")
    reference.save_pretrained(folder)  # as in hub checkpoints, without [DEC] and [ENC]
    loaded = Tokenizer.load(folder)
    assert (loaded.bos, loaded.enc, len(loaded)) == (DEC, ENC, len(VOCAB) + 2)
    assert loaded(["A picture, w1s"], 20)[0].tolist() == ours(["A picture, w1s"], 20)[0].tolist()
