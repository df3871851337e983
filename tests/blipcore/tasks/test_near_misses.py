"""Tables of near misses: made from references and a tiny random decoder."""

import json
import random

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tar_files import write_tar
from tiny_tasks import tiny_model

from blipcore.data.judged_texts import JudgedTexts
from blipcore.data.references import References
from blipcore.data.shard_datasets import open_dataset
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.near_misses import (
    NearMissConfig,
    Picture,
    draw_pictures,
    edit_references,
    make_near_misses,
    split_words,
)

COLOURS, ANIMALS, PLACES = ("red", "blue", "green"), ("dog", "cat", "mat"), ("left", "right")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """Write twenty pictures with three references each; the last picture file is damaged."""
    folder, rng, rows = tmp_path_factory.mktemp("near"), random.Random(0), []
    for number in range(20):
        Image.new("RGB", (16, 16), (number, 9, 9)).save(folder / f"{number}.png")
        colour, animal, place = rng.choice(COLOURS), rng.choice(ANIMALS), rng.choice(PLACES)
        texts = [
            f"a {colour} {animal} on the {place}",
            f"the {animal} on the {place} is {colour}",
            f"a {colour} {animal}",
        ]
        rows.append({"image": f"{number}.png", "caption": texts})
    (folder / "19.png").write_bytes(b"damaged")
    (folder / "human.json").write_text(json.dumps(rows))
    return folder / "human.json"


def config(annotations, **changes) -> NearMissConfig:
    settings = {"wrong": 4, "pictures": 100, "samples": 2, "max_tokens": 12, "seed": 0, "init": "x"}
    return NearMissConfig(**settings | {"annotations": [str(annotations)]} | changes)


@pytest.fixture(scope="module")
def rows(annotations, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "near_misses.parquet"
    make_near_misses(path, tiny_model(tokenizer), tokenizer, [open_dataset(annotations)], config(annotations))
    return pq.read_table(path).to_pylist()


def test_every_readable_picture_has_its_references_and_few_wrong_texts(rows, annotations) -> None:
    files = {row["key"] for row in rows}
    assert files == {str(annotations.parent / f"{number}.png") for number in range(19)}
    for file in files:
        of_picture = [row for row in rows if row["key"] == file]
        references = {row["text"] for row in of_picture if row["origin"] == "reference"}
        wrong = {row["text"] for row in of_picture if not row["match"]}
        assert len(references) == 3
        assert 0 < len(wrong) <= 4
        assert not wrong & references


def test_the_table_is_one_of_judged_texts(rows, annotations, tokenizer, model, tmp_path) -> None:
    path = tmp_path / "near_misses.parquet"
    make_near_misses(path, model, tokenizer, [open_dataset(annotations)], config(annotations))
    dataset = JudgedTexts(path)
    dataset.check_pictures()
    assert dataset.counts == [19]
    assert sum(len(entry.extra["judged"]) for entry in dataset.load(0)) == len(rows)


def test_a_table_is_made_again_only_for_other_settings(annotations, tokenizer, model, tmp_path) -> None:
    path, datasets = tmp_path / "near_misses.parquet", [open_dataset(annotations)]
    make_near_misses(path, model, tokenizer, datasets, config(annotations))
    first = path.read_bytes()
    make_near_misses(path, model, tokenizer, [], config(annotations))
    assert path.read_bytes() == first
    make_near_misses(path, model, tokenizer, datasets, config(annotations, seed=1))
    other = path.read_bytes()
    assert other != first
    make_near_misses(path, model, tokenizer, datasets, config(annotations))
    assert path.read_bytes() == first


def test_pictures_are_drawn_evenly_and_by_seed(annotations) -> None:
    dataset = open_dataset(annotations)
    drawn = [
        [p.entry.key for p in draw_pictures([dataset], config(annotations, pictures=5, seed=s))] for s in (0, 0, 1)
    ]
    assert len(drawn[0]) == 5
    assert drawn[0] == drawn[1] != drawn[2]


def test_pictures_of_shards_keep_tar_and_key(annotations, tokenizer, model, tmp_path) -> None:
    members = {}
    for number in range(19):
        members[f"{number}.png"] = (annotations.parent / f"{number}.png").read_bytes()
        members[f"{number}.txt"] = b"a red dog"
    write_tar(tmp_path / "00000.tar", members)
    shards = open_dataset(tmp_path)
    assert shards.location(0, shards.load(0)[0]) == (str(tmp_path / "00000.tar"), "0")
    with pytest.raises(ValueError, match="pictures with several references"):
        make_near_misses(tmp_path / "n.parquet", model, tokenizer, [shards], config(tmp_path))


def test_edited_chinese_texts_have_no_spaces() -> None:
    animals = zip("红蓝绿黄白黑", "狗猫鸟牛羊马", strict=True)
    texts = [[f"一只{colour}色的{animal}", f"{animal}是{colour}色的"] for colour, animal in animals]
    tokenizer = Tokenizer.train([text for of_picture in texts for text in of_picture], vocab_size=60)
    references = References([[split_words(tokenizer, text) for text in of_picture] for of_picture in texts])
    picture = Picture(None, 0, None)
    for seed in range(20):
        edit_references(picture, 0, references, tokenizer, random.Random(seed))
    assert picture.wrong
    assert not any(" " in text for text in picture.wrong)


def test_word_pieces_are_joined_to_words(tokenizer) -> None:
    assert split_words(tokenizer, "A red dog!") == ("a", "red", "dog")
