"""Tables of judged texts and the stream that mixes them with human pairs."""

import io
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tar_files import write_tar

from blipcore.data.judged_texts import JudgedStream, JudgedTexts, require_judged_share
from blipcore.data.stream import Stream
from blipcore.data.transforms import EvalTransform


def png(value: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(data, "png")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three human pictures with annotations, one of them with judged texts in a table, and a tar."""
    rows = []
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        rows.append({"image": f"{number}.png", "caption": f"human text {number}"})
    (tmp_path / "human.json").write_text(json.dumps(rows))
    judged = [{"image": "2.png", "text": f"right {i}", "match": 1} for i in range(4)]
    judged += [{"image": "2.png", "text": f"wrong {i}", "match": 0} for i in range(9)]
    judged += [{"image": "1.png", "text": "only wrong", "match": 0}]
    pq.write_table(pa.Table.from_pylist(judged), tmp_path / "judged.parquet")
    write_tar(tmp_path / "00000.tar", {"a/b.png": png(7)})
    return tmp_path


def judged_stream(folder, share=0.5, texts=4, seed=0) -> JudgedStream:
    human = Stream([str(folder / "human.json")], EvalTransform(8), seed)
    return JudgedStream(human, [str(folder / "judged.parquet")], None, share, texts)


def test_texts_are_grouped_by_picture(folder) -> None:
    dataset = JudgedTexts(folder / "judged.parquet")
    first, second = dataset.load(0)
    assert dataset.counts == [2]
    assert (first.key, first.extra["judged"]) == ("1.png", (("only wrong", False),))
    assert [match for _, match in second.extra["judged"]] == [True] * 4 + [False] * 9
    assert dataset.read(0, second) == png(2)


def test_json_lines_name_pictures_in_tars(folder) -> None:
    rows = [
        {"shard": "00000.tar", "key": "a/b", "caption": "grey", "match": True},
        {"shard": "00000.tar", "key": "a/b", "caption": " ", "match": False},
        {"shard": str(folder / "00000.tar"), "key": "a/b", "caption": "black", "match": "0"},
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = JudgedTexts(folder / "labels.jsonl")
    dataset.check_pictures()
    entries = dataset.load(0)
    assert sorted(entry.extra["judged"] for entry in entries) == [(("black", False),), (("grey", True),)]
    assert all(dataset.read(0, entry) == png(7) for entry in entries)
    assert dataset.problems == {str(folder / "labels.jsonl"): "1 row without a text, not used"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "2.png", "text": "a", "match": 2}], "row 0: 'match' must be 1 or 0, not 2"),
        ([{"image": "2.png", "text": "a", "match": None}], "row 0: 'match' must be 1 or 0, not None"),
        ([{"image": "2.png", "text": "a"}], "has no column 'match'; its columns are image, text"),
        ([{"image": "2.png", "match": 1}], "has no column 'text'"),
        ([{"key": "2", "text": "a", "match": 1}], "it needs the column 'image', or 'shard' and 'key'"),
        ([{"image": None, "text": "a", "match": 1}], "row 0, names no picture"),
        ([{"image": "2.png", "text": "", "match": 1}], "holds no judged text"),
        (
            [{"image": "2.png", "text": "a", "match": match} for match in (1, 0)],
            "labels the text 'a' of picture 2.png both 1 and 0",
        ),
    ],
)
def test_tables_that_cannot_be_understood_are_refused(folder, rows, message) -> None:
    names = {name: pa.string() for row in rows for name in row} | {"match": pa.int64()}
    table = pa.Table.from_pylist(rows, schema=pa.schema({name: names[name] for row in rows for name in row}))
    pq.write_table(table, folder / "bad.parquet")
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        JudgedTexts(folder / "bad.parquet")


def test_files_of_other_formats_are_refused(folder) -> None:
    with pytest.raises(ValueError, match="judged texts are Parquet, or JSON lines"):
        JudgedTexts(folder / "human.json")
    with pytest.raises(FileNotFoundError, match="No table of judged texts"):
        JudgedTexts(folder / "missing.parquet")
    (folder / "half.jsonl").write_text('{"image": "2.png", "text": "\\ud83d", "match": 1}\n')
    with pytest.raises(ValueError, match="row 0: 'text' holds half a character"):
        JudgedTexts(folder / "half.jsonl")
    (folder / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="row 0: a row must be an object"):
        JudgedTexts(folder / "list.jsonl")


def test_missing_pictures_are_named_before_training(folder) -> None:
    (folder / "1.png").unlink()
    dataset = JudgedTexts(folder / "judged.parquet")
    dataset.check_pictures()
    assert "1 picture not found, replaced by the next: 1.png" in dataset.problems[str(folder / "judged.parquet")]
    (folder / "labels.jsonl").write_text(json.dumps({"shard": "1.tar", "key": "a", "text": "b", "match": 1}))
    with pytest.raises(ValueError, match=r"takes pictures from .*1\.tar, which does not exist"):
        JudgedTexts(folder / "labels.jsonl").check_pictures()
    rows = [{"shard": "00000.tar", "key": key, "text": "b", "match": 1} for key in ("a/b", "gone")]
    (folder / "keys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = JudgedTexts(folder / "keys.jsonl")
    dataset.check_pictures()
    assert "1 picture not found, replaced by the next: 00000.tar/gone" in dataset.problems[dataset.name]
    (folder / "keys.jsonl").write_text(json.dumps(rows[1]))
    with pytest.raises(ValueError, match=r"none of its pictures exists, for example 00000\.tar/gone"):
        JudgedTexts(folder / "keys.jsonl").check_pictures()


def test_every_second_sample_has_a_judged_picture(folder) -> None:
    stream = judged_stream(folder)
    samples = [stream.sample(position) for position in range(8)]
    assert [("judged" in sample) for sample in samples] == [False, True] * 4
    human = Stream([str(folder / "human.json")], EvalTransform(8), 0)
    assert [sample["key"] for sample in samples] == [human.sample(position)["key"] for position in range(8)]


def test_as_many_right_texts_as_wrong_ones_are_drawn(folder) -> None:
    stream = judged_stream(folder, texts=6)
    drawn = {sample["judged"]["key"]: sample["judged"] for sample in map(stream.sample, range(1, 8, 2))}
    assert drawn["2.png"]["matches"] == [True] * 3 + [False] * 3
    assert len(set(drawn["2.png"]["texts"])) == 6
    assert drawn["1.png"]["texts"] == ["only wrong"]


def test_samples_depend_on_seed_and_position_alone(folder) -> None:
    stream = judged_stream(folder)
    later = pickle.loads(pickle.dumps(stream))
    expected = [stream.sample(position).get("judged", {}).get("texts") for position in range(12)]
    assert [later.sample(position).get("judged", {}).get("texts") for position in reversed(range(12))] == expected[::-1]
    other = judged_stream(folder, seed=1)
    assert [other.sample(position).get("judged", {}).get("texts") for position in range(12)] != expected


def test_unreadable_judged_pictures_are_replaced_and_reported(folder) -> None:
    (folder / "2.png").write_bytes(b"no picture")
    stream = judged_stream(folder)
    assert {stream.sample(position)["judged"]["key"] for position in (1, 3, 5)} == {"1.png"}
    assert "2.png" in stream.pop_problems()
    assert not stream.pop_problems()


def test_a_batch_without_a_judged_picture_is_refused() -> None:
    require_judged_share(0.25, 4)
    with pytest.raises(ValueError, match=r"raise judged_share to 0\.333 or more"):
        require_judged_share(0.25, 3)
