"""How far bf16, int8 and the backends change what the models say: captions and verdicts against those in fp32.

In: a shard set with captions, such as the demo's, its captioner and its filter. Out, for each backend: the share of
pairs on whose verdict at 0.5 it agrees with fp32; the share of captions that differ, and how near the noise was to
another token where they part. `near` is a distance in the nucleus' cumulative probability, under fp32.

    capfilt demo --out demo
    python tests/benchmarks/agreement.py demo/data --captioner demo/runs/captioner/model --filter demo/runs/filter/model
"""

import argparse
import statistics
import tempfile

import pyarrow.parquet as pq
import torch

from blipcore.checkpoints.load import load_model
from blipcore.data.transforms import eval_transform, load_image
from blipcore.device import resolve_backend
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.generate.sample import _constrain, sample_noise
from blipcore.inference.prepare import for_inference
from blipcore.io.samples import read_pictures
from capfilt.filter.config import ScoreConfig
from capfilt.filter.score import score_shards
from capfilt.shards.shard_set import ShardSet

BATCH = 64
HALF = 0.5


def scores(data: str, model: str, out: str, dtype: str, backend: str) -> dict[tuple, float]:
    """(key, source, index) -> ITM probability of all pairs."""
    config = ScoreConfig(data=data, model=model, out=out, dtype=dtype, backend=backend, scores=f"{dtype}-{backend}")
    folder = score_shards(config, progress=False).folder
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path).to_pylist()
        found |= {(row["key"], row["source"], row["index"]): row["itm"] for row in table if row["itm"] is not None}
    return found


def verdicts(args: argparse.Namespace, backends: list[str]) -> None:
    with tempfile.TemporaryDirectory() as out:
        exact = scores(args.data, args.filter, out, "fp32", "torch")
        print("| backend | pairs | verdicts agree | largest difference | farthest from 0.5 that differs |")
        print("|---|---|---|---|---|")
        for backend in backends:
            found = scores(args.data, args.filter, out, "bf16", backend)
            parted = [key for key in exact if (exact[key] >= HALF) != (found[key] >= HALF)]
            largest = max(abs(exact[key] - found[key]) for key in exact)
            farthest = max((abs(exact[key] - HALF) for key in parted), default=0.0)
            agree = 1 - len(parted) / len(exact)
            print(f"| {backend} | {len(exact)} | {agree:.2%} | {largest:.3f} | {farthest:.3f} |")


@torch.inference_mode()
def captions(args: argparse.Namespace, backends: list[str]) -> None:
    images = ShardSet.open(args.data)
    config = GenerateConfig()
    plain, tokenizer = load_model(args.captioner, needs=("decode",))
    prepare = eval_transform(plain.config.vision.image_size)
    keys, pixels = [], []
    for picture in read_pictures(images.tar(images.shards[0]), []):
        if len(keys) < args.pictures and picture.error is None:
            keys.append(picture.key)
            pixels.append(prepare(load_image(picture.image)))
    models = {"fp32": for_inference(plain, "cpu", "fp32")}
    models |= {name: for_inference(load_model(args.captioner)[0], "cpu", "bf16", backend=name) for name in backends}
    said = {name: [] for name in models}
    for start in range(0, len(keys), BATCH):
        batch = torch.stack(pixels[start : start + BATCH])
        for name, model in models.items():
            said[name] += generate(model, model.encode_image(batch), tokenizer, config, keys[start : start + BATCH]).ids
    print("\n| backend | captions | differ | near: median | near: largest |")
    print("|---|---|---|---|---|")
    for name in backends:
        near = []
        for key, picture, exact, other in zip(keys, pixels, said["fp32"], said[name], strict=True):
            if exact != other:
                near.append(distance(models["fp32"], tokenizer, config, key, picture, exact, other))
        tail = f"{statistics.median(near):.4f} | {max(near):.4f}" if near else "- | -"
        print(f"| {name} | {len(keys)} | {len(near) / len(keys):.2%} | {tail} |")


def distance(model, tokenizer, config: GenerateConfig, key: str, picture, exact: list[int], other: list[int]) -> float:
    """How much the noise would have to move, in fp32, to draw the first token that `other` has and `exact` has not."""
    exact, other = [*exact, tokenizer.sep], [*other, tokenizer.sep]
    place = next(i for i, (a, b) in enumerate(zip(exact, other, strict=False)) if a != b)
    prompt = tokenizer.prompt(config.prompt)
    ids = torch.tensor([prompt + exact[:place]])
    kv = model.text.image_kv(model.encode_image(picture[None]))
    logits = model.text.logits(model.text.decode(ids, torch.ones_like(ids), kv)[:, -1]).float()
    top, tokens = _constrain(logits, ids, tokenizer.sep, config).topk(min(config.top_k, logits.shape[1]))
    share = top.double().softmax(1)
    kept = share.cumsum(1) - share <= config.top_p
    if not kept[0][tokens[0] == other[place]].any():  # it came into the nucleus by rounding
        return (share.cumsum(1) - share)[0][tokens[0] == other[place]].sub(config.top_p).abs().min().item()
    share, tokens = (share * kept)[0], tokens[0]
    tokens, order = tokens.sort()
    cdf = share[order].cumsum(0) / share.sum()
    at = int((tokens == other[place]).nonzero())
    low, high = (cdf[at - 1].item() if at else 0.0), cdf[at].item()
    noise = float(sample_noise(config.seed, key, 0, place + 1)[place])
    return max(low - noise, noise - high, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--captioner", required=True)
    parser.add_argument("--filter", required=True)
    parser.add_argument("--pictures", type=int, default=1000, help="to caption, of the first shard")
    args = parser.parse_args()
    best = resolve_backend("cpu", "bf16")
    backends = [best] if best == "torch" else [best, "torch", "openvino-int8"]  # all with the rest in bf16
    verdicts(args, backends)
    captions(args, backends)


if __name__ == "__main__":
    main()
