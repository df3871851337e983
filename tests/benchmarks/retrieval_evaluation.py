"""How fast `capfilt evaluate retrieval` re-ranks: pairs/s of the grouped way and of one row a pair, padded to 35.

    python tests/benchmarks/retrieval_evaluation.py --preset base --images 24 --texts 5 --k 64
    python tests/benchmarks/retrieval_evaluation.py --preset base --images 1000 --k 256 --batch 64 --device cuda

Random weights, random pixels, random captions of COCO's lengths (12 word pieces on average, [CLS] and [SEP] included).
"""

import argparse
import random
import time
from dataclasses import replace

import torch

from blipcore.device import pick_device
from blipcore.inference.prepare import for_inference
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.tasks.retrieval import match_pairs

LENGTHS = [min(35, max(8, round(random.Random(n).gauss(12, 2.5)))) for n in range(1000)]


@torch.inference_mode()
def one_row_a_pair(model, pixels, ids, mask, image, text, rows):
    """The same logits with every pair's own copy of the picture's keys and values, and every text padded."""
    kv = model.text.image_kv(model.encode_image(pixels))
    logits = []
    for of, row in zip(image.to(ids.device).split(rows), text.to(ids.device).split(rows), strict=True):
        logits.append(model.itm_logits(model.text.fuse(ids[row], mask[row], kv.select(of)))[:, 1].cpu())
    return torch.cat(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--texts", type=int, default=5, help="of a picture")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="pictures")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    device, draw = pick_device(args.device), torch.Generator().manual_seed(0)

    config = PRESETS[args.preset]
    config = replace(config, vision=replace(config.vision, image_size=args.image_size)).only("encode", "itc", "itm")
    model = for_inference(Blip(config), device, args.dtype)
    texts = args.images * args.texts
    length = torch.tensor([LENGTHS[n % len(LENGTHS)] for n in range(texts)])
    mask = (torch.arange(35)[None] < length[:, None]).long().to(device)
    ids = torch.randint(5, config.text.vocab_size, (texts, 35), generator=draw).to(device)
    # Shortlists of random features: k texts of each picture, k pictures of each text.
    texts_of = torch.rand(args.images, texts, generator=draw).topk(min(args.k, texts)).indices
    images_of = torch.rand(texts, args.images, generator=draw).topk(min(args.k, args.images)).indices
    pairs = torch.cat([(torch.arange(args.images)[:, None] * texts + texts_of).flatten(),
                       (images_of * texts + torch.arange(texts)[:, None]).flatten()]).unique()  # fmt: skip

    print(f"{args.preset}, {args.image_size} pixels, {len(pairs):,} pairs of {args.images} pictures on {device}")
    rates = {}
    for way in (one_row_a_pair, match_pairs):
        seconds = 0.0
        for first in range(0, args.images, args.batch):
            last = min(first + args.batch, args.images)
            pixels = torch.randn(last - first, 3, args.image_size, args.image_size, generator=draw).to(device)
            some = pairs[(pairs >= first * texts) & (pairs < last * texts)]
            started = time.perf_counter()
            with torch.inference_mode():
                way(model, pixels, ids, mask, some // texts - first, some % texts, args.rows)
            seconds += time.perf_counter() - started
        rates[way.__name__] = len(pairs) / seconds
        print(f"{way.__name__:>16}  {rates[way.__name__]:10,.0f} pairs/s")
    print(f"{'ratio':>16}  {rates['match_pairs'] / rates['one_row_a_pair']:10.1f}")


if __name__ == "__main__":
    main()
