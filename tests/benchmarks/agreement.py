"""Effect of bf16, int8 and the backends on captions and verdicts, compared with fp32.

Takes a shard set with captions, such as the demo's, its captioner and its filter. Prints per backend the share of pairs
with the same verdict at 0.5 as in fp32, and the share of captions that differ. `distance` is how far the noise was
from drawing the other token where two captions first differ, in cumulative probability of the fp32 nucleus.

    capfilt demo --out demo
    python tests/benchmarks/agreement.py demo/data --captioner demo/runs/captioner/model --filter demo/runs/filter/model
"""

import argparse
import statistics
import tempfile

import pyarrow.parquet as pq
import torch

from blipcore.checkpoints.load import load_model
from blipcore.data.transforms import EvalTransform, load_image
from blipcore.device import resolve_backend
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.generate.sample import constrain_scores, sample_noise
from blipcore.inference.prepare import prepare_for_inference
from blipcore.io.samples import read_samples
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from capfilt.filter.config import ScoreConfig
from capfilt.filter.find_scores import locate_scores
from capfilt.filter.score import score_shards
from capfilt.shards.shard_set import ShardSet

BATCH = 64
THRESHOLD = 0.5


def scores(data: str, model: str, out: str, dtype: str, backend: str) -> dict[tuple, float]:
    """Return the ITM probability of all pairs by (key, source, index)."""
    config = ScoreConfig(data=data, model=model, out=out, dtype=dtype, backend=backend, scores=f"{dtype}-{backend}")
    images = ShardSet.open(data)
    folder = score_shards(config, images, locate_scores(config, images), progress=False).folder
    probabilities = {}
    for path in sorted(folder.path.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row["itm"] is not None:
                probabilities[row["key"], row["source"], row["index"]] = row["itm"]
    return probabilities


def compare_verdicts(args: argparse.Namespace, backends: list[str]) -> None:
    """Print the agreement of the verdicts."""
    with tempfile.TemporaryDirectory() as out:
        exact = scores(args.data, args.filter, out, "fp32", "torch")
        print("| backend | pairs | equal verdicts | largest difference | farthest changed score from 0.5 |")
        print("|---|---|---|---|---|")
        for backend in backends:
            other = scores(args.data, args.filter, out, "bf16", backend)
            changed = [key for key in exact if (exact[key] >= THRESHOLD) != (other[key] >= THRESHOLD)]
            largest = max(abs(exact[key] - other[key]) for key in exact)
            farthest = max((abs(exact[key] - THRESHOLD) for key in changed), default=0.0)
            agree = 1 - len(changed) / len(exact)
            print(f"| {backend} | {len(exact)} | {agree:.2%} | {largest:.3f} | {farthest:.3f} |")


@torch.inference_mode()
def compare_captions(args: argparse.Namespace, backends: list[str]) -> None:
    """Print the agreement of the captions of the first shard's pictures."""
    shards = ShardSet.open(args.data)
    config = GenerateConfig()
    plain, tokenizer = load_model(args.captioner, needs=("decode",))
    prepare = EvalTransform(plain.config.vision.image_size)
    keys, pixels = [], []
    for picture in read_samples(shards.tar(shards.shards[0]), []):
        if len(keys) < args.pictures and picture.error is None:
            keys.append(picture.key)
            pixels.append(prepare(load_image(picture.image)))
    models = {"fp32": prepare_for_inference(plain, "cpu", "fp32")}
    for name in backends:
        models[name] = prepare_for_inference(load_model(args.captioner)[0], "cpu", "bf16", backend=name)
    ids: dict[str, list[list[int]]] = {name: [] for name in models}
    for start in range(0, len(keys), BATCH):
        batch = torch.stack(pixels[start : start + BATCH])
        for name, model in models.items():
            ids[name] += generate(model, model.encode_image(batch), tokenizer, config, keys[start : start + BATCH]).ids
    print("\n| backend | captions | different | distance: median | distance: largest |")
    print("|---|---|---|---|---|")
    for name in backends:
        distances = []
        for key, picture, exact, other in zip(keys, pixels, ids["fp32"], ids[name], strict=True):
            if exact != other:
                distances.append(noise_distance(models["fp32"], tokenizer, config, key, picture, exact, other))
        tail = f"{statistics.median(distances):.4f} | {max(distances):.4f}" if distances else "- | -"
        print(f"| {name} | {len(keys)} | {len(distances) / len(keys):.2%} | {tail} |")


def noise_distance(
    model: Blip,
    tokenizer: Tokenizer,
    config: GenerateConfig,
    key: str,
    pixels: torch.Tensor,
    exact: list[int],
    other: list[int],
) -> float:
    """Return how far the noise is, in fp32, from drawing the first token in which `other` differs from `exact`."""
    exact, other = [*exact, tokenizer.sep], [*other, tokenizer.sep]
    position = next(i for i, (a, b) in enumerate(zip(exact, other, strict=False)) if a != b)
    prompt = tokenizer.prompt(config.prompt)
    ids = torch.tensor([prompt + exact[:position]])
    kv = model.text.image_kv(model.encode_image(pixels[None]))
    logits = model.text.logits(model.text.decode(ids, torch.ones_like(ids), kv)[:, -1]).float()
    top, tokens = constrain_scores(logits, ids, tokenizer.sep, config).topk(min(config.top_k, logits.shape[1]))
    share = top.double().softmax(1)
    kept = share.cumsum(1) - share <= config.top_p
    if not kept[0][tokens[0] == other[position]].any():
        # Rounding moved the other token into the nucleus.
        return (share.cumsum(1) - share)[0][tokens[0] == other[position]].sub(config.top_p).abs().min().item()
    share, tokens = (share * kept)[0], tokens[0]
    tokens, order = tokens.sort()
    cdf = share[order].cumsum(0) / share.sum()
    rank = int((tokens == other[position]).nonzero())
    low, high = (cdf[rank - 1].item() if rank else 0.0), cdf[rank].item()
    noise = float(sample_noise(config.seed, key, 0, position + 1)[position])
    return max(low - noise, noise - high, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--captioner", required=True)
    parser.add_argument("--filter", required=True)
    parser.add_argument("--pictures", type=int, default=1000, help="number of pictures of the first shard to caption")
    args = parser.parse_args()
    default = resolve_backend("cpu", "bf16")
    # The backend of the image encoder; everything else runs in bf16.
    backends = [default] if default == "torch" else [default, "torch", "openvino-int8"]
    compare_verdicts(args, backends)
    compare_captions(args, backends)


if __name__ == "__main__":
    main()
