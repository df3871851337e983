"""The inputs of `generate` and the texts of each family of `hf:` models, as their model pages make them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from PIL import Image

# Inputs that processors return for training, or for models with segment embeddings only.
UNUSED = ("labels", "token_type_ids")
# Families that continue a prompt, whose pages print it as the beginning of the caption.
CONTINUING = ("blip", "git", "kosmos-2", "pix2struct", "vision-encoder-decoder")


class InputMaker:
    """Makes the inputs of a model from images and one prompt, and texts from its tokens."""

    def __init__(self, model: Any, processor: Any, prompt: str, system: str = "") -> None:
        """Complete the processor's settings from the model's config; ValueError if they do not fit."""
        self.processor, self.family = processor, model.config.model_type
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            # any token does: it is masked
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        if self.family in ("blip-2", "instructblip"):
            _complete_query_tokens(model, processor)
        self.names = _argument_names(model)
        self.system = system
        self.prompt = self.format(prompt)

    def format(self, prompt: str) -> str:
        """Return a prompt in the model's chat format, if it has one."""
        if not getattr(self.processor, "chat_template", None):
            return prompt
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        messages = [*system, {"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def make(self, images: Sequence[Image.Image], prompts: Sequence[str] = ()) -> dict[str, Any]:
        """Return the tensors of a batch; `prompts` are formatted, one per image, by default the model's one."""
        maker = getattr(self, "_make_" + self.family.replace("-", "_"), self._make_chat)
        batch = maker(list(images), list(prompts) or [self.prompt] * len(images))
        return {name: value for name, value in batch.items() if name not in UNUSED or name in self.names}

    def decode(self, token_ids: list[list[int]]) -> list[str]:
        """Return the texts without special tokens and without the boxes of Kosmos-2, after a prompt that they continue.

        A text of special tokens alone is empty.
        """
        start: list[int] = []
        if self.family in CONTINUING and not getattr(self.processor.image_processor, "is_vqa", False):
            start = self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"]
        texts = self._decode(token_ids)
        if start:
            whole = self._decode([[*start, *ids] for ids in token_ids])
            texts = [long if text.strip() else "" for text, long in zip(texts, whole, strict=True)]
        return texts

    def _decode(self, token_ids: list[list[int]]) -> list[str]:
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        if self.family == "kosmos-2":
            texts = [self.processor.post_process_generation(text)[0] for text in texts]
        return texts

    def _make_chat(self, images: list[Image.Image], prompts: list[str]) -> Any:
        return self.processor(text=prompts, images=[[image] for image in images], padding=True, return_tensors="pt")

    def _make_kosmos_2(self, images: list[Image.Image], prompts: list[str]) -> Any:
        return self.processor(text=prompts, images=images, padding=True, return_tensors="pt")

    _make_florence2 = _make_paligemma = _make_instructblip = _make_kosmos_2

    def _make_blip(self, images: list[Image.Image], prompts: list[str]) -> Any:
        """Leave an empty prompt out: as text it would be [CLS] [SEP]."""
        if not self.prompt:
            return self.processor(images=images, return_tensors="pt")
        return self.processor(text=prompts, images=images, padding=True, return_tensors="pt")

    _make_blip_2 = _make_pix2struct = _make_blip

    def _make_git(self, images: list[Image.Image], prompts: list[str]) -> Any:
        """Begin with [CLS] and the prompt: after the [SEP] of GIT's tokenizer, a second caption would begin."""
        batch = {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}
        if self.prompt:
            words = [self.tokenizer.cls_token + prompt for prompt in prompts]
            batch |= self.tokenizer(words, add_special_tokens=False, return_tensors="pt")
        return batch

    def _make_vision_encoder_decoder(self, images: list[Image.Image], prompts: list[str]) -> Any:
        """Begin the decoder's text with the prompt, as Donut does with its task token."""
        batch = {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}
        if self.prompt:
            words = self.tokenizer(prompts, add_special_tokens=False, return_tensors="pt")
            batch["decoder_input_ids"] = words["input_ids"]
        return batch


def text_decoder(model: Any) -> Any:
    """Return the part of a model that generates."""
    parts = {"blip": "text_decoder", "blip-2": "language_model", "instructblip": "language_model"}
    return getattr(model, (parts | {"kosmos-2": "text_model"}).get(model.config.model_type, ""), model)


def check_positions(name: str, model: Any, batch: dict[str, Any], max_new_tokens: int) -> None:
    """Raise ValueError if the prompt and a whole answer are longer than the model's positions."""
    length, positions = prompt_length(model, batch), max_positions(model)
    # the last token is not read
    if positions is not None and length + max_new_tokens - 1 > positions:
        raise ValueError(
            f"{name} has {positions} positions, too few for a prompt of {length} and {max_new_tokens} new tokens; "
            "shorten chat.prompt or lower chat.max_new_tokens."
        )


def prompt_length(model: Any, batch: dict[str, Any]) -> int:
    """Return the tokens of the longest prompt of a batch."""
    is_encoder_decoder = model.config.is_encoder_decoder or text_decoder(model).config.is_encoder_decoder
    ids = batch.get("decoder_input_ids" if is_encoder_decoder else "input_ids")
    return 1 if ids is None else ids.shape[1]


def max_positions(model: Any) -> int | None:
    """Return the number of positions of the part that generates; None if it has no limit."""
    config = getattr(model.config, "decoder", None) or text_decoder(model).config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text."""
    if model.config.model_type == "blip":
        return {model.config.text_config.sep_token_id}
    # BERT's tokenizer ends a text with [SEP]
    candidates: list[Any] = [part.generation_config.eos_token_id for part in (text_decoder(model), model)]
    candidates += [tokenizer.eos_token_id, tokenizer.sep_token_id]
    ends: Any = next((token for token in candidates if token is not None), [])
    return set(ends if isinstance(ends, list) else [ends])


def _complete_query_tokens(model: Any, processor: Any) -> None:
    """Fill in what processors and configs from before transformers 4.46 lack: the placeholders of the picture."""
    queries, config = model.config.num_query_tokens, model.config
    if getattr(processor, "num_query_tokens", None) is None:
        processor.num_query_tokens = queries
    if processor.num_query_tokens != queries:
        raise ValueError(
            f"the processor makes {processor.num_query_tokens} picture tokens, but the model's config.json says "
            f"num_query_tokens {queries}; copy the processor's files of this model into its folder"
        )
    token = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    if config.image_token_index is None:
        config.image_token_index = token
    size = model.get_input_embeddings().num_embeddings
    if config.image_token_index != token or token >= size:
        raise ValueError(
            f"the tokenizer's <image> is token {token}, but the model has image_token_index {config.image_token_index} "
            f"and {size} tokens; copy the tokenizer's files of this model into its folder"
        )


def _argument_names(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
