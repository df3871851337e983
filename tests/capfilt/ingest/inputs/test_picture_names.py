"""Names of pictures are found under a folder, and never outside of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from input_rows import write_files

from blipcore.io.storage import to_path
from capfilt.ingest.inputs.picture_names import PictureNames


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("a.jpg", "a.jpg"),
        (" sub/a.jpg ", "sub/a.jpg"),
        ("./sub//a.jpg", "sub/a.jpg"),
        ("sub/../a.jpg", "a.jpg"),
        ("a..jpg", "a..jpg"),
        ("../a.jpg", None),
        ("sub/../../a.jpg", None),
        ("/etc/passwd", None),
        ("a\0.jpg", None),
    ],
)
@pytest.mark.parametrize("root", ["local", "remote", "zip"])
def test_a_name_is_relative_to_the_root_or_outside(tmp_path: Path, name: str, relative: str | None, root: str) -> None:
    roots = {"local": str(tmp_path), "remote": "memory://bucket/photos", "zip": f"zip://::{tmp_path}/a.zip"}
    assert PictureNames(to_path(roots[root])).relative(name) == relative


def test_absolute_names_are_inside_if_they_begin_with_the_root(tmp_path: Path) -> None:
    assert PictureNames(tmp_path).relative(f"{tmp_path}/a.jpg") == "a.jpg"
    assert PictureNames(to_path("memory://bucket/photos")).relative("memory://bucket/photos/a.jpg") == "a.jpg"


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a.jpg", "a.jpg"),
        ("A.jpg", None),
        ("b.jpg", "b.JPG"),
        ("b", "b.JPG"),
        ("cafe\u0301/x.jpg", "caf\u00e9/x.jpg"),
        ("caf\u00e9\\x.JPG", "caf\u00e9/x.jpg"),
        ("a.jpg/b.jpg", None),
        ("x" * 300, None),
        ("half \ud83d.jpg", None),
    ],
)
def test_a_name_is_found_by_its_letters(tmp_path: Path, name: str, stored: str | None) -> None:
    write_files(tmp_path, {"a.jpg": "", "b.JPG": "", "caf\u00e9/x.jpg": ""})
    assert PictureNames(tmp_path).find(name) == stored
