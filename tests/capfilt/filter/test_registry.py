"""Scorers of a user's own are columns beside ITM and ITC; what is no scorer is refused in a sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from filter_runs import rows, run, scores

from capfilt.filter.config import ScoreConfig
from capfilt.filter.registry import declare_scorers

OWN = """
from capfilt.filter.scorer import Scorer

class Length(Scorer):
    columns = ("length",)

    def score(self, inputs, texts):
        return {"length": [[len(text.split()) / 10 for text in picture_texts] for picture_texts in texts]}

class Duck:
    columns = ("red", "itm")
    fingerprint = "1"

    def prepare(self, image):
        return image.resize((1, 1)).getpixel((0, 0))[0]

    def score(self, inputs, texts):
        return {name: [[red] * len(row) for red, row in zip(inputs, texts)] for name in self.columns}
"""


def write(path: Path, code: str = OWN) -> Path:
    path.write_text(code)
    return path


def declare(**settings: Any) -> list[Any]:
    return declare_scorers(ScoreConfig(data="data", **settings))


def test_a_scorer_of_a_file_is_one_more_column(shards, tiny_filter: Path, tmp_path: Path, no_pictures) -> None:
    data, file = shards(1, 6), write(tmp_path / "own.py")
    own = run(data, tiny_filter, scorer=f"{file}:Length", min_scores={"length": 0.35}, threshold=0)
    assert Path(own["scores"]).name.split(".")[0].endswith("+length")
    for row in rows(own):
        assert row["length"] == pytest.approx(len(row["text"].split()) / 10)
    assert own["kept"] + own["dropped"].get("length<0.35", 0) == 6
    no_pictures()
    best = run(data, tiny_filter, name="best", scorer=[f"{file}:Length"], best_of="length")
    assert best["scores"] == own["scores"]
    assert run(data, tiny_filter, name="plain")["scores"] == own["scores"], "it has all columns of the request"
    with pytest.raises(ValueError, match="best_of needs the score 'width', but the scores are itm, itc, length"):
        run(data, tiny_filter, name="w", best_of="width")


def test_a_changed_scorer_scores_again(shards, tiny_filter: Path, tmp_path: Path) -> None:
    data, file = shards(1, 2), write(tmp_path / "own.py")
    run(data, tiny_filter, scorer=f"{file}:Length")
    write(file, OWN.replace("/ 10", "/ 20"))
    with pytest.raises(ValueError, match="was made with other settings; give another name"):
        run(data, tiny_filter, scorer=f"{file}:Length")
    again = run(data, tiny_filter, scorer=f"{file}:Length", scores="again", name="again")
    assert scores(again)[0]["length"] == pytest.approx(0.2)


def test_any_class_with_the_members_of_a_scorer_and_further_checkpoints_are_numbered(
    shards, tiny_filter: Path, tiny_blip: Path, tmp_path: Path, tiny_clip: str
) -> None:
    file = write(tmp_path / "own.py")
    summary = run(shards(1, 3), tiny_filter, clip=tiny_clip, scorer=[str(tiny_blip), f"{file}:Duck"], threshold=0)
    [first, *_] = rows(summary)
    columns = list(first)[list(first).index("itm") : list(first).index("keep")]
    assert columns == ["itm", "itc", "clip", "itm2", "itc2", "red", "itm3"]
    assert first["red"] == first["itm3"] and first["itm2"] != first["itm"]
    settings = json.loads((Path(summary["scores"]) / "manifest.json").read_text())["config"]
    assert list(settings["scorers"]) == ["itm2,itc2", "red,itm3"]


def test_a_module_of_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_filter: Path
) -> None:
    write(tmp_path / "own_scorers_here.py")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert declare(model=str(tiny_filter), scorer="own_scorers_here:Length")[1].columns == ("length",)
    assert before == sys.path


def test_columns_of_one_scorer_never_get_equal_names(tiny_filter: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "own.py", OWN.replace('("red", "itm")', '("itm", "itm2")'))
    assert declare(model=str(tiny_filter), scorer=f"{file}:Duck")[1].columns == ("itm2", "itm22")


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "Length", r"own\.py has no class 'Length'; its classes are none"),
        ("class A: pass", "B", r"has no class 'B'; its classes are A"),
        ("import nothing_of_that_name", "A", r"cannot be imported \(ModuleNotFoundError: No module named"),
        ("1 +", "A", r"cannot be imported \(SyntaxError"),
        ("class A: pass", "A", "is no scorer: it has no columns; derive it from"),
        ("class A:\n columns = ('a',)\n fingerprint = 'a'\n prepare = 1", "A", "is no scorer: it has no score"),
        ("from capfilt.filter.scorer import Scorer\nclass A(Scorer):\n columns = ('a',)", "A", "it has no score"),
        (OWN + "\nclass A(Length):\n columns = 'length'", "A", "must be a tuple of names"),
        (OWN + "\nclass A(Length):\n columns = ()", "A", "must be a tuple of names"),
        (OWN + "\nclass A(Length):\n columns = ('text',)", "A", "has the column 'text'"),
        (OWN + "\nclass A(Length):\n columns = ('a b',)", "A", "has the column 'a b'"),
        (OWN + "\nclass A(Length):\n columns = ('a', 'a')", "A", "has the column 'a'"),
        (OWN + "\nclass A(Length):\n def __init__(self, x): pass", "A", "cannot be created without arguments"),
    ],
)
def test_what_is_no_scorer_is_refused_in_a_sentence(
    tmp_path: Path, tiny_filter: Path, code: str, name: str, message: str
) -> None:
    file = write(tmp_path / "own.py", code)
    with pytest.raises(ValueError, match=message):
        declare(model=str(tiny_filter), scorer=f"{file}:{name}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": "open_clip:ViT-B-32/openai"}, "is a CLIP model: give it as --clip open_clip:ViT-B-32/openai"),
        ({"scorer": "own.py"}, r"own\.py is a file; name the class too, as own\.py:CLASS"),
        ({"scorer": "no_module_of_that_name:A"}, "cannot be imported"),
        ({"scorer": "missing.py:A"}, r"cannot be imported \(FileNotFoundError: no file at missing\.py"),
        ({"model": "open_clip:ViT-B-32/openai"}, "is a CLIP model, which has no ITM head: give it as --clip"),
        ({"model": "hf:llava"}, "is the name of a captioner; a filter is a checkpoint with ITM and ITC heads"),
        ({"clip": "ViT-B-32"}, "is not a CLIP model; write open_clip:ARCH/TAG"),
    ],
)
def test_a_model_given_to_the_wrong_option_is_told_the_right_one(
    tiny_filter: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        declare(**({"model": str(tiny_filter)} | settings))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}", "returned no numbers as 'length'"),
        ("return {'length': [['x'] * len(row) for row in texts]}", "returned no numbers as 'length'"),
        ("return {'length': [[1.0]]}", "returned 'length' of another shape than the texts"),
        ("return {'length': [[10**400] * len(row) for row in texts]}", "returned no numbers as 'length'"),
        ("raise RuntimeError('out of luck')", "own.py:Length failed (RuntimeError: out of luck)"),
        ("raise SystemExit(3)", "own.py:Length failed (SystemExit: 3)"),
    ],
)
def test_wrong_scores_fail_the_shard_with_the_reason(
    shards, tiny_filter: Path, tmp_path: Path, body: str, message: str
) -> None:
    code = OWN.replace('return {"length": [[len', body + "\n        return {'length': [[len", 1)
    summary = run(shards(1, 2), tiny_filter, scorer=f"{write(tmp_path / 'own.py', code)}:Length")
    assert message in summary["shards"]["failed"]["00000"]


def test_a_scorer_that_cannot_be_loaded_ends_the_run_with_a_sentence(shards, tiny_filter: Path, tmp_path: Path) -> None:
    code = OWN.replace(
        "    def score", "    def load(self, runtime):\n        raise KeyError('weights')\n\n    def score", 1
    )
    with pytest.raises(ValueError, match=r"own\.py:Length cannot be loaded \(KeyError: 'weights'\)"):
        run(shards(1, 2), tiny_filter, scorer=f"{write(tmp_path / 'own.py', code)}:Length")


def test_a_text_may_have_no_score(shards, tiny_filter: Path, tmp_path: Path) -> None:
    code = OWN.replace("len(text.split()) / 10", "None", 1)
    summary = run(
        shards(1, 2), tiny_filter, scorer=f"{write(tmp_path / 'own.py', code)}:Length", min_scores={"length": 0}
    )
    assert {row["length"] for row in rows(summary)} == {None} and summary["kept"] == 0
