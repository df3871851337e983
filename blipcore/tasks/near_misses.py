"""Near misses: wrong texts of annotated pictures that a captioner could have written, made to train the filter.

ITM learns from texts of other pictures, which differ in everything; a wrong caption differs in one thing. For every
annotated picture, candidates come from two sources:

    references    exchanged phrases and swapped words (see `blipcore.data.references`)
    the decoder   texts that the starting checkpoint samples for the picture, which have its errors and its styles

A text is right if it agrees with the references, sampled texts included. Right texts must be as varied as
wrong ones: filters that are trained on wrong texts alone learn the style of a text instead of comparing it with the
picture (Kamath et al. 2024, "The Hard Positive Truth about Vision-Language Compositionality"). Wrong texts are drawn by
their likelihood under the decoder, so that they read like right ones.

The result is a table of judged texts (`blipcore.data.judged_texts`) in the run folder.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from blipcore.data.check_pictures import count
from blipcore.data.dataset import DatasetEntry, ShardedDataset
from blipcore.data.references import References, Words
from blipcore.data.transforms import EvalTransform, load_image
from blipcore.device import Dtype, autocast
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.io.writing import atomic_write
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer, clean_caption, join_words
from blipcore.tasks.task import replace_first

TABLE = "near_misses.parquet"  # in the run folder
BATCH = 64  # pictures
ROWS = 512  # texts decoded at a time
EXCHANGES, SWAPS = 6, 3  # tries per reference
TOP_P = (0.95, 0.6)  # of sampled texts: varied ones, and the most usual, whose errors are those of a captioner
# A wrong text is drawn in proportion to exp(weight x mean log-probability of its tokens + weight x ITM log-odds).
LIKELIHOOD_WEIGHT, ITM_WEIGHT = 1.0, 0.5
UNKNOWN = BERT_SPECIALS[1]
CONTENT = "content"  # in the metadata of the table: its `NearMissConfig`


@dataclass(frozen=True)
class NearMissConfig:
    """The settings and inputs that a table of near misses depends on."""

    wrong: int  # wrong texts per picture, at most
    pictures: int  # pictures with near misses, at most
    samples: int  # texts that the decoder samples per picture
    max_tokens: int
    seed: int
    init: str
    annotations: list[str]


@dataclass
class Picture:
    """An annotated picture with its texts."""

    dataset: ShardedDataset
    shard: int
    entry: DatasetEntry
    right: dict[str, str] = field(default_factory=dict)  # text -> its origin
    wrong: dict[str, str] = field(default_factory=dict)


def make_near_misses(
    path: Path,
    model: Blip,
    tokenizer: Tokenizer,
    datasets: Sequence[ShardedDataset],
    config: NearMissConfig,
    dtype: Dtype = "auto",
) -> None:
    """Write the near misses of `datasets` to the table `path`, unless it has them.

    `model` is the starting checkpoint with its decoder, on its device. Raises ValueError if the annotations have too
    few references to learn from.
    """
    content = json.dumps(asdict(config))
    if path.is_file() and (pq.read_schema(path).metadata or {}).get(CONTENT.encode()) == content.encode():
        return
    pictures = draw_pictures(datasets, config)
    print(f"making near misses of {count(len(pictures), 'picture')}", file=sys.stderr, flush=True)
    references = References([[split_words(tokenizer, text) for text in p.entry.texts] for p in pictures])
    if not references.claims:
        raise ValueError(
            "Near misses are learned from pictures with several references, such as COCO's five, and "
            f"{', '.join(config.annotations)} has too few: leave out retrieval.near_misses."
        )
    rng = random.Random(f"near misses {config.seed}")
    for number, picture in enumerate(pictures):
        edit_references(picture, number, references, tokenizer, rng)
    model.eval()
    with torch.inference_mode(), autocast(next(model.parameters()).device, dtype):
        for first in range(0, len(pictures), BATCH):
            _add_samples(model, tokenizer, pictures[first : first + BATCH], first, references, config)
    rows = [
        {"shard": shard, "key": key, "text": text, "match": match, "origin": origin}
        for picture in pictures
        for shard, key in [picture.dataset.location(picture.shard, picture.entry)]
        for match, texts in ((True, picture.right), (False, picture.wrong))
        for text, origin in texts.items()
    ]
    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        pq.write_table(table.replace_schema_metadata({CONTENT: content}), file)
    right = sum(bool(row["match"]) for row in rows)
    print(
        f"{path}: {count(len(rows) - right, 'wrong text')}, {count(right, 'right text')}", file=sys.stderr, flush=True
    )


def draw_pictures(datasets: Sequence[ShardedDataset], config: NearMissConfig) -> list[Picture]:
    """Return at most `config.pictures` pictures of all data sets, drawn evenly, in the order of the annotations."""
    total = sum(sum(dataset.counts) for dataset in datasets)
    rng = random.Random(f"pictures {config.seed}")
    drawn = set(rng.sample(range(total), config.pictures)) if total > config.pictures else None
    pictures, number = [], 0
    for dataset in datasets:
        for shard in range(len(dataset.counts)):
            for entry in dataset.load(shard):
                if drawn is None or number in drawn:
                    pictures.append(Picture(dataset, shard, entry, dict.fromkeys(entry.texts, "reference")))
                number += 1
    return pictures


def split_words(tokenizer: Tokenizer, text: str) -> Words:
    """Return the words of a cleaned text; a Chinese character is a word."""
    words: list[str] = []
    for piece in tokenizer.backend.encode(clean_caption(text), add_special_tokens=False).tokens:
        if piece.startswith("##") and words:
            words[-1] += piece[2:]
        else:
            words.append(piece)
    return tuple(words)


def edit_references(
    picture: Picture, number: int, references: References, tokenizer: Tokenizer, rng: random.Random
) -> None:
    """Add wrong texts made of the references of a picture, the number `number` of `references`."""
    for text in references.texts[number]:
        edits = {"exchange": (references.exchange, EXCHANGES), "swap": (references.swap, SWAPS)}
        for origin, (edit, tries) in edits.items():
            for _ in range(tries):
                wrong = edit(number, text, rng)
                if wrong is not None and UNKNOWN not in wrong:
                    picture.wrong[join_words(wrong)] = origin


def _add_samples(
    model: Blip,
    tokenizer: Tokenizer,
    pictures: list[Picture],
    first: int,
    references: References,
    config: NearMissConfig,
) -> None:
    """Add texts sampled from the decoder, and keep the most plausible wrong texts.

    `first` is the number of the first picture. A picture that cannot be read keeps no text.
    """
    transform = EvalTransform(model.config.vision.image_size)
    numbers, pixels = [], []
    for number, picture in enumerate(pictures, first):
        try:
            pixels.append(transform(load_image(picture.dataset.read(picture.shard, picture.entry))))
            numbers.append(number)
        except OSError:  # training names it
            picture.right, picture.wrong = {}, {}
    if not numbers:
        return
    readable = [pictures[number - first] for number in numbers]
    image_embeds = model.encode_image(torch.stack(pixels).to(next(model.parameters()).device))
    keys = [picture.entry.key for picture in readable]
    for top_p in TOP_P:
        settings = GenerateConfig(
            prompt="",
            top_p=top_p,
            top_k=50,
            repetition_penalty=1.0,
            max_length=config.max_tokens,
            num_captions=max(1, config.samples // len(TOP_P)),
            seed=config.seed,
        )
        texts = [tokenizer.decode(ids) for ids in generate(model, image_embeds, tokenizer, settings, keys).ids]
        for row, text in enumerate(texts):
            number = numbers[row // settings.num_captions]
            picture, verdict = pictures[number - first], references.judge(number, split_words(tokenizer, text))
            # A text without any claim, such as a file name or an advertisement, does not describe the picture.
            kind = picture.right if verdict else picture.wrong
            kind.setdefault(text, "sample" if verdict is not None else "sample without a claim")
    wrong = [list(picture.wrong) for picture in readable]
    scores = _plausibility(model, tokenizer, image_embeds, wrong, config.max_tokens)
    for number, picture, score in zip(numbers, readable, scores, strict=True):
        noise = np.random.default_rng([config.seed, number]).gumbel(size=len(score))
        best = np.argsort(-(score + noise), kind="stable")[: config.wrong]
        candidates = list(picture.wrong.items())
        picture.wrong = dict(candidates[index] for index in sorted(best))


def _plausibility(
    model: Blip, tokenizer: Tokenizer, image_embeds: Tensor, texts: list[list[str]], max_tokens: int
) -> list[np.ndarray]:
    """Return the plausibility of each text of each picture under decoder and ITM, see `LIKELIHOOD_WEIGHT`."""
    device = image_embeds.device
    flat = [clean_caption(text) for of_picture in texts for text in of_picture]
    owner = torch.tensor([row for row, of_picture in enumerate(texts) for _ in of_picture], device=device)
    kv, scores = model.text.image_kv(image_embeds), [torch.empty(0)]
    for start in range(0, len(flat), ROWS):
        ids, mask = (x.to(device) for x in tokenizer(flat[start : start + ROWS], max_length=max_tokens))
        kv_of_texts = kv.select(owner[start : start + ROWS])
        states = model.text.decode(replace_first(ids, tokenizer.bos), mask, kv_of_texts)
        log_probabilities = model.text.logits(states[:, :-1]).float().log_softmax(-1)
        of_tokens = log_probabilities.gather(2, ids[:, 1:, None]).squeeze(2) * mask[:, 1:]
        likelihood = of_tokens.sum(1) / mask[:, 1:].sum(1).clamp(min=1)
        itm = model.itm_logits(model.text.fuse(replace_first(ids, tokenizer.enc), mask, kv_of_texts))
        scores.append((LIKELIHOOD_WEIGHT * likelihood + ITM_WEIGHT * (itm[:, 1] - itm[:, 0])).cpu())
    stops = np.cumsum([len(of_picture) for of_picture in texts])
    return np.split(torch.cat(scores).double().numpy(), stops[:-1])
