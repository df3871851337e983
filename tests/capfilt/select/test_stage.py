"""`capfilt select` on planted vectors: copies, clusters and a target are found, and a rerun writes the same bytes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filtered_set import filter_set, write_set
from folders import rows_of
from typer.testing import CliRunner

from blipcore.data.shard_datasets import open_dataset
from capfilt.cli import app
from capfilt.export.card import dataset_card
from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.vectors import PICTURE_VECTOR
from capfilt.select import stage
from capfilt.select.config import SelectConfig
from capfilt.select.stage import select_pictures
from capfilt.shards.tables import read_table, write_table

pytest.importorskip("faiss")
SIZE = 16


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def add_vectors(data: Path, vector_of: Callable[[int], np.ndarray], fingerprint: str = "0123456789abcdef") -> None:
    """Store the vector of each picture, by its number, in the scores of a set."""
    for path in sorted((data / "scores" / "s").glob("*.parquet")):
        table, seen, cells = read_table(path), set(), []
        for key in table["key"].to_pylist():
            cells.append(None if key in seen else vector_of(int(key)).astype("<f2").tobytes())
            seen.add(key)
        write_table(path, table.append_column(PICTURE_VECTOR, pa.array(cells, pa.binary())), {"texts": len(table)})
    manifest = data / "scores" / "s" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["config"] |= {"vectors": True, "fingerprint": fingerprint}
    manifest.write_text(json.dumps(content))


def random_vector(number: int) -> np.ndarray:
    return unit(np.random.default_rng(number).normal(size=SIZE))


def copied_vector(number: int) -> np.ndarray:
    """Return a vector that is nearly the same for the numbers 3n, 3n + 1 and 3n + 2; other ones are far apart."""
    return unit(random_vector(number // 3) + 0.02 * random_vector(10_000 + number))


def clustered_vector(number: int) -> np.ndarray:
    """Return a vector near one of four axes: half of all numbers are in the first cluster."""
    axis = np.eye(SIZE)[(0, 0, 0, 1, 2, 3)[number % 6]]
    return unit(axis + 0.05 * random_vector(number))


@pytest.fixture
def filtered(tmp_path: Path, drawn) -> Callable[[Callable[[int], np.ndarray]], Path]:
    def make(vector_of: Callable[[int], np.ndarray], name: str = "data") -> Path:
        data = write_set(tmp_path / name, drawn)
        add_vectors(data, vector_of)
        return filter_set(data)

    return make


def best_scores(folder: Path) -> dict[str, float]:
    """Return the best ITM of each kept picture."""
    scores: dict[str, float] = defaultdict(float)
    for row in rows_of(folder):
        if row["keep"]:
            scores[row["key"]] = max(scores[row["key"]], row["itm"])
    return dict(scores)


def select(filtered: Path, name: str = "new", **settings: object) -> tuple[Path, dict]:
    summary = select_pictures(SelectConfig(dataset=str(filtered), name=name, **settings))
    return filtered.parent / name, summary


@pytest.mark.parametrize("group", [10_000, 20])
def test_of_copies_the_picture_with_the_best_text_stays(
    filtered: Callable, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(stage, "GROUP", group)
    source = filtered(copied_vector)
    folder, summary = select(source, duplicates=0.95, memory_gb=4 * SIZE * group / 1e9)
    before, after = best_scores(source), best_scores(folder)
    groups = defaultdict(list)
    for key in before:
        groups[int(key) // 3].append(key)
    best = {max(keys, key=lambda key: (before[key], -int(key))) for keys in groups.values()}
    assert set(after) == best and len(before) > len(best) > 20
    assert summary["pictures"] == {"kept": len(best), "semantic_duplicate": len(before) - len(best)}
    for path in sorted((folder / "pictures").glob("*.parquet")):
        for row in read_table(path).to_pylist():
            if row["outcome"] == "semantic_duplicate":
                original = read_table(folder / "pictures" / f"{row['duplicate_shard']}.parquet").to_pylist()
                better = original[row["duplicate_row"]]
                assert int(better["key"]) // 3 == int(row["key"]) // 3 and better["outcome"] == "kept"
                assert 0.95 <= row["cosine"] <= 1.001


def test_texts_of_dropped_pictures_have_the_reason_and_other_rows_are_unchanged(filtered: Callable) -> None:
    source = filtered(copied_vector)
    folder, summary = select(source, duplicates=0.95)
    changed = Counter()
    for old, new in zip(rows_of(source), rows_of(folder), strict=True):
        if old != new:
            assert old["keep"] and not new["keep"] and new["reason"] == "semantic_duplicate"
            assert {**new, "keep": True, "reason": "kept"} == old
            changed[new["reason"]] += 1
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert sum(count for name, count in counts.items() if name.endswith("/semantic_duplicate")) == sum(changed.values())
    assert summary["texts"] == sum(counts.values()) and summary["kept"] == sum(row["keep"] for row in rows_of(folder))
    assert sum(open_dataset(folder).counts) == summary["pictures"]["kept"]  # to train on
    card = dataset_card(FilteredSet.open(folder), "json", Counter(), [], None)
    assert "- select: duplicates 0.95" in card and card.count("- filter,") == 1


def test_a_cluster_keeps_its_best_pictures(filtered: Callable) -> None:
    source = filtered(clustered_vector)
    folder, summary = select(source, per_cluster=5, clusters=4)
    before, after = best_scores(source), best_scores(folder)
    members = defaultdict(list)
    for key in before:
        members[clustered_vector(int(key)).argmax()].append(key)
    expected = {key for keys in members.values() for key in sorted(keys, key=lambda key: (-before[key], int(key)))[:5]}
    assert set(after) == expected and summary["pictures"]["cluster_full"] == len(before) - len(expected)
    clusters = {(row["cluster"], clustered_vector(int(row["key"])).argmax()) for row in outcomes(folder)}
    assert len(clusters) == len(members) == 4


def outcomes(folder: Path) -> list[dict]:
    tables = sorted((folder / "pictures").glob("*.parquet"))
    return [row for table in tables for row in pq.read_table(table).to_pylist()]


def test_pictures_like_a_target_set_stay(filtered: Callable) -> None:
    source = filtered(clustered_vector)
    target = filtered(lambda number: clustered_vector(5), "val").parents[1]
    folder, _ = select(source, like=str(target), top_fraction=0.1)
    before, after = best_scores(source), best_scores(folder)
    assert len(after) == max(1, round(0.1 * len(before)))
    assert {int(key) % 6 for key in after} == {5}
    likes = {row["key"]: row["like"] for row in outcomes(folder)}
    assert min(likes[key] for key in after) >= max(likes[key] for key in before.keys() - after.keys())


def test_selections_are_applied_in_order(filtered: Callable) -> None:
    source = filtered(copied_vector)
    folder, summary = select(source, duplicates=0.95, per_cluster=2, clusters=3)
    assert set(summary["pictures"]) == {"kept", "semantic_duplicate", "cluster_full"}
    assert summary["pictures"]["kept"] <= 6
    assert (
        select(source, name="other", duplicates=0.95)[1]["pictures"]["semantic_duplicate"]
        == (summary["pictures"]["semantic_duplicate"])
    )
    again, second = select(folder, name="third", per_cluster=1, clusters=2)  # of a selected set
    assert second["pictures"]["kept"] <= 2 and len(best_scores(again)) == second["pictures"]["kept"]


def test_a_stopped_selection_goes_on_with_the_same_bytes(filtered: Callable) -> None:
    source = filtered(copied_vector)
    folder, _ = select(source, duplicates=0.9, per_cluster=2)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    (folder / "00001.parquet").unlink()
    (folder / "pictures" / "00001.parquet").unlink()
    _, summary = select(source, duplicates=0.9, per_cluster=2)
    assert summary["shards"] == {"done": 1, "skipped": 1, "failed": {}}
    assert {path: path.read_bytes() for path in files} == files
    assert select(source, duplicates=0.9, per_cluster=2)[1]["shards"]["done"] == 0
    with pytest.raises(ValueError, match="other settings"):
        select(source, duplicates=0.8, per_cluster=2)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "what to select by"),
        ({"duplicates": 1.5}, "a cosine from -1 to 1"),
        ({"like": "val"}, "go together"),
        ({"per_cluster": 0}, "per_cluster must be at least 1"),
        ({"like": "val", "top_fraction": 0.0}, "above 0 and at most 1"),
        ({"per_cluster": 1, "name": "a/b"}, "letters, digits"),
    ],
)
def test_wrong_settings_are_one_sentence(settings: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SelectConfig(**{"dataset": "x", "name": "new", **settings})


def test_sets_without_fitting_vectors_are_refused_with_the_command_that_makes_them(
    filtered: Callable, tmp_path: Path, drawn
) -> None:
    plain = filter_set(write_set(tmp_path / "plain", drawn))
    with pytest.raises(ValueError, match=r"have no vectors; make them with `capfilt filter .*plain --model"):
        select(plain, duplicates=0.9)
    source = filtered(random_vector)
    with pytest.raises(ValueError, match="plain has no vectors of the filter MODEL; make them"):
        select(source, like=str(tmp_path / "plain"), top_fraction=0.5)
    add_vectors(write_set(tmp_path / "other", drawn), random_vector, fingerprint="another")
    with pytest.raises(ValueError, match="only of another filter"):
        select(source, name="b", like=str(tmp_path / "other"), top_fraction=0.5)
    with pytest.raises(ValueError, match="is the set itself"):
        select(source, name="b", like=str(source.parents[1]), top_fraction=0.5)
    with pytest.raises(FileNotFoundError, match="No folder at"):
        select(source, name="b", like=str(tmp_path / "nowhere"), top_fraction=0.5)
    with pytest.raises(ValueError, match="needs another name than r1"):
        select(source, name="r1", duplicates=0.9)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (lambda number: np.full(SIZE, np.nan), "a vector that is not finite"),
        (lambda number: np.ones(SIZE - number % 2), "vectors of different lengths"),
    ],
)
def test_damaged_vectors_are_named(filtered: Callable, broken: Callable, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"scores/s/00000.parquet has {problem}"):
        select(filtered(broken), duplicates=0.9)


def test_the_command_names_the_missing_package(monkeypatch: pytest.MonkeyPatch, filtered: Callable) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    result = CliRunner().invoke(app, ["select", str(filtered(random_vector)), "--name", "new", "--duplicates", "0.9"])
    assert result.exit_code != 0 and "pip install 'capfilt[vectors]'" in result.output + str(result.exception)
