"""Draws the losses of a run: metrics.jsonl to losses.svg, as plain SVG text without a plotting library."""

import json
import math
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 380, 56, 20, 120, 40  # pixels
LINE_COLOURS = ("#4053d3", "#ddb310", "#b51d14", "#00beff", "#fb49b0", "#00b25d")
MAX_POINTS = 400  # per line; more are averaged

Point = tuple[float, float]


def draw_losses(records: list[dict[str, float]], title: str = "") -> str:
    """Return an SVG of the "loss..." fields of records by "step", without values that are not finite."""
    names = list(dict.fromkeys(name for record in records for name in record if name.startswith("loss")))
    lines = {}
    for name in names:
        points = [(r["step"], r[name]) for r in records if math.isfinite(r.get(name, math.nan))]
        if points:
            lines[name] = _average(points)
    steps = [x for line in lines.values() for x, _ in line]
    values = [y for line in lines.values() for _, y in line]
    last = max(steps, default=1)
    ticks = nice_ticks(min(values, default=0.0), max(values, default=1.0))

    def to_pixels(x: float, y: float) -> str:
        right = LEFT + (WIDTH - LEFT - RIGHT) * x / last
        down = TOP + (HEIGHT - TOP - BOTTOM) * (ticks[-1] - y) / (ticks[-1] - ticks[0])
        return f"{right:.1f},{down:.1f}"

    font = 'font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {font}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="{TOP - 6}" fill="#555">{escape(title)}</text>',
    ]
    for tick in ticks:
        x, y = to_pixels(0, tick).split(",")
        parts.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{tick:g}</text>')
    for step in nice_ticks(0, last):
        if step <= last:
            x, y = to_pixels(step, ticks[0]).split(",")
            parts.append(f'<text x="{x}" y="{y}" dy="18" text-anchor="middle">{step:g}</text>')
    for row, (name, line) in enumerate(lines.items()):
        colour, shape = LINE_COLOURS[row % len(LINE_COLOURS)], " ".join(to_pixels(*point) for point in line)
        label = escape(f"{name.removeprefix('loss_')} {line[-1][1]:.3g}")
        parts.append(f'<polyline points="{shape}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{TOP + 14 + 18 * row}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def read_records(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def nice_ticks(low: float, high: float) -> list[float]:
    """Return five to ten round numbers that cover `low` to `high`."""
    spacing = max(high - low, abs(high) * 1e-3, 1e-9) / 6
    unit = 10 ** math.floor(math.log10(spacing))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= spacing)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]


def _average(points: list[Point]) -> list[Point]:
    """Return at most MAX_POINTS points: means of equal stretches, each at its last step."""
    length = math.ceil(len(points) / MAX_POINTS)
    stretches = [points[i : i + length] for i in range(0, len(points), length or 1)]
    return [(stretch[-1][0], sum(y for _, y in stretch) / len(stretch)) for stretch in stretches]
