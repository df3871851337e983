"""`capfilt finetune retrieval FILTERED --labels FILE`: learns a filter's ITM head from labelled texts.

Only the last layer is learned, as a logistic regression on the encoder's state of [ENC] and on the filter's ITM so far.
The encoder does not change, and neither does ITC. Training all weights fits a few hundred labels perfectly in 20 steps
and does not help on other pictures. For tens of thousands of labels, RUN/labels.parquet is also a table for
`retrieval.judged_texts`. The method is last-layer retraining (Kirichenko et al., arXiv 2204.02937).

Each label also gets a held-out ITM score, by a head trained without its fold of pictures. All figures are measured on
these scores. RUN/labels.parquet stores them, so that `capfilt filter --labels` does not measure the filter on its own
training labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from blipcore.checkpoints.numerics import Numerics
from blipcore.device import Dtype, autocast, pick_device, stack_on
from blipcore.io.config_diff import diff_configs
from blipcore.io.hub import model_fingerprint
from blipcore.io.lock import lock_folder
from blipcore.io.storage import to_path
from blipcore.io.tar_cache import TarCache
from blipcore.io.tar_reader import TarReader
from blipcore.io.writing import write_json
from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.intervals import clopper_pearson
from capfilt.filter.labelled import LabelledTexts, read_labelled
from capfilt.filter.labels import LABELS_OF_RUN, read_labels
from capfilt.filter.logistic import cross_fit
from capfilt.filter.texts import count_words
from capfilt.shards.tables import read_table, write_table

if TYPE_CHECKING:
    from blipcore.model.blip import Blip
    from blipcore.model.tokenizer import Tokenizer


@dataclass
class HeadConfig:
    """Settings of learning an ITM head."""

    # the filtered set with the labelled texts
    annotations: list[str]
    labels: str
    # filter to start from
    init: str
    out: Path
    tokenizer: str | None = None
    numerics: Numerics = "official"
    # texts per forward pass
    batch_size: int = 32
    device: str = "auto"
    dtype: Dtype = "auto"
    # as in the other tasks
    task: str = field(default="retrieval")

    def __post_init__(self) -> None:
        if self.task != "retrieval":
            raise ValueError(f"--labels trains a filter, as in finetune retrieval, not finetune {self.task}.")
        if len(self.annotations) != 1:
            raise ValueError("With --labels give one filtered set, the one whose texts were labelled.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}.")


def learn_head(config: HeadConfig) -> dict[str, Any]:
    """Write the filter with the learned head to RUN/model, and its labels to RUN/labels.parquet; return a summary.

    A finished run is not repeated. Raises ValueError for too few labels, labels without a text in the filtered set, and
    a run folder of other settings.
    """
    from blipcore.checkpoints.load import load_model
    from blipcore.checkpoints.save import save_model

    data, labels = FilteredSet.open(config.annotations[0]), read_labels(to_path(config.labels))
    tables = ((path.stem, read_table(path, ["key", "source", "index", "text"])) for path in data.tables)
    labelled = read_labelled(tables, labels)
    fingerprint = model_fingerprint(config.init, config.tokenizer)
    texts = labelled.rows.select(["shard", "key", "source", "index", "text"])
    settings = {"filter": fingerprint, "set": str(data.folder), "labels": _digest(texts, labelled.match)}
    settings |= {name: value for name, value in asdict(config).items() if name in ("numerics", "dtype")}
    with lock_folder(config.out):
        done = config.out / "summary.json"  # written last
        summary = _finished_run(config.out, settings)
        if summary is not None:
            return summary
        model, tokenizer = load_model(
            config.init, needs=("itm", "itc", "encode"), tokenizer=config.tokenizer, numerics=config.numerics
        )
        states, problems = _read_states(config, data, labelled, model, tokenizer)
        if problems and np.isnan(states).all():
            place, reason = next(iter(problems.items()))
            raise ValueError(
                f"No picture of the labelled texts can be read, first {place}: {reason}. Restore the tars."
            )
        before = _logits(model, states)
        known = ~np.isnan(before)
        features = np.column_stack([states, before])
        fit = cross_fit(features[known], labelled.match[known], labelled.fold[known], free=1)
        held_out = np.full(len(known), np.nan)
        held_out[known] = fit.held_out
        _replace_head(model, fit.model.weights, fit.model.bias)
        summary = _summarize(data, labelled, before, held_out, problems)
        folder = config.out / "model"
        save_model(folder, model, tokenizer)
        itm_of = model_fingerprint(folder)
        _write_labels(config, data, labelled, 1 / (1 + np.exp(-held_out)), itm_of)
        summary |= {"labels_with_scores": str(config.out / LABELS_OF_RUN), "model": str(folder)}
        write_json(done, summary | {"settings": settings})
    return summary


def _finished_run(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a finished run; ValueError for a folder of other settings or with other files."""
    path = folder / "summary.json"
    others = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if not path.exists():
        if set(others) - {"model", LABELS_OF_RUN}:
            raise ValueError(f"{folder} is not empty and holds no filter learned from labels; give another --out.")
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    recorded = summary.pop("settings", None)
    changes = ["not learned from labels"] if recorded is None else diff_configs(recorded, settings)
    if changes:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changes)}); give another --out or remove the folder."
        )
    return summary


def _read_states(
    config: HeadConfig, data: FilteredSet, labelled: LabelledTexts, model: Blip, tokenizer: Tokenizer
) -> tuple[np.ndarray, dict[str, str]]:
    """Return the state of [ENC] of each labelled text (R, D), NaN where the picture cannot be read, and the reasons."""
    import torch

    from blipcore.data.transforms import EvalTransform, load_image
    from blipcore.model.tokenizer import TEXT_TOKENS, clean_caption

    device, problems = pick_device(config.device), {}
    transform = EvalTransform(model.config.vision.image_size)
    reader = TarReader(locate=TarCache(data.images).local)
    states = np.full((len(labelled.match), model.config.text.width), np.nan)
    rows = labelled.rows.select(["shard", "key", "text"]).to_pylist()
    max_length = min(TEXT_TOKENS, model.config.text.max_positions)
    model = model.to(device).eval()

    def readable() -> Iterator[tuple[int, str, torch.Tensor]]:
        for number, row in enumerate(rows):
            text = clean_caption(row["text"] or "")
            try:
                pixels = transform(load_image(reader.read_image(f"{row['shard']}.tar", row["key"])))
            except OSError as error:
                problems[f"{row['shard']}.tar/{row['key']}"] = str(error)
                continue
            if text:
                yield number, text, pixels

    batch: list[tuple[int, str, torch.Tensor]] = []

    def encode() -> None:
        numbers, texts, pixels = zip(*batch, strict=True)
        ids, mask = (part.to(device) for part in tokenizer(list(texts), max_length))
        ids[:, 0] = tokenizer.enc
        with torch.inference_mode(), autocast(device, config.dtype):
            image_kv = model.text.image_kv(model.encode_image(stack_on(pixels, device)))
            fused = model.text.fuse(ids, mask, image_kv)
        states[list(numbers)] = fused[:, 0].float().cpu().numpy()
        batch.clear()

    for item in readable():
        batch.append(item)
        if len(batch) == config.batch_size:
            encode()
    if batch:
        encode()
    return states, problems


def _logits(model: Blip, states: np.ndarray) -> np.ndarray:
    """Return the log-odds of a match (R,) by the model's ITM head."""
    assert model.itm_head is not None
    weight, bias = (part.detach().double().cpu().numpy() for part in (model.itm_head.weight, model.itm_head.bias))
    return states @ (weight[1] - weight[0]) + bias[1] - bias[0]


def _replace_head(model: Blip, weights: np.ndarray, bias: float) -> None:
    """Replace the ITM head by a logistic regression on the states and, as the last feature, the old log-odds."""
    import torch

    assert model.itm_head is not None
    head = model.itm_head
    with torch.no_grad():
        old = head.weight[1] - head.weight[0], head.bias[1] - head.bias[0]
        weight = torch.as_tensor(weights[:-1]).to(old[0]) + float(weights[-1]) * old[0]
        offset = bias + float(weights[-1]) * old[1]
        head.weight.copy_(torch.stack([-weight / 2, weight / 2]))
        head.bias.copy_(torch.stack([-offset / 2, offset / 2]))


def _summarize(
    data: FilteredSet, labelled: LabelledTexts, before: np.ndarray, held_out: np.ndarray, problems: dict[str, str]
) -> dict[str, Any]:
    """Return counts, and the AUCs before and after, the latter also for short and long texts alone."""
    aucs = {
        when: {group: str(auc) for group, auc in labelled.auc(values, data.sources).items()}
        for when, values in (("before", before), ("after", held_out))
    }
    words, source = count_words(labelled.rows["text"]), np.array(labelled.rows["source"].to_pylist())
    for name in data.sources:
        of_source = source == name
        if of_source.any():
            middle = np.median(words[of_source])
            halves = {f"up to {middle:g} words": words <= middle, f"above {middle:g} words": words > middle}
            for half, rows in halves.items():
                values = np.where(of_source & rows, held_out, np.nan)
                aucs["after"][f"{name}, {half}"] = str(labelled.auc(values, [name])[name]) if rows.any() else "-"
    after = labelled.auc(held_out, data.sources)
    weak = [group for group, auc in after.items() if not auc.has_signal]
    kept, known = held_out >= 0, ~np.isnan(held_out) & labelled.random
    right = int((kept & known & labelled.match).sum())
    measured = {}
    for name, total in (("precision", int((kept & known).sum())), ("recall", int((known & labelled.match).sum()))):
        if total:
            low, high = clopper_pearson(right, total)
            measured[name] = f"{right / total:.3f} ({low:.3f} to {high:.3f}), {right} of {total}"
    return {
        "stage": "finetune",
        "labels": {"used": int((~np.isnan(held_out)).sum()), "without_text": labelled.unknown},
        "unreadable": len(problems),
        "problems": dict(list(problems.items())[:10]),
        "itm_before": aucs["before"],
        "itm_after_on_unseen_pictures": aucs["after"],
        "no_signal": f"{', '.join(weak)}: the interval of the AUC holds 0.5; label more texts" if weak else None,
        "at_0.5_on_unseen_pictures": measured,
    }


def _write_labels(config: HeadConfig, data: FilteredSet, labelled: LabelledTexts, itm: np.ndarray, itm_of: str) -> None:
    """Write the labels with their held-out ITM; `shard` is the path of the tar, for `retrieval.judged_texts`."""
    images = data.images.resolve() if isinstance(data.images, Path) else data.images
    shard = [str(images / f"{name}.tar") for name in labelled.rows["shard"].to_pylist()]
    columns = {
        "shard": shard,
        **{name: labelled.rows[name] for name in ("key", "source", "index", "text")},
        "match": pa.array(labelled.match.astype(np.int8)),
        "drawn": pa.array(np.where(labelled.random, "random", "proposed")),
        "itm": pa.array(itm, from_pandas=True),
        "itm_of": [itm_of] * len(shard),
    }
    write_table(to_path(config.out) / LABELS_OF_RUN, pa.table(columns), make_folder=False)


def _digest(texts: pa.Table, match: np.ndarray) -> str:
    rows = [(*row.values(), bool(is_match)) for row, is_match in zip(texts.to_pylist(), match, strict=True)]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
