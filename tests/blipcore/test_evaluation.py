"""Evaluation of a checkpoint: result files, settings per task, and annotations that cannot be scored."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from colour_pictures import COLOURS, colour_folders, write_colours
from tiny_tasks import tiny_model, tiny_tokenizer

from blipcore.checkpoints.save import save_model
from blipcore.evaluation import ClassifyConfig, EvaluateRun, ValidationConfig, evaluate, make_evaluator


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_colours(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The folder of a random pre-training model."""
    tokenizer = tiny_tokenizer()
    save_model(tmp_path / "model", tiny_model(tokenizer), tokenizer)
    return str(tmp_path / "model")


def test_a_summary_names_task_model_and_pictures(model: str, annotations: Path) -> None:
    summary = evaluate(EvaluateRun("retrieval", str(annotations), model, device="cpu"))
    assert (summary["task"], summary["model"], summary["pictures"]) == ("retrieval", model, len(COLOURS))
    assert 0 <= summary["mean_recall"] <= 100


def test_pictures_without_captions_are_captioned_for_a_server(model: str, annotations: Path, tmp_path: Path) -> None:
    """As nocaps_test.json: the captions are for an evaluation server."""
    rows = [{"image": f"{colour}.png", "img_id": 7 + n} for n, colour in enumerate(COLOURS)]
    (annotations.parent / "nocaps.json").write_text(json.dumps(rows))
    run = EvaluateRun("caption", str(annotations.parent / "nocaps.json"), model)
    with pytest.raises(ValueError, match="no captions to score against: use --results"):
        evaluate(run)
    run.results = str(tmp_path / "results" / "nocaps.json")
    assert evaluate(run).keys() == {"task", "model", "pictures"}
    results = json.loads(Path(run.results).read_text())
    assert [row["image_id"] for row in results] == list(range(7, 13)) and results[0].keys() == {"image_id", "caption"}


def test_the_scores_of_pictures_are_those_of_the_summary(model: str, annotations: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores" / "pictures.json"
    run = EvaluateRun("caption", str(annotations), model, words="plain", device="cpu", scores=str(path))
    cider = evaluate(run)["CIDEr"]
    rows = json.loads(path.read_text())
    assert sum(row["cider"] for row in rows) / len(rows) == pytest.approx(cider)
    run.task = "retrieval"
    summary = evaluate(run)
    ranks = json.loads(path.read_text())
    assert [row["image_id"] for row in ranks] == [row["image_id"] for row in rows]
    found = [row["text_rank"] == 0 for row in ranks]
    assert 100 * sum(found) / len(found) == pytest.approx(summary["i2t_r@1"])
    ranks_of_texts = [rank for row in ranks for rank in row["image_ranks"]]
    found = [rank < 5 for rank in ranks_of_texts]
    assert 100 * sum(found) / len(found) == pytest.approx(summary["t2i_r@5"])


def test_a_task_without_scores_of_pictures_refuses_a_file_for_them(tmp_path: Path) -> None:
    run = EvaluateRun("classify", colour_folders(tmp_path), "nowhere", scores=str(tmp_path / "scores.json"))
    with pytest.raises(ValueError, match="has no scores per picture: leave out scores"):
        evaluate(run)


@pytest.mark.parametrize(("by", "needs"), [("itc", ("encode", "itc")), ("vqa", ("encode", "vqa"))])
def test_the_parts_for_classification_depend_on_its_method(by: Any, needs: tuple[str, ...], tmp_path: Path) -> None:
    run = EvaluateRun("classify", colour_folders(tmp_path), "nowhere", classify=ClassifyConfig(by=by))
    evaluator = make_evaluator("classify", run.annotations, None, run)
    assert evaluator.needs == needs
    assert [record["label"] for record in evaluator.records] == list(range(len(COLOURS)))


def test_questions_are_grouped_by_picture_for_validation(tmp_path: Path) -> None:
    rows = [{"question_id": n, "question": "what?", "image": f"{n // 2}.png", "answer": "red"} for n in range(4)]
    (tmp_path / "vqa.json").write_text(json.dumps(rows))
    evaluator = make_evaluator("vqa", str(tmp_path / "vqa.json"), "root", ValidationConfig())
    assert evaluator.needs == ("encode", "vqa")
    assert [record["image"] for record in evaluator.records] == [Path("root/0.png"), Path("root/1.png")]
    assert [len(record["questions"]) for record in evaluator.records] == [2, 2]


@pytest.mark.parametrize("task", ["retrieval", "nlvr"])
def test_a_task_without_results_refuses_a_results_file(task: Any, annotations: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"Evaluating {task} writes no results"):
        evaluate(EvaluateRun(task, str(annotations), "nowhere", results=str(tmp_path / "r.json")))


def test_questions_without_answers_need_a_results_file(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "question": "what?", "image": "images/0.png"}]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    run = EvaluateRun("vqa", str(tmp_path / "test.json"), "nowhere")
    with pytest.raises(ValueError, match="no answers to score against: use --results"):
        evaluate(run)


def test_annotations_without_scores_are_refused_before_a_model_is_loaded(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": "0.png", "caption": ["red"]}, {"image": "1.png", "caption": []}]
    (tmp_path / "some.json").write_text(json.dumps(rows))
    for options, message in [
        ({"annotations": str(tmp_path / "some.json")}, "no caption for 1.png"),
        ({"k": 0}, "k and batch_size must be at least 1"),
        ({"results": str(tmp_path)}, "is a folder; --results needs"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(EvaluateRun(**{"task": "caption", "annotations": str(annotations), "model": "nowhere"} | options))
    monkeypatch.setattr("blipcore.metrics.captions.has_java", lambda: False)
    with pytest.raises(ValueError, match="needs Java"):
        evaluate(EvaluateRun("caption", str(annotations), "nowhere", words="ptb"))
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[eval\]'"):
        evaluate(EvaluateRun("caption", str(annotations), "nowhere"))


def test_pictures_that_cannot_be_read_are_named_before_a_model_is_loaded(annotations: Path, tmp_path: Path) -> None:
    (tmp_path / f"{COLOURS[0]}.png").write_bytes(b"cut")
    for task in ("caption", "retrieval"):
        run = EvaluateRun(task, str(annotations), "nowhere", words="plain")
        with pytest.raises(ValueError, match=rf"1 picture of .* cannot be decoded: .*{COLOURS[0]}\.png"):
            evaluate(run)
    (tmp_path / f"{COLOURS[0]}.png").unlink()
    with pytest.raises(ValueError, match=rf"1 picture of .* cannot be found: {COLOURS[0]}\.png"):
        evaluate(EvaluateRun("retrieval", str(annotations), "nowhere"))


def test_retrieval_needs_a_caption_of_each_picture(annotations: Path) -> None:
    rows = [{"image": f"{colour}.png", "caption": " " if n else "x"} for n, colour in enumerate(COLOURS)]
    annotations.write_text(json.dumps(rows))
    with pytest.raises(
        ValueError, match=rf"has {len(COLOURS) - 1} pictures without a caption, the first {COLOURS[1]}\.png"
    ):
        make_evaluator("retrieval", str(annotations), None, ValidationConfig())


def test_texts_of_several_pictures_are_counted_and_explained(model: str, annotations: Path, capsys: Any) -> None:
    rows = [{"image": f"{colour}.png", "caption": "a wall"} for colour in COLOURS]
    annotations.write_text(json.dumps(rows))
    summary = evaluate(EvaluateRun("retrieval", str(annotations), model, device="cpu"))
    assert (summary["i2t_r@1"], summary["same_text_i2t_r@1"]) == (0.0, 100.0)
    assert f"{len(COLOURS)} texts also belong to another picture" in capsys.readouterr().err


def test_a_task_without_an_evaluator_is_an_error() -> None:
    with pytest.raises(ValueError, match="'pretrain' has no evaluator; tasks with one are caption, retrieval"):
        make_evaluator("pretrain", "pairs.json", None, ValidationConfig())
