"""Pictures of one colour, with captions or as classes."""

import json
from pathlib import Path

from PIL import Image

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def write_colours(folder: Path) -> Path:
    """Write a picture of each colour and `all.json` with two captions per picture; return the JSON file."""
    rows = []
    for colour in COLOURS:
        Image.new("RGB", (20, 20), colour).save(folder / f"{colour}.png")
        rows.append({"image": f"{colour}.png", "caption": [f"a {colour} square", f"something {colour}"]})
    (folder / "all.json").write_text(json.dumps(rows))
    return folder / "all.json"


def colour_folders(folder: Path) -> str:
    """Write a folder per colour with one picture; return their root."""
    for colour in COLOURS:
        (folder / "classes" / colour).mkdir(parents=True)
        Image.new("RGB", (20, 20), colour).save(folder / "classes" / colour / "a.png")
    return str(folder / "classes")
