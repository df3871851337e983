"""Speed of `capfilt filter`'s scores from tar to table, against transformers' BLIP, batched and one pair at a time.

    one pair       one picture and text per forward pass in fp32, as in data-juicer's image_text_matching_filter
    transformers   BlipProcessor and BlipForImageTextRetrieval on batches of pairs, at the fastest batch size tried
    capfilt        the stage as the command runs it, which also computes the ITC cosine
    capfilt torch, capfilt openvino-int8
                   the same without OpenVINO, and with the image encoder in int8, if OpenVINO is installed

Prints a table of pairs/s, ratios, share of the measured matrix-product rate, and memory. Each picture has a web text of
4 to 20 words and a synthetic caption of 6 to 14. All contenders have the same random weights and pictures. The
operations of a pair are those of its text and half of those of its picture, which is encoded once.

    python tests/benchmarks/filter.py                      # ViT-B/16 at 384 pixels, on the GPU if there is one
    python tests/benchmarks/filter.py --model large
    python tests/benchmarks/filter.py --quick              # a small model, to check that the benchmark runs
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import stages
import torch
from caption import build_parser, set_defaults
from PIL import Image

from blipcore.torchvision_shim import heal_torchvision
from capfilt.shards.format import CAPTIONS
from capfilt.shards.tables import write_table

PEERS = ["one pair fp32", "transformers fp32", "transformers bf16"]
SYNTHETIC = "synthetic"
# Mean tokens per text with the first token and [SEP]: 12 and 10 words on average.
MEAN_TOKENS = 14.0


def random_text(rng: np.random.Generator, low: int, high: int) -> str:
    """Return a text of `low` to `high` words of the benchmark's vocabulary, one token each."""
    return " ".join(f"w{word}" for word in rng.integers(0, 400, rng.integers(low, high + 1)))


class Transformers:
    """Scores pairs with the code of the model card; `batch_sizes` [1] means one pair at a time."""

    def __init__(self, work: Path, dtype: str, device: str, pictures: int, batch_sizes: list[int]) -> None:
        heal_torchvision()
        from transformers import BlipForImageTextRetrieval, BlipProcessor

        self.work, self.device, self.pictures = work, device, pictures
        self.dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
        self.processor = BlipProcessor.from_pretrained(work / "hf")
        self.model = BlipForImageTextRetrieval.from_pretrained(work / "hf", dtype=self.dtype).to(device).eval()
        pairs = list(self.pairs(max(batch_sizes)))[: max(batch_sizes)]
        self.batch_size = batch_sizes[0]
        if len(batch_sizes) > 1:
            self.batch_size = stages.fastest_batch(batch_sizes, lambda n: self.score(pairs[:n]))

    def pairs(self, pictures: int) -> Iterator[tuple[str, Image.Image, str]]:
        """Yield key, picture and text of both pairs of each picture."""
        table = pq.read_table(self.work / "data" / "captions" / SYNTHETIC / f"{stages.SHARD}.parquet")
        captions = dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))
        for key, image, web in stages.read_tar(self.work / "data", pictures):
            yield key, image, web
            yield key, image, captions[key]

    @torch.inference_mode()
    def score(self, pairs: list) -> list[float]:
        inputs = self.processor(
            images=[image for _, image, _ in pairs],
            text=[text for *_, text in pairs],
            padding=True,
            return_tensors="pt",
        ).to(self.device, self.dtype)
        return self.model(**inputs).itm_score.float().softmax(-1)[:, 1].tolist()

    def run(self) -> dict[str, Any]:
        keys, scores, batch = [], [], []
        for pair in self.pairs(self.pictures):
            keys.append(pair[0])
            batch.append(pair)
            if len(batch) == self.batch_size or len(keys) == 2 * self.pictures:
                scores += self.score(batch)
                batch = []
        pq.write_table(pa.table({"key": keys, "itm": scores}), self.work / "transformers.parquet")
        return {"items": len(scores), "batch_size": self.batch_size, "itm": scores}


class Capfilt:
    """The scoring stage of `capfilt filter`, without the engine around it."""

    def __init__(self, work: Path, dtype: str, device: str, backend: str, batch_size: int) -> None:
        from blipcore.device import resolve_backend
        from capfilt.filter.config import ScoreConfig
        from capfilt.filter.score import ScoreStage
        from capfilt.shards.shard_set import ShardSet

        config = ScoreConfig(
            data=str(work / "data"), model=str(work / "blipcore"), first_token="cls", batch_size=batch_size
        )
        backend = resolve_backend(device, dtype, backend)
        folder = work / f"{backend}-{dtype}"
        folder.mkdir()
        captions = {"web": None, SYNTHETIC: work / "data" / "captions" / SYNTHETIC}
        self.stage = ScoreStage(config, ShardSet.open(config.data), folder, captions, dtype, backend)
        self.device = device
        self.stage.setup(device)

    def run(self) -> dict[str, Any]:
        return stages.run_stage(self.stage, self.device, "texts_scored", "itm")


def contenders(args: argparse.Namespace, work: Path) -> list[stages.Contender]:
    config = stages.model_config(args.model, args.image_size)
    image = stages.image_operations(config)
    itm_text = MEAN_TOKENS * stages.token_operations(config, image=True, head=False)
    itc_text = MEAN_TOKENS * stages.token_operations(config, image=False, head=False)
    shared = {"work": work, "device": args.device}
    single = shared | {"dtype": "fp32", "pictures": max(1, args.peer_pictures // 2), "batch_sizes": [1]}
    rows = [stages.Contender("one pair", "fp32", Transformers, single, image + itm_text)]
    for dtype in args.dtype:
        options = shared | {"dtype": dtype, "pictures": args.peer_pictures, "batch_sizes": args.peer_batch_sizes}
        rows.append(stages.Contender("transformers", dtype, Transformers, options, image + itm_text))
    dtype = args.dtype[-1]
    for name, backend in [("capfilt", "auto"), *((f"capfilt {backend}", backend) for backend in args.backends)]:
        options = shared | {"dtype": dtype, "backend": backend, "batch_size": args.batch_size}
        rows.append(stages.Contender(name, dtype, Capfilt, options, image / 2 + itm_text + itc_text))
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stages.save_both(work, stages.model_config(args.model, args.image_size), "encode", "itc", "itm")
        stages.write_pictures(work / "data", args.pictures, args.picture_size, lambda rng: random_text(rng, 4, 20))
        rng = np.random.default_rng(1)
        captions = [
            {"key": f"{number:06d}", "index": 0, "text": random_text(rng, 6, 14)} for number in range(args.pictures)
        ]
        table = pa.Table.from_pylist(captions, schema=CAPTIONS)
        write_table(work / "data" / "captions" / SYNTHETIC / f"{stages.SHARD}.parquet", table)
        rows = stages.compete(contenders(args, work), args.rounds, args.device)
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "work": f"{args.model} at {stages.model_config(args.model, args.image_size).vision.image_size} px, "
        f"two texts per picture, JPEGs of {args.picture_size} px; {args.rounds} rounds of {args.pictures} pictures "
        f"(transformers: {args.peer_pictures}, one pair: {max(1, args.peer_pictures // 2)})",
        "rows": rows,
    }


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    return set_defaults(build_parser(__doc__.split("\n")[0]).parse_args(words))


def main(words: list[str] | None = None) -> None:
    args = arguments(words)
    result = measure(args)
    print(json.dumps(result)) if args.json else stages.show(result, "pairs", PEERS)


if __name__ == "__main__":
    main()
