"""Speed of `capfilt filter`'s scores from tar to table, against transformers' BLIP, batched and one pair at a time.

    one pair       a picture and a text a forward pass in fp32, as data-juicer's image_text_matching_filter runs it
    transformers   BlipProcessor and BlipForImageTextRetrieval over batches of pairs, the fastest batch size tried
    capfilt        the stage as the command runs it, which also gives the ITC cosine
    capfilt torch, capfilt openvino-int8
                   the same without OpenVINO, and with the image encoder in int8, where that is installed

In: sizes and precision. Out: a table of pairs/s, ratios, the share of the measured matrix-product rate, memory. A
picture has a web text of 4 to 20 words and a synthetic one of 6 to 14. All have the same random weights and pictures;
the operations of a pair are those of its text and of half its picture, encoded once.

    python tests/benchmarks/filter.py                      # ViT-B/16 at 384 pixels, the device that is there
    python tests/benchmarks/filter.py --model large
    python tests/benchmarks/filter.py --quick              # a small model, seconds; no claim
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import stages
import torch
from caption import options, settle

from blipcore.torchvision_shim import heal_torchvision
from capfilt.shards.format import CAPTIONS
from capfilt.shards.tables import write_table

PEERS = ["one pair fp32", "transformers fp32", "transformers bf16"]
SYNTHETIC = "synthetic"
TEXT_TOKENS = 14.0  # of a text on average, first token and [SEP] included: 12 and 10 words


def words(rng: np.random.Generator, low: int, high: int) -> str:
    """A text of `low` to `high` words of the benchmark's vocabulary, a token each."""
    return " ".join(f"w{word}" for word in rng.integers(0, 400, rng.integers(low, high + 1)))


class Transformers:
    """Scores of pairs by the model card's lines, `batch_sizes` [1] being one pair at a time."""

    def __init__(self, work: Path, dtype: str, device: str, pictures: int, batch_sizes: list[int]) -> None:
        heal_torchvision()
        from transformers import BlipForImageTextRetrieval, BlipProcessor

        self.work, self.device, self.pictures = work, device, pictures
        self.kind = torch.bfloat16 if dtype == "bf16" else torch.float32
        self.processor = BlipProcessor.from_pretrained(work / "hf")
        self.model = BlipForImageTextRetrieval.from_pretrained(work / "hf", dtype=self.kind).to(device).eval()
        some = list(self.pairs(max(batch_sizes)))[: max(batch_sizes)]
        self.batch_size = batch_sizes[0]
        if len(batch_sizes) > 1:
            self.batch_size = stages.fastest_batch(batch_sizes, lambda n: self.score(some[:n]))

    def pairs(self, pictures: int):
        table = pq.read_table(self.work / "data" / "captions" / SYNTHETIC / f"{stages.SHARD}.parquet")
        said = dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))
        for key, image, web in stages.read_tar(self.work / "data", pictures):
            yield key, image, web
            yield key, image, said[key]

    @torch.inference_mode()
    def score(self, pairs: list) -> list[float]:
        inputs = self.processor(
            images=[image for _, image, _ in pairs],
            text=[text for *_, text in pairs],
            padding=True,
            return_tensors="pt",
        ).to(self.device, self.kind)
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
    """The scoring stage of `capfilt filter`."""

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
        self.stage.setup(device)

    def run(self) -> dict[str, Any]:
        return stages.run_stage(self.stage, "texts_scored", "itm")


def contenders(args: argparse.Namespace, work: Path) -> list[stages.Contender]:
    config = stages.model_config(args.model, args.image_size)
    image, read = stages.image_operations(config), TEXT_TOKENS * stages.token_operations(config, True, False)
    alone = TEXT_TOKENS * stages.token_operations(config, False, False)  # for ITC
    shared = {"work": work, "device": args.device}
    single = shared | {"dtype": "fp32", "pictures": max(1, args.peer_pictures // 2), "batch_sizes": [1]}
    found = [stages.Contender("one pair", "fp32", Transformers, single, image + read)]
    for dtype in args.dtype:
        own = shared | {"dtype": dtype, "pictures": args.peer_pictures, "batch_sizes": args.peer_batch_sizes}
        found.append(stages.Contender("transformers", dtype, Transformers, own, image + read))
    dtype = args.dtype[-1]
    for name, backend in [("capfilt", "auto"), *((f"capfilt {backend}", backend) for backend in args.backends)]:
        own = shared | {"dtype": dtype, "backend": backend, "batch_size": args.batch_size}
        found.append(stages.Contender(name, dtype, Capfilt, own, image / 2 + read + alone))
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stages.save_both(work, stages.model_config(args.model, args.image_size), "encode", "itc", "itm")
        stages.write_pictures(work / "data", args.pictures, args.picture_size, lambda rng: words(rng, 4, 20))
        rng = np.random.default_rng(1)
        said = [{"key": f"{number:06d}", "index": 0, "text": words(rng, 6, 14)} for number in range(args.pictures)]
        table = pa.Table.from_pylist(said, schema=CAPTIONS)
        write_table(work / "data" / "captions" / SYNTHETIC / f"{stages.SHARD}.parquet", table)
        rows = stages.compete(contenders(args, work), args.rounds, args.device)
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "work": f"{args.model} at {stages.model_config(args.model, args.image_size).vision.image_size} px, two texts a "
        f"picture, JPEGs of {args.picture_size} px; {args.rounds} rounds of {args.pictures} pictures "
        f"(transformers: {args.peer_pictures}, one pair: {max(1, args.peer_pictures // 2)})",
        "rows": rows,
    }


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    return settle(options(__doc__.split("\n")[0]).parse_args(given))


def main(given: list[str] | None = None) -> None:
    args = arguments(given)
    result = measure(args)
    print(json.dumps(result)) if args.json else stages.show(result, "pairs", PEERS)


if __name__ == "__main__":
    main()
