"""A folder that is no captioner, or is one incompletely, is refused with one sentence before the first picture."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vlm import save_tiny_vlm

from blipcore.torchvision_shim import import_transformers
from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig
from capfilt.caption.hf import HfCaptioner
from capfilt.vlm.hf_files import hf_fingerprint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in ("llava", "vit_gpt2"):
        save_tiny_vlm(root / kind, kind)
    return root


@pytest.fixture
def llava(models: Path, tmp_path: Path) -> Path:
    """Return a copy of a tiny LLaVA to change."""
    return Path(shutil.copytree(models / "llava", tmp_path / "llava"))


@pytest.fixture
def vit_gpt2(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "vit_gpt2", tmp_path / "vit_gpt2"))


def open_model(folder: Path, **settings: Any) -> HfCaptioner:
    return HfCaptioner(str(folder), ChatConfig(**{"prompt": "describe this image", **settings}), dtype="fp32")


def refusal(folder: Path, **settings: Any) -> str:
    """Return the sentence that refuses a folder."""
    with pytest.raises((ValueError, FileNotFoundError, ImportError)) as caught:
        open_model(folder, **settings)
    message = str(caught.value)
    assert message.startswith(("transformers ", str(folder))) and "\n" not in message and message.endswith(".")
    return message


def change_json(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (content | fields).items() if value is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def remove(*parts: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return change


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_retrieval_model_is_refused_by_its_class(tmp_path: Path) -> None:
    hf = import_transformers()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 30, "encoder_hidden_size": 32}
    config = hf.BlipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    hf.BlipForImageTextRetrieval(config).save_pretrained(tmp_path)
    message = refusal(tmp_path)
    assert "is a BlipForImageTextRetrieval and not a captioner (BlipForConditionalGeneration)" in message
    assert "capfilt filter --model" in message


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "LlavaLlamaForCausalLM and not a captioner .*llava-hf"),
        ({"architectures": ["AutoModelForCausalLM"], "model_type": "llama"}, "none of the image-text-to-text models"),
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, "is a CLIPModel, which is none of the image-text"),
        (
            {"model_type": "florence2", "auto_map": {"AutoModelForCausalLM": "modeling_florence2.Florence2"}},
            "is Florence-2 in Microsoft's layout.*florence-community",
        ),
        ({"model_type": "my_own_model"}, "cannot load .*my_own_model"),
        ({"model_type": None}, "has no model_type. Give a checkpoint of BLIP without 'hf:'"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "cannot load .*: "),
        (
            {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}},
            "--set trust_remote_code=true|cannot load",
        ),
    ],
)
def test_a_config_of_another_model_is_refused(llava: Path, fields: dict[str, Any], sentence: str) -> None:
    change_json(llava / "config.json", **fields)
    with pytest.raises(ValueError, match=sentence):
        open_model(llava)
    refusal(llava)


@pytest.mark.parametrize("content", ["", "not json", "[1, 2]", '{"model_type": ', "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(llava: Path, content: str) -> None:
    (llava / "config.json").write_text(content)
    assert "config.json" in refusal(llava)


def test_missing_weights_are_refused_by_name(llava: Path) -> None:
    change_weights(llava, remove("layers.1.mlp", "multi_modal_projector.linear_2.bias"))
    message = refusal(llava)
    assert "is incomplete: 8 of its weights are in none of its files" in message and "mlp.down_proj" in message


def test_missing_weights_that_no_caption_depends_on_are_no_fault(vit_gpt2: Path, draw) -> None:
    expected = open_model(vit_gpt2, max_new_tokens=20).caption([draw(1)], ["1"])
    change_weights(vit_gpt2, remove("encoder.pooler"))
    assert open_model(vit_gpt2, max_new_tokens=20).caption([draw(1)], ["1"]) == expected


def test_weights_of_another_shape_are_refused(llava: Path) -> None:
    def widen(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if "gate_proj" in name)
        weights[name] = torch.zeros(8, 8)

    change_weights(llava, widen)
    assert "has weights of another shape than its config.json says" in refusal(llava)


def test_weights_that_are_not_numbers_are_refused(llava: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[next(name for name in weights if "gate_proj" in name)].fill_(torch.nan)

    change_weights(llava, spoil)
    assert "gives scores that are not numbers" in refusal(llava)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut_in_half(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: cut_in_half(folder / "tokenizer.json"),
        lambda folder: (folder / "processor_config.json").write_text("{}"),
        lambda folder: (folder / "processor_config.json").unlink(),
        lambda folder: (folder / "chat_template.jinja").write_text("{% for message in %}"),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('no pictures') }}"),
        lambda folder: (folder / "generation_config.json").write_text("{"),
    ],
)
def test_damaged_files_are_refused(llava: Path, damage: Callable[[Path], Any]) -> None:
    damage(llava)
    refusal(llava)


def test_a_git_lfs_pointer_is_named(llava: Path) -> None:
    (llava / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors is a Git LFS pointer" in refusal(llava)


def test_a_tokenizer_without_end_and_padding_takes_those_of_the_model(llava: Path, draw) -> None:
    expected = captions(llava, draw)
    change_json(llava / "tokenizer_config.json", pad_token=None, eos_token=None)
    assert captions(llava, draw) == expected
    change_json(llava / "generation_config.json", eos_token_id=None)
    text = {name: value for name, value in json.loads((llava / "config.json").read_text())["text_config"].items()}
    change_json(llava / "config.json", text_config=text | {"eos_token_id": None}, eos_token_id=None)
    assert "has no end token" in refusal(llava)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was_run"),))


def test_a_pickle_with_code_is_not_run(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llava)
    (llava / "model.safetensors").unlink()
    torch.save({"weight": Code()}, llava / "pytorch_model.bin")
    assert "pickle" in refusal(llava) or "cannot load" in refusal(llava)
    (llava / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code()}))
    refusal(llava)
    assert not (llava / "was_run").exists()


def test_a_pickle_of_weights_is_loaded_and_changes_the_fingerprint(vit_gpt2: Path, draw) -> None:
    expected = open_model(vit_gpt2, max_new_tokens=20).caption([draw(1)], ["1"])
    weights = load_file(vit_gpt2 / "model.safetensors")
    (vit_gpt2 / "model.safetensors").unlink()
    torch.save(weights, vit_gpt2 / "pytorch_model.bin")
    assert open_model(vit_gpt2, max_new_tokens=20).caption([draw(1)], ["1"]) == expected
    before = hf_fingerprint(str(vit_gpt2))
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, vit_gpt2 / "pytorch_model.bin")
    assert hf_fingerprint(str(vit_gpt2)) != before


def test_a_model_that_does_not_see_its_pictures_is_refused(llava: Path) -> None:
    def blind(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "multi_modal_projector" in name]:
            weights[name].zero_()

    change_weights(llava, blind)
    assert "ignores its pictures" in refusal(llava)


def test_a_prompt_without_the_picture_is_refused(llava: Path) -> None:
    template = (llava / "chat_template.jinja").read_text()
    (llava / "chat_template.jinja").write_text(template.replace("<image>", "image"))
    assert "Check chat.prompt" in refusal(llava)
    (llava / "chat_template.jinja").unlink()
    assert "Check chat.prompt" in refusal(llava, prompt="describe this image")
    assert open_model(llava, prompt="<image> describe this image").takes_batches


def test_an_answer_longer_than_the_models_positions_is_refused(vit_gpt2: Path) -> None:
    captioner = open_model(vit_gpt2, prompt="", max_new_tokens=64)
    captioner.caption([Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), "red")], ["1", "2"])
    message = refusal(vit_gpt2, prompt="", max_new_tokens=65)
    assert "has 64 positions, too few for a prompt of 1 and 65 new tokens; shorten chat.prompt or lower" in message


def test_a_model_that_batches_change_captions_one_at_a_time(llava: Path, draw, monkeypatch, capsys) -> None:
    expected = captions(llava, draw)
    monkeypatch.setattr("capfilt.vlm.hf_model.batches_are_equal", lambda *_: False)
    assert [caption.text for caption in captions(llava, draw)] == [caption.text for caption in expected]
    assert "gives other answers in a batch than alone" in capsys.readouterr().err


def test_blip2_files_of_older_versions_are_completed_or_refused(tmp_path: Path, draw) -> None:
    folder = save_tiny_vlm(tmp_path / "blip2", "blip2_opt")
    expected = captions(folder, draw)
    change_json(folder / "processor_config.json", num_query_tokens=None)
    change_json(folder / "config.json", image_token_index=None)
    assert captions(folder, draw) == expected
    change_json(folder / "config.json", image_token_index=7)
    assert "<image> is token 3, but the model has image_token_index 7" in refusal(folder)
    change_json(folder / "config.json", image_token_index=3)
    change_json(folder / "processor_config.json", num_query_tokens=5)
    assert "makes 5 picture tokens, but the model's config.json says num_query_tokens 3" in refusal(folder)


def test_a_picture_processor_that_is_missing_is_named(vit_gpt2: Path) -> None:
    (vit_gpt2 / "preprocessor_config.json").unlink()
    assert "has no image processor or no tokenizer" in refusal(vit_gpt2)


def captions(folder: Path, draw: Callable[[int], Any], count: int = 6) -> list[Caption]:
    captioner = open_model(folder, mode="greedy", max_new_tokens=20)
    keys = [str(number) for number in range(count)]
    return [first for (first,) in captioner.caption([draw(number) for number in range(count)], keys)]


def test_the_models_own_generation_settings_have_no_effect(llava: Path, draw) -> None:
    expected = captions(llava, draw)
    change_json(
        llava / "generation_config.json", repetition_penalty=1.5, no_repeat_ngram_size=2, min_length=15,
        min_new_tokens=15, forced_eos_token_id=1, temperature=0.1, top_k=1, do_sample=True, max_length=4,
        exponential_decay_length_penalty=[2, 3.0], max_new_tokens=2, num_beams=3, sequence_bias=[[[5], 9.0]],
    )  # fmt: skip
    assert captions(llava, draw) == expected


def test_tokens_that_the_model_suppresses_or_forces_are_respected(llava: Path, draw) -> None:
    banned = 9  # a word of the vocabulary
    change_json(llava / "generation_config.json", suppress_tokens=[banned, 1], forced_bos_token_id=10)
    change_json(llava / "generation_config.json", bad_words_ids=[[5], [6, 7]], begin_suppress_tokens=[1])
    captioner = open_model(llava, mode="greedy", max_new_tokens=20)
    assert captioner.first_token == 10 and captioner.banned == [banned, 5]
    assert captioner.banned_first == [1]
    word, forced = captioner.tokenizer.convert_ids_to_tokens([banned, 10])
    for caption in captions(llava, draw):
        text = (caption.text or caption.error or "").removeprefix("too_long: ")
        assert text.startswith(forced) and word not in text.split()
        assert caption.logprob is None or caption.logprob < -0.01


def save_adapter(folder: Path, base: Path, seed: int = 0, **fields: Any) -> Path:
    """Save a LoRA adapter that changes the captions of `base`."""
    peft = pytest.importorskip("peft", reason="adapters need the extra peft")
    model = import_transformers().AutoModelForImageTextToText.from_pretrained(base)
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained(folder)
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(base), **fields)
    return folder


@pytest.mark.slow  # importing peft takes seconds
def test_a_lora_adapter_is_merged_into_its_base_model(llava: Path, tmp_path: Path, draw) -> None:
    adapter = save_adapter(tmp_path / "adapter", llava)
    peft = pytest.importorskip("peft")
    model = import_transformers().AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    whole = Path(shutil.copytree(llava, tmp_path / "whole"))
    merged.save_pretrained(whole)
    got, expected = captions(adapter, draw), captions(whole, draw)
    assert [caption.text for caption in got] == [caption.text for caption in expected]
    assert got != captions(llava, draw)
    first = hf_fingerprint(str(adapter))
    assert first != hf_fingerprint(str(save_adapter(tmp_path / "other", llava, seed=1)))
    change_weights(llava, lambda weights: next(iter(weights.values())).mul_(2))
    assert hf_fingerprint(str(adapter)) != first


@pytest.mark.slow  # importing peft takes seconds
def test_an_adapter_with_missing_weights_is_refused(llava: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", llava)
    weights = load_file(adapter / "adapter_model.safetensors")
    half = {name: tensor for name, tensor in weights.items() if "v_proj" not in name}
    save_file(half, adapter / "adapter_model.safetensors")
    assert "missing adapter keys" in refusal(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    refusal(adapter)
    torch.save({"weight": Code()}, adapter / "adapter_model.bin")
    refusal(adapter)


def test_adapters_that_cannot_be_applied_are_refused(llava: Path, tmp_path: Path, monkeypatch) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "nowhere"), "peft_type": "LORA"}))
    assert "which is missing" in refusal(adapter)
    change_json(config, base_model_name_or_path=str(adapter))
    assert "is an adapter too" in refusal(adapter)
    change_json(config, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not name its base model"):
        open_model(adapter)
    change_json(config, base_model_name_or_path=str(llava), peft_type="PROMPT_TUNING")
    assert "is an adapter of kind PROMPT_TUNING" in refusal(adapter)
    change_json(config, peft_type="LORA")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[peft\]'"):
        open_model(adapter)
