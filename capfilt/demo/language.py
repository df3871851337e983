"""English captions of scenes, and their reading: what a text claims, and whether the claims are true.

In: a scene, and random numbers. Out: a caption as a person would write it: always nouns, counts and the relation, size and
background now and then. Nothing that is said is false. Back: `parse` reads a text, a model's too, into `Claims`, and three
judgements follow from them.

`exact_match`: the text names every object of the scene and no other, each with its count; two things in a relation come with
their relation, in either direction; no relation is claimed elsewhere; a size or background that is said is right.
`is_true`: nothing the text says is false, but it may say less (keyword lists). `object_f1`: overlap of the named nouns alone.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from random import Random

from capfilt.demo import art, chinese
from capfilt.demo.scenes import BACKGROUNDS, INVERSE, Scene, Thing

NUMBERS = {1: "one", 2: "two", 3: "three"}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
RELATIONS = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OF_IT = {"left of": "on the left", "right of": "on the right", "above": "above it", "below": "below it"}
_AT = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}

# {a} {rel} {b} is the relation; {at_a}, {at_b} the places in the picture; {b_of_a} where b is, seen from a; {bg} the background.
PAIR = (
    "{a} {rel} {b}{bg}",
    "{a} {rel} {b}{bg}",
    "{Bg}{a} {rel} {b}",
    "there {is_a} {a} {rel} {b}{bg}",
    "{a} {is_a} {rel} {b}{bg}",
    "{rel} {b} {is_a} {a}{bg}",
    "{a} {at_a} and {b} {at_b}{bg}",
    "{a} with {b} {b_of_a}{bg}",
)
PLAIN = (
    "{a}{bg}",
    "{a}{bg}",
    "{Bg}{a}",
    "there {is_a} {a}{bg}",
    "{a} {is_a} shown{bg}",
    "just {a}{bg}",
    "we see {a}{bg}",
    "{Bg}there {is_a} {a}",
)
BACKGROUND = ("on {a} {c} background", "against {a} {c} background", "on {c}", "in front of {a} {c} background")
LEADING = ("on {a} {c} background, ", "{a} {c} background with ", "on {c}, ")


@dataclass(frozen=True)
class Mention:
    """A noun that a text names: `count` None where no number or article stands before it, `size` None where none is said."""

    noun: str
    count: int | None
    plural: bool
    size: str | None


@dataclass(frozen=True)
class Claims:
    """What a text says. `relation` is (noun, relation, noun); `unclear` holds words of place that were not understood."""

    things: tuple[Mention, ...]
    relation: tuple[str, str, str] | None
    background: str | None
    unclear: tuple[str, ...] = ()


def phrase(scene: Scene, rng: Random, detail: float = 0.6, lang: str = "en") -> str:
    """A caption; each size, and the background, is said with probability `detail`."""
    if lang == "zh":
        return chinese.phrase(scene, rng, detail)
    said = [noun_phrase(thing, rng, rng.random() < detail) for thing in scene.things]
    colour = scene.background if rng.random() < detail else ""
    article = "an" if _opens_with_vowel(colour) else "a"
    leading = rng.choice(LEADING).format(a=article, c=colour) if colour else ""
    trailing = " " + rng.choice(BACKGROUND).format(a=article, c=colour) if colour else ""
    many = [thing.count > 1 for thing in scene.things]
    if not scene.relation:
        a = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
        return _fill(rng.choice(PLAIN), leading, trailing, a=a, is_a="are" if many[0] else "is")
    relation = scene.relation
    if rng.random() < 0.5:
        relation, said, many = INVERSE[relation], said[::-1], many[::-1]
    back = INVERSE[relation]
    slots = {"a": said[0], "b": said[1], "is_a": "are" if many[0] else "is", "rel": rng.choice(RELATIONS[relation])}
    places = {"at_a": _AT[relation], "at_b": _AT[back], "b_of_a": _OF_IT[back]}
    return _fill(rng.choice(PAIR), leading, trailing, **slots, **places)


def references(scene: Scene, seed: int, n: int = 5, lang: str = "en") -> list[str]:
    """n different captions; the first says all there is to say, which is the one to retrieve the picture by."""
    rng = Random(f"references {seed} {scene.jitter}")
    texts = [phrase(scene, rng, 1.0, lang)]
    while len(texts) < n:
        text = phrase(scene, rng, 0.6, lang)
        if text not in texts:
            texts.append(text)
    return texts


def noun_phrase(thing: Thing, rng: Random, with_size: bool) -> str:
    """ "two small dogs", "an apple"."""
    noun = art.vocabulary()[thing.noun]
    words = rng.choice(SIZE_WORDS[thing.size]) + " " if with_size else ""
    if thing.count > 1:
        return f"{NUMBERS[thing.count]} {words}{noun.plural}"
    words += noun.en
    return ("an " if _opens_with_vowel(words) else "a ") + words


def parse(text: str) -> Claims:
    """Read a caption or a web text; what is not understood is passed over, except words of place."""
    if chinese.is_chinese(text):
        return chinese.parse(text, Mention, Claims)
    text = re.sub(r"[^\w\s,;-]", " ", text.lower().replace("&", ","))
    mentions: list[Mention] = []

    def note(match: re.Match[str]) -> str:
        noun, plural = _nouns()[match["noun"]]
        size = next((size for size, words in SIZE_WORDS.items() if match["size"] in words), None)
        mentions.append(Mention(noun, _number(match["number"]), plural, size))
        return f" @{len(mentions) - 1} "

    text = _noun_pattern().sub(note, text)
    colours = re.findall(rf"\b({'|'.join(_COLOURS)})\b", text)
    text = re.sub(
        rf"\b(?:(?:on|against|in front of|with)\s+)?(?:an?\s+)?(?:{'|'.join(_COLOURS)})\b(?:\s+background)?", " ", text
    )
    relations, unclear = _relations(text, mentions)
    backgrounds = {_COLOURS[colour] for colour in colours}
    if len(backgrounds) > 1:
        unclear.append("two backgrounds")
    return Claims(
        tuple(mentions), relations[0] if relations else None, min(backgrounds) if backgrounds else None, tuple(unclear)
    )


def exact_match(text: str, scene: Scene) -> bool:
    """Everything there, nothing false, nothing extra; see the head of this file."""
    claims = parse(text)
    counts: Counter[str] = Counter()
    for mention in claims.things:
        if mention.plural and mention.count is None:
            return False  # "dogs" leaves the number open
        counts[mention.noun] += mention.count or 1
    if counts != {thing.noun: thing.count for thing in scene.things} or not _sizes_and_background(claims, scene):
        return False
    return (
        not claims.unclear and _relation_holds(claims.relation, scene) and bool(scene.relation) == bool(claims.relation)
    )


def is_true(text: str, scene: Scene) -> bool:
    """Nothing that is said is false; a text that says nothing about objects is not true of anything."""
    claims = parse(text)
    truth = {thing.noun: thing.count for thing in scene.things}
    for mention in claims.things:
        count = truth.get(mention.noun, 0)
        right = count == mention.count if mention.count is not None else count >= 1 + mention.plural
        if not right or not count:
            return False
    holds = _sizes_and_background(claims, scene) and (not claims.relation or _relation_holds(claims.relation, scene))
    return bool(claims.things) and holds and not claims.unclear


def object_set(text: str) -> set[str]:
    """The nouns that a text names, in the singular."""
    return {mention.noun for mention in parse(text).things}


def object_counts(text: str, scene: Scene) -> tuple[int, int, int]:
    """(nouns named and there, nouns named, nouns there): sums over pictures give precision, recall and F1."""
    named, there = object_set(text), {thing.noun for thing in scene.things}
    return len(named & there), len(named), len(there)


def object_f1(texts: list[str], scenes: list[Scene]) -> float:
    """F1 of the named nouns over all pictures."""
    hits, named, there = map(sum, zip(*map(object_counts, texts, scenes), strict=True))
    return 2 * hits / (named + there) if named + there else 0.0


# --- how a text is read -------------------------------------------------------------------------------------------------------

_COLOURS = {colour: colour for colour in BACKGROUNDS} | {"grey": "gray"}
_NUMBER_WORDS = {"a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "pair of": 2, "three": 3, "four": 4, "five": 5}
_DIRECTIONS = {
    "left of": "left of",
    "right of": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
_DIRECTIONS |= {"beneath": "below", "underneath": "below"}
_PLACES = {
    "left": "left of",
    "right": "right of",
    "top": "above",
    "bottom": "below",
    "above": "above",
    "below": "below",
}
_PLACES |= {"over it": "above", "under it": "below"}

_FILL = r"(?:(?!@)[\w-]+\s+){0,4}?"  # a few words, no mention
_DIRECTION = rf"(?P<dir>{'|'.join(_DIRECTIONS)})"
_PLACE = r"(?:(?:on|to|at|in)\s+)?(?:the\s+|its\s+)?"
# Tried in this order; `x` is where the direction puts it, seen from `y`.
_RELATION_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"@(?P<x>\d+)\s+{_FILL}{_DIRECTION}\s+{_FILL}@(?P<y>\d+)",
        rf"^\s*{_FILL}{_DIRECTION}\s+@(?P<y>\d+)[\s,]+{_FILL}@(?P<x>\d+)",
        rf"@(?P<y>\d+)\s+with\s+@(?P<x>\d+)\s+{_PLACE}(?P<place>left|right|above|below|over it|under it)\b",
        rf"@(?P<x>\d+)\s+{_FILL}{_PLACE}(?P<place>left|right|top|bottom)\s*,?\s*(?:and|,|with)?\s*{_FILL}@(?P<y>\d+)\s+{_FILL}"
        rf"{_PLACE}(?P<other>left|right|top|bottom)\b",
    )
)  # fmt: skip


def _relations(text: str, mentions: list[Mention]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The relation of a text in which mentions have become "@0", "@1"; and what was not understood of it."""
    for pattern in _RELATION_PATTERNS:
        if found := pattern.search(text):
            groups = found.groupdict()
            relation = _DIRECTIONS.get(groups.get("dir") or "") or _PLACES[groups["place"]]
            if groups.get("other") and _PLACES[groups["other"]] != INVERSE[relation]:
                return [], ["contradicting places"]
            rest = text[: found.start()] + text[found.end() :]
            pair = (mentions[int(groups["x"])].noun, relation, mentions[int(groups["y"])].noun)
            return [pair], _PLACE_WORDS.findall(rest)
    return [], _PLACE_WORDS.findall(text)


_PLACE_WORDS = re.compile(r"\b(?:left|right|above|over|below|under|beneath|underneath|top|bottom)\b")


def _relation_holds(claimed: tuple[str, str, str] | None, scene: Scene) -> bool:
    if claimed is None or scene.relation is None:
        return claimed is None
    a, b = (thing.noun for thing in scene.things)
    return claimed in ((a, scene.relation, b), (b, INVERSE[scene.relation], a))


def _sizes_and_background(claims: Claims, scene: Scene) -> bool:
    sizes = {thing.noun: thing.size for thing in scene.things}
    right = all(mention.size in (None, sizes.get(mention.noun)) for mention in claims.things)
    return right and claims.background in (None, scene.background)


@cache
def _nouns() -> dict[str, tuple[str, bool]]:
    """Every singular and plural: (the singular, is it a plural)."""
    known = {noun.plural: (noun.en, True) for noun in art.vocabulary().values()}
    return known | {noun.en: (noun.en, False) for noun in art.vocabulary().values()}


@cache
def _noun_pattern() -> re.Pattern[str]:
    """[number] [size] noun, the longest noun first ("hot dog" before "dog")."""
    sizes = "|".join(word for words in SIZE_WORDS.values() for word in words)
    nouns = "|".join(re.escape(noun) for noun in sorted(_nouns(), key=len, reverse=True))
    number = rf"(?:(?:a\s+)?(?P<number>\d+|{'|'.join(sorted(_NUMBER_WORDS, key=len, reverse=True))})\s+)?"
    return re.compile(rf"(?<![\w-]){number}(?:(?P<size>{sizes})\s+)?(?P<noun>{nouns})(?![\w-])")


def _number(word: str | None) -> int | None:
    return None if word is None else int(word) if word.isdigit() else _NUMBER_WORDS[word]


def _opens_with_vowel(words: str) -> bool:
    return words.startswith(("a", "e", "i", "o", "hourglass")) or (
        words.startswith("u") and not words.startswith(("uni", "ufo"))
    )


def _fill(template: str, leading: str, trailing: str, **slots: str) -> str:
    # A caption without background says nothing in its place.
    return " ".join(template.format(bg=trailing, Bg=leading, **slots).split())
