"""The image encoder that every model of the demo starts from: a small ViT that tells single objects apart.

The paper starts from a ViT trained with labels on ImageNet; this is the same thing at the corpus's size. One classifier
reads the class token, which ITC will use, another the mean of the patch tokens, which cross-attention will read: with
the first alone, patches need not say what they show. The weights for the default nouns are shipped as
`image_encoder.safetensors`, made by

    python -m capfilt.demo.image_encoder capfilt/demo/image_encoder.safetensors

In: pictures of one object and the index of its noun, from a stream of scenes that no other part of the demo draws
from. Out: a state dict with timm's names, in float16, without the classifier.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from blipcore.data.transforms import train_transform
from blipcore.model.vit import VisionConfig, VisionTransformer
from blipcore.precision import autocast
from capfilt.demo.corpus import single_objects

SHIPPED = Path(__file__).parent / "image_encoder.safetensors"
SHIPPED_NOUNS = 48
VISION = VisionConfig(image_size=48, patch_size=8, width=128, depth=3, heads=4)
CORPUS_SEED = 2**31  # away from the seeds that a user gives to a corpus


def sincos_positions(config: VisionConfig) -> torch.Tensor:
    """A (1, 1+P, W) position table of sines and cosines of row and column, as MAE and MoCo v3 use it.

    Single objects are told apart wherever they lie, so training leaves a small random table as it is, and with it no
    trace of place in the tokens; captions that say "left of" need one. From this start, as large as the patch
    embeddings themselves, it is plain to see.
    """
    side = config.image_size // config.patch_size
    rates = 1.0 / 100 ** torch.linspace(0, 1, config.width // 4)
    angles = torch.arange(side)[:, None] * rates  # (side, W/4)
    wave = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, W/2)
    grid = torch.cat([wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)], dim=-1)
    return 2.0 * torch.cat([torch.zeros(1, config.width), grid.flatten(0, 1)])[None]


def train(out: Path, nouns: int, steps: int, batch_size: int = 64, lr: float = 1.5e-3, seed: int = 0) -> float:
    """Train on `steps` batches of fresh pictures, write `out`, and return the accuracy on 1,000 further pictures."""
    torch.manual_seed(seed)
    encoder = VisionTransformer(VISION)
    encoder.pos_embed.data.copy_(sincos_positions(VISION))
    heads = nn.ModuleList(nn.Linear(VISION.width, nouns) for _ in range(2))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=lr, weight_decay=0.05)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=min(100, steps // 2))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - min(100, steps // 2))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [min(100, steps // 2)])
    transform = train_transform(VISION.image_size, min_scale=0.8, randaugment=False, hflip=0.0)
    stream = single_objects(CORPUS_SEED, steps * batch_size + 1000, 96, nouns)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, classes = zip(*(next(stream) for _ in range(size)), strict=True)
        return torch.stack([transform(picture, None) for picture in pictures]), torch.tensor(classes)

    def logits(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(pixels.device):
            tokens = encoder(pixels)
            return heads[0](tokens[:, 0]).float(), heads[1](tokens[:, 1:].mean(1)).float()

    for step in range(steps):
        pixels, classes = batch(batch_size)
        loss = sum(F.cross_entropy(guess, classes, label_smoothing=0.1) for guess in logits(pixels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(json.dumps({"step": step + 1, "of": steps, "loss": round(loss.item(), 3)}), flush=True)

    encoder.eval()
    with torch.inference_mode():
        batches = [batch(100) for _ in range(10)]
        hits = [(sum(logits(pixels)).argmax(1) == classes) for pixels, classes in batches]
    accuracy = torch.cat(hits).float().mean().item()
    partial = out.with_name(out.name + ".partial")
    save_file({name: value.half().contiguous() for name, value in encoder.state_dict().items()}, partial)
    os.replace(partial, out)
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the demo's image encoder on pictures of single objects.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--nouns", type=int, default=SHIPPED_NOUNS)
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    accuracy = train(arguments.out, arguments.nouns, arguments.steps)
    print(json.dumps({"accuracy": round(accuracy, 4), "out": str(arguments.out)}))


if __name__ == "__main__":
    main()
