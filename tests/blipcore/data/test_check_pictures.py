"""Pictures of annotations that do not exist or cannot be decoded."""

from pathlib import Path

import pytest
from PIL import Image

from blipcore.data.check_pictures import find_missing, require_pictures


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "val2014").mkdir()
    for name in ("a.png", "val2014/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def test_missing_pictures_are_found_once_each(root: Path) -> None:
    assert find_missing(["a.png", "c.png", "c.png", "val2014/b.png", "val2014"], root, "set") == ["c.png", "val2014"]
    assert find_missing([], root, "set") == []


def test_if_no_picture_exists_the_root_is_named(root: Path) -> None:
    with pytest.raises(ValueError) as error:
        find_missing(["b.png", "c.png"], root, "set.json")
    assert str(error.value) == (
        f"None of the 2 pictures of set.json exists: the first would be {root / 'b.png'}. Give the folder that its "
        f"paths start from with --image-root, such as {root / 'val2014'}."
    )
    with pytest.raises(ValueError, match="Its paths are absolute: make them relative to a folder"):
        find_missing(["/elsewhere/b.png"], root, "set.json")
    with pytest.raises(ValueError, match=r"with --image-root\.$"):
        find_missing(["c.png"], root / "absent", "set.json")


def test_records_with_missing_or_damaged_pictures_are_refused(root: Path) -> None:
    good = {"images": (root / "a.png", root / "val2014" / "b.png")}
    require_pictures([good, good], root, "set")
    missing = [{"image": root / f"{number}.png"} for number in range(5)]
    with pytest.raises(ValueError, match=r"^5 pictures of set cannot be found: 0.png, 1.png, 2.png and 2 more. Scores"):
        require_pictures([good, *missing], root, "set")
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"^1 picture of set cannot be decoded: .*cut.png \(.+\)\. Scores"):
        require_pictures([good, {"image": root / "cut.png"}], root, "set")
