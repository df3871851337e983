"""The files of a model are found locally or on the hub, and its fingerprint follows their content."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest

from blipcore.io.hub import locate_model, model_fingerprint, read_json_object, weight_files


def write_model(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config_json": "{}", "model_safetensors": "weights", "vocab_txt": "words", **files}.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(content)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


def test_paths_before_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "user" / "model")
    assert locate_model("user/model") == Path("user/model")
    with pytest.raises(FileNotFoundError, match=r"No file or folder at user/other, and the .* hub did not provide it"):
        locate_model("user/other")
    with pytest.raises(FileNotFoundError, match=r"No file or folder at model\.pth\."):
        locate_model("model.pth")


def test_pickles_are_downloaded_only_if_there_is_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[list[str]] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: requested.append(allow_patterns) or tmp_path
    )
    locate_model("user/model")
    (tmp_path / "model.safetensors").touch()
    locate_model("user/model")
    assert ["pytorch_model.bin" in patterns for patterns in requested] == [False, True, False]


def test_weights_are_one_file_several_or_a_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no model folder: it has no config\.json"):
        weight_files(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"has no model\.safetensors: the model was not saved or copied completely"
    ):
        weight_files(folder)
    index = {"weight_map": {"a": "2.bin", "b": "1.bin", "c": "2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "1.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"has no 2\.bin: the model was not saved or copied completely"):
        weight_files(folder)
    (folder / "2.bin").touch()
    assert weight_files(folder) == [folder / "1.bin", folder / "2.bin"]
    (folder / "pytorch_model.bin").touch()
    assert weight_files(folder) == [folder / "pytorch_model.bin"]
    index = {"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(folder) == [folder / "pytorch_model.bin"], "the index is of files that are not there"
    for number in (1, 2):
        (folder / f"{number}.safetensors").touch()
    assert weight_files(folder) == [folder / "1.safetensors", folder / "2.safetensors"]
    (folder / "model.safetensors").touch()
    assert weight_files(folder) == [folder / "model.safetensors"], "the index is of an earlier save"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": "../secret.bin"}}', '{"weight_map": [1]}'])
def test_an_index_that_names_no_files_of_its_folder_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"is no JSON file|holds no JSON object|is no index of weight files"):
        weight_files(tmp_path)


def test_a_folder_without_a_config_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json\.$"):
        weight_files(tmp_path)
    write_model(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"no config\.json; it holds the folder model\.$"):
        weight_files(tmp_path)
    write_model(tmp_path / "snapshots" / "abc")
    with pytest.raises(FileNotFoundError, match=r"it holds the folders model, snapshots/abc\.$"):
        weight_files(tmp_path)
    (tmp_path / "checkpoint_best.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds checkpoint_best\.pth: give the file itself"):
        weight_files(tmp_path)
    (tmp_path / ".metadata").touch()
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(FileNotFoundError, match=r"shards of torch\.distributed\.checkpoint; .* dcp_to_torch"):
        weight_files(tmp_path)


def test_the_fingerprint_follows_weights_config_and_vocabulary(tmp_path: Path) -> None:
    first = model_fingerprint(write_model(tmp_path / "a"))
    assert len(first) == 16 and first == model_fingerprint(write_model(tmp_path / "b"))
    changes = ({"config_json": '{"a": 1}'}, {"model_safetensors": "others"}, {"vocab_txt": "other words"})
    others = [model_fingerprint(write_model(tmp_path / str(n), **change)) for n, change in enumerate(changes)]
    assert len({first, *others}) == 4


def test_another_tokenizer_replaces_that_of_the_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a")
    (tmp_path / "other.txt").write_text("other words")
    with_other = model_fingerprint(model, tmp_path / "other.txt")
    assert with_other == model_fingerprint(write_model(tmp_path / "b", vocab_txt="x"), tmp_path / "other.txt")
    assert with_other != model_fingerprint(model)


def test_files_that_hold_no_json_object_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model folder: it has no config\.json"):
        read_json_object(tmp_path / "config.json")
    for content, message in (("{", "is no JSON file"), ("[]", "holds no JSON object")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_json_object(tmp_path / "config.json")
