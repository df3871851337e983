"""Scenes of the embedded corpus: what is in a picture, how it is drawn, and which split it belongs to.

In: a seed, a split and an index. Out: a `Scene`, which is the picture's whole truth, and its drawing. Everything is a
pure function of these three, so the same corpus comes out every time. The combinations (a pair of nouns in an order, a
noun on a background, ...) are held out: each belongs to train, validation or test alone, under every index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from random import Random

from PIL import Image

from capfilt.demo import art

BACKGROUNDS = {
    "red": "#c62f2f", "orange": "#f08a24", "yellow": "#f6d743", "green": "#2c9a4b",
    "blue": "#2f6fde", "purple": "#8647b8", "gray": "#9ba1a6", "black": "#1d1d21",
}  # fmt: skip
SIZES = ("small", "large")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# One object; two or three alike; two in a relation; two or three alike in a relation to another; three objects.
KINDS = {"single": 0.40, "group": 0.10, "pair": 0.45, "group_pair": 0.02, "trio": 0.03}
# The web, human and class streams share the combinations of the train split, but no two draw the same lots.
SPLIT_OF_STREAM = {s: "train" for s in ("web", "human", "classes")} | {"validation": "validation", "test": "test"}
HELD_OUT = {"validation": 0.1, "test": 0.1}

# Longer side of an object as a share of the picture; "large" begins well above where "small" ends.
_SIDES = {"small": (0.30, 0.33, 0.36), "large": (0.46, 0.48, 0.50)}
_ALONE = {"small": (0.30, 0.33, 0.36), "large": (0.58, 0.65, 0.72)}
_MARGIN = 0.015
_LOW, _HIGH = 0.26, 0.74  # centres of the two halves


@dataclass(frozen=True)
class Thing:
    """One to three alike: all of one size."""

    noun: str
    count: int = 1
    size: str = "large"


@dataclass(frozen=True)
class Scene:
    """The truth of a picture; `relation` is where things[0] is, seen from things[1]; `jitter` seeds the places."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    jitter: int = 0

    def to_dict(self) -> dict:
        """As plain JSON."""
        return asdict(self) | {"things": [asdict(thing) for thing in self.things]}

    @classmethod
    def from_dict(cls, values: dict) -> Scene:
        """The inverse of `to_dict`."""
        return cls(**values | {"things": tuple(Thing(**thing) for thing in values["things"])})


def sample(seed: int, stream: str, index: int, nouns: Sequence[str] | None = None) -> Scene:
    """Scene `index` of a stream ("web", "human", "classes", "validation", "test") of the corpus `seed`."""
    rng = Random(f"scene {seed} {stream} {index}")
    nouns = nouns or art.nouns()
    for attempt in count():
        if attempt % 200 == 0:  # of a handful of nouns, a small split may hold no trio at all
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        scene = _draw_lots(rng, kind, nouns)
        if split(seed, scene) == SPLIT_OF_STREAM[stream]:
            return scene


def combination(scene: Scene) -> str:
    """What is held out together; the same for "a dog left of a key" and "a key right of a dog"."""
    things = [(f"{thing.count} {thing.noun}") for thing in scene.things]
    if scene.relation in ("right of", "below"):
        things.reverse()
    if scene.relation:
        return f"{things[0]} {'beside' if 'of' in scene.relation else 'over'} {things[1]}"
    if len(things) > 1:
        return ", ".join(sorted(things))
    return f"{scene.things[0].size} {things[0]} on {scene.background}"


def split(seed: int, scene: Scene) -> str:
    """The one split to which the combination of a scene belongs."""
    digest = hashlib.sha256(f"{seed} {combination(scene)}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    for name, held_out in HELD_OUT.items():
        if share < held_out:
            return name
        share -= held_out
    return "train"


def draw(scene: Scene, px: int = 96) -> Image.Image:
    """The picture of a scene, RGB, px by px pixels."""
    rng = Random(f"draw {scene.jitter}")
    picture = Image.new("RGB", (px, px), BACKGROUNDS[scene.background])
    for thing, places in zip(scene.things, _places(scene, rng), strict=True):
        sides = _ALONE if _is_single(scene) else _SIDES
        for x, y, room in places:
            sprite = art.sprite(thing.noun, round(px * rng.choice(sides[thing.size])))
            width, height = sprite.width / px, sprite.height / px
            left = _within(rng, x, room[0], width) * px
            top = _within(rng, y, room[1], height) * px
            picture.paste(sprite, (round(left), round(top)), sprite)
    return picture


def _draw_lots(rng: Random, kind: str, nouns: Sequence[str]) -> Scene:
    chosen = rng.sample(nouns, {"single": 1, "group": 1, "trio": 3}.get(kind, 2))
    things = [Thing(noun, 1, rng.choice(SIZES)) for noun in chosen]
    if kind in ("group", "group_pair"):
        number = rng.choice((2, 3))
        # Three large ones find no room in half of a picture.
        size = "small" if kind == "group_pair" and number == 3 else rng.choice(SIZES)
        things[0] = Thing(chosen[0], number, size)
    relation = None
    if kind in ("pair", "group_pair"):
        relation = rng.choice(list(INVERSE))
        if rng.random() < 0.5:
            things.reverse()
    return Scene(tuple(things), relation, rng.choice(list(BACKGROUNDS)), rng.getrandbits(32))


def _is_single(scene: Scene) -> bool:
    return len(scene.things) == 1 and scene.things[0].count == 1


def _places(scene: Scene, rng: Random) -> list[list[tuple[float, float, tuple[float, float]]]]:
    """For each thing, for each of its objects: the centre (x, y) of its room, and the room's (width, height)."""
    if scene.relation:
        return [
            _half(thing, low, "of" in scene.relation) for thing, low in zip(scene.things, _order(scene), strict=True)
        ]
    if _is_single(scene):
        return [[(0.5, 0.5, (1.0, 1.0))]]
    half = (0.5, 0.5)
    if sum(thing.count for thing in scene.things) == 2:
        low = rng.choice(((_LOW, 0.5), (0.5, _LOW), (_LOW, _LOW), (_LOW, _HIGH)))
        places = [(*low, half), (1 - low[0], 1 - low[1], half)]
    else:
        places = [(_LOW, _LOW, half), (_HIGH, _LOW, half), (0.5, _HIGH, half)]
        turn = rng.choice((lambda x, y: (x, y), lambda x, y: (x, 1 - y), lambda x, y: (y, x), lambda x, y: (1 - y, x)))
        places = [(*turn(x, y), room) for x, y, room in places]
        rng.shuffle(places)
    return [places] if len(scene.things) == 1 else [[place] for place in places]


def _order(scene: Scene) -> tuple[bool, bool]:
    first_is_low = scene.relation in ("left of", "above")
    return first_is_low, not first_is_low


def _half(thing: Thing, low: bool, beside: bool) -> list[tuple[float, float, tuple[float, float]]]:
    """Places of a thing in the left, right, upper or lower half."""
    along = _LOW if low else _HIGH
    # One object may wander across the other axis, but less far than the two are apart.
    across = {1: ((0.5, 0.76),), 2: ((_LOW, 0.5), (_HIGH, 0.5)), 3: ((0.18, 0.33), (0.5, 0.33), (0.82, 0.33))}[
        thing.count
    ]
    places = [(along, centre, (0.5, room)) for centre, room in across]
    return [(x, y, (w, h)) if beside else (y, x, (h, w)) for x, y, (w, h) in places]


def _within(rng: Random, centre: float, room: float, side: float) -> float:
    """A random start for an object of this side in its room; the middle of the room when the object fills it."""
    slack = max(0.0, room - side)
    start = centre - side / 2 + (rng.random() - 0.5) * slack
    return min(max(start, _MARGIN), 1 - _MARGIN - side)
