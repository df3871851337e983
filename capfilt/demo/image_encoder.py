"""Pre-training of the image encoder that every model of the demo starts from.

The paper starts from a ViT trained on ImageNet labels; this is the equivalent at the size of the corpus. The class
token, which ITC reads, learns the nouns of a picture. Every patch token, which cross-attention reads, learns the noun
of its quarter, its number and its side of the picture. With labels per picture, as in ImageNet, tokens of a model this
small hold no place or number, and a captioner does not learn "left of" or "two" within minutes. The weights for the
default nouns ship as `image_encoder.safetensors`, made by

    python -m capfilt.demo.image_encoder capfilt/demo/image_encoder.safetensors

In: labelled pictures of one or two things, from a stream of scenes that no other part of the demo uses; no sentences.
Out: a state dict with timm's names, in float16, without the classifiers.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from blipcore.data.transforms import TrainTransform
from blipcore.device import autocast
from blipcore.io.writing import atomic_path
from blipcore.model.config import VisionConfig
from blipcore.model.vit import VisionTransformer
from capfilt.demo.corpus import REGIONS, labelled_pictures

SHIPPED = Path(__file__).parent / "image_encoder.safetensors"
SHIPPED_NOUNS = 48
VISION = VisionConfig(image_size=48, patch_size=8, width=128, depth=3, heads=4)
SMOOTHING = 0.1
CORPUS_SEED = 2**31  # no user is likely to choose it


def sincos_positions(config: VisionConfig) -> torch.Tensor:
    """Return a (1, 1+P, W) position table of sines and cosines of row and column, as in MAE and MoCo v3.

    It is scaled by 2, to the size of the patch embeddings, so that positions are visible from the start.
    """
    side = config.image_size // config.patch_size
    rates = 1.0 / 100 ** torch.linspace(0, 1, config.width // 4)
    angles = torch.arange(side)[:, None] * rates  # (side, W/4)
    wave = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, W/2)
    grid = torch.cat([wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)], dim=-1)
    return 2.0 * torch.cat([torch.zeros(1, config.width), grid.flatten(0, 1)])[None]


def train_image_encoder(
    out: Path, nouns: int, steps: int, batch_size: int = 64, lr: float = 1.5e-3, seed: int = 0
) -> float:
    """Train on `steps` batches of new pictures and write `out`; return the accuracy on the quarters of 1,000 others."""
    torch.manual_seed(seed)
    encoder = VisionTransformer(VISION)
    encoder.pos_embed.data.copy_(sincos_positions(VISION))
    class_head = nn.Linear(VISION.width, nouns)
    patch_heads = nn.ModuleList(nn.Linear(VISION.width, classes) for classes in (nouns, 3, len(REGIONS)))
    parameters = [*encoder.parameters(), *class_head.parameters(), *patch_heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=min(100, steps // 2))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - min(100, steps // 2))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [min(100, steps // 2)])
    transform = TrainTransform(VISION.image_size, min_scale=0.8, randaugment=False, hflip=0.0)
    stream = labelled_pictures(CORPUS_SEED, steps * batch_size + 1000, 96, nouns)
    half = VISION.image_size // VISION.patch_size // 2  # patches along a quarter

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, labels = zip(*(next(stream) for _ in range(size)), strict=True)
        return torch.stack([transform(picture, None) for picture in pictures]), torch.tensor(labels)

    def tokens(pixels: torch.Tensor) -> torch.Tensor:
        with autocast(pixels.device):
            return encoder(pixels).float()

    for step in range(steps):
        pixels, labels = batch(batch_size)  # (B, 3, S, S), (B, 2, 2, 3)
        states = tokens(pixels)
        # The class token names up to two nouns, so each quarter's noun has a quarter of its loss.
        loss = torch.zeros(())
        for noun in labels[..., 0].flatten(1).unbind(1):
            loss = loss + F.cross_entropy(class_head(states[:, 0]), noun, label_smoothing=SMOOTHING) / 4
        patch_labels = labels.repeat_interleave(half, 1).repeat_interleave(half, 2).flatten(0, 2)  # (B * P, 3)
        for head, target in zip(patch_heads, patch_labels.unbind(1), strict=True):
            loss = loss + F.cross_entropy(head(states[:, 1:]).flatten(0, 1), target, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(json.dumps({"step": step + 1, "of": steps, "loss": round(loss.item(), 3)}), flush=True)

    encoder.eval()
    hits = []
    with torch.inference_mode():
        for pixels, labels in (batch(100) for _ in range(10)):
            quarters = tokens(pixels)[:, 1:].unflatten(1, (2, half, 2, half))
            hits.append(patch_heads[0](quarters).mean((2, 4)).argmax(-1) == labels[..., 0])
    accuracy = torch.cat(hits).float().mean().item()
    with atomic_path(out) as path:
        save_file({name: value.half().contiguous() for name, value in encoder.state_dict().items()}, path)
    return accuracy


def main() -> None:
    """Train and write the shipped weights."""
    parser = argparse.ArgumentParser(description="Pretrain the demo's image encoder on labelled pictures.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--nouns", type=int, default=SHIPPED_NOUNS)
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    accuracy = train_image_encoder(arguments.out, arguments.nouns, arguments.steps)
    print(json.dumps({"accuracy": round(accuracy, 4), "out": str(arguments.out)}))


if __name__ == "__main__":
    main()
