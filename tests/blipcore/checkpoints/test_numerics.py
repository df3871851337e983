"""The numbers of a Hugging Face BLIP whose config differs from the code that trained it are chosen aloud."""

import json
from pathlib import Path
from typing import Any

import pytest
from random_checkpoints import VOCAB
from wide_huggingface import save_wide_model

from blipcore.checkpoints.convert import ConvertRun, convert
from blipcore.checkpoints.load import load_for_training, load_model
from blipcore.checkpoints.numerics import describe_numerics, resolve_numbers


def write(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "blip", **config}))
    return folder


def test_a_difference_from_the_trained_numbers_is_a_sentence(tmp_path: Path) -> None:
    eight = write(tmp_path / "m", text_config={"num_attention_heads": 8}, vision_config={"layer_norm_eps": 1e-6})
    assert describe_numerics(eight, "official") == (
        f"{eight} runs with 12 text heads, as the released BLIP was trained, instead of the 8 text heads of its "
        "config.json; if it was trained with those, add --numerics transformers."
    )
    assert describe_numerics(eight, "transformers") == (
        f"{eight} runs with the 8 text heads of its config.json (--numerics transformers)."
    )
    both = write(tmp_path / "m")  # transformers' defaults
    assert "12 text heads and a vision LayerNorm eps of 1e-06" in (describe_numerics(both, "official") or "")


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": {"num_attention_heads": 12}, "vision_config": {"layer_norm_eps": 1e-6}},
        {"text_config": {"num_attention_heads": 8, "hidden_size": 64}},
        {"model_type": "bert"},
        {"text_config": "damaged"},
    ],
)
def test_numbers_beyond_doubt_need_no_sentence(tmp_path: Path, config: dict[str, Any]) -> None:
    assert describe_numerics(write(tmp_path / "m", **config), "official") is None
    (tmp_path / "a.pth").write_bytes(b"")
    assert describe_numerics(tmp_path / "a.pth", "official") is None


def test_an_eps_that_is_no_default_is_kept() -> None:
    assert resolve_numbers({"layer_norm_eps": 1e-3}, {"num_attention_heads": 8}, "official") == (12, 1e-3)
    assert resolve_numbers({}, {}, "transformers") == (8, 1e-5)


def test_the_choice_is_logged_and_settled_by_numerics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_wide_model(tmp_path / "m", VOCAB, "decode")
    heads = [load_model(folder, numerics=numerics)[0].config.text.heads for numerics in ("official", "transformers")]
    assert heads == [12, 8]
    assert "runs with 12 text heads" in caplog.text and "runs with the 8 text heads" in caplog.text
    assert load_for_training(folder, ("decode",), None, None, "transformers")[0].config.text.heads == 8
    convert(ConvertRun(str(folder), tmp_path / "ours", numerics="transformers"))
    assert load_model(tmp_path / "ours")[0].config.text.heads == 8
