"""Fixtures for the tests of the stages: small random models and shards of drawn pictures."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from blipcore.io.samples import TarSample
from capfilt.shards.format import write_shard

WORDS = ["a", "picture", "of", "red", "green", "blue", "round", "square", "dog", "cat", "tree", "one", "two", "three"]
WORDS += ["on", "the", "left", "right", "and", "with"]


def _save_tiny_model(folder: Path, *parts: str, seed: int = 0) -> Path:
    """Save a random BLIP with some of the parts encode, decode, itc and itm. Large weights make its outputs differ."""
    import torch

    from blipcore.checkpoints.save import save_model
    from blipcore.model.blip import Blip
    from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
    from blipcore.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"])
    sizes = BlipConfig(
        VisionConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2),
        TextConfig(len(tokenizer), width=32, depth=2, heads=2, hidden=64, max_positions=40, encoder_width=32),
        embed_dim=16,
    )
    torch.manual_seed(seed)
    model = Blip(sizes.select_parts(*parts))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
        if "itm" in parts:  # centre the logits, so that half of the texts match
            ids, mask = tokenizer([" ".join(random.Random(n).choices(WORDS, k=4)) for n in range(64)], 35, "enc")
            kv = model.text.image_kv(model.encode_image(torch.randn(64, 3, 32, 32)))
            logits = model.eval().itm_logits(model.text.fuse(ids, mask, kv))
            model.itm_head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="session")
def save_tiny_model() -> Callable[..., Path]:
    return _save_tiny_model


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with all parts."""
    return _save_tiny_model(tmp_path_factory.mktemp("model") / "blip", "encode", "decode", "itc", "itm")


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a captioner."""
    return _save_tiny_model(tmp_path_factory.mktemp("model") / "captioner", "decode")


@pytest.fixture(scope="session")
def tiny_filter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a filter."""
    return _save_tiny_model(tmp_path_factory.mktemp("model") / "filter", "encode", "itc", "itm")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return `open_clip:ARCH/FILE` of a random model, whose architecture exists only in the tests."""
    import torch

    from blipcore.torchvision_shim import heal_torchvision

    heal_torchvision()
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    tower = {"width": 32, "layers": 2}
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "head_width": 16, **tower},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 2, **tower},
    }
    (folder / "tests-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tests-tiny.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tests-tiny").state_dict(), folder / "tiny.pt")
    return f"open_clip:tests-tiny/{folder / 'tiny.pt'}"


@pytest.fixture(scope="session")
def draw() -> Callable[..., Image.Image]:
    return _draw


@pytest.fixture(scope="session")
def drawn() -> Callable[..., TarSample]:
    return _drawn


def _draw(number: int, size: int = 40) -> Image.Image:
    """Draw a picture that is a function of its number."""
    rng = random.Random(number)
    colour = lambda: tuple(rng.randrange(256) for _ in range(3))  # noqa: E731
    image = Image.new("RGB", (size, size), colour())
    pen = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = rng.randrange(size), rng.randrange(size)
        pen.ellipse((x, y, x + size // 3, y + size // 2), fill=colour())
    return image


def _drawn(number: int, text: str | None = None) -> TarSample:
    """Return a drawn picture as a sample of a shard. The default text is a function of the number."""
    file = io.BytesIO()
    _draw(number).save(file, "PNG")
    if text is None:
        text = " ".join(random.Random(number).choices(WORDS, k=4))
    return TarSample(f"{number:06d}", file.getvalue(), text)


def _write_shards(folder: Path, count: int, pictures: int) -> Path:
    for shard in range(count):
        write_shard(folder / f"{shard:05d}.tar", (_drawn(1000 * shard + number) for number in range(pictures)))
    return folder


@pytest.fixture(scope="session")
def write_shards() -> Callable[[Path, int, int], Path]:
    """Write a shard set of `count` shards of `pictures` drawn pictures into a folder."""
    return _write_shards


@pytest.fixture
def shards(tmp_path: Path) -> Callable[[int, int], Path]:
    """Write a shard set into the folder of this test."""
    return lambda count, pictures: _write_shards(tmp_path / "data", count, pictures)


@pytest.fixture
def loop_yaml(tmp_path: Path, draw: Callable[..., Image.Image]) -> Path:
    """Write the YAML file of a bootstrap run, its shard set and a few human pairs; return the path of the YAML file."""
    import yaml

    _write_shards(tmp_path / "data", 1, 6)
    rows = []
    for number in range(6):
        draw(number).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": "a red dog" if number % 2 else "two green trees"})
    (tmp_path / "human.json").write_text(json.dumps(rows))
    tests = [row | {"caption": [row["caption"], "a picture"]} for row in rows]
    (tmp_path / "test.json").write_text(json.dumps(tests))
    train = {"train": {"batch_size": 4, "steps": 2, "log_every": 1}}
    settings = {
        "data": str(tmp_path / "data"),
        "human": [str(tmp_path / "human.json")],
        "out": str(tmp_path / "loop"),
        "human_share": 0.5,
        "tests": {"retrieval": str(tmp_path / "test.json")},
        "pretrain": {"preset": "tiny", "tokenizer": "train:60", "task": {"queue_size": 8}, **train},
        "finetune_captioner": train,
        "finetune_filter": {"retrieval": {"queue_size": 8}, **train},
        "caption": {"generate": {"prompt": "", "max_length": 8}},
        "filter": {"threshold": 0.0},
    }
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "loop.yaml"


def _start_ray(**options: object) -> None:
    import ray

    for last in (False, True):
        try:
            ray.init(
                num_cpus=2,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=100 << 20,
                **options,
            )
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if last:
                pytest.skip("this machine is too busy for Ray, which gives up after half a minute")


@pytest.fixture(scope="session")
def start_ray() -> Callable[..., None]:
    """Start Ray on two CPUs. The caller shuts it down."""
    return _start_ray
