"""Speed and memory of a BLIP pre-training step (ITC, ITM, LM, momentum encoders, AdamW), against the official code.

    official   the official arithmetic and order (see `official.py`), texts padded to 30 tokens
    unfused    blipcore's blocks, in the same separate and padded passes
    ours       `PretrainTask`

Prints a table of images/s, memory and utilisation, as medians over rounds in which the variants take turns, and
the costliest operations of `PretrainTask`. Before timing, the variants must agree on every loss and gradient
norm of one batch, without dropout.

Measured on two cores of an AMD EPYC with AVX512-BF16, torch 2.13: ViT-B/16 at 224 pixels, batches of 8, texts of 13
tokens on average and at most 15. The first four rows are from one run, the last three from another. Utilisation is
relative to a large matrix product in the same precision: 0.185 TFLOP/s in fp32, 0.407 in bf16.

| path | precision | images/s | x official fp32 | x unfused | GFLOP/image | utilisation | step GiB |
|---|---|---|---|---|---|---|---|
| official | fp32 | 0.431 | 1.00 | 0.93 | 306.6 | 72% | 4.02 |
| unfused | fp32 | 0.463 | 1.07 | 1.00 | 300.9 | 75% | 3.07 |
| ours | fp32 | 0.718 | 1.66 | 1.55 | 200.9 | 78% | 2.34 |
| ours | bf16 | 1.31 | 3.04 | - | 206.7 | 67% | 1.86 |
| official | bf16 | 0.761 | - | 0.93 | 306.6 | 57% | 3.29 |
| unfused | bf16 | 0.823 | - | 1.00 | 306.6 | 62% | 2.37 |
| ours | bf16 | 1.26 | - | 1.53 | 206.7 | 64% | 1.86 |

The goal of four times the official fp32 speed is not reached on this CPU. bf16 has 2.2 times the rate of fp32, and
`PretrainTask` has two thirds of the operations, so the goal would need 88% of the matrix-product rate. Matrix products
take 70 to 72% of the bf16 step, conversions between fp32 and bf16 7 to 10%, random numbers for dropout 3%,
concatenations 1 to 3%, AdamW 2%, and softmax, GELU and momentum updates 1% each. Two attempts did not help:
`torch.compile` of the layers (92 s to compile, no faster) and keeping freed memory with mallopt (no difference beyond
the spread).

    python tests/benchmarks/train_step.py                                    # ViT-B/16, on the GPU if there is one
    python tests/benchmarks/train_step.py --model large --batch-size 128     # ViT-L/16, on a GPU
    python tests/benchmarks/train_step.py --rows official:fp32 ours:bf16     # two rows only
    python tests/benchmarks/train_step.py --quick                            # a small model, to check that it runs
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from official import Official
from stages import matmul_rate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from blipcore.device import autocast, pick_device, supports_bf16
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig
from blipcore.tasks.losses import IGNORE_INDEX, lm_loss
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.task import Batch, Outputs, Progress, replace_first
from blipcore.train.compile import prepare_layers
from blipcore.train.optim import TrainConfig, make_adamw

PAD = 0
# The official pre-training pads every text to this length.
MAX_TOKENS = 30
PROGRESS = Progress(step=1, steps=2)


class Unfused(nn.Module):
    """`task` in the official order: one pass per loss, each with its own keys and values of the images."""

    def __init__(self, task: PretrainTask) -> None:
        super().__init__()
        self.task = task

    def before_step(self, progress: Progress) -> None:
        self.task.before_step(progress)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        task, model, text = self.task, self.task.model, self.task.model.text
        ids, mask = batch["input_ids"], batch["attention_mask"]
        embeds, hidden = model.encode_image(batch["pixels"]), text.encode(ids, mask)
        out = task.compute_itc(batch, model.image_feat(embeds), model.text_feat(hidden), progress)
        images, texts = task.draw_negatives(out.pop("i2t"), out.pop("t2i"), same_row(ids), progress)
        enc = replace_first(ids, task.tokenizer.enc)
        positive = text.fuse(enc, mask, text.image_kv(embeds))
        kv = text.image_kv(torch.cat([embeds[images], embeds]))
        negative = text.fuse(torch.cat([enc, enc[texts]]), torch.cat([mask, mask[texts]]), kv)
        logits = model.itm_logits(torch.cat([positive, negative]))
        labels = torch.zeros(len(logits), dtype=torch.long, device=ids.device)
        labels[: len(ids)] = 1
        decoded = text.decode(replace_first(ids, task.tokenizer.bos), mask, text.image_kv(embeds))
        out["loss_itm"] = F.cross_entropy(logits, labels)
        out["loss_lm"] = lm_loss(text.logits(decoded), ids.masked_fill(mask == 0, IGNORE_INDEX))
        return out | {"loss": out["loss_itc"] + out["loss_itm"] + out["loss_lm"]}

    def after_step(self, outputs: list[Outputs]) -> None:
        self.task.after_step(outputs)


def same_row(ids: Tensor) -> Tensor:
    """Return (B, B), True on the diagonal: only the own pair is excluded as a negative, as in the official code."""
    return torch.eye(len(ids), dtype=torch.bool, device=ids.device)


@dataclass
class StepVariant:
    """One implementation of the training step, with its form of the batch.

    `eager` runs it without compilation, although `unfused` shares its layers with `ours`, which is compiled.
    """

    name: str
    task: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Batch
    dtype: str
    device: str
    eager: bool

    def losses(self) -> Outputs:
        stance = "force_eager" if self.eager else "default"
        with torch.compiler.set_stance(stance), autocast(self.device, self.dtype):
            return self.task(self.batch, PROGRESS)

    def step(self) -> None:
        self.task.before_step(PROGRESS)
        out = self.losses()
        out["loss"].backward()
        self.optimizer.step()
        self.task.after_step([{name: value.detach() for name, value in out.items()}])
        self.optimizer.zero_grad(set_to_none=True)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, steps: int) -> float:
        self.wait()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        return (time.perf_counter() - started) / steps

    def operations(self) -> int:
        """Return the floating-point operations of a step: two per multiply-add of matrix products and attention."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()

    def peak_bytes(self) -> int:
        """Return the peak memory of a step beyond weights, momentum encoders, queues and optimiser state."""
        if self.device == "cuda":
            self.wait()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            self.wait()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self.step()
        # `record.events()` omits the memory that operations allocate.
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        current = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            current += event.nbytes()
            peak = max(peak, current)
        return peak

    def profile(self, rows: int) -> list[dict[str, float | str]]:
        """Return the costliest operations of a step, with their share of the time in percent."""
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device == "cuda" else [])
        with profile(activities=activities) as record:
            self.step()
            self.wait()
        device_time = self.device == "cuda"
        times = {
            event.key: event.self_device_time_total if device_time else event.self_cpu_time_total
            for event in record.key_averages()
        }
        total = sum(times.values())
        top = sorted(times.items(), key=lambda item: -item[1])[:rows]
        return [{"operation": name, "percent": round(100 * value / total, 1)} for name, value in top if value]


def captions(config: BlipConfig, n: int, mean: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ids and mask (n, MAX_TOKENS) of random texts of about `mean` tokens with [CLS] and [SEP]."""
    lengths = (torch.randn(n, generator=generator) * mean / 5 + mean).round().clamp(4, MAX_TOKENS).long()
    mask = (torch.arange(MAX_TOKENS) < lengths[:, None]).long()
    ids = torch.randint(1, config.text.vocab_size - 2, (n, MAX_TOKENS), generator=generator)
    return ids.masked_fill(mask == 0, PAD), mask


def build(args: argparse.Namespace, device: str) -> list[StepVariant]:
    """Return the requested variants, all with the same weights and batch."""
    torch.manual_seed(0)
    config = PRESETS[args.model] if args.model != "small" else small_config()
    # transformers' blocks have no drop path.
    config = replace(config, vision=replace(config.vision, drop_path=0.0))
    model = Blip(config)
    objective = PretrainConfig(queue_size=args.queue_size)
    tokenizer = SimpleNamespace(bos=config.text.vocab_size - 2, enc=config.text.vocab_size - 1)  # 30522, 30523
    task = PretrainTask(model, tokenizer, objective)
    official = Official(model, objective)
    official.image_queue.copy_(task.image_queue)
    official.text_queue.copy_(task.text_queue)
    task.to(device), official.to(device)

    generator = torch.Generator().manual_seed(1)
    ids, mask = captions(config, args.batch_size, args.caption_tokens, generator)
    side = config.vision.image_size
    pixels = torch.randn(args.batch_size, 3, side, side, generator=generator).to(device)
    padded = {"pixels": pixels, "input_ids": ids.to(device), "attention_mask": mask.to(device)}
    padded["image_ids"] = torch.arange(len(ids), device=device)
    longest = int(mask.sum(1).max())
    cut = padded | {name: padded[name][:, :longest] for name in ("input_ids", "attention_mask")}

    official_optimizer = torch.optim.AdamW(official.parameters(), lr=1e-4, weight_decay=0.05)
    optimizer = make_adamw(task, TrainConfig(steps=1, lr=1e-4))
    builders = {
        "official": lambda dtype: StepVariant(
            "official", official, official_optimizer, padded, dtype, device, eager=True
        ),
        "unfused": lambda dtype: StepVariant("unfused", Unfused(task), optimizer, padded, dtype, device, eager=True),
        "ours": lambda dtype: StepVariant("ours", task, optimizer, cut, dtype, device, eager=False),
    }
    return [builders[name](dtype) for name, dtype in (row.split(":") for row in args.rows)]


def small_config() -> BlipConfig:
    """Return a model whose step takes milliseconds."""
    return replace(PRESETS["tiny"], text=replace(PRESETS["tiny"].text, dropout=0.1))


def check_agreement(variants: list[StepVariant]) -> dict[str, float]:
    """Return the losses and gradient norm of one batch; raise AssertionError if the variants differ.

    Dropout is off and the negative of a sample is the next sample, because random draws and ties would differ.
    """
    expected: dict[str, float] = {}
    for variant in variants:
        owner = getattr(variant.task, "task", variant.task)
        owner.draw_negatives = lambda i2t, *_: [torch.arange(len(i2t), device=i2t.device).roll(1)] * 2
        variant.task.eval()
        queues = {name: value.clone() for name, value in variant.task.named_buffers() if "queue" in name}
        out = variant.losses()
        out["loss"].backward()
        parameters = [p for group in variant.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        variant.optimizer.zero_grad(set_to_none=True)
        variant.task.load_state_dict(queues, strict=False)  # the official forward pass changes them
        variant.task.pointer = 0
        variant.task.train()
        del owner.draw_negatives
        values = {name: out[name].item() for name in ("loss_itc", "loss_itm", "loss_lm")} | {"gradient": norm.item()}
        expected = expected or values
        tolerance = 1e-4 if variant.dtype == "fp32" else 3e-2
        for name, value in values.items():
            error = abs(value - expected[name]) / abs(expected[name])
            assert error < tolerance, (
                f"{variant.name} {variant.dtype}: {name} is {value}, but {variants[0].name} has {expected[name]}"
            )
    return expected


def measure(args: argparse.Namespace) -> dict[str, object]:
    device = pick_device(args.device)
    variants = build(args, device)
    losses = check_agreement(sorted(variants, key=lambda variant: variant.dtype != "fp32"))
    # Counted before the layers are compiled, since compiled layers are opaque to the counter.
    operations = [variant.operations() for variant in variants]
    ours = next(variant for variant in reversed(variants) if variant.name == "ours")
    prepare_layers(ours.task, TrainConfig(steps=1, compile=args.compile, recompute=args.recompute), device)
    rates = {dtype: matmul_rate(device, dtype) for dtype in {variant.dtype: None for variant in variants}}
    if args.compile:
        for variant in variants:
            variant.seconds(1)
    times: dict[int, list[float]] = {i: [] for i in range(len(variants))}
    for _ in range(args.rounds):
        for i, variant in enumerate(variants):
            times[i].append(variant.seconds(args.steps))
    rows = []
    for i, variant in enumerate(variants):
        seconds = statistics.median(times[i])
        rows.append(
            {
                "path": variant.name,
                "dtype": variant.dtype,
                "images_per_second": args.batch_size / seconds,
                "spread": (max(times[i]) - min(times[i])) / seconds,
                "gflop_per_image": operations[i] / args.batch_size / 1e9,
                "utilisation": operations[i] / seconds / rates[variant.dtype],
                "step_gib": variant.peak_bytes() / 2**30,
            }
        )
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tokens": {"padded": MAX_TOKENS, "cut": ours.batch["input_ids"].shape[1]},
        "losses": losses,
        "tflops": {dtype: rate / 1e12 for dtype, rate in rates.items()},
        "rows": rows,
        "profile": ours.profile(args.profile),
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    rows = result["rows"]
    official = {row["dtype"]: row["images_per_second"] for row in rows if row["path"] == "official"}
    unfused = {row["dtype"]: row["images_per_second"] for row in rows if row["path"] == "unfused"}
    rates = ", ".join(f"{dtype} {rate:.3g} TFLOP/s" for dtype, rate in result["tflops"].items())
    print(f"{result['device']}, {result['threads']} threads, torch {result['torch']}; matrix products: {rates}")
    tokens = result["tokens"]
    print(f"texts padded to {tokens['padded']} tokens; for ours, to the longest of the batch: {tokens['cut']}")
    print("losses and gradient norms agree: " + ", ".join(f"{k} {v:.4f}" for k, v in result["losses"].items()))
    print()
    print(
        "| path | precision | images/s | spread | x official fp32 | x unfused | GFLOP/image | utilisation | step GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        fast = row["images_per_second"]
        against = f"{fast / official['fp32']:.2f}" if "fp32" in official else "-"
        gain = f"{fast / unfused[row['dtype']]:.2f}" if row["dtype"] in unfused else "-"
        print(
            f"| {row['path']} | {row['dtype']} | {fast:.3g} | {row['spread']:.0%} | {against} "
            f"| {gain} | {row['gflop_per_image']:.4g} | {row['utilisation']:.0%} "
            f"| {row['step_gib']:.2f} |"
        )
    print()
    print("| operation, ours | % of the step |")
    print("|---|---|")
    for row in result["profile"]:
        print(f"| {row['operation'][:60]} | {row['percent']} |")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=["base", "large", "small"], default="base")
    parser.add_argument("--device", default="auto")
    names = [f"{name}:{dtype}" for dtype in ("fp32", "bf16") for name in ("official", "unfused", "ours")]
    parser.add_argument(
        "--rows", nargs="+", choices=names, default=None, help="default: all; bf16 only with hardware support"
    )
    parser.add_argument("--batch-size", type=int, default=None, help="default: 8 on a CPU, 64 on a GPU")
    parser.add_argument(
        "--caption-tokens", type=float, default=13, help="mean tokens per text; COCO's captions have about 10.5 words"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile the layers of ours; default: on a GPU",
    )
    parser.add_argument(
        "--recompute", type=int, default=0, help="number of last layers of ours whose activations are recomputed"
    )
    parser.add_argument("--queue-size", type=int, default=57600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None, help="per round; default: 1 on a CPU, 10 on a GPU")
    parser.add_argument("--profile", type=int, default=15, help="number of operations to list")
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds, to check that it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args(words)
    on_gpu = pick_device(args.device) == "cuda"
    if args.quick:
        args.model, args.batch_size, args.queue_size, args.rounds, args.steps = "small", 4, 64, 1, 1
    args.batch_size = args.batch_size or (64 if on_gpu else 8)
    args.steps = args.steps or (10 if on_gpu else 1)
    args.compile = on_gpu if args.compile is None else args.compile
    fast = supports_bf16(pick_device(args.device))
    args.rows = args.rows or [name for name in names if fast or name.endswith("fp32")]
    if not any(row.startswith("ours") for row in args.rows):
        parser.error("--rows has no row of ours; add ours:fp32 or ours:bf16")
    return args


def main() -> None:
    args = arguments()
    result = measure(args)
    if args.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
