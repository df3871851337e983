"""Re-ranking speed of `capfilt evaluate retrieval`: pairs/s of `match_pairs`, and of one padded row per pair.

    python tests/benchmarks/retrieval_evaluation.py --preset base --images 24 --texts 5 --k 64
    python tests/benchmarks/retrieval_evaluation.py --preset base --images 1000 --k 256 --batch 64 --device cuda

Weights, pixels and captions are random. Captions have COCO's lengths: 12 tokens on average with [CLS] and [SEP].
"""

import argparse
import random
import time
from dataclasses import replace

import torch
from torch import Tensor

from blipcore.device import pick_device
from blipcore.inference.prepare import prepare_for_inference
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.tasks.retrieval import match_pairs

LENGTHS = [min(35, max(8, round(random.Random(n).gauss(12, 2.5)))) for n in range(1000)]


@torch.inference_mode()
def one_row_per_pair(
    model: Blip,
    pixels: Tensor,
    ids: Tensor,
    mask: Tensor,
    image: Tensor,
    text: Tensor,
    rows: int,
) -> Tensor:
    """Return the logits of `match_pairs`, with a copy of the image's keys and values per pair and all texts padded."""
    kv = model.text.image_kv(model.encode_image(pixels))
    logits = []
    for images, texts in zip(image.to(ids.device).split(rows), text.to(ids.device).split(rows), strict=True):
        logits.append(model.itm_logits(model.text.fuse(ids[texts], mask[texts], kv.select(images))).cpu())
    return torch.cat(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--texts", type=int, default=5, help="per picture")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="pictures per batch")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    device, generator = pick_device(args.device), torch.Generator().manual_seed(0)

    config = PRESETS[args.preset]
    config = replace(config, vision=replace(config.vision, image_size=args.image_size)).select_parts(
        "encode", "itc", "itm"
    )
    model = prepare_for_inference(Blip(config), device, args.dtype)
    texts = args.images * args.texts
    length = torch.tensor([LENGTHS[n % len(LENGTHS)] for n in range(texts)])
    mask = (torch.arange(35)[None] < length[:, None]).long().to(device)
    ids = torch.randint(5, config.text.vocab_size, (texts, 35), generator=generator).to(device)
    # Shortlists of random features: k texts per picture and k pictures per text.
    texts_of = torch.rand(args.images, texts, generator=generator).topk(min(args.k, texts)).indices
    images_of = torch.rand(texts, args.images, generator=generator).topk(min(args.k, args.images)).indices
    text_pairs = torch.arange(args.images)[:, None] * texts + texts_of
    image_pairs = images_of * texts + torch.arange(texts)[:, None]
    pairs = torch.cat([text_pairs.flatten(), image_pairs.flatten()]).unique()

    print(f"{args.preset}, {args.image_size} pixels, {len(pairs):,} pairs of {args.images} pictures on {device}")
    rates = {}
    for rerank in (one_row_per_pair, match_pairs):
        seconds = 0.0
        for first in range(0, args.images, args.batch):
            last = min(first + args.batch, args.images)
            pixels = torch.randn(last - first, 3, args.image_size, args.image_size, generator=generator).to(device)
            batch = pairs[(pairs >= first * texts) & (pairs < last * texts)]
            started = time.perf_counter()
            with torch.inference_mode():
                rerank(model, pixels, ids, mask, batch // texts - first, batch % texts, args.rows)
            seconds += time.perf_counter() - started
        rates[rerank.__name__] = len(pairs) / seconds
        print(f"{rerank.__name__:>16}  {rates[rerank.__name__]:10,.0f} pairs/s")
    print(f"{'ratio':>16}  {rates['match_pairs'] / rates['one_row_per_pair']:10.1f}")


if __name__ == "__main__":
    main()
