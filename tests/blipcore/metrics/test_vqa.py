"""VQA's accuracy against numbers worked out by hand from the challenge's rules."""

import pytest

from blipcore.metrics.vqa import normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog", "dog"),
        ("two\tdogs\n", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("were well", "were well"),  # words without an apostrophe
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("red-and-white", "red and white"),
        ("$1,000-2", "$10002"),  # a number with a comma: every mark is deleted
        ("2.5 ft.", "2.5 ft"),
        ("somebody'd", "somebodyd"),
        ("a", ""),
    ],
)
def test_answers_are_normalized(text, expected) -> None:
    assert normalize_answer(text) == expected


def test_accuracy_leaves_each_person_out_in_turn() -> None:
    def people(yes: int) -> list[str]:
        return ["Yes"] * yes + ["no"] * (10 - yes)

    assert vqa_accuracy("yes", people(0)) == 0
    assert vqa_accuracy("yes", people(1)) == pytest.approx(9 / 10 / 3)  # 0.3, not 1/3
    assert vqa_accuracy("yes.", people(2)) == pytest.approx(0.6)
    assert vqa_accuracy("yes", people(3)) == pytest.approx(0.9)
    assert vqa_accuracy("yes", people(4)) == pytest.approx(1.0)


def test_answers_are_not_normalized_if_all_people_agree() -> None:
    assert vqa_accuracy("two", ["two"] * 10) == 1.0
    assert vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqa_accuracy("2", ["two"] * 9 + ["3"]) == 1.0


def test_a_single_reference_is_compared_after_normalization() -> None:
    assert vqa_accuracy("A triangle", ["triangle"]) == 1.0
    assert vqa_accuracy("circle", ["triangle"]) == 0.0
