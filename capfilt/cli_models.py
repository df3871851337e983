"""The commands that train, evaluate and convert models. They import torch inside, so that `--help` is fast."""

import typer

from capfilt import options
from capfilt.console import command, finish
from capfilt.options import read_settings

app = typer.Typer()
# Option -> field of the config.
TRAIN_FIELDS = {
    name: f"train.{name}" for name in ("steps", "epochs", "lr", "batch_size", "device", "dtype", "workers", "seed")
}

RUN_OPTIONS = {"out": None, "nproc": None, "may_change": None}


@command(app, "capfilt pretrain data/filtered/r1=0.8 coco.json=0.2 --out runs/r1 --steps 20000")
def pretrain(
    context: typer.Context,
    data: options.Datasets,
    *,
    mixture: options.Mixture = None,
    image_root: options.ImageRoot = None,
    preset: options.ModelSize = None,
    init: options.Init = None,
    vision: options.Vision = None,
    text: options.Text = None,
    tokenizer: options.NewTokenizer = None,
    numerics: options.Numerics = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    lr: options.PretrainRate = None,
    batch_size: options.TrainBatchSize = None,
    seed: options.TrainSeed = None,
    device: options.Device = None,
    dtype: options.DtypeName = None,
    workers: options.DecodeWorkers = None,
    nproc: options.Nproc = 1,
    out: options.RunPath,
    may_change: options.Continue = False,
    as_json: options.Json = False,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Train a model on image-text pairs with BLIP's three losses. Run it again to resume."""
    from blipcore.train import runs
    from blipcore.train.launch import launch

    settings = read_settings(context, runs.PretrainRun, {**TRAIN_FIELDS, **RUN_OPTIONS})
    finish(launch(nproc, runs.pretrain, settings, out, may_change), as_json)


@command(app, "capfilt finetune caption coco_train.json --init runs/r1/model --out runs/captioner")
def finetune(
    context: typer.Context,
    task: options.FinetuneArgument,
    annotations: options.TrainFiles,
    *,
    image_root: options.ImageRoot = None,
    labels: options.TrainLabels = None,
    init: options.Init = None,
    tokenizer: options.TokenizerPath = None,
    numerics: options.Numerics = None,
    image_size: options.ImageSize = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    lr: options.FinetuneRate = None,
    batch_size: options.TrainBatchSize = None,
    seed: options.TrainSeed = None,
    device: options.Device = None,
    dtype: options.DtypeName = None,
    workers: options.DecodeWorkers = None,
    nproc: options.Nproc = 1,
    out: options.RunPath,
    may_change: options.Continue = False,
    as_json: options.Json = False,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Finetune a checkpoint on clean data: a captioner, a filter, VQA or NLVR2. Run it again to resume."""
    if labels is not None:
        from capfilt.filter.head import HeadConfig, learn_head

        if may_change or nproc > 1:
            raise ValueError("--labels learns one layer, in one process and one go; leave out --continue and --nproc.")
        finish(learn_head(read_settings(context, HeadConfig, {"nproc": None, "may_change": None})), as_json)
        return
    from blipcore.train import runs
    from blipcore.train.launch import launch

    settings = read_settings(context, runs.FinetuneRun, {**TRAIN_FIELDS, **RUN_OPTIONS})
    finish(launch(nproc, runs.finetune, settings, out, may_change), as_json)


@command(app, "capfilt evaluate retrieval coco_test.json --model runs/r1/model")
def evaluate(
    context: typer.Context,
    task: options.EvaluateArgument,
    annotations: options.TestFile,
    image_root: options.ImageRoot = None,
    answers: options.Answers = None,
    model: options.Model = None,
    clip: options.Clip = None,
    judge: options.Judge = None,
    base_url: options.JudgeUrl = None,
    tokenizer: options.TokenizerPath = None,
    numerics: options.Numerics = None,
    image_size: options.ImageSize = None,
    batch_size: options.EvaluateBatchSize = None,
    device: options.Device = None,
    dtype: options.DtypeName = None,
    results: options.ResultsFile = None,
    as_json: options.Json = False,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Evaluate a checkpoint on an annotation file, or scores on a public test of judges."""
    if task == options.EvaluateTask.judge:
        from capfilt.judge.stage import JudgeRun, evaluate_judge, format_table

        fields = {"judge": "judge.model", "base_url": "judge.server.base_url"}
        summary = evaluate_judge(read_settings(context, JudgeRun, fields))
        finish(summary if as_json else {**summary, "rows": None, "groups": None}, as_json)
        if not as_json:
            print("\n".join(format_table(summary)))
        return
    from blipcore import evaluation

    finish(evaluation.evaluate(read_settings(context, evaluation.EvaluateRun)), as_json)


@command(app, "capfilt convert model_base_retrieval_coco.pth filter --to hf")
def convert(
    context: typer.Context,
    source: options.CheckpointSource,
    target: options.CheckpointTarget,
    tokenizer: options.TokenizerPath = None,
    image_size: options.ImageSize = None,
    numerics: options.Numerics = None,
    to: options.WriteFormat = options.CheckpointFormat.blipcore,
    task: options.KeepParts = None,
    as_json: options.Json = False,
    sets: options.Sets = None,
) -> None:
    """Convert a BLIP checkpoint to another format; its outputs stay the same."""
    from blipcore.checkpoints.convert import ConvertRun
    from blipcore.checkpoints.convert import convert as convert_checkpoint

    finish(convert_checkpoint(read_settings(context, ConvertRun)), as_json)
