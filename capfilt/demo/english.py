"""English captions of scenes, and what English texts claim.

In: a scene; out: one of many phrasings of it. In: a text; out: its `Claims`. Reading replaces every noun by a mark, so
that "a big dog to the left of two keys" becomes "@0 to the left of @1", and then looks for the few shapes that a
relation takes.
"""

from __future__ import annotations

import re
from functools import cache
from random import Random

from capfilt.demo import art
from capfilt.demo.claims import Claims, Mention
from capfilt.demo.scenes import BACKGROUNDS, INVERSE, Scene, Thing

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
NUMBERS = {1: "one", 2: "two", 3: "three"}
RELATIONS = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}

# {a} is {rel} {b}; {at_a} and {at_b} are their places in the picture, {from_a} is where b is, seen from a. {lead} and
# {bg} say the background or are empty. A shape that stands here twice is meant to be twice as frequent.
PAIRS = (
    "{a} {rel} {b} {bg}",
    "{a} {rel} {b} {bg}",
    "{lead} {a} {rel} {b}",
    "there {be} {a} {rel} {b} {bg}",
    "{a} {be} {rel} {b} {bg}",
    "{rel} {b} {be} {a} {bg}",
    "{a} {at_a} and {b} {at_b} {bg}",
    "{a} with {b} {from_a} {bg}",
)
OTHERS = (
    "{a} {bg}",
    "{a} {bg}",
    "{lead} {a}",
    "there {be} {a} {bg}",
    "{a} {be} shown {bg}",
    "just {a} {bg}",
    "we see {a} {bg}",
    "{lead} there {be} {a}",
)
TRAILING = ("on {c} background", "against {c} background", "in front of {c} background", "on {colour}")
LEADING = ("on {c} background,", "against {c} background,", "on {colour},")
_IN_PICTURE = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}
_FROM_IT = {"left of": "on the left", "right of": "on the right", "above": "above it", "below": "below it"}


def write_caption(scene: Scene, rng: Random, detail: float) -> str:
    """A caption; each size, and the background, is said with probability `detail`."""
    said = [noun_phrase(thing, rng, rng.random() < detail) for thing in scene.things]
    be = ["are" if thing.count > 1 else "is" for thing in scene.things]
    lead = trail = ""
    if rng.random() < detail:
        colour = {"colour": scene.background, "c": _with_article(scene.background)}
        lead, trail = rng.choice(LEADING).format(**colour), rng.choice(TRAILING).format(**colour)
    if scene.relation is None:
        objects = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
        text = rng.choice(OTHERS).format(a=objects, be="are" if len(said) > 1 else be[0], lead=lead, bg=trail)
    else:
        relation = scene.relation
        if rng.random() < 0.5:  # as well told from the other side
            relation, said, be = INVERSE[relation], said[::-1], be[::-1]
        back = INVERSE[relation]
        places = {"at_a": _IN_PICTURE[relation], "at_b": _IN_PICTURE[back], "from_a": _FROM_IT[back]}
        slots = places | {"a": said[0], "b": said[1], "be": be[0], "rel": rng.choice(RELATIONS[relation])}
        text = rng.choice(PAIRS).format(lead=lead, bg=trail, **slots)
    return " ".join(text.split())


def noun_phrase(thing: Thing, rng: Random, with_size: bool) -> str:
    """ "two small dogs", "an apple"."""
    noun = art.vocabulary()[thing.noun]
    size = rng.choice(SIZE_WORDS[thing.size]) + " " if with_size else ""
    return _with_article(size + noun.en) if thing.count == 1 else f"{NUMBERS[thing.count]} {size}{noun.plural}"


def _with_article(words: str) -> str:
    vowel = words.startswith(("a", "e", "i", "o", "u", "hourglass")) and not words.startswith(("uni", "ufo"))
    return f"{'an' if vowel else 'a'} {words}"


# --- reading ---------------------------------------------------------------------------------------------------------

_READ_NUMBERS = {"pair of": 2, "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_READ_COLOURS = {colour: colour for colour in BACKGROUNDS} | {"grey": "gray"}
_READ_RELATIONS = {"left of": "left of", "right of": "right of", "above": "above", "over": "above", "below": "below"}
_READ_RELATIONS |= {"under": "below", "underneath": "below", "beneath": "below"}
_READ_PLACES = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
_READ_PLACES |= {"above": "above", "over": "above", "below": "below", "under": "below"}

_COLOUR = re.compile(
    rf"\b(?:(?:on|against|in front of|with)\s+)?(?:an?\s+)?(?P<colour>{'|'.join(_READ_COLOURS)})\b(?:\s+background\b)?"
)
_DIRECTION = rf"(?P<direction>{'|'.join(_READ_RELATIONS)})"
_A_PLACE = r"(?:(?:on|to|at)\s+)?(?:the\s+|its\s+)?"
_WORDS = r"(?:[a-z-]+\s+){0,3}?"  # a few words that are no marks
_SIDE = r"left|right|top|bottom"
# `x` is where the direction or place puts it, seen from `y`. The first shape that fits is taken.
_SHAPES = (
    re.compile(rf"@(?P<x>\d+) {_WORDS}{_DIRECTION} @(?P<y>\d+)"),
    re.compile(rf"^ ?,? ?{_WORDS}{_DIRECTION} @(?P<y>\d+) ,? ?{_WORDS}@(?P<x>\d+)"),
    re.compile(rf"@(?P<y>\d+) with @(?P<x>\d+) {_A_PLACE}(?P<place>left|right|(?:above|over|below|under) it)\b"),
    re.compile(
        rf"@(?P<x>\d+) {_WORDS}{_A_PLACE}(?P<place>{_SIDE}) ,? ?{_WORDS}"
        rf"@(?P<y>\d+) {_WORDS}{_A_PLACE}(?P<opposite>{_SIDE})\b"
    ),
)
_PLACE_WORD = re.compile(rf"\b(?:{'|'.join((*_READ_PLACES, 'underneath', 'beneath'))})\b")


def parse(text: str) -> Claims:
    """The claims of a caption, a title or a keyword list."""
    mentions: list[Mention] = []

    def mark(found: re.Match[str]) -> str:
        noun, plural = _nouns()[found["noun"]]
        number = found["number"]
        count = None if number is None else int(number) if number.isdigit() else _READ_NUMBERS[number]
        size = next((size for size, words in SIZE_WORDS.items() if found["size"] in words), None)
        mentions.append(Mention(noun, count, plural, size))
        return f" @{len(mentions) - 1} "

    text = re.sub(r"[^\w\s,-]", " ", text.lower().replace("&", ","))
    text = _noun_pattern().sub(mark, text)
    colours = {_READ_COLOURS[found["colour"]] for found in _COLOUR.finditer(text)}
    text = " ".join(_COLOUR.sub(" ", text).replace(",", " , ").split())
    relation, unclear = _read_relation(text, [mention.noun for mention in mentions])
    if len(colours) > 1:
        unclear.append("more than one background")
    return Claims(tuple(mentions), relation, next(iter(colours)) if len(colours) == 1 else None, tuple(unclear))


def _read_relation(text: str, nouns: list[str]) -> tuple[tuple[str, str, str] | None, list[str]]:
    """The relation in a marked text, and the words of place that remain unexplained."""
    for shape in _SHAPES:
        if found := shape.search(text):
            said = found.groupdict()
            place = said.get("direction") or said["place"].split()[0]
            relation = (_READ_RELATIONS | _READ_PLACES)[place]
            if "opposite" in said and _READ_PLACES[said["opposite"]] != INVERSE[relation]:
                return None, [said["place"], said["opposite"]]
            rest = text[: found.start()] + text[found.end() :]
            return (nouns[int(said["x"])], relation, nouns[int(said["y"])]), _PLACE_WORD.findall(rest)
    return None, _PLACE_WORD.findall(text)


@cache
def _nouns() -> dict[str, tuple[str, bool]]:
    """Every singular and plural: (the singular, whether it is a plural)."""
    nouns = art.vocabulary().values()
    return {noun.plural: (noun.en, True) for noun in nouns} | {noun.en: (noun.en, False) for noun in nouns}


@cache
def _noun_pattern() -> re.Pattern[str]:
    """[number] [size] noun, the longer noun first ("hot dog" before "dog")."""
    numbers = "|".join(_READ_NUMBERS)
    sizes = "|".join(word for words in SIZE_WORDS.values() for word in words)
    nouns = "|".join(re.escape(noun) for noun in sorted(_nouns(), key=len, reverse=True))
    return re.compile(
        rf"(?<![\w-])(?:(?:a\s+)?(?P<number>\d+|{numbers})\s+)?(?:(?P<size>{sizes})\s+)?(?P<noun>{nouns})(?![\w-])"
    )
