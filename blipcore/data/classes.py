"""Pictures of named classes, for zero-shot classification -> class names and one record a picture.

In: a folder with a folder of pictures for each class, or a JSON list (`.jsonl` too) of {"image": path, "label": name or
number}. Names come from the folders or labels, or from a file in their order, as ImageNet's do, whose folders are
called n01440764 and so on. Templates turn a name into texts: "a photo of a {}".
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from blipcore.io.json_rows import read_rows

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class LabelledImage(TypedDict):
    """One picture: `key` is its path as the folder or file gives it, `label` the number of its class."""

    key: str
    image: Path
    label: int


def read_classes(
    path: str | Path, names: str | Path | None = None, image_root: str | Path | None = None
) -> tuple[list[LabelledImage], list[str]]:
    """Pictures and class names of a folder or an annotation file; paths are relative to `image_root`, else to the file.

    `names` is a file of class names in the order of the sorted folders or of the numbers: one a line, a JSON list, or a
    JSON object {folder or label: name}. FileNotFoundError or ValueError says what does not fit.
    """
    path = Path(path)
    if path.is_dir():
        found = [(folder.name, file) for folder in _folders(path) for file in sorted(_pictures(folder))]
        rows = [(str(file.relative_to(path)), file, label) for label, file in found]
        labels: list[str | int] = [folder.name for folder in _folders(path)]
    else:
        root = Path(image_root) if image_root is not None else path.parent
        rows = [(image, root / image, label) for image, label in _labelled(path)]
        labels = sorted({label for *_, label in rows}, key=lambda label: (isinstance(label, str), label))
    if not rows:
        raise ValueError(f"{path} holds no pictures: expected a folder of pictures for each class, or a list of rows")
    number, known = _number(labels, names, path)
    return [{"key": key, "image": image, "label": number[label]} for key, image, label in rows], known


def read_templates(given: str | Path | Sequence[str]) -> list[str]:
    """Templates of a file, one a line or as a JSON list, or given as they are; {} (or {c}) stands for the class."""
    templates = _lines(Path(given), "templates") if isinstance(given, str | Path) else list(given)
    templates = [template.replace("{c}", "{}") for template in templates]
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"the template {template!r} must hold {{}} once, for the name of the class")
    if not templates:
        raise ValueError("there must be a template to make texts of class names, such as 'a photo of a {}'")
    return templates


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _pictures(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)


def _labelled(path: Path) -> Iterator[tuple[str, str | int]]:
    for place, row in read_rows(path):
        where = f"{path}, row {place.number}"
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise ValueError(f'{where}: a row must be an object with "image", a path, and "label"')
        if not isinstance(row.get("label"), str | int):
            raise ValueError(f'{where}: "label" must be the name or the number of a class, found {row.get("label")!r}')
        yield row["image"], row["label"]


def _number(labels: list[str | int], names: str | Path | None, path: Path) -> tuple[dict[str | int, int], list[str]]:
    """The number of each label of the data, and the class names by number."""
    if names is None:
        numbers = [label for label in labels if isinstance(label, int)]
        if numbers:
            raise ValueError(
                f"{path} labels its pictures by numbers ({numbers[0]}): name the classes with classes=FILE"
            )
        return {label: n for n, label in enumerate(labels)}, [str(label).replace("_", " ") for label in labels]
    known = _names(Path(names))
    if isinstance(known, dict):
        number = {label: n for n, label in enumerate(known)}
        named = list(known.values())
    elif all(isinstance(label, int) for label in labels):
        number, named = {n: n for n in range(len(known))}, known
    elif set(labels) <= set(known):
        number, named = {name: n for n, name in enumerate(known)}, known
    elif len(labels) == len(known):
        number, named = {label: n for n, label in enumerate(labels)}, known
    else:
        raise ValueError(f"{names} has {len(known)} class names, but {path} has {len(labels)} classes")
    unknown = [label for label in labels if label not in number]
    if unknown:
        raise ValueError(f"{path} has the class {unknown[0]!r}, which {names} does not name")
    return number, named


def _names(path: Path) -> list[str] | Mapping[str, str]:
    if path.suffix.lower() == ".json":
        content = _json(path)
        if isinstance(content, dict) and content and all(isinstance(name, str) for name in content.values()):
            return content
    return _lines(path, "class names")


def _lines(path: Path, what: str) -> list[str]:
    """The texts of a file: lines, or a JSON list."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of {what} at {path}")
    if path.suffix.lower() == ".json":
        content = _json(path)
        if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
            raise ValueError(f"{path} must hold a list of {what}")
        texts = content
    else:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{path} holds no {what}")
    return texts


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file at {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
