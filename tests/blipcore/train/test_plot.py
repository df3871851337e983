"""The plot of the losses."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from blipcore.train.plot import HEIGHT, MAX_POINTS, WIDTH, draw_losses, nice_ticks

SVG = "{http://www.w3.org/2000/svg}"


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    shapes = [line.attrib["points"].split() for line in ElementTree.fromstring(svg).findall(f"{SVG}polyline")]
    return [[tuple(map(float, point.split(","))) for point in shape] for shape in shapes]


def test_each_loss_is_a_line_inside_the_picture() -> None:
    records = [{"step": step, "loss": 10 / step, "loss_itc": 5.0, "lr": 1.0} for step in (1, 2, 3)]
    lines = polylines(draw_losses(records, title="a & b"))
    assert [len(line) for line in lines] == [3, 3]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for line in lines for x, y in line)
    assert lines[0][0][1] < lines[0][1][1] < lines[0][2][1]  # falls; y points down
    assert len({y for _, y in lines[1]}) == 1


def test_values_that_are_not_finite_are_left_out() -> None:
    records = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan}, {"step": 3, "val_a": 1.0}]
    assert [len(line) for line in polylines(draw_losses(records))] == [1]
    assert polylines(draw_losses([])) == []


def test_long_runs_are_averaged() -> None:
    (line,) = polylines(draw_losses([{"step": step, "loss": step % 2} for step in range(10 * MAX_POINTS)]))
    assert len(line) == MAX_POINTS and len({y for _, y in line}) == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.027), (-3, 12345), (7, 7), (0, 0)])
def test_ticks_are_few_and_cover_the_values(low, high) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 10
