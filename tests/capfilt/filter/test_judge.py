"""Answers of a judge: probabilities of yes and no, and numbers of a rubric; nothing is guessed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from capfilt.config import resolve
from capfilt.filter.config import ScoreConfig
from capfilt.filter.judge import JudgeConfig, read_rubric, read_yes_no, spells
from capfilt.vlm.answer import Answer


def answer(text: str | None, *tops: dict[str, float], finish: str = "stop", refusal: str | None = None) -> Answer:
    logprobs = [{token: math.log(share) for token, share in top.items()} for top in tops]
    return Answer(text, refusal, finish, None, logprobs or None)


def test_all_spellings_of_yes_and_no_count() -> None:
    for token in ("yes", "Yes", " YES", "▁Yes", "Ġyes", "yes.", '"Yes', "**Yes"):
        assert spells(token) == "yes"
    for token in ("yesterday", "##yes", "y", "", "not", "oui"):
        assert spells(token) is None
    top = {"Yes": 0.3, " yes": 0.1, "YES": 0.1, "No": 0.1, "▁no": 0.025, "It": 0.2}
    assert read_yes_no(answer("Yes", top)).scores == (pytest.approx(0.5 / 0.625),)


def test_the_first_place_with_a_word_decides() -> None:
    places = [{"\n": 0.9, "Yes": 0.1}, {'"': 0.6, "No": 0.4}, {"No": 0.75, "Yes": 0.25}, {"Yes": 1.0}]
    assert read_yes_no(answer('\n"No"', *places)).scores == (pytest.approx(0.25),)
    assert read_yes_no(answer("It shows", {"It": 0.995, "Yes": 0.004}, {"Yes": 1.0})).error == "no_answer: It shows"
    assert read_yes_no(answer("Yes", {"Yes": 1.0})).scores == (1.0,)
    assert read_yes_no(answer("Yes")).error == "no_logprobs"


def test_refusals_and_empty_answers_have_names() -> None:
    yes = {"Yes": 1.0}
    assert read_yes_no(answer(None, refusal="I do not judge.")).error == "refused: I do not judge."
    assert read_yes_no(answer("", yes, finish="content_filter")).error == "refused: content filter"
    assert (
        read_yes_no(answer("I'm sorry, but I can't help.", {"I": 1.0})).error == "refused: I'm sorry, but I can't help."
    )
    assert read_yes_no(answer(" \n", {"\n": 1.0})).error == "empty"


GOOD = {"match": 4, "specificity": 2, "fluency": 5}


@pytest.mark.parametrize("text", [
    json.dumps(GOOD), f"\n{json.dumps(GOOD)}\n", f"```json\n{json.dumps(GOOD, indent=1)}\n```",
    f"<think>a 3, or</think> {json.dumps(GOOD)}", '{"fluency": 5, "match": 4, "specificity": 2}',
])  # fmt: skip
def test_a_rubric_is_a_json_object_of_whole_numbers(text: str) -> None:
    assert read_rubric(answer(text)).scores == (4.0, 2.0, 5.0)


@pytest.mark.parametrize("text", [
    "4, 2, 5", "Match: 4", json.dumps([GOOD]), json.dumps(GOOD | {"match": 6}), json.dumps(GOOD | {"match": 0}),
    json.dumps(GOOD | {"match": 4.0}), json.dumps(GOOD | {"match": "4"}), json.dumps(GOOD | {"match": True}),
    json.dumps(GOOD | {"match": None}), json.dumps(GOOD | {"more": 1}), '{"match": 4}', json.dumps({"scores": GOOD}),
    '{"match": 4, "match": 5, "specificity": 2, "fluency": 5}', f"Here it is: {json.dumps(GOOD)}", "[" * 9000,
    json.dumps(GOOD)[:-1], json.dumps(GOOD | {"match": 10**400}), "null", '"4"', json.dumps(GOOD) * 2,
])  # fmt: skip
def test_other_rubrics_are_malformed(text: str) -> None:
    judgement = read_rubric(answer(text))
    assert judgement.scores == () and judgement.error is not None and judgement.error.startswith("malformed: ")
    assert len(judgement.error) < 250


def test_a_rubric_that_is_cut_is_too_long() -> None:
    assert (read_rubric(answer('{"match": 4,', finish="length")).error or "").startswith("too_long: ")


def test_a_question_holds_the_text_unchanged_on_one_line() -> None:
    config = JudgeConfig("openai:m", question="Is it {text}?")
    assert config.format_question("a {dog}\n{text} %s") == "Is it a {dog} {text} %s?"


@pytest.mark.parametrize(("settings", "message"), [
    ({"model": "gpt-4o"}, "judge must be openai:MODEL or hf:MODEL, not 'gpt-4o'"),
    ({"model": "openai:"}, "judge must be openai:MODEL"),
    ({"by": "rubric"}, "--base-url and judge.* settings need a judge"),
    ({"model": "hf:m", "by": "rubric"}, "by rubric is for openai: judges"),
    ({"model": "hf:m", "extra": {"seed": 1}}, "judge.extra are for openai: judges"),
    ({"model": "hf:m", "server": {"base_url": "http://a"}}, "judge.extra are for openai: judges"),
    ({"server": {"base_url": "http://a"}}, "--base-url and judge.* settings need a judge"),
    ({"model": "openai:m", "question": "Is it right?"}, "judge.question needs {text}"),
    ({"model": "openai:m", "by": "stars"}, "judge.by"),
    ({"model": "openai:m", "server": {"input_price": -1}}, "input_price and output_price must be"),
])  # fmt: skip
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"judge|price") as caught:
        resolve(ScoreConfig, overrides={"data": "data", "model": "m", "judge": settings})
    assert message in str(caught.value)
