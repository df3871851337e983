"""Speed and memory of BLIP's pre-training step (ITC, ITM, LM, momentum encoders, AdamW): ours and the official way.

    official   the official arithmetic and order (see `official.py`), texts padded to 30 tokens
    unfused    our blocks, in the same separate and padded passes
    ours       `PretrainTask`

In: sizes and precision. Out: a table of images/s, memory and utilisation, medians over rounds in which all paths take
turns, and the operations that our step spends its time on. Before anything is timed, the paths must agree on every loss
and gradient norm of one batch, without dropout.

Measured on two cores of an AMD EPYC with AVX512-BF16, torch 2.13: ViT-B/16 at 224 pixels, batches of 8, texts of 13
tokens in the mean and 15 at most. The first four rows are of one run, the last three of another. Utilisation is of the
rate of a large matrix product in the same precision: 0.185 TFLOP/s in fp32, 0.407 in bf16.

| path | precision | images/s | x official fp32 | x unfused | GFLOP/image | utilisation | step GiB |
|---|---|---|---|---|---|---|---|
| official | fp32 | 0.431 | 1.00 | 0.93 | 306.6 | 72% | 4.02 |
| unfused | fp32 | 0.463 | 1.07 | 1.00 | 300.9 | 75% | 3.07 |
| ours | fp32 | 0.718 | 1.66 | 1.55 | 200.9 | 78% | 2.34 |
| ours | bf16 | 1.31 | 3.04 | - | 206.7 | 67% | 1.86 |
| official | bf16 | 0.761 | - | 0.93 | 306.6 | 57% | 3.29 |
| unfused | bf16 | 0.823 | - | 1.00 | 306.6 | 62% | 2.37 |
| ours | bf16 | 1.26 | - | 1.53 | 206.7 | 64% | 1.86 |

Four times the official fp32 is not reached on this CPU: bf16 gives 2.2 times the rate of fp32 here and our step has two
thirds of the operations, so that 4 would need 88% of what a large matrix product alone gets. Matrix products are 70 to
72% of the bf16 step; conversions between fp32 and bf16 7 to 10, dropout's random numbers 3, concatenations 1 to 3,
AdamW 2, softmax, GELU and moving the momentum encoders 1 each. Tried and not kept: `torch.compile` of the layers (92 s
to compile, no faster), holding freed memory with mallopt (no difference beyond the spread).

    python tests/benchmarks/train_step.py                                    # ViT-B/16, the device that is there
    python tests/benchmarks/train_step.py --model large --batch-size 128     # ViT-L/16, on a GPU
    python tests/benchmarks/train_step.py --rows official:fp32 ours:bf16     # these alone, where time is short
    python tests/benchmarks/train_step.py --quick                            # a small model, seconds; no claim
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

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
from blipcore.tasks.losses import IGNORE, lm_loss
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.task import Batch, Outputs, Progress, with_first
from blipcore.train.compile import prepare_layers
from blipcore.train.optim import TrainConfig, adamw

PAD = 0
MAX_TOKENS = 30  # of the official pre-training, which pads every text to it
HALF_WAY = Progress(step=1, steps=2)


class Unfused(nn.Module):
    """`task` in the official order: a pass a loss, each with its own keys and values of the images."""

    def __init__(self, task: PretrainTask) -> None:
        super().__init__()
        self.task = task

    def before_step(self, progress: Progress) -> None:
        self.task.before_step(progress)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        task, model, text = self.task, self.task.model, self.task.model.text
        ids, mask = batch["input_ids"], batch["attention_mask"]
        embeds, hidden = model.encode_image(batch["pixels"]), text.encode(ids, mask)
        out = task.contrast(batch, model.image_feat(embeds), model.text_feat(hidden), progress)
        images, texts = task.negatives(out.pop("i2t"), out.pop("t2i"), same_row(ids), progress)
        enc = with_first(ids, task.tokenizer.enc)
        positive = text.fuse(enc, mask, text.image_kv(embeds))
        kv = text.image_kv(torch.cat([embeds[images], embeds]))
        negative = text.fuse(torch.cat([enc, enc[texts]]), torch.cat([mask, mask[texts]]), kv)
        logits = model.itm_logits(torch.cat([positive, negative]))
        labels = torch.zeros(len(logits), dtype=torch.long, device=ids.device)
        labels[: len(ids)] = 1
        decoded = text.decode(with_first(ids, task.tokenizer.bos), mask, text.image_kv(embeds))
        out["loss_itm"] = F.cross_entropy(logits, labels)
        out["loss_lm"] = lm_loss(text.logits(decoded), ids.masked_fill(mask == 0, IGNORE))
        return out | {"loss": out["loss_itc"] + out["loss_itm"] + out["loss_lm"]}

    def after_step(self, outputs: list[Outputs]) -> None:
        self.task.after_step(outputs)


def same_row(ids: Tensor) -> Tensor:
    """(B, B) True on the diagonal: the official code forbids no other negative, and random texts differ anyway."""
    return torch.eye(len(ids), dtype=torch.bool, device=ids.device)


@dataclass
class Path:
    """One way to compute the step; `batch` is as it wants it."""

    name: str
    task: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Batch
    dtype: str
    device: str
    eager: bool  # although the layers, which ours shares with unfused, are compiled

    def losses(self) -> Outputs:
        stance = "force_eager" if self.eager else "default"
        with torch.compiler.set_stance(stance), autocast(self.device, self.dtype):
            return self.task(self.batch, HALF_WAY)

    def step(self) -> None:
        self.task.before_step(HALF_WAY)
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
        """Floating-point operations of a step, twice the multiply-adds of its matrix products and attention."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()

    def peak_bytes(self) -> int:
        """Most memory that a step holds at once beyond weights, momentum copies, queues and optimiser state."""
        if self.device == "cuda":
            self.wait()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            self.wait()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self.step()
        # `record.events()` would leave out what an operation allocates.
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak

    def profile(self, rows: int) -> list[dict[str, float | str]]:
        """The operations that take most of a step's time, with their share of it in percent."""
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device == "cuda" else [])
        with profile(activities=activities) as record:
            self.step()
            self.wait()
        device_time = self.device == "cuda"
        spent = {
            event.key: event.self_device_time_total if device_time else event.self_cpu_time_total
            for event in record.key_averages()
        }
        total = sum(spent.values())
        top = sorted(spent.items(), key=lambda item: -item[1])[:rows]
        return [{"operation": name, "percent": round(100 * value / total, 1)} for name, value in top if value]


def captions(config: BlipConfig, n: int, mean: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and mask (n, MAX_TOKENS) of random texts of about `mean` tokens, [CLS] and [SEP] included."""
    lengths = (torch.randn(n, generator=generator) * mean / 5 + mean).round().clamp(4, MAX_TOKENS).long()
    mask = (torch.arange(MAX_TOKENS) < lengths[:, None]).long()
    ids = torch.randint(1, config.text.vocab_size - 2, (n, MAX_TOKENS), generator=generator)
    return ids.masked_fill(mask == 0, PAD), mask


def build(args: argparse.Namespace, device: str) -> list[Path]:
    """The paths, all from the same weights and on the same batch."""
    torch.manual_seed(0)
    config = PRESETS[args.model] if args.model != "small" else small()
    config = replace(config, vision=replace(config.vision, drop_path=0.0))  # transformers' blocks have none
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

    plain = torch.optim.AdamW(official.parameters(), lr=1e-4, weight_decay=0.05)
    own = adamw(task, TrainConfig(steps=1, lr=1e-4))
    ways = {
        "official": lambda dtype: Path("official", official, plain, padded, dtype, device, eager=True),
        "unfused": lambda dtype: Path("unfused", Unfused(task), own, padded, dtype, device, eager=True),
        "ours": lambda dtype: Path("ours", task, own, cut, dtype, device, eager=False),
    }
    return [ways[name](dtype) for name, dtype in (row.split(":") for row in args.rows)]


def small() -> BlipConfig:
    """A model whose step takes milliseconds."""
    return replace(PRESETS["tiny"], text=replace(PRESETS["tiny"].text, dropout=0.1))


def agree(paths: list[Path]) -> dict[str, float]:
    """The losses of one batch, the same for all paths; raises AssertionError where losses or gradients differ.

    Without dropout, and with the next sample for a negative: what is drawn differs, and ties hang on the rounding.
    """
    found: dict[str, float] = {}
    for path in paths:
        owner = getattr(path.task, "task", path.task)
        owner.negatives = lambda i2t, *_: [torch.arange(len(i2t), device=i2t.device).roll(1)] * 2
        path.task.eval()
        queues = {name: value.clone() for name, value in path.task.named_buffers() if "queue" in name}
        out = path.losses()
        out["loss"].backward()
        parameters = [p for group in path.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        path.optimizer.zero_grad(set_to_none=True)
        path.task.load_state_dict(queues, strict=False)  # the official forward pass has written to them
        path.task.pointer = 0
        path.task.train()
        del owner.negatives
        values = {name: out[name].item() for name in ("loss_itc", "loss_itm", "loss_lm")} | {"gradient": norm.item()}
        found = found or values
        tolerance = 1e-4 if path.dtype == "fp32" else 3e-2
        for name, value in values.items():
            off = abs(value - found[name]) / abs(found[name])
            assert off < tolerance, f"{path.name} {path.dtype}: {name} is {value}, {paths[0].name} {found[name]}"
    return found


def measure(args: argparse.Namespace) -> dict[str, object]:
    device = pick_device(args.device)
    paths = build(args, device)
    losses = agree(sorted(paths, key=lambda path: path.dtype != "fp32"))
    operations = [path.operations() for path in paths]  # of plain layers: compiled ones cannot be looked into
    ours = next(path for path in reversed(paths) if path.name == "ours")
    prepare_layers(ours.task, TrainConfig(steps=1, compile=args.compile, recompute=args.recompute), device)
    rates = {dtype: matmul_rate(device, dtype) for dtype in {path.dtype: None for path in paths}}
    if args.compile:
        for path in paths:
            path.seconds(1)
    times: dict[int, list[float]] = {i: [] for i in range(len(paths))}
    for _ in range(args.rounds):
        for i, path in enumerate(paths):
            times[i].append(path.seconds(args.steps))
    rows = []
    for i, path in enumerate(paths):
        seconds = statistics.median(times[i])
        rows.append(
            {
                "path": path.name,
                "dtype": path.dtype,
                "images_per_second": args.batch_size / seconds,
                "spread": (max(times[i]) - min(times[i])) / seconds,
                "gflop_per_image": operations[i] / args.batch_size / 1e9,
                "utilisation": operations[i] / seconds / rates[path.dtype],
                "step_gib": path.peak_bytes() / 2**30,
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


def show(result: dict, say: Callable[[str], None] = print) -> None:
    rows = result["rows"]
    official = {row["dtype"]: row["images_per_second"] for row in rows if row["path"] == "official"}
    unfused = {row["dtype"]: row["images_per_second"] for row in rows if row["path"] == "unfused"}
    rates = ", ".join(f"{dtype} {rate:.3g} TFLOP/s" for dtype, rate in result["tflops"].items())
    say(f"{result['device']}, {result['threads']} threads, torch {result['torch']}; matrix products: {rates}")
    tokens = result["tokens"]
    say(f"texts padded to {tokens['padded']} tokens, ours to the longest of the batch: {tokens['cut']}")
    say(
        "losses and gradient norm of all paths agree: " + ", ".join(f"{k} {v:.4f}" for k, v in result["losses"].items())
    )
    say("")
    say("| path | precision | images/s | spread | x official fp32 | x unfused | GFLOP/image | utilisation | step GiB |")
    say("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        fast = row["images_per_second"]
        against = f"{fast / official['fp32']:.2f}" if "fp32" in official else "-"
        gain = f"{fast / unfused[row['dtype']]:.2f}" if row["dtype"] in unfused else "-"
        say(
            f"| {row['path']} | {row['dtype']} | {fast:.3g} | {row['spread']:.0%} | {against} "
            f"| {gain} | {row['gflop_per_image']:.4g} | {row['utilisation']:.0%} "
            f"| {row['step_gib']:.2f} |"
        )
    say("")
    say("| operation, ours | % of the step |")
    say("|---|---|")
    for row in result["profile"]:
        say(f"| {row['operation'][:60]} | {row['percent']} |")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=["base", "large", "small"], default="base")
    parser.add_argument("--device", default="auto")
    names = [f"{name}:{dtype}" for dtype in ("fp32", "bf16") for name in ("official", "unfused", "ours")]
    parser.add_argument(
        "--rows", nargs="+", choices=names, default=None, help="default: all, bf16 where it runs in hardware"
    )
    parser.add_argument("--batch-size", type=int, default=None, help="default: 8 on a CPU, 64 on a GPU")
    parser.add_argument(
        "--caption-tokens", type=float, default=13, help="mean length of a text; COCO's captions have about 10.5 words"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="our layers; default: on a GPU"
    )
    parser.add_argument("--recompute", type=int, default=0, help="last of our layers that keep no activations")
    parser.add_argument("--queue-size", type=int, default=57600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None, help="a round; default: 1 on a CPU, 10 on a GPU")
    parser.add_argument("--profile", type=int, default=15, help="operations to list")
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds, to see that it runs")
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
        parser.error("nothing of ours among --rows")
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
