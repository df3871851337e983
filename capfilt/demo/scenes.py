"""Scenes of the embedded corpus: the content of a picture, its drawing and its split.

A `Scene` is a pure function of a seed, a stream and an index, and holds the whole truth about its picture. Combinations
(an ordered pair of nouns, a noun on a background, and others) are held out: each belongs to train, validation or test
alone, under every index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, NamedTuple

from PIL import Image

from capfilt.demo import art

BACKGROUNDS = {
    "red": "#c62f2f", "orange": "#f08a24", "yellow": "#f6d743", "green": "#2c9a4b",
    "blue": "#2f6fde", "purple": "#8647b8", "gray": "#9ba1a6", "black": "#1d1d21",
}  # fmt: skip
SIZES = ("small", "large")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# single: one object; group: two or three of a kind; pair: two objects in a relation; group_pair: a group in a relation
# to an object; trio: three objects.
SCENE_KINDS = {"single": 0.40, "group": 0.10, "pair": 0.45, "group_pair": 0.02, "trio": 0.03}
# The web, human and class streams share the combinations of the train split, but not their random draws.
SPLIT_OF_STREAM = {s: "train" for s in ("web", "human", "classes")} | {"validation": "validation", "test": "test"}
HELD_OUT = {"validation": 0.1, "test": 0.1}

# Longer side of an object as a share of the picture. There is a gap between "small" and "large".
_SIDES = {"small": (0.30, 0.33, 0.36), "large": (0.46, 0.48, 0.50)}
_ALONE = {"small": (0.30, 0.33, 0.36), "large": (0.58, 0.65, 0.72)}
_MARGIN = 0.015
_LOW, _HIGH = 0.26, 0.74  # centres of the halves of the picture


class _Area(NamedTuple):
    """An area that holds one object: its centre and its extents, as shares of the picture."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Thing:
    """One to three objects of one kind and one size."""

    noun: str
    count: int = 1
    size: str = "large"


@dataclass(frozen=True)
class Scene:
    """The content of a picture."""

    things: tuple[Thing, ...]
    relation: str | None  # of things[0] to things[1]
    background: str
    jitter: int = 0  # seed of the places

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self) | {"things": [asdict(thing) for thing in self.things]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """Build a scene from the result of `to_dict`."""
        return cls(**values | {"things": tuple(Thing(**thing) for thing in values["things"])})


def sample_scene(seed: int, stream: str, index: int, nouns: Sequence[str] | None = None) -> Scene:
    """Return scene `index` of a stream ("web", "human", "classes", "validation", "test") of the corpus `seed`."""
    rng = Random(f"scene {seed} {stream} {index}")
    nouns = nouns or art.nouns()
    attempts = 0
    while True:
        if attempts % 200 == 0:  # with few nouns, a small split may have no trio at all
            kind = rng.choices(list(SCENE_KINDS), list(SCENE_KINDS.values()))[0]
        scene = _random_scene(rng, kind, nouns)
        if scene_split(seed, scene) == SPLIT_OF_STREAM[stream]:
            return scene
        attempts += 1


def combination(scene: Scene) -> str:
    """Return the unit that is held out; it is equal for "a dog left of a key" and "a key right of a dog"."""
    things = [f"{thing.count} {thing.noun}" for thing in scene.things]
    if scene.relation:
        mirrored = {"right of": "left of", "below": "above"}.get(scene.relation)
        first, second = things[::-1] if mirrored else things
        return f"{first} {mirrored or scene.relation} {second}"
    if len(things) > 1:
        return ", ".join(sorted(things))
    return f"{scene.things[0].size} {things[0]} on {scene.background}"


def description(scene: Scene) -> str:
    """Return all that a caption can state; it is equal for two scenes that no caption distinguishes."""
    sizes = ", ".join(f"{thing.noun} {thing.size}" for thing in sorted(scene.things, key=lambda thing: thing.noun))
    return f"{combination(scene)} on {scene.background}: {sizes}"


def scene_split(seed: int, scene: Scene) -> str:
    """Return the split of a scene's combination: "validation", "test" or "train"."""
    digest = hashlib.sha256(f"{seed} {combination(scene)}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    for name, held_out in HELD_OUT.items():
        if share < held_out:
            return name
        share -= held_out
    return "train"


def draw_scene(scene: Scene, px: int = 96) -> Image.Image:
    """Return the RGB picture of a scene, `px` by `px` pixels."""
    rng = Random(f"draw {scene.jitter}")
    picture = Image.new("RGB", (px, px), BACKGROUNDS[scene.background])
    sides = _ALONE if _is_single(scene) else _SIDES
    for thing, areas in zip(scene.things, _areas(scene, rng), strict=True):
        for area in areas:
            sprite = art.sprite(thing.noun, round(px * rng.choice(sides[thing.size])))
            left = _start(rng, area.x, area.width, sprite.width / px)
            top = _start(rng, area.y, area.height, sprite.height / px)
            picture.paste(sprite, (round(left * px), round(top * px)), sprite)
    return picture


def _random_scene(rng: Random, kind: str, nouns: Sequence[str]) -> Scene:
    chosen = rng.sample(nouns, {"single": 1, "group": 1, "trio": 3}.get(kind, 2))
    things = [Thing(noun, 1, rng.choice(SIZES)) for noun in chosen]
    if kind in ("group", "group_pair"):
        number = rng.choice((2, 3))
        # Three large objects do not fit into half of a picture.
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


def _areas(scene: Scene, rng: Random) -> list[list[_Area]]:
    if _is_single(scene):
        return [[_Area(0.5, 0.5, 1.0, 1.0)]]
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
    areas = [_Area(x, y, 0.5, 0.5) for x, y in centres]
    return [areas] if len(scene.things) == 1 else [[area] for area in areas]


def _side_by_side(count: int, low: bool, relation: str) -> list[_Area]:
    """Return areas in the left or upper half (`low`), or in the right or lower half."""
    along = _LOW if low else _HIGH
    # One object may move across the half, but by less than the distance between the two things.
    across = {1: [(0.5, 0.76)], 2: [(_LOW, 0.5), (_HIGH, 0.5)], 3: [(0.18, 0.33), (0.5, 0.33), (0.82, 0.33)]}
    if relation in ("left of", "right of"):
        return [_Area(along, centre, 0.5, extent) for centre, extent in across[count]]
    return [_Area(centre, along, extent, 0.5) for centre, extent in across[count]]


def _start(rng: Random, centre: float, extent: float, side: float) -> float:
    """Return the start of an object along one axis: random within its area, centred if it fills the area."""
    slack = max(0.0, extent - side)
    start = centre - side / 2 + (rng.random() - 0.5) * slack
    return min(max(start, _MARGIN), 1 - _MARGIN - side)
