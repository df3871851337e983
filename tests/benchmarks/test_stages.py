"""The benchmarks of captioning and filtering run, on the same work for all; scores and lengths are compared here."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
import caption
import filter as filtering
import stages

QUICK = ["--quick", "--device", "cpu", "--dtype", "fp32", "--backends"]


def test_captions_have_the_same_length_whoever_writes_them(tmp_path, monkeypatch):
    work = tmp_path / "work"
    args = caption.arguments([*QUICK, "--tokens", "6"])
    stages.save_both(work, stages.model_config("small", 384), "decode")
    stages.write_pictures(work / "data", args.pictures, 64, lambda rng: "a picture")
    for contender in caption.contenders(args, work):
        told = contender.kind(**contender.options).run()
        texts = told["text"]
        assert told["items"] == (args.peer_pictures if contender.name == "transformers" else args.pictures)
        assert len(texts) == told["items"] * (5 if "x5" in contender.name else 1)
        assert {len(text.split()) for text in texts} <= {5, 6}  # special tokens among six are not shown


def test_the_scores_are_the_same_whoever_gives_them(tmp_path):
    """In fp32 and with [CLS] before the text, as transformers has it."""
    found = {}
    keep = stages.compete

    def compete(contenders, rounds, device):
        for contender in contenders:
            found[contender.name] = contender.kind(**contender.options).run()["itm"]
        return []

    stages.compete = compete
    try:
        filtering.measure(filtering.arguments(QUICK))
    finally:
        stages.compete = keep
    assert len(found["capfilt"]) == 8 and len(found["transformers"]) == 4
    assert found["transformers"] == pytest.approx(found["capfilt"][:4], abs=1e-4)
    assert found["one pair"] == pytest.approx(found["capfilt"][:2], abs=1e-4)


@pytest.mark.slow  # it starts a process for each contender
def test_quick_run_prints_the_table(capsys):
    filtering.main(QUICK)
    out = capsys.readouterr().out
    assert "| capfilt | fp32 |" in out and "x one pair fp32" in out


@pytest.mark.slow  # it runs in a process of its own, since it sets where S3 lies, and starts another for the store
def test_small_shards_prints_its_table():
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    options = ["--shards", "3", "--pictures", "4", "--picture-size", "32", "--latency", "0", "--rounds", "1"]
    command = [sys.executable, str(Path(stages.__file__).with_name("small_shards.py")), *options]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    assert [line.split("|")[1:3] for line in told.splitlines()[2:]] == [
        [f" {where} ", f" {ahead} "] for where in ("local", "S3") for ahead in ("no", "yes")
    ]


def test_operations_of_vit_base():
    """Those of the paper's sizes, counted by hand: 577 tokens in 12 layers of width 768."""
    config = stages.model_config("base", 384)
    keys_and_values = 12 * 2 * 577 * 768 * 2 * 768
    assert stages.image_operations(config) - keys_and_values == pytest.approx(110.9e9, rel=0.01)
    assert stages.token_operations(config, image=True, head=True) == pytest.approx(0.27e9, rel=0.02)
