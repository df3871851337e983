"""The drawings of the embedded corpus and their names.

In: `fluent_emoji_flat.xz` (845 depictive concepts as vectors, with English and Chinese names from CLDR; made by
`build_art.py`) and the reviewed list in `names.py`. Out: `Noun` entries for the language, and sprites for the scenes. A
sprite has a white rim, like a sticker, so that a red apple is visible on a red background.
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

DRAWING = 32  # side of the coordinate system of the vectors
MASTER = 256  # side in pixels of the rendering that is scaled down to sprites


@dataclass(frozen=True)
class Noun:
    """A reviewed noun."""

    concept: str  # id of the drawing
    en: str  # English singular
    plural: str
    zh: str  # Chinese name
    measure: str  # Chinese measure word


@cache
def concepts() -> dict[str, dict[str, str]]:
    """Return all depictive concepts by id: {"id", "en", "zh", "svg"}."""
    packed = resources.files(__package__).joinpath("fluent_emoji_flat.xz").read_bytes()
    rows = map(json.loads, lzma.decompress(packed).decode().splitlines())
    return {row["id"]: row for row in rows}


@cache
def vocabulary() -> dict[str, Noun]:
    """Return all reviewed nouns by English name: the default ones in their order, then the others by name."""
    entries = {}
    for concept, english, chinese, measure in names.reviewed_nouns():
        cldr = concepts()[concept]
        en = english or cldr["en"].lower()
        entries[en] = Noun(concept, en, names.plural(en), chinese or cldr["zh"], measure)
    order = names.DEFAULT + tuple(sorted(entries.keys() - set(names.DEFAULT)))
    return {name: entries[name] for name in order}


def nouns(n: int = len(names.DEFAULT)) -> tuple[str, ...]:
    """Return the first n reviewed nouns; the default ones are distinct in shape and in letters."""
    available = tuple(vocabulary())
    if not 4 <= n <= len(available):
        raise ValueError(f"The number of nouns must be 4 to {len(available)}, the size of the reviewed list, not {n}.")
    return available[:n]


@lru_cache(maxsize=4096)
def sprite(noun: str, px: int) -> Image.Image:
    """Return the drawing of a noun as RGBA; with the rim, its longer side is `px` pixels.

    The image is cached and shared: do not modify it.
    """
    if noun not in vocabulary():
        raise ValueError(f"'{noun}' is not one of the {len(vocabulary())} reviewed nouns of the embedded corpus.")
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
    """Return a large rendering of a noun, cropped to the drawing, so that sizes are comparable across nouns."""
    try:
        import resvg_py
    except ImportError:
        raise ImportError("Drawing the embedded corpus needs resvg-py; run: pip install 'capfilt[demo]'") from None
    body = concepts()[vocabulary()[noun].concept]["svg"]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {DRAWING} {DRAWING}">{body}</svg>'
    )
    # Without dpi, resvg-py draws nothing.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=MASTER, height=MASTER, dpi=96)
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox())
