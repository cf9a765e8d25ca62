"""Charts as inline SVG that takes its colours from the page, so that they suit light and dark.

Plain strings: a page with six charts is made in milliseconds and is a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 18, 38
Series = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values that cover an interval, at most about `most` of them."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10, 20) if (high - low) / (step * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in an interval; 2 and 5 times them as well where it is short."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    found = [f * 10.0**d for d in decades for f in factors]
    return [t for t in found if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]


def tick_label(value: float) -> str:
    """A short label."""
    size = abs(value)
    if size and (size < 5e-3 or size >= 1e6):
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.6g}"


class _Frame:
    """Data coordinates to those of the picture, and the parts that all charts have."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, log_y: bool = False
    ) -> None:
        self.x_range, self.log_y = _widened(*x), log_y
        low, high = y
        if log_y:
            low, high = math.log10(low), math.log10(high)
        self.y_range = _widened(low, high)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        value = math.log10(value) if self.log_y else value
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str, x_ticks: Iterable[float]) -> str:
        low, high = self.y_range
        marks = log_ticks(10**low, 10**high) if self.log_y else ticks(low, high)
        parts = []
        for mark in marks:
            y = self.y(mark)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_at("y", y)}/>')
            words = tick_label(mark)
            parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{words}</text>')
        base = HEIGHT - BOTTOM
        for mark in x_ticks:
            x = self.x(mark)
            parts.append(f'<line class="axis" y1="{base}" y2="{base + 4}" {_at("x", x)}/>')
            parts.append(
                f'<text x="{x:.1f}" y="{base + 15}" text-anchor="middle">{tick_label(mark)}</text>'
            )
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_at("y", base)}/>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        )
        parts.append(
            f'<text transform="translate(11 {(TOP + base) / 2:.1f}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>'
        )
        return "".join(parts)


def _at(axis: str, value: float) -> str:
    return f'{axis}1="{value:.1f}" {axis}2="{value:.1f}"'


def _widened(low: float, high: float) -> tuple[float, float]:
    """An interval that has a length."""
    if high > low:
        return low, high
    margin = abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _svg(content: str, alt: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(alt, quote=True)}">{content}</svg>'
    )


def finite_series(series: Iterable[Series], positive: bool = False) -> list[Series]:
    """Series without their missing and infinite points; empty ones are dropped."""
    kept: list[Series] = []
    for name, xs, ys in series:
        points = [
            (float(x), float(y))
            for x, y in zip(xs, ys, strict=True)
            if isinstance(y, int | float) and math.isfinite(y) and (y > 0 or not positive)
        ]
        if points:
            kept.append((name, [p[0] for p in points], [p[1] for p in points]))
    return kept


def line_chart(
    series: Iterable[Series],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    log_y: bool = False,
    spans: Sequence[tuple[float, str]] = (),
) -> str:
    """Lines over a common axis.

    Args:
      series: (name, x, y) each; points that are None or not finite are left out.
      x_label: what x is.
      y_label: what y is, with its unit.
      alt: the picture in words.
      log_y: logarithmic scale; values that are not positive are left out.
      spans: where parts of x begin, rising, and their names or ""; lines do not cross from one part
        to the next.

    Returns:
      An SVG element, or "" if there is no point.
    """
    lines = finite_series(series, positive=log_y)
    if not lines:
        return ""
    xs = [x for _, values, _ in lines for x in values]
    ys = [y for _, _, values in lines for y in values]
    low, high = min(ys), max(ys)
    if not log_y and low > 0 and low < 0.5 * high:
        low = 0.0  # a scale from zero, unless it would hide what happens
    if any(name for _, name in spans) and not log_y:
        high += 0.1 * (high - low)  # room for the names
    frame = _Frame((min(xs), max(xs)), (low, high), log_y=log_y)
    marks = [t for t in ticks(min(xs), max(xs), 6) if t == int(t)]
    parts = [frame.axes(x_label, y_label, marks), _span_marks(frame, spans)]
    for i, (name, x_values, y_values) in enumerate(lines):
        points = [
            f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(x_values, y_values, strict=True)
        ]
        parts += [
            f'<polyline class="line s{i}" points="{" ".join(run)}"/>'
            for run in _runs(points, x_values, spans)
        ]
        if len(points) <= 40:
            parts += [
                _dot(i, p, name, x, y) for p, x, y in zip(points, x_values, y_values, strict=True)
            ]
    if len(lines) > 1:
        parts.append(_legend([name for name, _, _ in lines]))
    return _svg("".join(parts), alt)


def _span_marks(frame: _Frame, spans: Sequence[tuple[float, str]]) -> str:
    """A line where each part but the first begins, stronger and with its name where it has one."""
    parts = []
    for start, name in spans:
        x = min(max(frame.x(start), LEFT), WIDTH - RIGHT)
        if x > LEFT:
            css = 'class="axis" stroke-dasharray="2 3"' if name else 'class="grid"'
            parts.append(f'<line {css} y1="{TOP}" y2="{HEIGHT - BOTTOM}" {_at("x", x)}/>')
        if name:
            place = f'x="{x + 3:.1f}" y="{TOP + 7}"'
            parts.append(f'<text style="font-size:8px" {place}>{escape(name)}</text>')
    return "".join(parts)


def _runs(
    points: Sequence[str], xs: Sequence[float], spans: Sequence[tuple[float, str]]
) -> list[list[str]]:  # fmt: skip
    """The points of a line, apart where a span begins between them."""
    runs: dict[int, list[str]] = {}
    for point, x in zip(points, xs, strict=True):
        runs.setdefault(sum(start <= x for start, _ in spans), []).append(point)
    return list(runs.values())


def _dot(i: int, point: str, name: str, x: float, y: float) -> str:
    """A point that tells its value when pointed at."""
    cx, cy = point.split(",")
    words = escape(f"{name}, {x:g}: {y:.6g}")
    return f'<circle class="dot s{i}" cx="{cx}" cy="{cy}" r="2"><title>{words}</title></circle>'


def _legend(names: Sequence[str]) -> str:
    parts, x = [], WIDTH - RIGHT - sum(22 + 6 * len(n) for n in names)
    for i, name in enumerate(names):
        parts.append(f'<line class="line s{i}" x1="{x}" x2="{x + 12}" y1="8" y2="8"/>')
        parts.append(f'<text x="{x + 15}" y="11.5">{escape(name)}</text>')
        x += 22 + 6 * len(name)
    return "".join(parts)


def _bars(
    frame: _Frame, edges: Sequence[float], heights: Sequence[float], title: Callable[[int], str]
) -> str:
    """Bars between edges; each tells its numbers when pointed at."""
    parts, base = [], HEIGHT - BOTTOM
    for i, height in enumerate(heights):
        x1, x2, y = frame.x(edges[i]), frame.x(edges[i + 1]), frame.y(height)
        gap = min(1.0, 0.2 * (x2 - x1))
        parts.append(
            f'<rect class="bar" x="{x1 + gap / 2:.2f}" y="{y:.2f}" width="{x2 - x1 - gap:.2f}" '
            f'height="{max(base - y, 0):.2f}"><title>{escape(title(i))}</title></rect>'
        )
    return "".join(parts)


def sorted_bars(values: ArrayLike, *, x_label: str, y_label: str, alt: str) -> str:
    """One bar a value, largest first.

    Args:
      values: [N] non-negative numbers; others count as zero.
      x_label: what a bar is.
      y_label: what its height is.
      alt: the picture in words.

    Returns:
      An SVG element, or "" without values.
    """
    array = np.nan_to_num(np.asarray(values, float).ravel(), posinf=0.0, neginf=0.0)
    if not array.size:
        return ""
    order = np.argsort(-array, kind="stable")
    heights = [float(array[i]) for i in order]
    frame = _Frame((0, len(heights)), (0.0, max(heights) or 1.0))
    axes = frame.axes(x_label, y_label, [t for t in ticks(0, len(heights), 6) if t == int(t)])
    bars = _bars(
        frame, range(len(heights) + 1), heights, lambda i: f"channel {order[i]}: {heights[i]:.4g}"
    )
    return _svg(axes + bars, alt)


def histogram(values: ArrayLike, *, x_label: str, y_label: str, alt: str) -> str:
    """How often values occur, with a line at their mean.

    Args:
      values: [N] numbers; those that are not finite are left out.
      x_label: what a value is.
      y_label: what is counted.
      alt: the picture in words.

    Returns:
      An SVG element, or "" without values.
    """
    array = np.asarray(values, float).ravel()
    array = array[np.isfinite(array)]
    if not array.size:
        return ""
    counts, edges = np.histogram(array, bins=int(np.clip(np.sqrt(array.size) * 1.6, 1, 30)))
    frame = _Frame((float(edges[0]), float(edges[-1])), (0.0, float(counts.max())))
    axes = frame.axes(x_label, y_label, ticks(*frame.x_range))
    bars = _bars(
        frame,
        [float(e) for e in edges],
        [float(c) for c in counts],
        lambda i: f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {counts[i]}",
    )
    x = frame.x(float(array.mean()))
    mean = f'<line class="mean" y1="{TOP}" y2="{HEIGHT - BOTTOM}" {_at("x", x)}/>'
    return _svg(axes + bars + mean, alt)
