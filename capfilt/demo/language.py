"""Captions of scenes and the judgement of captions, in English or Chinese.

In: a scene and random numbers; out: a caption as a person would write it, which always says the nouns, the counts and
the relation, and now and then size and background. Nothing that is said is false. In: any text, a model's too; out:
how well it fits a scene, by what it was read to claim.

`exact_match`: the text names every object of the scene once and no other, each with its count ("a", "one", "two"; a
bare singular counts as one, a bare plural does not do); two things in a relation come with it, in either direction;
no relation is claimed elsewhere; a size or background, if said, is right. `is_true`: nothing said is false, but it
may say less (keyword lists). `object_f1`: overlap of the named nouns alone. Words outside nouns, numbers, sizes,
colours and places are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from capfilt.demo import chinese, claims, english
from capfilt.demo.claims import Claims
from capfilt.demo.scenes import Scene

LANGUAGES = {"en": english, "zh": chinese}


def write_caption(scene: Scene, rng: Random, detail: float = 0.6, lang: str = "en") -> str:
    """A human caption; each size, and the background, is said with probability `detail`."""
    return LANGUAGES[lang].write_caption(scene, rng, detail)


def reference_captions(scene: Scene, seed: int, n: int = 5, lang: str = "en", detail: float = 0.6) -> list[str]:
    """n different captions; the first says all there is to say, as all do with `detail` 1."""
    rng = Random(f"references {seed} {scene.jitter}")
    texts = [write_caption(scene, rng, 1.0, lang)]
    while len(texts) < n:
        text = write_caption(scene, rng, detail, lang)
        if text not in texts:
            texts.append(text)
    return texts


def parse(text: str) -> Claims:
    """What a text claims; a text with Chinese characters is read as Chinese."""
    return (chinese if chinese.is_chinese(text) else english).parse(text)


def exact_match(text: str, scene: Scene) -> bool:
    """Whether a text says everything about a scene that it must, and nothing false."""
    said = parse(text)
    return claims.is_complete(said, scene) and claims.is_correct(said, scene)


def is_true(text: str, scene: Scene) -> bool:
    """Whether a text says something about a scene, and nothing false."""
    return claims.is_correct(parse(text), scene)


def object_set(text: str) -> set[str]:
    """The nouns that a text names, as English singulars."""
    return {mention.noun for mention in parse(text).things}


def object_counts(text: str, scene: Scene) -> tuple[int, int, int]:
    """(nouns named and there, nouns named, nouns there), to be summed over pictures."""
    named, there = object_set(text), {thing.noun for thing in scene.things}
    return len(named & there), len(named), len(there)


def object_f1(texts: Sequence[str], scenes: Sequence[Scene]) -> float:
    """F1 of the named nouns, over all pictures together."""
    hits, named, there = map(sum, zip(*(object_counts(*pair) for pair in zip(texts, scenes, strict=True)), strict=True))
    return 2 * hits / (named + there)
