"""Checks a loaded `hf:` model on made pictures: three tokens for each, before the first shard.

A model whose picture tokens are lost or whose processor does not fit writes fluent captions of nothing. Such a model is
refused because two different pictures give it the same scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blipcore.io.messages import one_line

STEPS = 3
# Scores of equal inputs in two rows of a batch differ by at most this share of the largest score. Those of different
# pictures differ by 5e-5 and more, even in random models.
ROUNDING = 2.0**-24
# Largest total variation distance between the tokens of a picture alone and in a batch.
BATCH_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}

Generate = Callable[..., None]


class Recorder:
    """A logits processor that records the scores and gives every row the same token."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        """Give the `tokens`, or else the likeliest ones of the first row."""
        self.tokens, self.is_given = list(tokens), bool(tokens)
        self.scores: list[Tensor] = []  # (R, V) per step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores` (R, V) with all but one token at minus infinity."""
        step = len(self.scores)
        self.scores.append(scores.detach().float().cpu().clone())
        if not self.is_given:
            self.tokens.append(int(scores[0].argmax()))
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.tokens[min(step, len(self.tokens) - 1)]] = 0.0
        return masked

    @property
    def rows(self) -> Tensor:
        """The scores of all steps (R, steps, V)."""
        return torch.stack(self.scores, 1)


def score_probe_images(model: str, generate: Generate, make_inputs: Callable[..., dict[str, Any]]) -> Tensor:
    """Return the scores of three made pictures in one batch (3, steps, V).

    `generate(images, processor, max_new_tokens)` runs the model. Raises ValueError if the processor yields no pixels,
    the model fails, its scores are not numbers, or two different pictures give the same scores.
    """
    images = probe_images()
    recorder = Recorder()
    try:
        batch = make_inputs(images)
        if not any(isinstance(value, Tensor) and value.is_floating_point() for value in batch.values()):
            raise ValueError(
                f"the processor yields no pixels but only {', '.join(batch)}; copy preprocessor_config.json of the "
                "original model into its folder"
            )
        generate(images, recorder, STEPS)
    except Exception as error:
        raise ValueError(
            f"{model} cannot caption a test picture: {type(error).__name__}: {one_line(error).rstrip('.')}. "
            "Check chat.prompt (a model without a chat template needs its own format, with its picture token) and the "
            "processor's files."
        ) from None
    scores = recorder.rows
    # some models mask tokens with minus infinity
    if scores.isnan().any() or scores.isposinf().any() or not scores.isfinite().any(-1).all():
        raise ValueError(f"{model} gives scores that are not numbers; use --dtype fp32, or download it again.")
    if _largest_difference(scores[0], scores[1]) <= ROUNDING * float(scores[:2].nan_to_num(neginf=0).abs().max()):
        raise ValueError(
            f"{model} ignores its pictures: two different ones give the same captions. Check chat.prompt (a model "
            "without a chat template needs its picture token in it) and the processor's files."
        )
    return scores


def is_unaffected_by(names: Sequence[str], model: Any, scores: Tensor, generate: Generate) -> bool:
    """Return whether the weights `names` change no score, such as those of an unused pooler."""
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    chosen = [weights[name] for name in names if name in weights]
    if len(chosen) < len(names):
        return False
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in chosen:
            if weight.is_floating_point():
                weight.add_(torch.randn(weight.shape, generator=noise).to(weight))
    recorder = Recorder(scores[0].argmax(-1).tolist())
    generate(probe_images(), recorder, STEPS)
    return torch.equal(recorder.rows, scores)


def batches_are_equal(scores: Tensor, generate: Generate, dtype: torch.dtype) -> bool:
    """Return whether a picture alone gives the tokens that it gives in a batch with larger pictures."""
    tokens = scores[0].argmax(-1).tolist()
    distances = []
    for row, image in enumerate(probe_images()):
        if row == 1:
            continue  # of the size of the first
        recorder = Recorder(tokens)
        generate([image], recorder, STEPS)
        alone = recorder.rows[0]
        steps = min(len(alone), scores.shape[1])
        difference = alone[:steps].softmax(-1) - scores[row, :steps].softmax(-1)
        distances.append(float(difference.abs().sum(-1).max()) / 2)
    return max(distances) <= BATCH_TOLERANCE[dtype]


def probe_images() -> list[Image.Image]:
    """Return three different pictures: two of one size, the third of another one."""
    y, x = np.mgrid[:224, :224]
    waves = np.stack([128 + 127 * np.sin(x / 9), 128 + 127 * np.cos(y / 17), (x + y) / 2], -1)
    blocks = np.stack([(x // 32 + y // 32) % 2 * 255, (x < 112) * 200.0, 255 - y], -1)
    wide = np.stack([math.pi * x[:130], 255 - x[:130], (x[:130] // 16) % 2 * 255], -1) % 256
    return [Image.fromarray(pixels.astype(np.uint8)) for pixels in (waves, blocks, wide)]


def _largest_difference(first: Tensor, second: Tensor) -> float:
    return float((first.nan_to_num(neginf=0) - second.nan_to_num(neginf=0)).abs().max())
