"""English captions of scenes, and the claims of English texts.

Writing: one of many phrasings of a scene. Reading: every noun is replaced by a mark, so that "a big dog to the left of
two keys" becomes "@0 to the left of @1", and the marked text is matched against the few forms that a relation takes.
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

# {a} is {rel} {b}; {at_a} and {at_b} are their places in the picture; {from_a} is the place of b relative to a. {lead}
# and {bg} state the background or are empty. A form is listed twice to be twice as frequent.
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
    """Return a caption. Each size, and the background, is stated with probability `detail`."""
    nouns = [noun_phrase(thing, rng, rng.random() < detail) for thing in scene.things]
    be = ["are" if thing.count > 1 else "is" for thing in scene.things]
    lead = trail = ""
    if rng.random() < detail:
        colour = {"colour": scene.background, "c": _with_article(scene.background)}
        lead, trail = rng.choice(LEADING).format(**colour), rng.choice(TRAILING).format(**colour)
    if scene.relation is None:
        objects = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        text = rng.choice(OTHERS).format(a=objects, be="are" if len(nouns) > 1 else be[0], lead=lead, bg=trail)
    else:
        relation = scene.relation
        if rng.random() < 0.5:
            relation, nouns, be = INVERSE[relation], nouns[::-1], be[::-1]
        back = INVERSE[relation]
        places = {"at_a": _IN_PICTURE[relation], "at_b": _IN_PICTURE[back], "from_a": _FROM_IT[back]}
        slots = places | {"a": nouns[0], "b": nouns[1], "be": be[0], "rel": rng.choice(RELATIONS[relation])}
        text = rng.choice(PAIRS).format(lead=lead, bg=trail, **slots)
    return " ".join(text.split())


def noun_phrase(thing: Thing, rng: Random, with_size: bool) -> str:
    """Return a phrase such as "two small dogs" or "an apple"."""
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
_WORDS = r"(?:[a-z-]+\s+){0,3}?"  # up to three words, no marks
_SIDE = r"left|right|top|bottom"
# `x` is in the direction or place relative to `y`. The first form that matches is used.
_FORMS = (
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
    """Return the claims of a caption, a title or a keyword list."""
    mentions: list[Mention] = []

    def mark(match: re.Match[str]) -> str:
        noun, plural = _nouns()[match["noun"]]
        number = match["number"]
        count = None if number is None else int(number) if number.isdigit() else _READ_NUMBERS[number]
        size = next((size for size, words in SIZE_WORDS.items() if match["size"] in words), None)
        mentions.append(Mention(noun, count, plural, size))
        return f" @{len(mentions) - 1} "

    text = re.sub(r"[^\w\s,-]", " ", text.lower().replace("&", ","))
    text = _noun_pattern().sub(mark, text)
    colours = {_READ_COLOURS[match["colour"]] for match in _COLOUR.finditer(text)}
    text = " ".join(_COLOUR.sub(" ", text).replace(",", " , ").split())
    relation, unclear = _read_relation(text, [mention.noun for mention in mentions])
    if len(colours) > 1:
        unclear.append("more than one background")
    return Claims(tuple(mentions), relation, next(iter(colours)) if len(colours) == 1 else None, tuple(unclear))


def _read_relation(text: str, nouns: list[str]) -> tuple[tuple[str, str, str] | None, list[str]]:
    """Return the relation in a marked text, and the words of place that it does not explain."""
    for form in _FORMS:
        match = form.search(text)
        if match:
            groups = match.groupdict()
            place = groups.get("direction") or groups["place"].split()[0]
            relation = (_READ_RELATIONS | _READ_PLACES)[place]
            if "opposite" in groups and _READ_PLACES[groups["opposite"]] != INVERSE[relation]:
                return None, [groups["place"], groups["opposite"]]
            rest = text[: match.start()] + text[match.end() :]
            return (nouns[int(groups["x"])], relation, nouns[int(groups["y"])]), _PLACE_WORD.findall(rest)
    return None, _PLACE_WORD.findall(text)


@cache
def _nouns() -> dict[str, tuple[str, bool]]:
    """Return {singular or plural: (singular, whether it is a plural)}."""
    nouns = art.vocabulary().values()
    return {noun.plural: (noun.en, True) for noun in nouns} | {noun.en: (noun.en, False) for noun in nouns}


@cache
def _noun_pattern() -> re.Pattern[str]:
    """Return the pattern "[number] [size] noun", with longer nouns first ("hot dog" before "dog")."""
    numbers = "|".join(_READ_NUMBERS)
    sizes = "|".join(word for words in SIZE_WORDS.values() for word in words)
    nouns = "|".join(re.escape(noun) for noun in sorted(_nouns(), key=len, reverse=True))
    return re.compile(
        rf"(?<![\w-])(?:(?:a\s+)?(?P<number>\d+|{numbers})\s+)?(?:(?P<size>{sizes})\s+)?(?P<noun>{nouns})(?![\w-])"
    )
