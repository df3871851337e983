"""Statistics of references on a small language: pictures of one or two animals, described in three ways each."""

import random

import pytest

from blipcore.data.references import References

ANIMALS = ("cat", "dog", "cow", "hen", "pig", "fox", "owl", "bee", "ant", "bat", "elk", "emu")
SYNONYMS = {"above": ("above", "over"), "below": ("below", "under")}
INVERSE = {"above": "below", "below": "above"}


def describe(first: str, relation: str, second: str, sizes: dict[str, str], rng: random.Random) -> tuple[str, ...]:
    size = {"small": ("small", "little"), "big": ("big", "large")}
    if rng.random() < 0.5:
        first, relation, second = second, INVERSE[relation], first
    words = ["a", rng.choice(size[sizes[first]]), first, rng.choice(SYNONYMS[relation])]
    return (*words, "a", rng.choice(size[sizes[second]]), second)


@pytest.fixture(scope="module")
def pictures():
    """Scenes (first, relation, second, sizes) with five references each."""
    rng, scenes, texts = random.Random(0), [], []
    for _ in range(400):
        first, second = rng.sample(ANIMALS, 2)
        sizes = {animal: rng.choice(("small", "big")) for animal in (first, second)}
        relation = rng.choice(("above", "below"))
        scenes.append((first, relation, second, sizes))
        texts.append([describe(first, relation, second, sizes, rng) for _ in range(5)])
    return scenes, References(texts)


def is_true(text, scene) -> bool:
    first, relation, second, sizes = scene
    words = {word: meaning for meaning, synonyms in SYNONYMS.items() for word in synonyms}
    meaning = {"small": "small", "little": "small", "big": "big", "large": "big"}
    if len(text) != 7 or text[3] not in words or text[2] == text[6]:
        return False
    facts = {(first, relation, second), (second, INVERSE[relation], first)}
    stated = all(sizes.get(text[i + 1]) == meaning.get(text[i]) for i in (1, 5))
    return stated and (text[2], words[text[3]], text[6]) in facts


def test_claims_are_words_that_return_in_other_references_of_few_pictures() -> None:
    references = References([[("a", f"x{n}"), ("one" if n % 2 else "the", f"x{n}")] for n in range(20)])
    assert references.claims == {f"x{n}" for n in range(20)}


@pytest.mark.parametrize("edit", ["exchange", "swap"])
def test_edited_references_are_wrong(pictures, edit) -> None:
    scenes, references = pictures
    rng = random.Random(1)
    edited = [
        getattr(references, edit)(number, text, rng) for number in range(200) for text in references.texts[number]
    ]
    wrong = [not is_true(text, scenes[n // 5]) for n, text in enumerate(edited[:1000]) if text is not None]
    assert len(wrong) > 100
    assert sum(wrong) / len(wrong) > 0.95


def test_words_around_a_symmetric_relation_are_not_swapped() -> None:
    rng, texts = random.Random(0), []
    for _ in range(100):
        first, second = rng.sample(ANIMALS, 2)
        texts.append([("a", first, "and", "a", second), ("a", second, "and", "a", first)])
    references = References(texts)
    assert all(references.swap(number, references.texts[number][0], rng) is None for number in range(100))


def test_true_texts_in_other_words_are_right_and_false_ones_wrong(pictures) -> None:
    scenes, references = pictures
    rng, verdicts = random.Random(2), {True: [], False: []}
    for number, (first, relation, second, sizes) in enumerate(scenes[:200]):
        verdicts[True].append(references.judge(number, describe(first, relation, second, sizes, rng)))
        wrong_sizes = sizes | {first: "big" if sizes[first] == "small" else "small"}
        verdicts[False].append(references.judge(number, describe(first, relation, second, wrong_sizes, rng)))
        verdicts[False].append(references.judge(number, describe(first, INVERSE[relation], second, sizes, rng)))
    assert sum(verdict is True for verdict in verdicts[True]) / 200 > 0.9
    assert sum(verdict is False for verdict in verdicts[False]) / 400 > 0.9


def test_a_text_without_a_claim_cannot_be_judged(pictures) -> None:
    _, references = pictures
    assert references.judge(0, ("a", "small", "a")) is None
    assert references.judge(0, ()) is None
