"""The inputs of the commands: pictures, lists, annotations and a random model, as small as each command accepts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml
from web import picture

WORDS = ["a", "red", "green", "dog", "cat", "tree", "one", "two", "on", "the", "left", "of"]
PICTURES = 32


def write_inputs(folder: Path, url: str) -> None:
    """Write the inputs into a new folder; `url` is the start of the pictures' URLs."""
    (folder / "photos").mkdir(parents=True)
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=4)) for _ in range(PICTURES)]
    for number, text in enumerate(texts):
        (folder / "photos" / f"{number:03d}.jpg").write_bytes(picture(number, (48, 40)))
        (folder / "photos" / f"{number:03d}.txt").write_text(text)
    (folder / "urls.txt").write_text("\n".join(f"{url}/good/{number}.jpg" for number in range(12)))
    rows = [{"image": f"photos/{number:03d}.jpg", "caption": texts[number]} for number in range(8)]
    (folder / "human.json").write_text(json.dumps(rows))
    tests = [row | {"caption": [row["caption"], "a red dog"]} for row in rows]
    (folder / "test.json").write_text(json.dumps(tests))
    _write_model(folder / "model")


def write_loop(path: Path, inputs: Path, work: Path) -> None:
    """Write the YAML file of a bootstrap run that works in the folder `work`."""
    train = {"train": {"batch_size": 4, "steps": 4, "log_every": 1, "save_every": 2, "dtype": "fp32", "device": "cpu"}}
    small = {"batch_size": 8, "device": "cpu", "dtype": "fp32", "backend": "torch"}
    settings = {
        "data": str(work / "data"),
        "human": [str(inputs / "human.json")],
        "out": str(work / "loop"),
        "human_share": 0.5,
        "tests": {"retrieval": str(inputs / "test.json")},
        "init": str(inputs / "model"),
        "pretrain": {"init": str(inputs / "model"), "task": {"queue_size": 8}, **train},
        "finetune_captioner": train,
        "finetune_filter": {"retrieval": {"queue_size": 8}, **train},
        "caption": {"generate": {"prompt": "", "max_length": 8}, "dtype": "fp32", "backend": "torch"},
        "filter": {"threshold": 0.0, **small},
        "evaluate": {"batch_size": 8, "device": "cpu", "dtype": "fp32"},
    }
    path.write_text(yaml.safe_dump(settings))


def _write_model(folder: Path) -> None:
    import torch

    from blipcore.checkpoints.save import save_model
    from blipcore.model.blip import Blip
    from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
    from blipcore.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    sizes = BlipConfig(
        VisionConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2),
        TextConfig(len(tokenizer), width=32, depth=2, heads=2, hidden=64, max_positions=40, encoder_width=32),
        embed_dim=16,
    )
    torch.manual_seed(0)
    save_model(folder, Blip(sizes.select_parts("encode", "decode", "itc", "itm")), tokenizer)
