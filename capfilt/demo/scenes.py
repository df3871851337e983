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
from typing import NamedTuple

from PIL import Image

from capfilt.demo import art

BACKGROUNDS = {
    "red": "#c62f2f", "orange": "#f08a24", "yellow": "#f6d743", "green": "#2c9a4b",
    "blue": "#2f6fde", "purple": "#8647b8", "gray": "#9ba1a6", "black": "#1d1d21",
}  # fmt: skip
SIZES = ("small", "large")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# One object; two or three alike; two in a relation; two or three alike in a relation to another; three objects.
SCENE_KINDS = {"single": 0.40, "group": 0.10, "pair": 0.45, "group_pair": 0.02, "trio": 0.03}
# The web, human and class streams share the combinations of the train split, but no two draw the same lots.
SPLIT_OF_STREAM = {s: "train" for s in ("web", "human", "classes")} | {"validation": "validation", "test": "test"}
HELD_OUT = {"validation": 0.1, "test": 0.1}

# Longer side of an object as a share of the picture; "large" begins well above where "small" ends.
_SIDES = {"small": (0.30, 0.33, 0.36), "large": (0.46, 0.48, 0.50)}
_ALONE = {"small": (0.30, 0.33, 0.36), "large": (0.58, 0.65, 0.72)}
_MARGIN = 0.015
_LOW, _HIGH = 0.26, 0.74  # centres of the two halves


class _Room(NamedTuple):
    """Where an object may lie: the centre and the extents, as shares of the picture."""

    x: float
    y: float
    width: float
    height: float


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


def sample_scene(seed: int, stream: str, index: int, nouns: Sequence[str] | None = None) -> Scene:
    """Scene `index` of a stream ("web", "human", "classes", "validation", "test") of the corpus `seed`."""
    rng = Random(f"scene {seed} {stream} {index}")
    nouns = nouns or art.nouns()
    for attempt in count():
        if attempt % 200 == 0:  # of a handful of nouns, a small split may hold no trio at all
            kind = rng.choices(list(SCENE_KINDS), list(SCENE_KINDS.values()))[0]
        scene = _draw_lots(rng, kind, nouns)
        if scene_split(seed, scene) == SPLIT_OF_STREAM[stream]:
            return scene


def combination(scene: Scene) -> str:
    """What is held out together; the same for "a dog left of a key" and "a key right of a dog"."""
    things = [f"{thing.count} {thing.noun}" for thing in scene.things]
    if scene.relation:
        told = {"right of": "left of", "below": "above"}.get(scene.relation)
        first, second = things[::-1] if told else things
        return f"{first} {told or scene.relation} {second}"
    if len(things) > 1:
        return ", ".join(sorted(things))
    return f"{scene.things[0].size} {things[0]} on {scene.background}"


def description(scene: Scene) -> str:
    """All that a caption can say: equal for two scenes that no caption tells apart."""
    sizes = ", ".join(f"{thing.noun} {thing.size}" for thing in sorted(scene.things, key=lambda thing: thing.noun))
    return f"{combination(scene)} on {scene.background}: {sizes}"


def scene_split(seed: int, scene: Scene) -> str:
    """The one split to which the combination of a scene belongs."""
    digest = hashlib.sha256(f"{seed} {combination(scene)}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    for name, held_out in HELD_OUT.items():
        if share < held_out:
            return name
        share -= held_out
    return "train"


def draw_scene(scene: Scene, px: int = 96) -> Image.Image:
    """The picture of a scene, RGB, px by px pixels."""
    rng = Random(f"draw {scene.jitter}")
    picture = Image.new("RGB", (px, px), BACKGROUNDS[scene.background])
    sides = _ALONE if _is_single(scene) else _SIDES
    for thing, rooms in zip(scene.things, _rooms(scene, rng), strict=True):
        for room in rooms:
            sprite = art.sprite(thing.noun, round(px * rng.choice(sides[thing.size])))
            left = _start(rng, room.x, room.width, sprite.width / px)
            top = _start(rng, room.y, room.height, sprite.height / px)
            picture.paste(sprite, (round(left * px), round(top * px)), sprite)
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


def _rooms(scene: Scene, rng: Random) -> list[list[_Room]]:
    """A room for every object, thing after thing."""
    if _is_single(scene):
        return [[_Room(0.5, 0.5, 1.0, 1.0)]]
    if scene.relation:
        first_is_low = scene.relation in ("left of", "above")
        sides = zip(scene.things, (first_is_low, not first_is_low), strict=True)
        return [_side_by_side(thing.count, low, scene.relation) for thing, low in sides]
    if sum(thing.count for thing in scene.things) == 2:
        x, y = rng.choice(((_LOW, 0.5), (0.5, _LOW), (_LOW, _LOW), (_LOW, _HIGH)))
        centres = [(x, y), (1 - x, 1 - y)]
    else:
        third = rng.choice((_LOW, _HIGH))
        centres = [(_LOW, third), (_HIGH, third), (0.5, 1 - third)]
        if rng.random() < 0.5:
            centres = [(y, x) for x, y in centres]
        rng.shuffle(centres)
    rooms = [_Room(x, y, 0.5, 0.5) for x, y in centres]
    return [rooms] if len(scene.things) == 1 else [[room] for room in rooms]


def _side_by_side(count: int, low: bool, relation: str) -> list[_Room]:
    """Rooms in the left or upper (`low`) or in the right or lower half."""
    along = _LOW if low else _HIGH
    # One object may wander across, but less far than the two things are apart.
    across = {1: [(0.5, 0.76)], 2: [(_LOW, 0.5), (_HIGH, 0.5)], 3: [(0.18, 0.33), (0.5, 0.33), (0.82, 0.33)]}
    if relation in ("left of", "right of"):
        return [_Room(along, centre, 0.5, extent) for centre, extent in across[count]]
    return [_Room(centre, along, extent, 0.5) for centre, extent in across[count]]


def _start(rng: Random, centre: float, extent: float, side: float) -> float:
    """Where an object of this side begins: at random in its room, in the middle of a room that it fills."""
    slack = max(0.0, extent - side)
    start = centre - side / 2 + (rng.random() - 0.5) * slack
    return min(max(start, _MARGIN), 1 - _MARGIN - side)
