"""Captions of scenes and their grading, in English and Chinese.

A caption, as a person would write it, states all nouns, their counts and the relation, sometimes sizes and background,
and nothing false. Grading ignores all words but nouns, numbers, sizes, colours and places:

`exact_match`  The text names every object once, with its count ("a", "one", "two"; a bare singular counts as one, a
               bare plural fails), and no other. It states the relation of two things in either direction, and no other
               relation. A size or a background that it states is right.
`is_true`      The text states nothing false, but may state less, as a keyword list does.
`object_f1`    Overlap of the nouns alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from capfilt.demo import chinese, claims, english
from capfilt.demo.claims import Claims
from capfilt.demo.scenes import Scene

LANGUAGES = {"en": english, "zh": chinese}


def write_caption(scene: Scene, rng: Random, detail: float = 0.6, lang: str = "en") -> str:
    """Return a human caption. Each size, and the background, is stated with probability `detail`."""
    return LANGUAGES[lang].write_caption(scene, rng, detail)


def reference_captions(scene: Scene, seed: int, n: int = 5, lang: str = "en", detail: float = 0.6) -> list[str]:
    """Return n different captions. The first states everything; with `detail` 1, all do."""
    rng = Random(f"references {seed} {scene.jitter}")
    texts = [write_caption(scene, rng, 1.0, lang)]
    while len(texts) < n:
        text = write_caption(scene, rng, detail, lang)
        if text not in texts:
            texts.append(text)
    return texts


def parse(text: str) -> Claims:
    """Return the claims of a text, which is read as Chinese if it has a Chinese character."""
    return (chinese if chinese.is_chinese(text) else english).parse(text)


def exact_match(text: str, scene: Scene) -> bool:
    """Return whether a text describes a scene completely and states nothing false."""
    stated = parse(text)
    return claims.is_complete(stated, scene) and claims.is_correct(stated, scene)


def is_true(text: str, scene: Scene) -> bool:
    """Return whether a text names an object of a scene and states nothing false."""
    return claims.is_correct(parse(text), scene)


def object_set(text: str) -> set[str]:
    """Return the nouns in a text, as English singulars."""
    return {mention.noun for mention in parse(text).things}


def object_counts(text: str, scene: Scene) -> tuple[int, int, int]:
    """Return the numbers of nouns in both, in the text, and in the scene, to be summed over pictures."""
    named, drawn = object_set(text), {thing.noun for thing in scene.things}
    return len(named & drawn), len(named), len(drawn)


def object_f1(texts: Sequence[str], scenes: Sequence[Scene]) -> float:
    """Return the F1 score of the nouns over all pictures together."""
    counts = [object_counts(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    hits, named, drawn = (sum(column) for column in zip(*counts, strict=True))
    return 2 * hits / (named + drawn)
