"""Web texts of the embedded corpus: right but incomplete, or wrong in a known way.

In: a scene and a random generator. Out: a `WebText`, the text beside a picture on the web with its kind of noise. The
kind is in no training file; with it, the precision and recall of a filter are exact.

Right texts are as incomplete as on the real web: titles and keyword lists name the objects, but mostly not the relation
and often not the count. `wrong_*` texts state one false thing in the same styles. `other_image` is the text of another
picture. `marketing` and `filename` describe no picture. `other_language` is right, but in a language that the corpus is
not meant to teach, so a perfect filter drops it. Wrong texts use only combinations of the train split, as the pictures
do, so that no training text names a held-out one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from capfilt.demo import art
from capfilt.demo.language import is_true, write_caption
from capfilt.demo.scenes import INVERSE, Scene, sample_scene, scene_split
from capfilt.demo.styles import MARKETING_PHRASES, STYLES

# Requested share of each kind. Half of the scenes have no relation and get a wrong object instead of a wrong relation:
# about 0.03 of all texts are `wrong_relation` and 0.09 `wrong_object`.
NOISE_MIX = {
    "right_title": 0.16,
    "right_keywords": 0.12,
    "right_shop": 0.08,
    "right_sentence": 0.08,
    "other_image": 0.22,
    "wrong_object": 0.06,
    "wrong_count": 0.04,
    "wrong_relation": 0.06,
    "marketing": 0.07,
    "filename": 0.07,
    "other_language": 0.04,
}
MATCHING_KINDS = frozenset(kind for kind in NOISE_MIX if kind.startswith("right_"))


@dataclass(frozen=True)
class WebText:
    """A text beside a picture, and its kind (a key of `NOISE_MIX`)."""

    text: str
    kind: str

    @property
    def matches(self) -> bool:
        """True if a perfect filter keeps the text."""
        return self.kind in MATCHING_KINDS


def web_text(
    seed: int,
    scene: Scene,
    rng: Random,
    nouns: Sequence[str] | None = None,
    mix: Mapping[str, float] = NOISE_MIX,
    lang: str = "en",
) -> WebText:
    """Return a web text for a scene of the corpus `seed`. Wrong objects and other pictures draw from `nouns`."""
    unknown = mix.keys() - NOISE_MIX.keys()
    if unknown:
        raise ValueError(f"Unknown kind of web text '{min(unknown)}'; the kinds are {', '.join(NOISE_MIX)}.")
    nouns = nouns or art.nouns()
    kind = rng.choices(list(mix), list(mix.values()))[0]
    if kind.startswith("right_"):
        return WebText(STYLES[lang][kind.removeprefix("right_")](scene, rng), kind)
    if kind == "marketing":
        return WebText(_marketing(rng, lang), kind)
    if kind == "filename":
        return WebText(_filename(rng), kind)
    if kind == "other_language":
        return WebText(write_caption(scene, rng, lang="en" if lang == "zh" else "zh"), kind)
    if kind == "wrong_relation" and not scene.relation:
        kind = "wrong_object"
    attempts = 0
    while True:
        if attempts == 100:  # for example, both other counts of this object are held out
            kind = "wrong_object"
        wrong_scene = _wrong_scene(seed, scene, kind, rng, nouns)
        text = rng.choice(list(STYLES[lang].values()))(wrong_scene, rng)
        # A title may leave out the wrong count, and another picture may show the same objects.
        if scene_split(seed, wrong_scene) == "train" and not is_true(text, scene):
            return WebText(text, kind)
        attempts += 1


def _wrong_scene(seed: int, scene: Scene, kind: str, rng: Random, nouns: Sequence[str]) -> Scene:
    if kind == "other_image":
        return sample_scene(seed, "web", rng.getrandbits(32), nouns)
    if kind == "wrong_relation":
        return replace(scene, relation=rng.choice([relation for relation in INVERSE if relation != scene.relation]))
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    if kind == "wrong_count":
        thing = replace(thing, count=rng.choice([number for number in (1, 2, 3) if number != thing.count]))
    else:
        drawn = {thing.noun for thing in scene.things}
        thing = replace(thing, noun=rng.choice([noun for noun in nouns if noun not in drawn]))
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def _marketing(rng: Random, lang: str) -> str:
    """Return marketing phrases that fit any picture."""
    text = rng.choice((" | ", " - ", ", ", "! ")).join(rng.sample(MARKETING_PHRASES[lang], rng.choice((1, 2, 2, 3))))
    return rng.choice((text, text.title(), text + "!"))


def _filename(rng: Random) -> str:
    number = rng.randrange(1, 10000)
    name = rng.choice(
        ("IMG_{:04d}", "DSC{:05d}", "P10{:05d}", "image ({})", "untitled-{}", "photo_{}", "{:08x}", "scan{:03d}")
    )
    stem = name.format(rng.getrandbits(32) if "x" in name else number)
    return stem + rng.choice((".jpg", ".JPG", ".jpeg", ".png", ""))
