"""Captioning: finetune the image-grounded decoder on clean captions (the captioner of CapFilt), and judge it."""

from dataclasses import dataclass
from typing import Any

import torch

from blipcore import distributed
from blipcore.data.eval_batches import Pictures
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.metrics.captions import Words, caption_scores
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.losses import IGNORE, lm_loss, scored
from blipcore.tasks.task import Batch, Collate, Outputs, Progress, Task, with_first


@dataclass
class CaptioningConfig:
    """LM on `prompt` + caption; the prompt's tokens are given, not scored (spec of COCO captioning in BLIP)."""

    prompt: str = "a picture of "
    max_tokens: int = 40
    label_smoothing: float = 0.1


class CaptioningTask(Task):
    """`loss` = `loss_lm` over the words after the prompt and the end token."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: CaptioningConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = Collate(tokenizer, config.max_tokens, prompt=config.prompt)
        self.prompt_length = len(tokenizer.prompt(config.prompt))

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        ids, mask, text = batch["input_ids"], batch["attention_mask"], self.model.text
        kv = text.image_kv(self.model.encode_image(batch["pixels"]))
        decoded = text.decode(with_first(ids, self.tokenizer.bos), mask, kv)
        labels = ids.masked_fill(mask == 0, IGNORE)
        labels[:, : self.prompt_length] = IGNORE
        loss = lm_loss(text.logits(decoded), labels, self.config.label_smoothing) * distributed.share(scored(labels))
        return {"loss": loss, "loss_lm": loss.detach()}


@torch.inference_mode()
def evaluate_captioning(
    model: Blip, tokenizer: Tokenizer, pictures: Pictures, config: GenerateConfig, words: Words = "auto"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Caption every picture and score against its texts.

    Returns the scores of `caption_scores`, also by domain where the pictures have one, or none where they have no
    texts; and the captions in the format of the servers of COCO and NoCaps, [{"image_id", "caption"}].
    """
    model.eval()
    device = next(model.parameters()).device
    results = []
    for records, pixels in pictures:
        keys = [record["key"] for record in records]
        generated = generate(model, model.encode_image(pixels.to(device)), tokenizer, config, keys)
        texts = [tokenizer.decode(ids) for ids in generated.ids][:: config.num_captions]
        for record, text in zip(records, texts, strict=True):
            results.append({"image_id": record["image_id"], "caption": text})
    references = [record["texts"] for record in pictures.records]
    if not any(references):
        return {}, results
    domains = [record.get("domain") for record in pictures.records]
    return caption_scores([result["caption"] for result in results], references, words, domains), results
