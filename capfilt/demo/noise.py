"""Web texts of the embedded corpus: right but web-like, or wrong in a known way.

In: a scene and random numbers. Out: a `WebText`: what an alt text of the web might say, and the kind of noise it is. The kind
never reaches a training file; it makes the precision and recall of a filter exact.

Right texts are incomplete as on the real web: titles and keyword lists name the objects, but mostly not the relation and often
not the count. What they say is true. The `wrong_*` kinds say one false thing in the same styles, `other_image` is the text of
another picture, `marketing` and `filename` say nothing about any picture, and `other_language` is right but in a language that
the corpus is not meant to teach, so a good filter drops it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from capfilt.demo import art, chinese
from capfilt.demo.language import RELATIONS, SIZE_WORDS, is_true, phrase
from capfilt.demo.scenes import INVERSE, Scene, sample

# Share of each kind. A count cannot be wrong in a text that names none and a relation only where there is one: where a kind does
# not fit the scene, the text gets `wrong_object` instead.
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
MATCHES = frozenset(kind for kind in NOISE_MIX if kind.startswith("right_"))

PRODUCTS = ("sticker", "decal", "poster", "art print", "fridge sticker", "iron-on patch", "wall art", "greeting card")
FORMATS = (
    "clipart",
    "vector",
    "icon",
    "illustration",
    "png",
    "stock image",
    "cartoon",
    "graphic",
    "flat design",
    "svg",
)
MARKETING = (
    "free shipping", "best price guaranteed", "shop now and save", "new arrivals", "sale ends soon", "limited offer",
    "order today", "click to enlarge", "add to cart", "in stock", "premium quality", "customer favourite", "official store",
    "buy now", "read more", "money back guarantee", "download now", "exclusive deal", "sign up for our newsletter",
    "up to 50% off",
)  # fmt: skip


@dataclass(frozen=True)
class WebText:
    """A text as found beside a picture, and how it relates to the picture (a key of `NOISE_MIX`)."""

    text: str
    kind: str

    @property
    def matches(self) -> bool:
        """Whether a perfect filter keeps it."""
        return self.kind in MATCHES


def web_text(
    scene: Scene,
    rng: Random,
    nouns: Sequence[str] | None = None,
    mix: Mapping[str, float] = NOISE_MIX,
    lang: str = "en",
) -> WebText:
    """The web text of a scene; `nouns` are those that a wrong object or another picture may show."""
    if unknown := mix.keys() - NOISE_MIX.keys():
        raise ValueError(f"unknown kind of web text '{min(unknown)}'; the kinds are {', '.join(NOISE_MIX)}")
    nouns = nouns or art.nouns()
    kind = rng.choices(list(mix), list(mix.values()))[0]
    if kind.startswith("right_"):
        return WebText(_STYLES[lang][kind.removeprefix("right_")](scene, rng), kind)
    if kind == "marketing":
        return WebText(_marketing(rng, lang), kind)
    if kind == "filename":
        return WebText(_filename(rng), kind)
    if kind == "other_language":
        return WebText(phrase(scene, rng, lang="en" if lang == "zh" else "zh"), kind)
    if kind == "wrong_relation" and not scene.relation:
        kind = "wrong_object"
    while True:  # in any style, until what it says is false: a title may keep silent about the count that is wrong
        text = rng.choice(list(_STYLES[lang].values()))(_altered(scene, kind, rng, nouns), rng)
        if not is_true(text, scene):
            return WebText(text, kind)


def _altered(scene: Scene, kind: str, rng: Random, nouns: Sequence[str]) -> Scene:
    """The scene that a wrong text speaks of."""
    if kind == "other_image":
        return sample(rng.getrandbits(32), "web", 0, nouns)
    if kind == "wrong_relation":
        return replace(scene, relation=rng.choice([relation for relation in INVERSE if relation != scene.relation]))
    place = rng.randrange(len(scene.things))
    thing = scene.things[place]
    if kind == "wrong_count":
        thing = replace(thing, count=rng.choice([count for count in (1, 2, 3) if count != thing.count]))
    else:
        shown = {thing.noun for thing in scene.things}
        thing = replace(thing, noun=rng.choice([noun for noun in nouns if noun not in shown]))
    return replace(scene, things=(*scene.things[:place], thing, *scene.things[place + 1 :]))


def _title(scene: Scene, rng: Random) -> str:
    """ "Large Apple & Dog - Blue", "Set of 3 Keys Clipart"."""
    names = [_web_name(thing, rng, size=0.3) for thing in scene.things]
    if scene.relation and rng.random() < 0.2:
        text = f" {rng.choice(RELATIONS[scene.relation])} ".join(names)
    else:
        text = rng.choice((" & ", " and ", ", ")).join(names)
        if len(names) == 1 and scene.things[0].count > 1 and rng.random() < 0.4:
            text = f"set of {scene.things[0].count} {art.vocabulary()[scene.things[0].noun].plural}"
    if rng.random() < 0.5:
        text += f" {rng.choice(FORMATS)}"
    if rng.random() < 0.5:
        text += rng.choice((" - {}", " ({})", " on {}", " | {} background")).format(scene.background)
    return text.title()


def _keywords(scene: Scene, rng: Random) -> str:
    """ "apple, dog, blue, clipart"."""
    words = [thing.noun for thing in scene.things]
    words += rng.sample(FORMATS, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.5:
        words.append(scene.background)
    rng.shuffle(words)
    return ", ".join(words)


def _shop(scene: Scene, rng: Random) -> str:
    """ "Buy apple and dog sticker | free shipping"."""
    item = " and ".join(thing.noun for thing in scene.things) + " " + rng.choice(PRODUCTS)
    if rng.random() < 0.4:
        item += rng.choice((" {}", " in {}", ", {}")).format(scene.background)
    item = rng.choice(("buy {}", "{}", "{} for sale", "cute {}", "{} no. " + str(rng.randrange(100, 1000)))).format(
        item
    )
    return item + rng.choice((" | ", " - ", ". ", ", ")) + rng.choice(MARKETING)


def _sentence(scene: Scene, rng: Random) -> str:
    """A plain alt text."""
    text = phrase(scene, rng, 0.4)
    if text.startswith(("a ", "an ", "two ", "three ")) and " is " not in text and " are " not in text:
        text = rng.choice(("{}", "{}", "image of {}", "picture showing {}")).format(text)
    return text[0].upper() + text[1:] + rng.choice(("", "."))


def _web_name(thing: object, rng: Random, size: float) -> str:
    """A noun as titles have it: no article, and a number only now and then."""
    noun = art.vocabulary()[thing.noun]
    name = noun.en if thing.count == 1 else rng.choice((noun.plural, f"{thing.count} {noun.plural}"))
    if rng.random() < size:
        number, space, rest = name.partition(" ") if name[0].isdigit() else ("", "", name)
        name = f"{number}{space}{rng.choice(SIZE_WORDS[thing.size])} {rest}"
    return name


def _marketing(rng: Random, lang: str) -> str:
    """Words that would sell anything."""
    words = chinese.MARKETING if lang == "zh" else MARKETING
    text = rng.choice((" | ", " - ", ", ", "! ")).join(rng.sample(words, rng.choice((1, 2, 2, 3))))
    return rng.choice((text, text.title(), text + "!"))


def _filename(rng: Random) -> str:
    """What a camera or an upload form would call it."""
    number = rng.randrange(1, 10000)
    name = rng.choice(
        ("IMG_{:04d}", "DSC{:05d}", "P10{:05d}", "image ({})", "untitled-{}", "photo_{}", "{:08x}", "scan{:03d}")
    )
    stem = name.format(rng.getrandbits(32) if "x" in name else number)
    return stem + rng.choice((".jpg", ".JPG", ".jpeg", ".png", ""))


_STYLES = {"en": {"title": _title, "keywords": _keywords, "shop": _shop, "sentence": _sentence}}
