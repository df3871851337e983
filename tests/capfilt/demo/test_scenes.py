"""Tests of scenes: their mix, their held-out combinations and their drawings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageColor

from capfilt.demo import art
from capfilt.demo.scenes import (
    BACKGROUNDS,
    INVERSE,
    SCENE_KINDS,
    Scene,
    Thing,
    combination,
    draw_scene,
    sample_scene,
    scene_split,
)

STREAMS = ("web", "human", "classes", "validation", "test")


def kind(scene: Scene) -> str:
    if len(scene.things) == 1:
        return "single" if scene.things[0].count == 1 else "group"
    if scene.relation is None:
        return "trio"
    return "pair" if all(thing.count == 1 for thing in scene.things) else "group_pair"


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {stream: [sample_scene(0, stream, index) for index in range(4000)] for stream in STREAMS}


def test_mix_of_kinds_is_as_stated(scenes: dict[str, list[Scene]]) -> None:
    for stream in STREAMS:
        counts = Counter(map(kind, scenes[stream]))
        for name, share in SCENE_KINDS.items():
            assert counts[name] / 4000 == pytest.approx(share, abs=0.025), (stream, name)


def test_splits_share_no_combination(scenes: dict[str, list[Scene]]) -> None:
    train = {combination(scene) for stream in ("web", "human", "classes") for scene in scenes[stream]}
    validation, test = ({combination(scene) for scene in scenes[stream]} for stream in ("validation", "test"))
    assert len(validation) > 300 and len(test) > 300
    assert not train & validation and not train & test and not validation & test


def test_every_noun_and_background_is_seen_in_training(scenes: dict[str, list[Scene]]) -> None:
    assert {thing.noun for scene in scenes["web"] for thing in scene.things} == set(art.nouns())
    assert {scene.background for scene in scenes["web"]} == set(BACKGROUNDS)


def test_held_out_shares(scenes: dict[str, list[Scene]]) -> None:
    fresh = {combination(scene): scene for stream in STREAMS for scene in scenes[stream] if kind(scene) == "pair"}
    nouns = art.nouns()
    pairs = [
        Scene((Thing(a), Thing(b)), relation, "red") for a in nouns for b in nouns if a != b for relation in INVERSE
    ]
    shares = Counter(scene_split(0, scene) for scene in pairs)
    assert shares["test"] / len(pairs) == pytest.approx(0.1, abs=0.02)
    assert shares["validation"] / len(pairs) == pytest.approx(0.1, abs=0.02)
    assert all(scene_split(0, replace(scene, background="blue")) == scene_split(0, scene) for scene in fresh.values())


def test_mirrored_relations_have_one_combination() -> None:
    dog, key = Thing("dog"), Thing("key", size="small")
    for relation, inverse in INVERSE.items():
        assert combination(Scene((dog, key), relation, "red")) == combination(Scene((key, dog), inverse, "blue"))
        assert combination(Scene((dog, key), relation, "red")) != combination(Scene((key, dog), relation, "red"))


def test_another_seed_holds_out_other_combinations(scenes: dict[str, list[Scene]]) -> None:
    assert {scene_split(1, scene) for scene in scenes["test"]} == {"train", "validation", "test"}


def test_scenes_are_a_function_of_seed_stream_and_index(scenes: dict[str, list[Scene]]) -> None:
    assert sample_scene(0, "test", 17) == scenes["test"][17]
    assert len({sample_scene(seed, stream, 17) for seed in (0, 1) for stream in STREAMS}) == 10


def test_four_nouns_are_enough() -> None:
    for stream in STREAMS:
        assert {sample_scene(0, stream, index, art.nouns(4)).background for index in range(40)}


def test_scene_survives_json(scenes: dict[str, list[Scene]]) -> None:
    for scene in scenes["web"][:200]:
        assert Scene.from_dict(scene.to_dict()) == scene


def test_a_drawing_is_reproducible_and_depends_on_the_jitter() -> None:
    scene = sample_scene(0, "web", 3)
    assert draw_scene(scene, 64).tobytes() == draw_scene(scene, 64).tobytes()
    assert draw_scene(scene, 64).size == (64, 64)
    assert draw_scene(scene, 64).tobytes() != draw_scene(replace(scene, jitter=scene.jitter + 1), 64).tobytes()


def centre(scene: Scene, px: int = 96) -> np.ndarray:
    """Return the mean (x, y) of the pixels that are not background."""
    ground = ImageColor.getrgb(BACKGROUNDS[scene.background])
    y, x = np.nonzero((np.asarray(draw_scene(scene, px)) != ground).any(-1))
    return np.array([x.mean(), y.mean()])


@pytest.mark.parametrize("relation", INVERSE)
def test_things_are_drawn_as_their_relation_states(relation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    things = (Thing("dog", 1, "large"), Thing("key", 1, "small"))
    placements = [Scene(things, relation, "blue", jitter) for jitter in range(40)]
    sprite = art.sprite

    def only(noun: str):
        blank = sprite("dog", 8).copy()
        blank.putalpha(0)
        monkeypatch.setattr(
            art, "sprite", lambda name, px: sprite(name, px) if name == noun else blank.resize((px, px))
        )
        return [centre(scene) for scene in placements]

    for dog, key in zip(only("dog"), only("key"), strict=True):
        x, y = dog - key
        offset, other = (x, y) if "of" in relation else (y, x)
        assert (offset < 0) == (relation in ("left of", "above"))
        assert abs(offset) > max(abs(other), 25)


def test_large_is_clearly_larger_than_small() -> None:
    def area(size: str, jitter: int, *others: Thing) -> int:
        scene = Scene((Thing("star", 1, size), *others), "left of" if others else None, "blue", jitter)
        return int((np.asarray(draw_scene(scene)) != ImageColor.getrgb(BACKGROUNDS["blue"])).any(-1).sum())

    small = [area("small", jitter) for jitter in range(30)]
    large = [area("large", jitter) for jitter in range(30)]
    assert min(large) > 2 * max(small)


def test_objects_stay_inside_and_hardly_overlap() -> None:
    ground = {name: ImageColor.getrgb(colour) for name, colour in BACKGROUNDS.items()}
    for index in range(300):
        scene = sample_scene(0, "web", index)
        picture = np.asarray(draw_scene(scene))
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (edge == ground[scene.background]).all(), scene
