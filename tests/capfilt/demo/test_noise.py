"""Tests that web texts are of their labelled kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random

import pytest

from capfilt.demo.language import exact_match, is_true, object_set, parse
from capfilt.demo.noise import MATCHING_KINDS, NOISE_MIX, WebText, web_text
from capfilt.demo.scenes import Scene, Thing, sample_scene, scene_split

N = 4000


@pytest.fixture(scope="module", params=["en", "zh"])
def texts(request: pytest.FixtureRequest) -> list[tuple[Scene, WebText]]:
    scenes = (sample_scene(0, "web", index) for index in range(N))
    return [(scene, web_text(0, scene, Random(index), lang=request.param)) for index, scene in enumerate(scenes)]


def test_labels_agree_with_what_the_texts_claim(texts: list[tuple[Scene, WebText]]) -> None:
    for scene, web in texts:
        if web.kind == "other_language":
            assert is_true(web.text, scene)  # right, but not in the language of the corpus
        else:
            assert is_true(web.text, scene) == web.matches == (web.kind in MATCHING_KINDS), (web, scene)
        if not web.kind.startswith(("right", "other_language")):
            assert not exact_match(web.text, scene)


def test_right_texts_name_all_objects(texts: list[tuple[Scene, WebText]]) -> None:
    for scene, web in texts:
        if web.matches:
            assert object_set(web.text) == {thing.noun for thing in scene.things}


def test_web_styles_are_mostly_incomplete(texts: list[tuple[Scene, WebText]]) -> None:
    complete = defaultdict(list)
    for scene, web in texts:
        if web.matches and scene.relation:
            complete[web.kind].append(exact_match(web.text, scene))
    shares = {kind: sum(values) / len(values) for kind, values in complete.items()}
    assert shares["right_sentence"] == 1 and shares["right_keywords"] == shares["right_shop"] == 0
    assert shares["right_title"] < 0.35


def test_marketing_and_file_names_name_no_object(texts: list[tuple[Scene, WebText]]) -> None:
    for _, web in texts:
        if web.kind in ("marketing", "filename"):
            assert not object_set(web.text), web


def test_wrong_texts_are_wrong_in_the_way_of_their_kind(texts: list[tuple[Scene, WebText]]) -> None:
    for scene, web in texts:
        drawn, named = {thing.noun for thing in scene.things}, object_set(web.text)
        if web.kind in ("wrong_count", "wrong_relation"):
            assert named == drawn
        if web.kind == "wrong_object":
            assert len(named - drawn) == len(drawn - named) == 1


def test_no_text_names_a_held_out_combination(texts: list[tuple[Scene, WebText]]) -> None:
    checked = 0
    for _, web in texts:
        claims = parse(web.text)
        if claims.relation and all(mention.count for mention in claims.things):
            things = {mention.noun: Thing(mention.noun, mention.count) for mention in claims.things}
            first, relation, second = claims.relation
            checked += 1
            assert scene_split(0, Scene((things[first], things[second]), relation, "red")) == "train", web
    assert checked > 200


def test_shares_are_as_stated(texts: list[tuple[Scene, WebText]]) -> None:
    counts = Counter(web.kind for _, web in texts)
    stated = NOISE_MIX | {"wrong_relation": 0.03, "wrong_object": 0.09}  # see the comment on NOISE_MIX
    for kind, share in stated.items():
        assert counts[kind] / N == pytest.approx(share, abs=0.02), kind
    assert sum(NOISE_MIX.values()) == pytest.approx(1)
    assert 0.40 <= sum(NOISE_MIX[kind] for kind in MATCHING_KINDS) <= 0.45


def test_mix_can_be_chosen() -> None:
    scenes = [sample_scene(0, "web", index) for index in range(50)]
    kinds = {
        web_text(0, scene, Random(i), mix={"right_title": 1, "marketing": 1}).kind for i, scene in enumerate(scenes)
    }
    assert kinds == {"right_title", "marketing"}
    with pytest.raises(ValueError, match="Unknown kind of web text 'gossip'"):
        web_text(0, scenes[0], Random(0), mix={"gossip": 1.0})
