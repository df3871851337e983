"""Pictures of classes for zero-shot classification: class names, templates and one record per picture.

Pictures are in a folder with one folder per class, or in a list (`.json` or `.jsonl`) of {"image": path, "label": name
or number}. Class names are the folders' names or the labels, or come from a file, as for ImageNet with folders like
n01440764. Templates turn a name into texts: "a photo of a {}".
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from blipcore.io.json_rows import read_json_rows
from blipcore.io.samples import PICTURE_SUFFIXES

Label = str | int  # of a class: its name or number


class LabelledImage(TypedDict):
    key: str  # path relative to the folder, or as the file has it
    image: Path
    label: int  # index of the class


def read_classes(
    path: str | Path, names: str | Path | None = None, image_root: str | Path | None = None
) -> tuple[list[LabelledImage], list[str]]:
    """Read the pictures and class names of a folder or a list.

    Paths in a list are relative to `image_root`, by default to the list. `names` is a file of class names in the order
    of the sorted folders or of the numbers: a text file with one per line, a JSON list, or a JSON object {folder or
    label: name}. Raises FileNotFoundError, or ValueError if labels and names do not fit.
    """
    path = Path(path)
    rows: list[tuple[str, Path, Label]]
    labels: list[Label]
    if path.is_dir():
        files = [(folder.name, file) for folder in _class_folders(path) for file in sorted(_picture_files(folder))]
        rows = [(str(file.relative_to(path)), file, label) for label, file in files]
        labels = [folder.name for folder in _class_folders(path)]
    else:
        root = Path(image_root) if image_root is not None else path.parent
        rows = [(image, root / image, label) for image, label in _labelled_images(path)]
        labels = sorted({label for *_, label in rows}, key=lambda label: (isinstance(label, str), label))
    if not rows:
        raise ValueError(f"{path} holds no pictures: give a folder with a folder per class, or a list of rows.")
    index, class_names = _index_labels(labels, names, path)
    return [{"key": key, "image": image, "label": index[label]} for key, image, label in rows], class_names


def read_templates(templates: str | Path | Sequence[str]) -> list[str]:
    """Check templates, or read them from a file (one per line, or a JSON list); {} or {c} stands for the class name."""
    texts = _read_texts(Path(templates), "templates") if isinstance(templates, str | Path) else list(templates)
    texts = [text.replace("{c}", "{}") for text in texts]
    for text in texts:
        if text.count("{}") != 1:
            raise ValueError(f"The template {text!r} must contain {{}} once, for the name of the class.")
    if not texts:
        raise ValueError("There are no templates: give at least one, such as 'a photo of a {}'.")
    return texts


def _class_folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _picture_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.suffix.lstrip(".").lower() in PICTURE_SUFFIXES)


def _labelled_images(path: Path) -> Iterator[tuple[str, Label]]:
    for start, row in read_json_rows(path):
        location = f"{path}, row {start.number}"
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise ValueError(f'{location}: a row must be an object with "image", a path, and "label".')
        if not isinstance(row.get("label"), str | int):
            raise ValueError(f'{location}: "label" must be the name or number of a class, not {row.get("label")!r}.')
        yield row["image"], row["label"]


def _index_labels(labels: list[Label], names: str | Path | None, path: Path) -> tuple[Mapping[Label, int], list[str]]:
    """Return the index of each label, and the class names."""
    index: dict[Label, int]
    if names is None:
        numbers = [label for label in labels if isinstance(label, int)]
        if numbers:
            raise ValueError(
                f"{path} labels its pictures by numbers ({numbers[0]}): name the classes with classes=FILE."
            )
        return {label: i for i, label in enumerate(labels)}, [str(label).replace("_", " ") for label in labels]
    entries = _read_names(Path(names))
    class_names = list(entries.values()) if isinstance(entries, dict) else entries
    if isinstance(entries, dict):
        index = {label: i for i, label in enumerate(entries)}
    elif all(isinstance(label, int) for label in labels):
        index = {i: i for i in range(len(entries))}
    elif set(labels) <= set(entries):
        index = {name: i for i, name in enumerate(entries)}
    elif len(labels) == len(entries):
        index = {label: i for i, label in enumerate(labels)}
    else:
        raise ValueError(f"{names} has {len(entries)} class names, but {path} has {len(labels)} classes.")
    unknown = [label for label in labels if label not in index]
    if unknown:
        raise ValueError(f"{path} has the class {unknown[0]!r}, which {names} does not name.")
    return index, class_names


def _read_names(path: Path) -> list[str] | dict[str, str]:
    if path.suffix.lower() == ".json":
        content = _read_json(path)
        if isinstance(content, dict) and content and all(isinstance(name, str) for name in content.values()):
            return content
    return _read_texts(path, "class names")


def _read_texts(path: Path, content_name: str) -> list[str]:
    """Read a text file with one text per line, or a JSON list of texts; errors call its content `content_name`."""
    if not path.is_file():
        raise FileNotFoundError(f"No file of {content_name} at {path}.")
    if path.suffix.lower() == ".json":
        texts = _read_json(path)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path} must be a JSON list of {content_name}.")
    else:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{path} holds no {content_name}.")
    return texts


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"No file at {path}.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
