"""Captioners by their names on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.caption.registry import captioner_fingerprint, captioner_kind, open_captioner


def test_names_have_a_kind(tmp_path: Path) -> None:
    kinds = {"runs/captioner": "blip", "model_base.pth": "blip", "hf:Qwen/Qwen2-VL": "hf", "openai:gpt-4o": "openai"}
    assert {spec: captioner_kind(spec) for spec in kinds} == kinds
    for spec in ("open_clip:ViT-B-32/openai", "hf:"):
        with pytest.raises(ValueError, match=f"'{spec}' is not a captioner; give a blipcore checkpoint folder"):
            open_captioner(spec)
        with pytest.raises(ValueError, match="is not a captioner"):
            captioner_fingerprint(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        open_captioner(str(tmp_path / "empty"))


def test_the_fingerprint_depends_on_the_weights(tiny_captioner: Path, save_tiny_model, tmp_path: Path) -> None:
    spec = str(tiny_captioner)
    assert open_captioner(spec).fingerprint == captioner_fingerprint(spec)
    other = save_tiny_model(tmp_path / "other", "decode", seed=1)
    assert captioner_fingerprint(str(other)) != captioner_fingerprint(spec)
    assert captioner_fingerprint("openai:gpt-4o") == "openai:gpt-4o"
