"""Saves tiny random vision-language models of transformers, with processor and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from blipcore.torchvision_shim import heal_torchvision

WORDS = ["user", "system", "assistant", "describe", "this", "image", "a", "red", "green", "dog", "cat", "tree", "on"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}


def save_tiny_vlm(folder: Path, kind: str = "llava", template: bool = True, seed: int = 0) -> Path:
    """Save a model with short answers that depend on the picture; `kind` is llava, qwen2_vl or idefics3."""
    heal_torchvision()
    torch.manual_seed(seed)
    model, processor = {"llava": _llava, "qwen2_vl": _qwen2_vl, "idefics3": _idefics3}[kind](template)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _template(image: str) -> str:
    return (
        "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    ).replace("IMAGE", image)


def _tokenizer(*special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=list(special), **ends)


def _llava(template: bool) -> tuple[Any, Any]:
    """Return a tiny LLaVA, which has a fixed number of tokens per picture."""
    import transformers as hf

    tokenizer = _tokenizer("<image>")
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer,
        patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_template("<image>") if template else None,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SIZES, image_size=32, patch_size=16, projection_dim=16),
        text_config=hf.LlamaConfig(**SIZES, **ENDS, vocab_size=len(tokenizer)),
        image_token_index=3, vision_feature_layer=-1,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), processor


def _qwen2_vl(template: bool) -> tuple[Any, Any]:
    """Return a tiny Qwen2-VL: the picture size sets the number of tokens, and a batch is one row of patches."""
    import transformers as hf

    special = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>")
    tokenizer = _tokenizer(*special)
    pictures = hf.Qwen2VLImageProcessor(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=56 * 56)
    image = _template("<|vision_start|> <|image_pad|> <|vision_end|>") if template else None
    processor = hf.Qwen2VLProcessor(pictures, tokenizer, hf.Qwen2VLVideoProcessor(), chat_template=image)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    vision = {"embed_dim": 32, "depth": 2, "num_heads": 2, "hidden_size": 32, "patch_size": 14, "mlp_ratio": 2}
    text = {**SIZES, **ENDS, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rope}
    start, end, picture, video = tokenizer.convert_tokens_to_ids(list(special[:4]))
    config = hf.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=picture, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    return hf.Qwen2VLForConditionalGeneration(config), processor


def _idefics3(template: bool) -> tuple[Any, Any]:
    """Return a tiny Idefics3, which cuts a picture into tiles with their own tokens."""
    import transformers as hf

    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tokenizer = _tokenizer("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *tiles)
    pictures = hf.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    image = _template("<image>") if template else None
    processor = hf.Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=image)
    config = hf.Idefics3Config(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        text_config=hf.LlamaConfig(**SIZES, **ENDS, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    return hf.Idefics3ForConditionalGeneration(config), processor
