"""Parts of a whole for several systems, as bars below each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from jaxcomp.report.curves import Chart, Look
from jaxcomp.report.plots import tick_label, ticks

WIDTH, ROW, BAR, TOP, BOTTOM = 460, 31, 13, 6, 34
EDGE = 8


def stacked_bars(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    *,
    x_label: str,
    alt: str,
    form: str = ",.1f",
    total: bool = True,
) -> Chart:
    """One bar a row, of the parts it consists of; the name stands above, so that it may be long.

    Args:
      rows: (name, {part: value}); values are not negative.
      x_label: what a length is, with its unit.
      alt: the chart in words.
      form: of the numbers when a part is pointed at, and of the totals.
      total: whether to write the sum beside the name.

    Returns:
      The chart; empty without rows.
    """
    rows = [(name, parts) for name, parts in rows if parts]
    height = TOP + ROW * len(rows) + BOTTOM
    longest = max((sum(parts.values()) for _, parts in rows), default=0.0)
    if not longest:
        return Chart("", WIDTH, height, alt)
    names = list(dict.fromkeys(name for _, parts in rows for name in parts))
    looks = {name: Look("part", i) for i, name in enumerate(names)}
    unit = (WIDTH - 2 * EDGE - 6) / longest
    base = height - BOTTOM
    drawn = []
    for value in ticks(0.0, longest, 6):
        x = EDGE + unit * value
        drawn.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base + 3}"/>'
            f'<text x="{x:.1f}" y="{base + 14}" text-anchor="middle">{tick_label(value)}</text>'
        )
    for i, (name, parts) in enumerate(rows):
        y, x = TOP + ROW * i, float(EDGE)
        words = f"{name}: {sum(parts.values()):{form}}" if total else name
        drawn.append(f'<text x="{EDGE}" y="{y + 11}">{escape(words)}</text>')
        for part, value in parts.items():
            drawn.append(
                f'<rect class="seg {looks[part].css}" x="{x:.1f}" y="{y + 15}" '
                f'width="{max(unit * value, 0.0):.1f}" height="{BAR}">'
                f"<title>{escape(f'{name}, {part}: {value:{form}}')}</title></rect>"
            )
            x += unit * value
    drawn.append(
        f'<text x="{WIDTH / 2}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return Chart("".join(drawn), WIDTH, height, alt, list(looks.items()))


def bar_legend(chart: Chart) -> str:
    """Which colour is which part, as a line of HTML."""
    keys = [
        f'<span><svg class="swatch" viewBox="0 0 12 12" aria-hidden="true">'
        f'<rect class="seg {look.css}" width="12" height="12"/></svg> {escape(name)}</span>'
        for name, look in chart.legend
    ]
    return f'<p class="key">{"".join(keys)}</p>' if keys else ""
