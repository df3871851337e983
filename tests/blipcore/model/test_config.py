"""Model configs: impossible sizes are refused, JSON keeps every value, parts are selected."""

import json
import subprocess
import sys
from typing import Any

import pytest

from blipcore.model.config import PRESETS, BlipConfig, TextConfig, VisionConfig


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
