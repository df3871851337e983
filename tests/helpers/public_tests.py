"""Miniatures of public tests, drawn by the demo: objects on backgrounds of one colour, with right and wrong colours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from capfilt.demo import art
from capfilt.demo.scenes import BACKGROUNDS, Scene, Thing, draw_scene
from capfilt.filter.scorer import Scorer, group_by_picture, picture_of_each_text

COLOURS = list(BACKGROUNDS)


class ColourScorer(Scorer):
    """Closeness of the picture's background to the colour that a text names; longer texts get a little more."""

    columns = ("colour", "length")

    def prepare(self, image: Image.Image, /) -> np.ndarray:
        pixels = np.asarray(image.resize((16, 16)), float)
        return np.median(pixels[[0, -1]].reshape(-1, 3), axis=0)

    def score(self, inputs: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        flat = [text for row in texts for text in row]
        values = [closeness(inputs[index], text) for index, text in zip(picture_of_each_text(texts), flat, strict=True)]
        return {
            "colour": group_by_picture(values, texts),
            "length": group_by_picture([float(len(t)) for t in flat], texts),
        }


def closeness(pixel: np.ndarray, text: str) -> float:
    """Return minus the distance of a pixel to the first colour of a text."""
    name = next((word for word in text.split() if word in COLOURS), None)
    if name is None:
        return -1000.0 + len(text) / 1000
    return -float(np.abs(pixel - np.array(ImageColor.getrgb(BACKGROUNDS[name]))).sum())


def draw(index: int, colour: str) -> Image.Image:
    """Draw an object on a background."""
    noun = art.nouns()[index % len(art.nouns())]
    return draw_scene(Scene((Thing(noun),), None, colour, index), 64)


def colour_of(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def wrong(index: int, step: int = 1) -> str:
    return COLOURS[(index + step) % len(COLOURS)]


def caption(index: int, colour: str) -> str:
    return f"a picture of something on a {colour} background , number {index}"


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write pictures with the colours of `colour_of`; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:03d}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        draw(index, colour_of(index)).save(folder / name, quality=95)
    return names


def write(path: Path, content: Any, lines: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row) for row in content) if lines else json.dumps(content)
    path.write_text(text + "\n")
    return path


def sugarcrepe(folder: Path, count: int = 8, every: int = 4) -> Path:
    """Write a SugarCrepe file whose captions are wrong for each `every`-th picture."""
    names = write_pictures(folder, count)
    rows = {}
    for index, name in enumerate(names):
        texts = [caption(index, colour_of(index)), caption(index, wrong(index))]
        texts = texts[::-1] if index % every == 0 else texts
        rows[str(index)] = {"filename": name, "caption": texts[0], "negative_caption": texts[1]}
    return write(folder / "replace_att.json", rows)


def aro(folder: Path, count: int = 6) -> Path:
    """Write an ARO file: each picture is two drawings side by side, and the box holds one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        pair = Image.new("RGB", (128, 64))
        left = index % 2 == 0
        pair.paste(draw(index, colour_of(index)), (0 if left else 64, 0))
        pair.paste(draw(index, wrong(index)), (64 if left else 0, 0))
        pair.save(folder / f"{index}.png")
        rows.append(
            {"image_id": index, "image_path": f"{index}.png", "bbox_x": 0 if left else 64, "bbox_y": 0, "bbox_w": 64,
             "bbox_h": 64, "relation_name": "on" if index < 4 else "near",
             "true_caption": caption(index, colour_of(index)), "false_caption": caption(index, wrong(index))}
        )  # fmt: skip
    return write(folder / "visual_genome_relation.json", rows)


def winoground(folder: Path, count: int = 4) -> Path:
    """Write a Winoground file; in the last item both pictures have the colour of the first text."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        colours = (colour_of(index), wrong(index, 3))
        drawn = (colours[0], colours[0]) if index == count - 1 else colours
        for place, colour in enumerate(drawn):
            draw(index + place, colour).save(folder / "images" / f"ex_{index}_img_{place}.png")
        texts = {f"caption_{place}": caption(index, colour) for place, colour in enumerate(colours)}
        rows.append(
            {"id": index, "image_0": f"ex_{index}_img_0", "image_1": f"ex_{index}_img_1", **texts, "tag": "Noun"}
        )
    return write(folder / "examples.jsonl", rows, lines=True)


def ohd_caps(folder: Path, count: int = 6) -> Path:
    """Write an OHD-Caps file; the first row has a wrong text with the right colour and more words."""
    rows = []
    for index, name in enumerate(write_pictures(folder, count)):
        negatives = {str(step): caption(index, wrong(index, step)) for step in (1, 2, 3)}
        others = {"far": caption(index, wrong(index, 4))}
        if index == 0:
            others["same"] = caption(index, colour_of(index))
        row = {"file_path": name, "positive_sample": caption(index, colour_of(index)), "ground_truth": ["x"]}
        rows.append(row | {"adversarial_samples": negatives, "random_samples": others})
    return write(folder / "coco_annotations.json", rows, lines=True)


def foil(folder: Path, count: int = 6) -> Path:
    """Write a FOIL file in COCO's layout."""
    images = [{"id": 100 + index, "file_name": name} for index, name in enumerate(write_pictures(folder, count))]
    annotations = []
    for index in range(count):
        for is_foil in (False, True):
            text = caption(index, wrong(index, 2) if is_foil else colour_of(index))
            words = (colour_of(index), wrong(index, 2)) if is_foil else ("ORIG", "ORIG")
            row = {"id": index, "foil_id": 2 * index + is_foil, "image_id": 100 + index, "caption": text}
            annotations.append(row | {"foil": is_foil, "target_word": words[0], "foil_word": words[1]})
    return write(folder / "foilv1.0_test_2017.json", {"images": images, "annotations": annotations})


def flickr8k(folder: Path, count: int = 6) -> tuple[Path, Path]:
    """Write Flickr8k's annotation files; one rated text of the experts is the picture's own."""
    names = write_pictures(folder, count)
    texts = {f"{name}#0": caption(index, colour_of(index)) for index, name in enumerate(names)}
    (folder / "Flickr8k.token.txt").write_text("".join(f"{key}\t{text}\n" for key, text in texts.items()))
    experts, crowd = [], []
    for index, name in enumerate(names):
        for step in range(count):
            other = names[(index + step) % count]
            near = max(1, 4 - step)
            experts.append(f"{name}\t{other}#0\t{near}\t{max(1, near - step % 2)}\t{near}\n")
            yes = max(0, 3 - step)
            crowd.append(f"{name}\t{other}#0\t{yes / 3}\t{yes}\t{3 - yes}\n")
    (folder / "ExpertAnnotations.txt").write_text("".join(experts))
    (folder / "CrowdFlowerAnnotations.txt").write_text("".join(crowd))
    return folder / "ExpertAnnotations.txt", folder / "CrowdFlowerAnnotations.txt"


def plain_tau(scores: list[float], truth: list[float], variant: str) -> float:
    """Return Kendall's tau-b or tau-c from its definition, pair by pair."""
    signs = [
        (np.sign(a - b), np.sign(s - t)) for (a, s), (b, t) in combinations(list(zip(scores, truth, strict=True)), 2)
    ]
    score = sum(x * y for x, y in signs)
    if variant == "b":
        return score / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    n, m = len(scores), min(len(set(scores)), len(set(truth)))
    return 2 * score / (n**2 * (m - 1) / m)
