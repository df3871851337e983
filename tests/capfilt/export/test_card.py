"""The dataset card: front matter that the hub reads, counts, settings and rights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from filtered_set import filter_set, write_set
from folders import rows_of

from capfilt.export.card import dataset_card
from capfilt.filter.filtered_set import FilteredSet

COUNTS = {"exported": 1234, "texts": 2000, "contaminated": 5, "missing": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, drawn: Callable) -> FilteredSet:
    folder = write_set(tmp_path_factory.mktemp("set") / "data", drawn, pictures=12)
    return FilteredSet.open(filter_set(folder, best=1))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_counts_settings_and_rights(data: FilteredSet) -> None:
    card = dataset_card(data, "webdataset", COUNTS, ["coco/val2017"], "cc-by-4.0")
    assert front_matter(card) == {
        "task_categories": ["image-to-text"],
        "size_categories": ["1K<n<10K"],
        "tags": ["capfilt"],
        "license": "cc-by-4.0",
    }
    assert "| exported | 1,234 | 2,000 |" in card
    assert "| left out: copy of an evaluation picture | 5 | |" in card
    web = [row for row in rows_of(Path(str(data.folder))) if row["source"] == "web"]
    assert f"| web | {len(web)} | {sum(row['keep'] for row in web)} |" in card
    assert "`fingerprint`: 0123456789abcdef" in card
    assert "- c: no record" in card  # captions without a manifest
    assert "sources web, c; ITM >= 0.5; the best 1 per picture and source by ITM" in card
    assert "`coco/val2017`" in card and "Licence of texts and pictures: cc-by-4.0." in card


def test_a_parquet_export_has_a_config_name_of_its_own(data: FilteredSet) -> None:
    names = set()
    for exported in (1, 2):
        card = dataset_card(data, "parquet", COUNTS | {"exported": exported}, [], None)
        (config,) = front_matter(card)["configs"]
        assert config["data_files"] == "*.parquet" and config["config_name"].startswith("r1-")
        names.add(config["config_name"])
        assert "license" not in front_matter(card) and "not stated" in card
    assert len(names) == 2
