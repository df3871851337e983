"""`capfilt caption`, from tars to tables."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from folders import contents

from blipcore.generate.config import GenerateConfig
from blipcore.io.samples import TarSample, read_samples
from capfilt.caption.chat import ChatConfig
from capfilt.caption.stage import CaptionConfig, CaptionStage, caption_shards
from capfilt.config import resolve
from capfilt.engine.worker import Worker
from capfilt.shards.format import CAPTIONS, write_shard
from capfilt.shards.tables import read_table


def caption(data: Path, model: Path, **options) -> dict:
    return caption_shards(CaptionConfig(str(data), str(model), device="cpu", **options), progress=False)


def test_one_table_per_shard_in_the_order_of_the_tar(shards, tiny_captioner: Path) -> None:
    data = shards(2, 7)
    summary = caption(data, tiny_captioner, generate=GenerateConfig(num_captions=2), batch_size=3)
    assert summary["shards"] == {"done": 2, "skipped": 0, "failed": {}}
    assert summary["counts"] == {"captions": 28, "pictures": 14}
    assert summary["pictures_per_second"] > 0 and 0 <= summary["data_wait_share"] <= 1
    for shard in ("00000", "00001"):
        table = read_table(data / "captions" / "blip" / f"{shard}.parquet")
        assert table.schema == CAPTIONS
        keys = [picture.key for picture in read_samples(data / f"{shard}.tar")]
        assert table["key"].to_pylist() == [key for key in keys for _ in range(2)]
        assert table["index"].to_pylist() == [0, 1] * 7
        assert all(table["text"].to_pylist()) and max(table["logprob"].to_pylist()) < 0
    manifest = json.loads((data / "captions" / "blip" / "manifest.json").read_text())
    assert manifest["counts"] == summary["counts"]
    assert manifest["config"]["generate"]["top_p"] == 0.9 and len(manifest["config"]["fingerprint"]) == 16
    assert manifest["images"] == "../.." and manifest["model"] == str(tiny_captioner)


def test_captions_depend_neither_on_batches_nor_on_workers(shards, tiny_captioner: Path) -> None:
    data = shards(3, 40)
    tables = []
    for name, batch_size, workers in (("a", 4, 1), ("b", 32, 1), ("c", 4, 2)):
        caption(data, tiny_captioner, name=name, batch_size=batch_size, workers=workers, dtype="fp32")
        folder = data / "captions" / name
        tables.append([read_table(folder / f"{shard:05d}.parquet").to_pydict() for shard in range(3)])
    for other in tables[1:]:
        for table, other_table in zip(tables[0], other, strict=True):
            for column in ("key", "index", "text"):
                assert table[column] == other_table[column]
            assert table["logprob"] == pytest.approx(other_table["logprob"], abs=1e-3)


def test_a_rerun_resumes_and_counts_all_shards(shards, tiny_captioner: Path) -> None:
    data = shards(3, 5)
    first = caption(data, tiny_captioner)
    folder = data / "captions" / "blip"
    before = contents(folder)
    (folder / "00001.parquet").unlink()
    again = caption(data, tiny_captioner)
    assert again["shards"] == {"done": 1, "skipped": 2, "failed": {}}
    assert again["counts"] == first["counts"] == {"captions": 15, "pictures": 15}
    assert contents(folder) == before
    nothing = caption(data, tiny_captioner)
    assert nothing["shards"]["skipped"] == 3 and "pictures_per_second" not in nothing
    assert contents(folder) == before


def test_bad_pictures_are_counted_by_reason(shards, drawn, tiny_captioner: Path) -> None:
    data = shards(2, 6)
    good = drawn(1)
    half = good.image[: len(good.image) // 2]
    write_shard(
        data / "00000.tar",
        [TarSample("a", good.image, "x"), TarSample("b", half, "x"), TarSample("c", b"<html>no", "x"), drawn(2)],
    )
    tar = data / "00001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    summary = caption(data, tiny_captioner, batch_size=2)
    assert summary["shards"]["failed"] == {}
    counts = summary["counts"]
    assert counts["pictures"] == counts["captions"] + counts["undecodable"]
    assert counts["undecodable/truncated"] == 1 and counts["undecodable/not_a_picture"] == 1
    assert counts["tar/truncated_tar"] == 1
    assert read_table(data / "captions/blip/00000.parquet")["key"].to_pylist() == ["a", "000002"]
    assert 0 < read_table(data / "captions/blip/00001.parquet").num_rows < 6


def test_a_shard_without_a_single_good_picture_still_ends_in_a_table(tmp_path: Path, tiny_captioner: Path) -> None:
    write_shard(tmp_path / "00000.tar", [TarSample("a", b"junk"), TarSample("b", b"junk")])
    assert caption(tmp_path, tiny_captioner)["counts"]["undecodable"] == 2
    table = read_table(tmp_path / "captions/blip/00000.parquet")
    assert table.schema == CAPTIONS and table.num_rows == 0


def test_other_settings_under_the_same_name_are_refused(
    shards, tiny_captioner: Path, save_tiny_model, tmp_path
) -> None:
    data = shards(1, 2)
    caption(data, tiny_captioner)
    before = contents(data / "captions" / "blip")
    with pytest.raises(ValueError, match=r"made with other settings(.|\n)*generate.top_p: 0\.9 -> 0\.8"):
        caption(data, tiny_captioner, generate=GenerateConfig(top_p=0.8))
    other = save_tiny_model(tmp_path / "other", "decode", seed=1)
    with pytest.raises(ValueError, match="fingerprint: "):
        caption(data, other)
    assert contents(data / "captions" / "blip") == before
    caption(data, other, name="other", batch_size=1)  # under another name it is fine


def test_a_worker_that_loads_another_model_than_the_manifest_names_ends_the_run(
    shards, tiny_captioner: Path, monkeypatch
) -> None:
    monkeypatch.setattr("capfilt.caption.stage.captioner_fingerprint", lambda *_: "another")
    with pytest.raises(ValueError, match=r"model of captioner 'blip' is not the one that the run began with .* same"):
        caption(shards(1, 2), tiny_captioner)


def test_a_resumed_run_keeps_its_backend(shards, tiny_captioner: Path, monkeypatch) -> None:
    data, find_spec = shards(2, 4), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name != "openvino" and find_spec(name, *rest))
    caption(data, tiny_captioner, dtype="bf16")
    table = data / "captions" / "blip" / "00001.parquet"
    before = table.read_bytes()
    table.unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "openvino" or find_spec(name, *rest))
    caption(data, tiny_captioner, dtype="bf16")
    assert table.read_bytes() == before
    with pytest.raises(ValueError, match=r"made with other settings(.|\n)*backend"):
        caption(data, tiny_captioner, dtype="bf16", backend="openvino")
    with pytest.raises(ValueError, match="backend openvino needs --device cpu and --dtype bf16"):
        caption(data, tiny_captioner, dtype="fp32", backend="openvino", name="other")


def test_a_run_without_a_first_table_can_be_corrected(shards, tiny_captioner: Path, tiny_filter: Path) -> None:
    data = shards(1, 2)
    with pytest.raises(ValueError, match="captioning needs the text decoder"):
        caption(data, tiny_filter)
    assert caption(data, tiny_captioner)["counts"]["captions"] == 2


def test_the_pictures_may_be_read_only(shards, tiny_captioner: Path, tmp_path: Path) -> None:
    data = shards(1, 2)
    caption(data, tiny_captioner, out=str(tmp_path / "work"))
    assert sorted(path.name for path in data.iterdir()) == ["00000.tar"]
    manifest = json.loads((tmp_path / "work/captions/blip/manifest.json").read_text())
    assert manifest["images"] == str(data.resolve())


def test_a_failing_shard_is_reported_and_the_others_are_done(shards, tiny_captioner: Path, monkeypatch) -> None:
    data = shards(3, 2)
    run = CaptionStage.run

    def fail(stage: CaptionStage, shard: str, worker: Worker) -> dict[str, int]:
        if shard == "00001":
            raise RuntimeError("the GPU is lost")
        return run(stage, shard, worker)

    monkeypatch.setattr(CaptionStage, "run", fail)
    summary = caption(data, tiny_captioner)
    assert summary["shards"] == {
        "done": 2,
        "skipped": 0,
        "failed": {"00001": "RuntimeError: the GPU is lost"},
    }
    folder = data / "captions" / "blip"
    assert "counts" not in json.loads((folder / "manifest.json").read_text())
    monkeypatch.undo()
    assert caption(data, tiny_captioner)["counts"]["captions"] == 6
    assert json.loads((folder / "manifest.json").read_text())["counts"] == {"captions": 6, "pictures": 6}


def test_wrong_settings_raise(tmp_path: Path, shards, tiny_captioner: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No folder at"):
        caption(tmp_path / "nowhere", tiny_captioner)
    with pytest.raises(ValueError, match="is not a shard set"):
        caption(tiny_captioner, tiny_captioner)
    with pytest.raises(ValueError, match="name 'web'"):
        CaptionConfig("data", "model", name="web")
    with pytest.raises(ValueError, match="name 'a/b'"):
        CaptionConfig("data", "model", name="a/b")
    names = {"some/model": "blip", "hf:Qwen/Qwen2.5-VL-7B": "Qwen2.5-VL-7B", "openai:gpt-4o": "gpt-4o"}
    assert {model: CaptionConfig("data", model).name for model in names} == names
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        CaptionConfig("data", "model", batch_size=0)
    with pytest.raises(ValueError, match=r"chat\.\* settings are for hf: and openai: captioners; use generate\.\*"):
        CaptionConfig("data", "model", chat=ChatConfig(seed=1))
    with pytest.raises(ValueError, match=r"generate\.\* settings are for BLIP captioners; use chat\.\*"):
        CaptionConfig("data", "hf:model", generate=GenerateConfig(seed=1))
    with pytest.raises(ValueError, match=r"chat\.extra is for requests of openai: captioners"):
        CaptionConfig("data", "hf:model", chat=ChatConfig(extra={"top_k": 3}))
    with pytest.raises(ValueError, match=r"'chat\.mode': input should be 'nucleus' or 'greedy', but got 'beam'"):
        resolve(CaptionConfig, overrides={"data": "d", "model": "openai:m", "chat.mode": "beam"})
    config = resolve(CaptionConfig, sets=["generate.num_captions=3"], overrides={"data": "d", "model": "m"})
    assert config.generate.num_captions == 3 and config.generate.top_k == 50
