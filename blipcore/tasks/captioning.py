"""Captioning: finetunes the image-grounded decoder on clean captions (CapFilt's captioner), and its evaluation."""

from dataclasses import dataclass
from typing import Any

import torch

from blipcore import distributed
from blipcore.data.eval_batches import EvalBatches
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.metrics.captions import Words, caption_scores
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.losses import IGNORE_INDEX, count_scored, lm_loss
from blipcore.tasks.task import Batch, Collate, Outputs, Progress, Task, replace_first


@dataclass
class CaptioningConfig:
    """Settings of captioning; the defaults are BLIP's for COCO."""

    prompt: str = "a picture of "  # before each caption, without loss
    max_tokens: int = 40
    label_smoothing: float = 0.1


class CaptioningTask(Task):
    """`loss` and `loss_lm` are the LM loss over the words after the prompt and the end token."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: CaptioningConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = Collate(tokenizer, config.max_tokens, prompt=config.prompt)
        self.prompt_length = len(tokenizer.prompt(config.prompt))

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        ids, mask, text = batch["input_ids"], batch["attention_mask"], self.model.text
        kv = text.image_kv(self.model.encode_image(batch["pixels"]))
        decoded = text.decode(replace_first(ids, self.tokenizer.bos), mask, kv)
        labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
        labels[:, : self.prompt_length] = IGNORE_INDEX
        loss = lm_loss(text.logits(decoded), labels, self.config.label_smoothing)
        loss = loss * distributed.mean_weight(count_scored(labels))
        return {"loss": loss, "loss_lm": loss.detach()}


@torch.inference_mode()
def evaluate_captioning(
    model: Blip, tokenizer: Tokenizer, pictures: EvalBatches, config: GenerateConfig, words: Words = "auto"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Caption every picture, and score the captions against the pictures' texts.

    Returns the scores of `caption_scores`, also per domain if the pictures have domains (no scores if they have no
    texts), and the captions in the format of the COCO and NoCaps servers: [{"image_id", "caption"}].
    """
    model.eval()
    device = next(model.parameters()).device
    results = []
    for records, pixels in pictures:
        keys = [record["key"] for record in records]
        generated = generate(model, model.encode_image(pixels.to(device)), tokenizer, config, keys)
        captions = [tokenizer.decode(ids) for ids in generated.ids][:: config.num_captions]
        for record, caption in zip(records, captions, strict=True):
            results.append({"image_id": record["image_id"], "caption": caption})
    references = [record["texts"] for record in pictures.records]
    if not any(references):
        return {}, results
    domains = [record.get("domain") for record in pictures.records]
    return caption_scores([result["caption"] for result in results], references, words, domains), results
