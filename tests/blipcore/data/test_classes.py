"""Pictures of named classes from folders and lists, and errors when names and labels do not match."""

import json
from pathlib import Path

import pytest

from blipcore.data.classes import read_classes, read_templates


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("n02/b.JPG", "n02/deeper/a.png", "n01/x.webp", "n01/notes.txt", ".hidden/z.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    return tmp_path / "set"


def write(tmp_path, name: str, content: object) -> str:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_a_folder_per_class(folder) -> None:
    (folder / "n01").rename(folder / "polar_bear")
    records, names = read_classes(folder)
    assert names == ["n02", "polar bear"]
    assert [(row["key"], row["label"]) for row in records] == [
        ("n02/b.JPG", 0),
        ("n02/deeper/a.png", 0),
        ("polar_bear/x.webp", 1),
    ]
    assert records[0]["image"] == folder / "n02/b.JPG"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "tench\n\n goldfish \n"),
        ("names.json", ["tench", "goldfish"]),
        ("names.json", {"n01": "tench", "n02": "goldfish"}),
    ],
)
def test_names_of_folders_come_from_a_file(folder, tmp_path, name, content) -> None:
    records, names = read_classes(folder, write(tmp_path, name, content))
    assert names == ["tench", "goldfish"] and [row["label"] for row in records] == [0, 1, 1]


def test_a_list_with_class_names(tmp_path) -> None:
    rows = [{"image": "a.jpg", "label": "dog"}, {"image": "b.jpg", "label": "cat"}]
    path = write(tmp_path, "set.json", rows)
    records, names = read_classes(path)
    assert names == ["cat", "dog"] and [row["label"] for row in records] == [1, 0]
    assert records[0]["image"] == tmp_path / "a.jpg"
    # Some classes have no pictures.
    records, names = read_classes(path, write(tmp_path, "names.txt", "bird\ncat\ndog"), image_root="/data")
    assert len(names) == 3 and [row["label"] for row in records] == [2, 1]
    assert str(records[0]["image"]) == "/data/a.jpg"


def test_a_list_with_class_numbers(tmp_path) -> None:
    path = write(tmp_path, "set.jsonl", '{"image": "a.jpg", "label": 2}\n{"image": "b.jpg", "label": 0}\n')
    names = write(tmp_path, "names.txt", "bird\ncat\ndog")
    assert [row["label"] for row in read_classes(path, names)[0]] == [2, 0]
    with pytest.raises(ValueError, match=r"by numbers \(0\): name the classes with classes=FILE"):
        read_classes(path)
    with pytest.raises(ValueError, match=r"has the class 2, which .* does not name"):
        read_classes(path, write(tmp_path, "names.txt", "bird\ncat"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no pictures"),
        ([{"label": "x"}], 'row 0: a row must be an object with "image"'),
        ([{"image": "a"}], 'row 0: "label" must be'),
        ([{"image": "a", "label": "x"}, {"image": "a", "label": [1]}], 'row 1: "label" must be'),
    ],
)
def test_errors_name_the_bad_row(tmp_path, rows, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_classes(write(tmp_path, "set.json", rows))
    assert "set.json" in str(error.value)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (["tench"], ValueError, "has 1 class names, but .* has 2 classes"),
        ({"n01": "tench"}, ValueError, "has the class 'n02', which"),
        ({"n01": 3}, ValueError, "must be a JSON list of class names"),
        ("[", ValueError, "is not valid JSON"),
        ([], ValueError, "holds no class names"),
        (None, FileNotFoundError, "No file at"),
    ],
)
def test_names_that_do_not_match_the_classes_are_refused(folder, tmp_path, content, error, message) -> None:
    path = str(tmp_path / "absent.json") if content is None else write(tmp_path, "names.json", content)
    with pytest.raises(error, match=message):
        read_classes(folder, path)


def test_templates_contain_the_class_name_once(tmp_path) -> None:
    assert read_templates(["a photo of a {}"]) == ["a photo of a {}"]
    with pytest.raises(ValueError, match="no templates"):
        read_templates([])
    assert read_templates(write(tmp_path, "t.txt", "a {}\na bad photo of the {c}.\n")) == [
        "a {}",
        "a bad photo of the {}.",
    ]
    assert read_templates(write(tmp_path, "t.json", ["itap of a {}."])) == ["itap of a {}."]
    for bad in ("a photo", "{} and {}"):
        with pytest.raises(ValueError, match=r"must contain {} once"):
            read_templates(write(tmp_path, "t.txt", bad))
    with pytest.raises(FileNotFoundError, match="No file of templates at"):
        read_templates(tmp_path / "absent.txt")
