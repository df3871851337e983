"""Chinese captions of scenes, and the claims of Chinese texts: the counterpart of `english.py`."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from capfilt.demo import art
from capfilt.demo.claims import Claims, Mention
from capfilt.demo.scenes import INVERSE, Scene, Thing

COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
    "blue": "蓝色", "purple": "紫色", "gray": "灰色", "black": "黑色",
}  # fmt: skip
SIZE_WORDS = {"small": "小", "large": "大"}
NUMBERS = {1: "一", 2: "两", 3: "三"}
RELATIONS = {
    "left of": ("左边", "左侧"),
    "right of": ("右边", "右侧"),
    "above": ("上方", "上面"),
    "below": ("下方", "下面"),
}

# As in `english.py`: {rel} is the place of a relative to b, {back} that of b relative to a.
PAIRS = (
    "{a}在{b}的{rel}{bg}",
    "{lead}{a}在{b}的{rel}",
    "{b}的{rel}有{a}{bg}",
    "{b}的{rel}是{a}{bg}",
    "{rel}是{a}，{back}是{b}{bg}",
    "{lead}{rel}有{a}，{back}有{b}",
)
OTHERS = ("{a}{bg}", "{lead}{a}", "图中有{a}{bg}", "这里有{a}{bg}", "{lead}有{a}", "只有{a}{bg}")
TRAILING = ("，{c}背景", "，背景是{c}的", "，背景为{c}")
LEADING = ("{c}背景上，", "在{c}的背景上，", "{c}的背景，")


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def write_caption(scene: Scene, rng: Random, detail: float) -> str:
    """Return a caption. Each size, and the background, is stated with probability `detail`."""
    nouns = [noun_phrase(thing, rng.random() < detail) for thing in scene.things]
    lead = trail = ""
    if rng.random() < detail:
        colour = COLOURS[scene.background]
        lead, trail = rng.choice(LEADING).format(c=colour), rng.choice(TRAILING).format(c=colour)
    if scene.relation is None:
        objects = nouns[0] if len(nouns) == 1 else f"{'、'.join(nouns[:-1])}和{nouns[-1]}"
        return rng.choice(OTHERS).format(a=objects, lead=lead, bg=trail)
    relation = scene.relation
    if rng.random() < 0.5:
        relation, nouns = INVERSE[relation], nouns[::-1]
    style = rng.randrange(2)
    rel, back = RELATIONS[relation][style], RELATIONS[INVERSE[relation]][style]
    return rng.choice(PAIRS).format(a=nouns[0], b=nouns[1], rel=rel, back=back, lead=lead, bg=trail)


def noun_phrase(thing: Thing, with_size: bool) -> str:
    """Return number, measure word, size and noun."""
    noun = art.vocabulary()[thing.noun]
    return f"{NUMBERS[thing.count]}{noun.measure}{SIZE_WORDS[thing.size] if with_size else ''}{noun.zh}"


# --- reading ---------------------------------------------------------------------------------------------------------

_READ_NUMBERS = {"一": 1, "单": 1, "两": 2, "二": 2, "三": 3, "四": 4, "五": 5}
_READ_PLACES = {"左": "left of", "右": "right of", "上": "above", "下": "below"}
_COLOUR = re.compile("|".join(COLOURS.values()))
_PLACE = r"(?P<place>[左右上下])[边侧方面]"
# `x` is in the place relative to `y`.
_FORMS = (
    re.compile(rf"@(?P<x>\d+)#在@(?P<y>\d+)#的?{_PLACE}"),
    re.compile(rf"@(?P<y>\d+)#的?{_PLACE}[有是]@(?P<x>\d+)#"),
    re.compile(rf"{_PLACE}[有是]@(?P<x>\d+)#，?(?P<opposite>[左右上下])[边侧方面][有是]@(?P<y>\d+)#"),
)
_PLACE_WORD = re.compile(r"[左右上下][边侧方面]")


def parse(text: str) -> Claims:
    """Return the claims of a caption, a title or a keyword list."""
    mentions: list[Mention] = []

    def mark(match: re.Match[str]) -> str:
        number = match["number"]
        count = None if number is None else int(number) if number.isdigit() else _READ_NUMBERS[number]
        size = next((size for size, word in SIZE_WORDS.items() if word == match["size"]), None)
        mentions.append(Mention(_nouns()[match["noun"]], count, False, size))
        return f"@{len(mentions) - 1}#"

    text = _noun_pattern().sub(mark, re.sub(r"\s", "", text))
    colours = {colour for colour, word in COLOURS.items() if word in text}
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
            relation = _READ_PLACES[groups["place"]]
            if "opposite" in groups and _READ_PLACES[groups["opposite"]] != INVERSE[relation]:
                return None, [groups["place"], groups["opposite"]]
            rest = text[: match.start()] + text[match.end() :]
            return (nouns[int(groups["x"])], relation, nouns[int(groups["y"])]), _PLACE_WORD.findall(rest)
    return None, _PLACE_WORD.findall(text)


@cache
def _nouns() -> dict[str, str]:
    return {noun.zh: noun.en for noun in art.vocabulary().values()}


@cache
def _noun_pattern() -> re.Pattern[str]:
    """Return the pattern "[number measure] [size] noun".

    The noun is tried before the size; otherwise an elephant (大象) would be a large 象.
    """
    measures = "".join(sorted({noun.measure for noun in art.vocabulary().values()}))
    nouns = "|".join(re.escape(noun) for noun in sorted(_nouns(), key=len, reverse=True))
    numbers = "".join(_READ_NUMBERS)
    return re.compile(rf"(?:(?P<number>\d+|[{numbers}])[{measures}])?(?P<size>[大小])??(?P<noun>{nouns})")
