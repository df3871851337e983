"""Saves tiny random vision-language models of transformers, one per family, with processor and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blipcore.torchvision_shim import heal_torchvision

WORDS = ["user", "system", "assistant", "describe", "this", "image", "a", "red", "green", "dog", "cat", "tree", "on"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
SQUARE = {"height": 32, "width": 32}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>")


def save_tiny_vlm(folder: Path, kind: str = "llava", template: bool = True, seed: int = 0) -> Path:
    """Save a model with short answers that depend on the picture; `kind` is a key of `KINDS`."""
    heal_torchvision()
    torch.manual_seed(seed)
    model, *others = KINDS[kind](template)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Gemma 3's projection of the picture is zero before training
                parameter.mul_(LOUDNESS.get(kind, 8)) if parameter.any() else parameter.normal_(std=0.2)
    if kind not in ("blip", "git"):
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(folder)
    for other in others:
        other.save_pretrained(folder)
    return folder


def _template(image: str) -> str:
    return (
        "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    ).replace("IMAGE", image)


def _tokenizer(*special: str, **names: str) -> Any:
    """Return a tokenizer of `WORDS`; `names` are attributes for special tokens, such as image_token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>", "unk_token": "<unk>"}
    extra = {"extra_special_tokens": names} if names else {"additional_special_tokens": list(special)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **extra, **ends)


def _bert() -> Any:
    """Return a BERT tokenizer of `WORDS`, as BLIP, GIT and Q-Formers have."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    backend = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return BertTokenizerFast(tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"])


def _clip(size: int = 32, patch: int = 16) -> Any:
    import transformers as hf

    return hf.CLIPVisionConfig(**SIZES, image_size=size, patch_size=patch, projection_dim=16)


def _clip_processor() -> Any:
    import transformers as hf

    return hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)


def _llama(tokenizer: Any) -> Any:
    import transformers as hf

    return hf.LlamaConfig(**SIZES, **ENDS, vocab_size=len(tokenizer))


def _blip(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokenizer = _bert()
    size = len(tokenizer) + 2
    text = {**SIZES, "vocab_size": size, "encoder_hidden_size": 32, "max_position_embeddings": 64}
    ends = {"bos_token_id": size - 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    vision = {**SIZES, "image_size": 32, "patch_size": 16, "initializer_range": 0.02}
    config = hf.BlipConfig(text_config=text | ends, vision_config=vision)
    processor = hf.BlipProcessor(hf.BlipImageProcessor(size=SQUARE), tokenizer)
    return hf.BlipForConditionalGeneration(config), processor


def _query_parts() -> dict[str, Any]:
    vision = {**SIZES, "image_size": 32, "patch_size": 16, "initializer_range": 0.02}
    qformer = {**SIZES, "vocab_size": 30, "encoder_hidden_size": 32, "max_position_embeddings": 64}
    return {"vision_config": vision, "qformer_config": qformer, "num_query_tokens": 3, "image_token_index": 3}


def _opt(size: int) -> Any:
    import transformers as hf

    return hf.OPTConfig(
        vocab_size=size, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, word_embed_proj_dim=32, **ENDS,
    )  # fmt: skip


def _t5(size: int) -> Any:
    import transformers as hf

    return hf.T5Config(
        vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0, **ENDS
    )


def _blip2(text: Callable[[int], Any]) -> Callable[[bool], tuple[Any, ...]]:
    def make(template: bool) -> tuple[Any, ...]:
        import transformers as hf

        tokenizer = _tokenizer("<image>")
        config = hf.Blip2Config(text_config=text(len(tokenizer) + 2).to_dict(), **_query_parts())
        processor = hf.Blip2Processor(hf.BlipImageProcessor(size=SQUARE), tokenizer, num_query_tokens=3)
        return hf.Blip2ForConditionalGeneration(config), processor

    return make


def _instructblip(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokenizer = _tokenizer("<image>")
    config = hf.InstructBlipConfig(text_config=_t5(len(tokenizer) + 2).to_dict(), **_query_parts())
    pictures = hf.BlipImageProcessor(size=SQUARE)
    processor = hf.InstructBlipProcessor(pictures, tokenizer, _bert(), num_query_tokens=3)
    return hf.InstructBlipForConditionalGeneration(config), processor


def _git(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokenizer = _bert()
    config = hf.GitConfig(
        vision_config={**SIZES, "image_size": 32, "patch_size": 16}, vocab_size=len(tokenizer), **SIZES,
        max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    model = hf.GitForCausalLM(config)
    model.generation_config.update(eos_token_id=3, pad_token_id=0, bos_token_id=2)
    return model, hf.GitProcessor(_clip_processor(), tokenizer)


def _vit_gpt2(template: bool) -> tuple[Any, ...]:
    """Return a ViT with a GPT-2, which have no processor class."""
    import transformers as hf

    tokenizer = _tokenizer()
    text = hf.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1
    )
    vision = hf.ViTConfig(**SIZES, image_size=32, patch_size=16)
    model = hf.VisionEncoderDecoderModel(hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text))
    model.generation_config.update(decoder_start_token_id=1)
    return model, hf.ViTImageProcessor(size=SQUARE), tokenizer


def _pix2struct(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokenizer = _tokenizer()
    sizes = {"hidden_size": 32, "d_kv": 16, "d_ff": 64}
    config = hf.Pix2StructConfig(
        text_config={**sizes, "num_layers": 2, "num_heads": 2, "vocab_size": len(tokenizer)},
        vision_config={
            **sizes, "patch_embed_hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 2, "seq_len": 4096,
            "initializer_range": 0.02,
        },
    )  # fmt: skip
    pictures = hf.Pix2StructImageProcessor(patch_size={"height": 16, "width": 16}, max_patches=16)
    return hf.Pix2StructForConditionalGeneration(config), hf.Pix2StructProcessor(pictures, tokenizer)


def _kosmos2(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    processor = hf.Kosmos2Processor(_clip_processor(), _tokenizer(), num_patch_index_tokens=4)
    processor.num_image_tokens = 64
    text = {"vocab_size": 120, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = hf.Kosmos2Config(
        text_config={**text, **ends}, vision_config={**SIZES, "image_size": 32, "patch_size": 16}, latent_query_num=64
    )
    return hf.Kosmos2ForConditionalGeneration(config), processor


def _florence2(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokenizer = _tokenizer("<image>", image_token="<image>")
    text = {
        "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": len(tokenizer),
        "max_position_embeddings": 128, "decoder_start_token_id": 1, **ENDS,
    }  # fmt: skip
    four: dict[str, Any] = {"embed_dim": [32] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4, "depths": [1] * 4}
    vision = {**four, "window_size": 4, "projection_dim": 32}
    model = hf.Florence2ForConditionalGeneration(
        hf.Florence2Config(text_config=text, vision_config=vision, image_token_id=3)
    )
    # as the published models
    model.generation_config.update(decoder_start_token_id=1, forced_eos_token_id=1, no_repeat_ngram_size=3)
    pictures = hf.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    pictures.image_seq_length = 5
    return model, hf.Florence2Processor(pictures, tokenizer)


def _llava(template: bool) -> tuple[Any, ...]:
    """Return a tiny LLaVA, which has a fixed number of tokens per picture."""
    import transformers as hf

    tokenizer = _tokenizer("<image>")
    processor = hf.LlavaProcessor(
        _clip_processor(), tokenizer, patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_template("<image>") if template else None,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=_clip(), text_config=_llama(tokenizer), image_token_index=3, vision_feature_layer=-1
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _llava_next(template: bool) -> tuple[Any, ...]:
    """Return a tiny LLaVA-NeXT, which cuts a picture into tiles of its own number."""
    import transformers as hf

    tokenizer = _tokenizer("<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    pictures = hf.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=grid)
    processor = hf.LlavaNextProcessor(
        pictures, tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_template("<image>") if template else None,
    )  # fmt: skip
    config = hf.LlavaNextConfig(
        vision_config=_clip(), text_config=_llama(tokenizer), image_token_index=3, vision_feature_layer=-1,
        image_grid_pinpoints=grid,
    )  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokenizer = _tokenizer("<image>", "<video>")
    grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
    pictures = hf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=grid)
    processor = hf.LlavaOnevisionProcessor(
        pictures, tokenizer, hf.LlavaOnevisionVideoProcessor(), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=_template("<image>") if template else None,
    )  # fmt: skip
    vision = hf.SiglipVisionConfig(**SIZES, image_size=32, patch_size=16)
    text = hf.Qwen2Config(**SIZES, **ENDS, num_key_value_heads=2, vocab_size=len(tokenizer))
    config = hf.LlavaOnevisionConfig(
        vision_config=vision, text_config=text,
        image_token_index=3, video_token_index=4, image_grid_pinpoints=grid,
    )  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _qwen_processor(name: str, tokenizer: Any, template: bool, **sizes: Any) -> Any:
    import transformers as hf

    pictures = hf.Qwen2VLImageProcessor(merge_size=2, **sizes)
    image = _template("<|vision_start|> <|image_pad|> <|vision_end|>") if template else None
    videos = hf.Qwen3VLVideoProcessor() if name == "Qwen3VLProcessor" else hf.Qwen2VLVideoProcessor()
    return getattr(hf, name)(pictures, tokenizer, videos, chat_template=image)


def _qwen_config(tokenizer: Any, vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    start, end, picture, video = tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS[:4]))
    return {
        "text_config": {
            **SIZES, **ENDS, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": ROPE, **text
        },
        "vision_config": vision, "image_token_id": picture, "video_token_id": video, "vision_start_token_id": start,
        "vision_end_token_id": end,
    }  # fmt: skip


def _qwen2_vl(template: bool) -> tuple[Any, ...]:
    """Return a tiny Qwen2-VL: the picture size sets the number of tokens, and a batch is one row of patches."""
    import transformers as hf

    tokenizer = _tokenizer(*QWEN_TOKENS)
    vision = {"embed_dim": 32, "depth": 2, "num_heads": 2, "hidden_size": 32, "patch_size": 14, "mlp_ratio": 2}
    sizes = {"patch_size": 14, "min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = _qwen_processor("Qwen2VLProcessor", tokenizer, template, **sizes)
    return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(**_qwen_config(tokenizer, vision))), processor


def _qwen2_5_vl(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokenizer = _tokenizer(*QWEN_TOKENS)
    vision = {
        "depth": 2, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64,
        "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    sizes = {"patch_size": 14, "min_pixels": 28 * 28, "max_pixels": 84 * 84}
    processor = _qwen_processor("Qwen2_5_VLProcessor", tokenizer, template, **sizes)
    config = hf.Qwen2_5_VLConfig(**_qwen_config(tokenizer, vision))
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokenizer = _tokenizer(*QWEN_TOKENS)
    vision = {
        "depth": 2, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64,
        "patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    sizes = {"patch_size": 16, "min_pixels": 32 * 32, "max_pixels": 64 * 64}
    processor = _qwen_processor("Qwen3VLProcessor", tokenizer, template, **sizes)
    config = hf.Qwen3VLConfig(**_qwen_config(tokenizer, vision, head_dim=16))
    return hf.Qwen3VLForConditionalGeneration(config), processor


def _tiles(name: str) -> Callable[[bool], tuple[Any, ...]]:
    """Return the maker of a tiny Idefics3 or SmolVLM, which cuts a picture into tiles with their own tokens."""

    def make(template: bool) -> tuple[Any, ...]:
        import transformers as hf

        tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
        special = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *tiles)
        tokenizer = _tokenizer(*special)
        sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
        parts = [getattr(hf, f"{name}ImageProcessor")(**sizes), tokenizer]
        if name == "SmolVLM":
            parts.append(hf.SmolVLMVideoProcessor())
        image = _template("<image>") if template else None
        processor = getattr(hf, f"{name}Processor")(*parts, image_seq_len=4, chat_template=image)
        config = getattr(hf, f"{name}Config")(
            vision_config={**SIZES, "image_size": 32, "patch_size": 8}, text_config=_llama(tokenizer),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0,
        )  # fmt: skip
        return getattr(hf, f"{name}ForConditionalGeneration")(config), processor

    return make


def _siglip_processor(image_seq_length: int) -> Any:
    import transformers as hf

    pictures = hf.SiglipImageProcessor(size=SQUARE)
    pictures.image_seq_length = image_seq_length
    return pictures


def _paligemma(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    processor = hf.PaliGemmaProcessor(_siglip_processor(4), _tokenizer("<image>", image_token="<image>"))
    size = len(processor.tokenizer)
    text = {**SIZES, **ENDS, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16, "vocab_size": size}
    vision = {**SIZES, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 32}
    config = hf.PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=3, projection_dim=32, hidden_size=32
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def _gemma3(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokens = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(*tokens.values(), **tokens)
    image = _template("<start_of_image>") if template else None
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=SQUARE), tokenizer, image_seq_length=4, chat_template=image
    )
    text = {**SIZES, **ENDS, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer)}
    config = hf.Gemma3Config(
        text_config=text, vision_config={**SIZES, "image_size": 32, "patch_size": 16}, mm_tokens_per_image=4,
        image_token_index=3, boi_token_index=4, eoi_token_index=5,
    )  # fmt: skip
    return hf.Gemma3ForConditionalGeneration(config), processor


def _internvl(template: bool) -> tuple[Any, ...]:
    import transformers as hf

    tokens = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer(*tokens.values(), **tokens)
    pictures = hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=4)
    image = _template("<IMG_CONTEXT>") if template else None
    processor = hf.InternVLProcessor(
        pictures, tokenizer, hf.InternVLVideoProcessor(), image_seq_length=4, chat_template=image
    )
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**SIZES, **ENDS, num_key_value_heads=2, vocab_size=len(tokenizer)).to_dict(),
        vision_config={**SIZES, "image_size": [32, 32], "patch_size": [8, 8]}, image_seq_length=4, image_token_id=5,
    )  # fmt: skip
    return hf.InternVLForConditionalGeneration(config), processor


KINDS: dict[str, Callable[[bool], tuple[Any, ...]]] = {
    "blip": _blip,
    "blip2_opt": _blip2(_opt),
    "blip2_t5": _blip2(_t5),
    "instructblip": _instructblip,
    "git": _git,
    "vit_gpt2": _vit_gpt2,
    "pix2struct": _pix2struct,
    "kosmos2": _kosmos2,
    "florence2": _florence2,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "idefics3": _tiles("Idefics3"),
    "smolvlm": _tiles("SmolVLM"),
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "internvl": _internvl,
}

# Factor by which the random weights of a kind are multiplied, default 8: larger weights make outputs differ.
LOUDNESS: dict[str, float] = {"florence2": 4, "kosmos2": 3}
