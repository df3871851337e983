"""The drawings of the embedded corpus and their names.

In: `fluent_emoji_flat.xz` (845 depictive concepts as vectors, with CLDR's English and Chinese names; made by
`build_art.py`) and the reviewed list in `names.py`. Out: `Noun` entries for the language, and sprites, that is
drawings with a white rim like a sticker's, for the scenes. The rim keeps a red apple visible on a red background.
"""

from __future__ import annotations

import io
import json
import lzma
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

from PIL import Image, ImageFilter

from capfilt.demo import names

DRAWING = 32  # side of the vectors' own coordinate system
MASTER = 256  # pixels of the rendering from which the sprites are scaled down


@dataclass(frozen=True)
class Noun:
    """A reviewed noun: the concept that draws it, its singular and plural, its Chinese name and measure word."""

    concept: str
    en: str
    plural: str
    zh: str
    measure: str


@cache
def concepts() -> dict[str, dict[str, str]]:
    """All depictive concepts of the package by id: {"id", "en", "zh", "svg"}."""
    packed = resources.files(__package__).joinpath("fluent_emoji_flat.xz").read_bytes()
    rows = map(json.loads, lzma.decompress(packed).decode().splitlines())
    return {row["id"]: row for row in rows}


@cache
def vocabulary() -> dict[str, Noun]:
    """All reviewed nouns by English name: first the default ones in their order, then the others by name."""
    entries = {}
    for concept, english, chinese, measure in names.reviewed_nouns():
        known = concepts()[concept]
        en = english or known["en"].lower()
        entries[en] = Noun(concept, en, names.plural(en), chinese or known["zh"], measure)
    order = names.DEFAULT + tuple(sorted(entries.keys() - set(names.DEFAULT)))
    return {name: entries[name] for name in order}


def nouns(n: int = len(names.DEFAULT)) -> tuple[str, ...]:
    """The first n reviewed nouns; the default ones are distinct in shape and in letters."""
    known = tuple(vocabulary())
    if not 4 <= n <= len(known):
        raise ValueError(f"{n} nouns were asked for; the reviewed list can give 4 to {len(known)}")
    return known[:n]


@lru_cache(maxsize=4096)
def sprite(noun: str, px: int) -> Image.Image:
    """The drawing of a noun as RGBA, longer side px pixels with the rim. Shared by all callers: do not draw on it."""
    if noun not in vocabulary():
        raise ValueError(f"'{noun}' is not among the {len(vocabulary())} reviewed nouns of the embedded corpus")
    rim = max(1, round(px / 24))
    master = _master(noun)
    scale = (px - 2 * rim) / max(master.size)
    inner = master.resize([max(1, round(side * scale)) for side in master.size], Image.Resampling.LANCZOS)
    drawing = Image.new("RGBA", (inner.width + 2 * rim, inner.height + 2 * rim))
    drawing.paste(inner, (rim, rim))
    sticker = Image.new("RGBA", drawing.size, "white")
    sticker.putalpha(drawing.getchannel("A").filter(ImageFilter.MaxFilter(2 * rim + 1)))
    sticker.alpha_composite(drawing)
    return sticker


@cache
def _master(noun: str) -> Image.Image:
    """One large rendering, cut to what is drawn, so that sizes mean the same for all nouns."""
    try:
        import resvg_py
    except ImportError:
        raise ImportError("Drawing the embedded corpus needs resvg-py: pip install 'capfilt[demo]'") from None
    body = concepts()[vocabulary()[noun].concept]["svg"]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {DRAWING} {DRAWING}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=MASTER, height=MASTER, dpi=96
    )  # without dpi resvg-py draws nothing
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox())
