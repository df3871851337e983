"""Plots of the differences of a trial with their intervals: lines for a terminal, an SVG, and a page with both."""

from __future__ import annotations

import html
from collections.abc import Sequence

from capfilt.trial.result import Comparison, TrialResult
from capfilt.trial.scores import SCORE_NAMES

COLUMNS = 51  # of a terminal's plot
WIDTH, ROW, LEFT, RIGHT, TOP = 900, 56, 300, 40, 20
STYLE = """text { font: 14px system-ui, sans-serif; fill: #1c1b18; } .soft { fill: #5d5a52; }
.zero { stroke: #5d5a52; stroke-dasharray: 4 4; } .interval { stroke: #2554ad; stroke-width: 5; stroke-linecap: round; }
.value { fill: #2554ad; } .run { fill: none; stroke: #5d5a52; }"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }} th, td {{ padding: .3rem .9rem .3rem 0; text-align: left; }}
svg {{ max-width: 100%; }}</style></head>
<body><h1>{title}</h1>
{sentences}
{plot}
<h2>Training runs</h2>
{table}
<p>{method}</p>
</body></html>
"""
METHOD = (
    "Each difference is of mean scores over the held-out pictures and all runs. Its 95% interval covers the choice of "
    "pictures and the seeds of the runs (Student's t, degrees of freedom of Welch and Satterthwaite); each interval "
    "holds on its own."
)


def terminal_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a line per comparison: the interval as dashes, the value as a dot, zero as a bar."""
    lines = []
    for comparison in comparisons:
        scale = _scale(comparison)
        columns = [" "] * COLUMNS
        low, value, high = (_column(number, scale) for number in _interval(comparison))
        columns[low : high + 1] = ["─"] * (high + 1 - low)
        columns[_column(0, scale)] = "│"
        columns[value] = "●"
        label = f"{SCORE_NAMES[comparison.test]}: {comparison.second} - {comparison.first}"
        lines.append(f"{label:<40} {-scale:+7.1f} {''.join(columns)} {scale:+.1f}")
    return lines


def svg(comparisons: Sequence[Comparison]) -> str:
    """Return the plot: per comparison its interval and value, and a circle per run of the second set."""
    parts, height = [], TOP + ROW * len(comparisons)
    for number, comparison in enumerate(comparisons):
        scale, y = _scale(comparison), TOP + ROW * number + ROW // 2
        low, value, high = (_x(edge, scale) for edge in _interval(comparison))
        label = html.escape(f"{comparison.second} - {comparison.first}")
        numbers = "{:+.1f} ({:+.1f} to {:+.1f})".format(*comparison.difference[:3])
        parts += [
            f'<text x="0" y="{y - 2}">{SCORE_NAMES[comparison.test]}: {numbers}</text>',
            f'<text class="soft" x="0" y="{y + 16}">{label}</text>',
            f'<path class="zero" d="M{_x(0, scale):.1f} {y - ROW // 2 + 4}V{y + ROW // 2 - 4}"/>',
            f'<path class="interval" d="M{low:.1f} {y}H{high:.1f}"/>',
            *(f'<circle class="run" cx="{_x(run, scale):.1f}" cy="{y}" r="5"/>' for run in comparison.runs),
            f'<circle class="value" cx="{value:.1f}" cy="{y}" r="7"/>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="Differences with 95% intervals"><style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def page(result: TrialResult) -> str:
    """Return an HTML page: the sentences, the plot, and the score of each run."""
    rows = ["<tr><th>score</th><th>set</th><th>mean</th><th>runs</th><th>pictures</th></tr>"]
    for test, by_set in result.means.items():
        for name, means in by_set.items():
            mean, runs = sum(means) / len(means), ", ".join(f"{value:.1f}" for value in means)
            cells = [SCORE_NAMES[test], html.escape(name), f"{mean:.1f}", runs, f"{result.pictures[test]:,}"]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    sentences = "\n".join(f"<p><strong>{html.escape(sentence)}</strong></p>" for sentence in result.sentences)
    table = "<table>" + "\n".join(rows) + "</table>"
    return PAGE.format(
        title="Trial", sentences=sentences, plot=svg(result.comparisons), table=table, method=html.escape(METHOD)
    )


def _interval(comparison: Comparison) -> tuple[float, float, float]:
    value, low, high, _ = comparison.difference
    return low, value, high


def _scale(comparison: Comparison) -> float:
    """Return the distance from zero to the ends of the axis."""
    return max(abs(number) for number in (*_interval(comparison), *comparison.runs)) * 1.05 or 1.0


def _column(number: float, scale: float) -> int:
    return round((number / scale + 1) / 2 * (COLUMNS - 1))


def _x(number: float, scale: float) -> float:
    return LEFT + (number / scale + 1) / 2 * (WIDTH - LEFT - RIGHT)
