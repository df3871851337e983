"""Builds `fluent_emoji_flat.xz`, the drawings and names of the embedded corpus, from two npm packages.

    npm pack @iconify-json/fluent-emoji-flat@1.2.6 cldr-annotations-full@48.2.0     # then unpack both
    python -m capfilt.demo.build_art ICONIFY_PACKAGE CLDR_PACKAGE

In: Microsoft's Fluent Emoji (flat) as published by Iconify, and Unicode's CLDR annotations. Out: one line of JSON per
depictive concept, compressed with xz: {"id", "en", "zh", "svg"}, where svg is the content of a 32 by 32 drawing.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

CATEGORIES = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")
# Depictive concepts that the emoji set files among faces, people and body parts.
OTHERS = ["alien", "alien-monster", "anatomical-heart", "bomb", "bone", "brain", "ear", "eye", "ghost", "love-letter"]
OTHERS += ["lungs", "mechanical-arm", "mechanical-leg", "robot", "skull", "speech-balloon", "tooth"]
CLOCK_FACES = ("-oclock", "-thirty")


def build(iconify: Path, cldr: Path) -> list[dict[str, str]]:
    """Return the concepts in the order of their ids."""
    drawings = _read(iconify / "icons.json")["icons"]
    categories = _read(iconify / "metadata.json")["categories"]
    codes: dict[str, str] = {}
    for code, concept in _read(iconify / "chars.json").items():
        codes.setdefault(concept, code)
    names = {
        lang: _read(cldr / "annotations" / lang / "annotations.json")["annotations"]["annotations"]
        for lang in ("en", "zh")
    }

    def name(concept: str, lang: str) -> str:
        emoji = "".join(chr(int(code, 16)) for code in codes[concept].split("-"))
        annotations = names[lang]
        return (annotations.get(emoji) or annotations[emoji.replace("\ufe0f", "")])["tts"][0]

    concepts = [concept for category in CATEGORIES for concept in categories[category]]
    concepts = [concept for concept in concepts if not concept.endswith(CLOCK_FACES)] + OTHERS
    return [{"id": c, "en": name(c, "en"), "zh": name(c, "zh"), "svg": drawings[c]["body"]} for c in sorted(concepts)]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Write the file into this module's folder."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    concepts = build(Path(sys.argv[1]), Path(sys.argv[2]))
    text = "".join(json.dumps(concept, ensure_ascii=False, separators=(",", ":")) + "\n" for concept in concepts)
    packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    Path(__file__).with_name("fluent_emoji_flat.xz").write_bytes(packed)
    print(f"{len(concepts)} concepts, {len(packed)} bytes")


if __name__ == "__main__":
    main()
