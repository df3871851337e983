"""Tests of the drawings and the reviewed names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from capfilt.demo import art, build_art, names


def test_sizes_are_as_the_documentation_states() -> None:
    assert len(art.concepts()) == 845
    assert len(art.vocabulary()) == 445
    assert len(names.DEFAULT) == len(set(names.DEFAULT)) == 48
    assert "445 of the 845" in names.__doc__ and "(845 depictive" in art.__doc__


def test_names_are_unique_in_every_form() -> None:
    nouns = art.vocabulary().values()
    for form in ("concept", "zh"):
        assert len({getattr(noun, form) for noun in nouns}) == len(nouns), form
    forms = [noun.en for noun in nouns] + [noun.plural for noun in nouns]
    assert len(set(forms)) == 2 * len(nouns)  # no plural looks like a singular


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("dog", "dogs"),
        ("key", "keys"),
        ("box", "boxes"),
        ("butterfly", "butterflies"),
        ("snowman", "snowmen"),
        ("maple leaf", "maple leaves"),
        ("ball of yarn", "balls of yarn"),
    ],
)
def test_plurals(singular: str, plural: str) -> None:
    assert art.vocabulary()[singular].plural == plural


def test_the_default_nouns_come_first() -> None:
    assert art.nouns() == names.DEFAULT
    assert art.nouns(60)[:48] == art.nouns()
    assert len(art.nouns(445)) == 445
    for n in (3, 446):
        with pytest.raises(ValueError, match="4 to 445"):
            art.nouns(n)


def test_a_sprite_has_the_requested_size_and_a_white_rim() -> None:
    for px in (16, 31, 64):
        for noun in ("dog", "flamingo", "racing car"):
            sprite = art.sprite(noun, px)
            assert max(sprite.size) == px and sprite.mode == "RGBA"
            assert sprite.getchannel("A").getbbox() == (0, 0, *sprite.size)
    pixels = np.asarray(art.sprite("apple", 64)).astype(int)
    inside = pixels[..., 3] > 250
    rim = inside & ~np.asarray(
        np.roll(inside, 1, 1) & np.roll(inside, -1, 1) & np.roll(inside, 1, 0) & np.roll(inside, -1, 0)
    )
    assert pixels[rim][:, :3].min() > 200


@pytest.fixture
def coarse_renderings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Render small, so that all nouns take a second or two."""
    monkeypatch.setattr(art, "MASTER", 48)
    caches = (art._master, art.sprite)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("coarse_renderings")
def test_every_reviewed_noun_has_its_own_drawing() -> None:
    drawings: dict[bytes, str] = {}
    for noun in art.vocabulary():
        sprite = art.sprite(noun, 24)
        assert np.asarray(sprite)[..., 3].mean() > 25, noun  # at least a tenth of the square
        assert drawings.setdefault(sprite.tobytes(), noun) == noun


def test_an_unknown_noun_is_an_error() -> None:
    with pytest.raises(ValueError, match="'motorway' is not one of the 445"):
        art.sprite("motorway", 32)


def test_builder_reads_the_two_packages(tmp_path: Path) -> None:
    drawing = {"body": "<path/>"}
    iconify = {
        "icons.json": {"icons": {name: drawing for name in ("ant", "one-oclock", *build_art.OTHERS)}},
        "metadata.json": {
            "categories": {name: [] for name in build_art.CATEGORIES} | {"Objects": ["one-oclock", "ant"]}
        },
        "chars.json": {"1f41c": "ant", "1f550": "one-oclock"}
        | {f"1f9{i:02x}": o for i, o in enumerate(build_art.OTHERS)},
    }
    for name, content in iconify.items():
        (tmp_path / name).write_text(json.dumps(content))
    for lang in ("en", "zh"):
        annotations = {chr(int(code, 16)): {"tts": [f"{name} {lang}"]} for code, name in iconify["chars.json"].items()}
        path = tmp_path / "annotations" / lang / "annotations.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"annotations": {"annotations": annotations}}))
    concepts = build_art.build(tmp_path, tmp_path)
    assert {"id": "ant", "en": "ant en", "zh": "ant zh", "svg": "<path/>"} in concepts
    assert [row["id"] for row in concepts] == sorted({"ant", *build_art.OTHERS})  # no clock faces


def test_the_licences_ship_with_the_drawings() -> None:
    folder = resources.files("capfilt.demo")
    assert "Copyright (c) Microsoft Corporation" in folder.joinpath("LICENSE-fluent-emoji.txt").read_text()
    assert "UNICODE LICENSE V3" in folder.joinpath("LICENSE-unicode-cldr.txt").read_text()
