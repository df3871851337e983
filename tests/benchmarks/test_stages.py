"""The benchmarks of captioning and filtering run, and all contenders do the same work."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
import agreement
import caption
import filter as filtering
import stages

QUICK = ["--quick", "--device", "cpu", "--dtype", "fp32", "--backends"]


def test_captions_of_all_contenders_have_the_same_length(tmp_path: Path) -> None:
    work = tmp_path / "work"
    args = caption.arguments([*QUICK, "--tokens", "6"])
    stages.save_both(work, stages.model_config("small", 384), "decode")
    stages.write_pictures(work / "data", args.pictures, 64, lambda rng: "a picture")
    for contender in caption.contenders(args, work):
        result = contender.kind(**contender.options).run()
        texts = result["text"]
        assert result["items"] == (args.peer_pictures if contender.name == "transformers" else args.pictures)
        assert len(texts) == result["items"] * (5 if "x5" in contender.name else 1)
        # Special tokens among the six are not in the text.
        assert {len(text.split()) for text in texts} <= {5, 6}


def test_scores_of_all_contenders_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 and with [CLS] as the first token, as in transformers."""
    scores = {}

    def run_once(contenders: list[stages.Contender], rounds: int, device: str) -> list[dict[str, Any]]:
        for contender in contenders:
            scores[contender.name] = contender.kind(**contender.options).run()["itm"]
        return []

    monkeypatch.setattr(stages, "compete", run_once)
    filtering.measure(filtering.arguments(QUICK))
    assert len(scores["capfilt"]) == 8 and len(scores["transformers"]) == 4
    assert scores["transformers"] == pytest.approx(scores["capfilt"][:4], abs=1e-4)
    assert scores["one pair"] == pytest.approx(scores["capfilt"][:2], abs=1e-4)


@pytest.mark.slow
def test_a_quick_run_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    filtering.main(QUICK)
    out = capsys.readouterr().out
    assert "| capfilt | fp32 |" in out and "x one pair fp32" in out


def test_agreement_prints_verdicts_and_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stages.model_config("small", 384)
    stages.save_both(tmp_path / "captioner", config, "decode")
    stages.save_both(tmp_path / "filter", config, "encode", "itc", "itm")
    stages.write_pictures(tmp_path / "data", 4, 64, lambda rng: filtering.random_text(rng, 4, 20))
    models = [word for name in ("captioner", "filter") for word in (f"--{name}", str(tmp_path / name / "blipcore"))]
    monkeypatch.setattr(sys, "argv", ["agreement.py", str(tmp_path / "data"), *models])
    monkeypatch.setattr(agreement, "resolve_backend", lambda device, dtype: "torch")
    agreement.main()
    out = capsys.readouterr().out
    assert "| torch | 4 | " in out and out.count("| torch |") == 2


@pytest.mark.slow
def test_small_shards_prints_its_table() -> None:
    """In another process, because the benchmark sets the environment variables of S3."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    options = ["--shards", "3", "--pictures", "4", "--picture-size", "32", "--latency", "0", "--rounds", "1"]
    benchmarks = Path(stages.__file__).parent
    command = [sys.executable, str(benchmarks / "small_shards.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(benchmarks.parent / "helpers")}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=200).stdout
    assert [line.split("|")[1:3] for line in output.splitlines()[2:]] == [
        [f" {shards} ", f" {read_ahead} "] for shards in ("local", "S3") for read_ahead in ("no", "yes")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(Path(stages.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_every_benchmark_has_a_help_text(path: Path) -> None:
    if path.name.startswith("test_") or path.name in ("official.py", "stages.py"):
        pytest.skip("not a command")
    environment = os.environ | {"PYTHONPATH": str(path.parents[1] / "helpers")}
    command = [sys.executable, str(path), "--help"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0 and "options:" in result.stdout, result.stderr


def test_operations_of_vit_base() -> None:
    """Compared with a count by hand: 577 tokens in 12 layers of width 768."""
    config = stages.model_config("base", 384)
    keys_and_values = 12 * 2 * 577 * 768 * 2 * 768
    assert stages.image_operations(config) - keys_and_values == pytest.approx(110.9e9, rel=0.01)
    assert stages.token_operations(config, image=True, head=True) == pytest.approx(0.27e9, rel=0.02)
