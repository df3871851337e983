"""Tables of the paper in miniature."""

from pathlib import Path

import pytest

from capfilt.demo.paper import TITLES, VARIANTS, table_commands, variants
from capfilt.demo.plan import BOOTSTRAPPED, NOISY, TABLES, DemoConfig, DemoPlan
from capfilt.demo.tables import paper_table


@pytest.mark.parametrize("table", TABLES)
def test_every_variant_is_a_row_that_is_trained(tmp_path: Path, table: int) -> None:
    planned = table_commands(DemoPlan(DemoConfig(out=tmp_path)), table)
    trained = {
        command.command.name.removeprefix("pretrain-") for command in planned if "pretrain-" in command.command.name
    }
    rows = {variant.row for variant in variants([table])}
    assert rows - trained <= {NOISY, BOOTSTRAPPED} and len(rows) > 1
    assert all(variant.label for variant in variants([table]))


def test_the_tables_are_those_of_the_option() -> None:
    assert set(TITLES) == set(TABLES) == {variant.table for variant in VARIANTS}


def test_the_shared_model_of_table_4_writes_and_judges(tmp_path: Path) -> None:
    planned = table_commands(DemoPlan(DemoConfig(out=tmp_path)), 4)
    model = str(tmp_path / "runs" / "captioner_and_filter" / "model")
    assert [command.command.arguments[0] for command in planned if model in command.command.arguments] == [
        "caption", "filter"
    ]  # fmt: skip


def test_the_papers_figures_stand_beside_ours() -> None:
    estimate = {"value": 0.7, "low": 0.6, "high": 0.8}
    grades = {"exact_match": estimate, "cider": {"value": 250.0}, "retrieval": {"i2t_r@1": 90.0, "t2i_r@1": 80.0}}
    variant = next(variant for variant in VARIANTS if variant.row == "table4_shared")
    line = {"table": 4, "label": variant.label, "row": variant.row, "published": variant.published._asdict()}
    summary = {"tables": [line | {"rejected": estimate}], "rows": {variant.row: {"finetuned": grades}}}
    table = paper_table(summary, 4)
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == [
        "shared parameters", "70.0 (8)", "–", "–", "70.0 ± 10.0", "250.0 (129.0)", "90.0 (79.8)", "80.0 (62.2)"
    ]  # fmt: skip
