"""Model configs: impossible sizes are refused, JSON keeps every value, and models have the official sizes."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from blipcore.checkpoints.load import TASK_PARTS
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig, TextConfig, VisionConfig
from blipcore.tasks.contrastive import momentum_copy


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (VisionConfig, {"image_size": 30}, "image_size 30 is not a multiple of patch_size 16"),
        (VisionConfig, {"image_size": 0}, "image_size must be a whole number above 0, not 0"),
        (VisionConfig, {"depth": 2000}, "depth must be at most 1024, not 2000"),
        (VisionConfig, {"heads": 5}, "vision width 768 is not a multiple of its 5 heads"),
        (VisionConfig, {"drop_path": 1.5}, "drop_path must be a number from 0 to 1, not 1.5"),
        (VisionConfig, {"activation": "relu"}, "activation must be 'gelu' or 'quick_gelu', not 'relu'"),
        (TextConfig, {"heads": 5}, "text width 768 is not a multiple of its 5 heads"),
        (TextConfig, {"roles": ("speak",)}, "text roles must be"),
        (TextConfig, {"share": "some"}, "share must be one of all, all-but-sa, all-but-ca, none, not 'some'"),
        (BlipConfig, {"heads": ("tail",)}, "heads must be among itc, itm, vqa, nlvr, not tail"),
        (BlipConfig, {"heads": ("nlvr",)}, "merge_from must be set for the head 'nlvr'"),
        (BlipConfig, {"text": TextConfig(roles=("decode",))}, "All heads need the text role 'encode'"),
        (BlipConfig, {"text": TextConfig(encoder_width=96)}, "encoder_width 96 must equal vision.width 768"),
    ],
)
def test_impossible_sizes_are_refused(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name: str) -> None:
    config = PRESETS[name].select_parts("encode", "nlvr")
    assert BlipConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_key_is_refused() -> None:
    values = BlipConfig().to_dict()
    values["text"]["colour"] = "red"
    with pytest.raises(ValueError, match=r"Unknown model config keys \['colour'\]"):
        BlipConfig.from_dict(values)


def test_selected_parts() -> None:
    captioner = BlipConfig().select_parts("decode")
    assert (captioner.text.roles, captioner.heads) == (("decode",), ())
    pairs = BlipConfig().select_parts("encode", "nlvr")
    assert (pairs.text.roles, pairs.heads, pairs.text.merge_from) == (("encode",), ("nlvr",), 6)
    assert pairs.select_parts("encode").text.merge_from is None


def test_configs_are_imported_without_torch() -> None:
    code = "import sys, blipcore.model.config, blipcore.generate.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Unique trainable parameters of the official code, and the image size at which they were counted.
COUNTS = {
    ("pretrain", "base"): (252_441_919, 224),
    ("caption", "base"): (223_971_644, 384),
    ("caption", "large"): (446_290_492, 384),
    ("features", "base"): (223_057_152, 224),
    ("features", "large"): (445_278_720, 224),
    ("retrieval", "base"): (223_744_259, 384),
    ("retrieval", "large"): (446_128_643, 384),
    ("vqa", "base"): (361_478_972, 480),
    ("vqa", "large"): (583_880_764, 480),
    ("nlvr", "base"): (259_372_034, 384),
    ("nlvr", "large"): (486_409_474, 384),
}
WITH_MOMENTUM = {("pretrain", "base"): 475_892_799, ("retrieval", "base"): 447_486_979}
WITH_MOMENTUM |= {("retrieval", "large"): 892_255_747}


@pytest.mark.parametrize(("kind", "preset"), COUNTS)
def test_parameter_counts_equal_those_of_the_official_code(kind: str, preset: str) -> None:
    count, side = COUNTS[kind, preset]
    config = PRESETS[preset].select_parts(*TASK_PARTS[kind])
    with torch.device("meta"):
        model = Blip(replace(config, vision=replace(config.vision, image_size=side)))
        momentum = momentum_copy(model) if (kind, preset) in WITH_MOMENTUM else None
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    if momentum is not None:
        copied = sum(parameter.numel() for parameter in momentum.parameters())
        assert count + copied == WITH_MOMENTUM[kind, preset]
    if kind == "retrieval":  # the ITM inference class has no temperature
        assert count - 1 in (223_744_258, 446_128_642)
