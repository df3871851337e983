"""Public tests of image-text scores, read as distributed; the format follows from the content.

SugarCrepe          {id: {filename, caption, negative_caption}}; a folder of such files is one test with groups
                    github.com/RAIVNLab/sugar-crepe, arXiv 2306.14610
ARO                 [{image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption, ...}], cropped first
                    github.com/mertyg/vision-language-models-are-bows, arXiv 2210.01936
Winoground          JSON lines {image_0, image_1, caption_0, caption_1}, names of PNG files
                    huggingface.co/datasets/facebook/winoground, arXiv 2204.03162
OHD-Caps            JSON lines {file_path, positive_sample, adversarial_samples: {objects: text}, ...}
                    github.com/Yufang-Liu/clip_hallucination, arXiv 2410.03176
FOIL                {images: [{id, file_name}], annotations: [{id, image_id, caption, foil}]}, paired by id
                    foilunitn.github.io, arXiv 1705.01359
Flickr8k ratings    ExpertAnnotations.txt or CrowdFlowerAnnotations.txt beside Flickr8k.token.txt, or the JSON files of
                    github.com/jmhessel/clipscore, arXiv 2104.08718
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from blipcore.data.picture_lists import default_root
from blipcore.io.text_encoding import decode_text
from capfilt.judge.ratings import is_crowdflower, read_annotations, read_clipscore

MAX_BYTES = 1 << 30
MAX_SIDE = 1 << 20  # pixels of a box
Kind = Literal["pairs", "winoground", "ratings", "labels"]
Box = tuple[float, float, float, float]


class Picture(NamedTuple):
    """A picture of a test: a path, or a key of a shard; `box` (left, top, right, bottom) is cut out first."""

    path: str
    box: Box | None = None
    shard: str | None = None


class Case(NamedTuple):
    """A picture with the texts that are scored for it.

    pairs: the right text first. ratings: one text per rating. labels: one text. winoground: both texts, in two
    consecutive cases per item.
    """

    picture: Picture
    texts: list[str]
    # ratings: one number per text; labels: 1 or 0
    truth: tuple[float, ...] = ()
    # file, relation or attributes
    group: str = ""


@dataclass(frozen=True)
class PublicTest:
    """The cases of a test. `name` is that of its format."""

    name: str
    kind: Kind
    cases: list[Case]
    root: Path
    # published measure of ratings
    tau: Literal["b", "c"] = "c"
    # groups with fewer cases are left out of the mean over groups, as in the test's own script
    smallest_group: int = 1


def read_test(path: Path, image_root: str | None) -> PublicTest:
    """Read a test file, or a folder of SugarCrepe files; ValueError or FileNotFoundError if it is none."""
    if path.is_dir():
        return _read_folder(path, image_root)
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than 1 GiB; give the annotation file of a test.")
    root = Path(image_root) if image_root else default_root(path)
    if path.suffix == ".txt":
        ratings = read_annotations(path)
        tau: Literal["b", "c"] = "b" if is_crowdflower(ratings.rows) else "c"
        name = f"Flickr8k-{'CF' if tau == 'b' else 'Expert'}"
        return PublicTest(name, "ratings", _rated(ratings.judgements), root, tau)
    try:
        content = _read_json(path)
        for is_format, read in _FORMATS:
            if is_format(content):
                return read(content, root)
    except _RowError as error:
        raise ValueError(f"{path}: {error} Correct it, or download the test again.") from None
    raise ValueError(
        f"{path} is none of the tests that are read: SugarCrepe, ARO, Winoground, OHD-Caps, FOIL, Flickr8k ratings, or "
        "labels (.csv, .tsv or .parquet); examples/judge.md shows each format."
    )


class _RowError(ValueError):
    """A row of a test that is not as its format says."""


def _read_folder(folder: Path, image_root: str | None) -> PublicTest:
    """Read the JSON files of a folder as one test with a group per file."""
    paths = sorted(folder.glob("*.json")) or sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .json or .jsonl file of a test.")
    if len(paths) == 1:
        return read_test(paths[0], image_root)
    tests = [read_test(path, image_root) for path in paths]
    other = next((test for test in tests if test.name != tests[0].name), None)
    if other is not None or tests[0].kind != "pairs":
        raise ValueError(f"{folder} holds files of several tests; give one of its files.")
    cases = [case._replace(group=path.stem) for path, test in zip(paths, tests, strict=True) for case in test.cases]
    return PublicTest(tests[0].name, "pairs", cases, tests[0].root)


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, or the list of the rows of JSON lines."""
    try:
        text = decode_text(path.read_bytes())
        try:
            return json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError:  # str.splitlines also splits at U+2028, which a text may hold
            return [json.loads(line, object_pairs_hook=_object) for line in text.split("\n") if line.strip()]
    except _RowError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({' '.join(str(error).split())[:200]}); download it again.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises _RowError for a repeated name, of which json keeps the last value alone."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RowError(f"'{next(name for name in names if names.count(name) > 1)}' occurs twice in an object.")
    return content


def _rows(content: Any) -> list[dict[str, Any]]:
    rows = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise _RowError(f"a {type(rows).__name__} is in place of a list of rows.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise _RowError(f"row {number} is a {type(row).__name__}, not an object.")
    return rows


def _text(row: dict[str, Any], name: str, number: int) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _RowError(f"row {number} has no text '{name}'.")
    if not value.isprintable() and (surrogate := re.search("[\ud800-\udfff]", value)):
        raise _RowError(f"row {number} has half a character, U+{ord(surrogate[0]):04X}, in '{name}'.")
    return value


def _id(row: dict[str, Any], name: str, number: int) -> int | str:
    value = row.get(name)
    if not isinstance(value, int | str):
        raise _RowError(f"row {number} has no '{name}'.")
    return value


def _add_once(values: dict[int | str, str], key: int | str, value: str, name: str) -> None:
    """Add a value; _RowError if the key has another one already."""
    if values.setdefault(key, value) != value:
        raise _RowError(f"two rows have the {name} {key}, with different contents.")


def _read_sugarcrepe(content: Any, root: Path) -> PublicTest:
    cases = [
        Case(
            Picture(_text(row, "filename", number)),
            [_text(row, name, number) for name in ("caption", "negative_caption")],
        )
        for number, row in enumerate(_rows(content))
    ]
    return PublicTest("SugarCrepe", "pairs", cases, root)


def _read_aro(content: Any, root: Path) -> PublicTest:
    cases = []
    for number, row in enumerate(_rows(content)):
        texts = [_text(row, name, number) for name in ("true_caption", "false_caption")]
        attributes = row.get("attributes")
        group = "_".join(map(str, attributes)) if isinstance(attributes, list) else str(row.get("relation_name") or "")
        cases.append(Case(Picture(_text(row, "image_path", number), _read_box(row, number)), texts, group=group))
    is_attribution = any("attributes" in row for row in content)
    # the script of the paper skips rare pairs of attributes
    return PublicTest(f"ARO VG-{'Attribution' if is_attribution else 'Relation'}", "pairs", cases, root,
                      smallest_group=25 if is_attribution else 1)  # fmt: skip


def _read_box(row: dict[str, Any], number: int) -> Box:
    sides: list[Any] = [row.get(f"bbox_{side}") for side in "xywh"]
    if not all(type(side) in (int, float) and -MAX_SIDE < side < MAX_SIDE for side in sides):
        raise _RowError(f"row {number} has no numbers bbox_x, bbox_y, bbox_w, bbox_h in pixels.")
    x, y, w, h = map(float, sides)
    if round(x + w) <= round(x) or round(y + h) <= round(y):
        raise _RowError(f"row {number} has an empty box: bbox_w {w:g}, bbox_h {h:g}.")
    return x, y, x + w, y + h


def _read_winoground(content: Any, root: Path) -> PublicTest:
    cases = []
    for number, row in enumerate(_rows(content)):
        texts = [_text(row, name, number) for name in ("caption_0", "caption_1")]
        for name in ("image_0", "image_1"):
            file = _text(row, name, number)
            file = file if Path(file).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") else f"{file}.png"
            cases.append(Case(Picture(file), texts))
    return PublicTest("Winoground", "winoground", cases, root)


def _read_ohd_caps(content: Any, root: Path) -> PublicTest:
    cases = []
    for number, row in enumerate(_rows(content)):
        kinds = {name: value for name, value in row.items() if name.endswith("_samples")}
        wrong = next((name for name, value in kinds.items() if not isinstance(value, dict) or not value), None)
        if wrong is not None or not kinds:
            names = wrong or "adversarial_samples, popular_samples or random_samples"
            raise _RowError(f"row {number} has no texts in {names}.")
        negatives = [_text(texts, name, number) for texts in kinds.values() for name in texts]
        texts = [_text(row, "positive_sample", number), *negatives]
        cases.append(Case(Picture(_text(row, "file_path", number)), texts))
    return PublicTest("OHD-Caps", "pairs", cases, root)


def _read_foil(content: Any, root: Path) -> PublicTest:
    files: dict[int | str, str] = {}
    for number, image in enumerate(_rows(content.get("images") or [])):
        _add_once(files, _id(image, "id", number), _text(image, "file_name", number), "image id")
    originals: dict[int | str, str] = {}
    foils: list[tuple[int | str, int | str, str]] = []
    for number, row in enumerate(_rows(content["annotations"])):
        key, text = _id(row, "id", number), _text(row, "caption", number)
        if row.get("foil") not in (True, False):
            raise _RowError(f"row {number}: 'foil' must be true or false, not {row.get('foil')!r}.")
        if row["foil"]:
            foils.append((key, _id(row, "image_id", number), text))
        else:
            _add_once(originals, key, text, "id")
    cases = []
    for key, image_id, text in foils:
        if image_id not in files or key not in originals:
            missing = "no image" if image_id not in files else "no original text"
            raise _RowError(f"the foil of annotation {key} has {missing} in the file.")
        cases.append(Case(Picture(files[image_id]), [originals[key], text]))
    return PublicTest("FOIL", "pairs", cases, root)


def _read_ratings(content: Any, root: Path) -> PublicTest:
    try:
        judgements = read_clipscore(content)
    except ValueError as error:
        raise _RowError(str(error)) from None
    is_expert = all(rating in (1, 2, 3, 4) for _, _, rating in judgements)
    return PublicTest(f"Flickr8k-{'Expert' if is_expert else 'CF'}", "ratings", _rated(judgements), root,
                      "c" if is_expert else "b")  # fmt: skip


def _rated(judgements: Iterable[tuple[str, str, float]]) -> list[Case]:
    """Return a case per picture of (picture, text, rating)."""
    by_picture: dict[str, tuple[list[str], list[float]]] = {}
    for picture, text, rating in judgements:
        texts, ratings = by_picture.setdefault(picture, ([], []))
        texts.append(text)
        ratings.append(rating)
    return [Case(Picture(name), texts, tuple(ratings)) for name, (texts, ratings) in by_picture.items()]


def _has(*names: str) -> Callable[[Any], bool]:
    """Return a test whether the first row of a list or of a dict's values has all these names."""

    def test(content: Any) -> bool:
        values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        first = next(iter(values), None)
        return isinstance(first, dict) and all(name in first for name in names)

    return test


def _is_foil(content: Any) -> bool:
    rows = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "foil" in rows[0]


_FORMATS: list[tuple[Callable[[Any], bool], Callable[[Any, Path], PublicTest]]] = [
    (_is_foil, _read_foil),
    (_has("negative_caption"), _read_sugarcrepe),
    (_has("true_caption", "false_caption"), _read_aro),
    (_has("image_0", "caption_0"), _read_winoground),
    (_has("positive_sample"), _read_ohd_caps),
    (_has("human_judgement"), _read_ratings),
]
