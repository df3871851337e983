"""Speed of `capfilt caption` from tar to table, against transformers' BLIP as its model card uses it.

    transformers   BlipProcessor and BlipForConditionalGeneration.generate, batched, at the fastest batch size tried
    capfilt        the stage as the command runs it
    capfilt x5     the same with five captions per picture
    capfilt torch, capfilt openvino-int8
                   the same without OpenVINO, and with the image encoder in int8, if OpenVINO is installed

Prints a table of pictures/s, ratios, share of the measured matrix-product rate, and memory. All contenders have the
same random weights and pictures, a nucleus of 0.9, and write the same number of tokens. The operations of a picture
are those of the image encoder, the keys and values, and each token.

    python tests/benchmarks/caption.py                     # ViT-B/16 at 384 pixels, on the GPU if there is one
    python tests/benchmarks/caption.py --model large
    python tests/benchmarks/caption.py --quick             # a small model, to check that the benchmark runs
"""

import argparse
import importlib.util
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import stages
import torch

from blipcore.device import pick_device, supports_bf16
from blipcore.generate.config import GenerateConfig
from blipcore.torchvision_shim import heal_torchvision

PEERS = ["transformers fp32", "transformers bf16"]


class Transformers:
    """The code of the model card, from a tar to a table."""

    def __init__(self, work: Path, dtype: str, device: str, pictures: int, tokens: int, batch_sizes: list[int]) -> None:
        heal_torchvision()
        from transformers import BlipForConditionalGeneration, BlipProcessor

        self.work, self.device, self.pictures, self.tokens = work, device, pictures, tokens
        self.dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
        self.processor = BlipProcessor.from_pretrained(work / "hf")
        self.model = BlipForConditionalGeneration.from_pretrained(work / "hf", dtype=self.dtype).to(device).eval()
        images = [image for _, image, _ in stages.read_tar(work / "data", max(batch_sizes))]
        self.batch_size = stages.fastest_batch(batch_sizes, lambda n: self.caption(images[:n]))

    @torch.inference_mode()
    def caption(self, images: list) -> list[str]:
        inputs = self.processor(images=images, return_tensors="pt").to(self.device, self.dtype)
        ids = self.model.generate(
            **inputs,
            do_sample=True,
            top_p=0.9,
            repetition_penalty=1.1,
            min_new_tokens=self.tokens,
            max_new_tokens=self.tokens,
        )
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    def run(self) -> dict[str, Any]:
        keys, texts, batch = [], [], []
        for key, image, _ in stages.read_tar(self.work / "data", self.pictures):
            keys.append(key)
            batch.append(image)
            if len(batch) == self.batch_size or len(keys) == self.pictures:
                texts += self.caption(batch)
                batch = []
        pq.write_table(pa.table({"key": keys, "text": texts}), self.work / "transformers.parquet")
        return {"items": len(keys), "batch_size": self.batch_size, "text": texts}


class Capfilt:
    """The stage of `capfilt caption`, without the engine around it."""

    def __init__(
        self, work: Path, dtype: str, device: str, backend: str, tokens: int, captions: int, batch_size: int
    ) -> None:
        from blipcore.device import resolve_backend
        from capfilt.caption.registry import captioner_fingerprint
        from capfilt.caption.stage import CaptionConfig, CaptionStage
        from capfilt.shards.shard_set import ShardSet

        generate = GenerateConfig(prompt="", max_length=tokens + 1, min_length=tokens + 1, num_captions=captions)
        config = CaptionConfig(
            data=str(work / "data"), model=str(work / "blipcore"), generate=generate, batch_size=batch_size
        )
        backend = resolve_backend(device, dtype, backend)
        folder = work / f"{backend}-{dtype}-{captions}"
        folder.mkdir()
        fingerprint = captioner_fingerprint(config.model)
        self.stage = CaptionStage(config, ShardSet.open(config.data), folder, dtype, fingerprint, backend)
        self.device = device
        self.stage.setup(device)

    def run(self) -> dict[str, Any]:
        return stages.run_stage(self.stage, self.device, "pictures", "text")


def contenders(args: argparse.Namespace, work: Path) -> list[stages.Contender]:
    config = stages.model_config(args.model, args.image_size)
    image = stages.image_operations(config)
    token = stages.token_operations(config, image=True, head=True)
    shared = {"work": work, "device": args.device, "tokens": args.tokens}
    peer = shared | {"pictures": args.peer_pictures, "batch_sizes": args.peer_batch_sizes}
    rows = [
        stages.Contender("transformers", dtype, Transformers, peer | {"dtype": dtype}, image + args.tokens * token)
        for dtype in args.dtype
    ]
    dtype = args.dtype[-1]
    variants = [("capfilt", "auto", 1), ("capfilt x5", "auto", 5)]
    variants += [(f"capfilt {backend}", backend, 1) for backend in args.backends]
    for name, backend, captions in variants:
        options = {"dtype": dtype, "backend": backend, "captions": captions, "batch_size": args.batch_size}
        operations = image + captions * args.tokens * token
        rows.append(stages.Contender(name, dtype, Capfilt, shared | options, operations))
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stages.save_both(work, stages.model_config(args.model, args.image_size), "decode")
        stages.write_pictures(work / "data", args.pictures, args.picture_size, lambda rng: "a picture")
        rows = stages.compete(contenders(args, work), args.rounds, args.device)
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "work": f"{args.model} at {stages.model_config(args.model, args.image_size).vision.image_size} px, "
        f"{args.tokens} tokens per caption, nucleus 0.9, JPEGs of {args.picture_size} px; {args.rounds} rounds of "
        f"{args.pictures} pictures (transformers: {args.peer_pictures})",
        "rows": rows,
    }


def build_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of `caption.py` and `filter.py`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=["base", "large", "small"], default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", nargs="+", choices=["fp32", "bf16"], help="default: fp32, and bf16 in hardware")
    parser.add_argument("--pictures", type=int, help="default: 32 on a CPU, 2048 on a GPU")
    parser.add_argument("--picture-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, help="default: 32 on a CPU, 128 on a GPU")
    parser.add_argument("--peer-pictures", type=int, help="default: 8 on a CPU, 512 on a GPU")
    parser.add_argument("--peer-batch-sizes", type=int, nargs="+", help="default: 1 4 8 on a CPU, 32 128 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", nargs="*", help="besides auto; default with OpenVINO: torch openvino-int8")
    parser.add_argument("--quick", action="store_true", help="a small model and few pictures, to check that it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def set_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Set the defaults that depend on the device."""
    args.device = pick_device(args.device)
    small, gpu = args.quick, args.device == "cuda"
    if small:
        args.model, args.picture_size, args.rounds = "small", 64, 1
    args.pictures = args.pictures or (4 if small else 2048 if gpu else 32)
    args.peer_pictures = args.peer_pictures or (2 if small else 512 if gpu else 8)
    args.peer_batch_sizes = args.peer_batch_sizes or ([2] if small else [32, 128] if gpu else [1, 4, 8])
    args.batch_size = args.batch_size or (4 if small else 128 if gpu else 32)
    args.dtype = args.dtype or (["fp32", "bf16"] if supports_bf16(args.device) else ["fp32"])
    if args.backends is None:
        has_openvino = not gpu and importlib.util.find_spec("openvino") is not None
        args.backends = ["torch", "openvino-int8"] if has_openvino else []
    return args


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser(__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=20, help="per caption; all captions have this length")
    return set_defaults(parser.parse_args(words))


def main(words: list[str] | None = None) -> None:
    args = arguments(words)
    result = measure(args)
    print(json.dumps(result)) if args.json else stages.show(result, "pictures", PEERS)


if __name__ == "__main__":
    main()
