"""The check of merged texts: invented names, numbers and quotations are rejected, and no others."""

from __future__ import annotations

import pytest

from capfilt.fuse.guard import Guard, has_caseless_letters

WEB = "Red Toyota Corolla 2015, St. Mary's Church, 1,200 km, Paris"
CAPTION = "a car and two dogs near a building with twenty-five windows"


@pytest.mark.parametrize(
    "answer",
    [
        "A red Toyota Corolla stands near St. Mary's Church in Paris with two dogs.",
        "Two dogs near a red car. The Corolla of 2015 has 1200 km.",
        "Cars near a building with 25 windows.",
        "2 dogs; I see one car, and TWO Toyotas.",
        'A sign says "St. Mary\'s Church".',
        "",
    ],
)
def test_answers_from_their_inputs_pass(answer: str) -> None:
    assert Guard(["en"]).problem(answer, [WEB, CAPTION]) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("A car with three dogs.", "invented_number: three"),
        ("Seven dogs and 12 cars in 2016.", "invented_number: 12, 2016, seven"),
        ("A car in Berlin, near the Spree.", "invented_name: Berlin, Spree"),
        ("Berlin has a car.", "invented_name: Berlin"),
        ("A car. Elsa looks at it.", "invented_name: Elsa"),
        ("a NASA car with an iPhone", "invented_name: NASA, iPhone"),
        ("a car behind the sign “no parking”", "invented_quotation: no parking"),
        ("a car 《时代》", "invented_quotation: 时代"),
        ("THREE DOGS", "invented_number: three"),
        ("a car at the 25th window of floor ３", "invented_number: 3"),
    ],
)
def test_invented_words_are_named(answer: str, problem: str) -> None:
    assert Guard(["en"]).problem(answer, [WEB, CAPTION]) == problem


def test_chinese_answers_are_checked_by_numbers_and_latin_words() -> None:
    guard, inputs = Guard([]), ["红色汽车 有25扇窗", "两只狗在房子旁边"]
    fine = ["两只狗在红色汽车旁边。", "二十五扇窗", "一只狗", "2只狗"]
    assert [guard.problem(answer, inputs) for answer in fine] == [None] * 4
    assert guard.problem("三只狗", inputs) == "invented_number: 三"
    assert guard.problem("两只狗和 Tesla", inputs) == "invented_name: Tesla"
    assert has_caseless_letters("两只狗") and not has_caseless_letters("Zwei Hunde, два пса")


def test_inflected_nouns_of_german_are_no_invented_names() -> None:
    guard, inputs = Guard(["de"]), ["Hund vor Kirche, Berlin", "2 Hunde"]
    assert guard.problem("Zwei Hunde stehen vor den Kirchen in Berlin.", inputs) is None
    assert guard.problem("Drei Hunde.", inputs) == "invented_number: drei"
    assert guard.problem("Ein Hund vor dem Eiffelturm.", inputs) == "invented_name: Eiffelturm"


def test_first_words_are_checked_where_the_language_has_function_words() -> None:
    assert Guard(["en"]).settings() == {"languages": ["en"], "first_words": True}
    assert Guard(["en", "de"]).settings()["first_words"] is False
    off = Guard(["en"], first_words=False)
    assert off.problem("Berlin has a car.", [CAPTION]) is None
    assert off.problem("Angela Merkel has a car.", [CAPTION]) == "invented_name: Merkel"
