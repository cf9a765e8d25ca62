"""Rate curves of many systems, as SVG for the page and as files of their own.

Learned codecs are full lines with discs; anchors are thinner and broken: images with squares,
features with triangles, boxes alone with a diamond. Colours follow the order of the systems, so
that a system looks the same in every chart of a page.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from jaxcomp.report.plots import log_ticks, tick_label, ticks

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 40
ROW = 15  # of the legend in a file
LETTER = 6.5  # width of one, on average
LEARNED_COLOURS = {
    "light": (
        *("#1f6fb4", "#d1495b", "#2e8b57", "#8e44ad", "#e07b00", "#008b9a", "#8a4b20"),
        *("#7a7a00", "#c2188b", "#3d3d8f"),
    ),
    "dark": (
        *("#6db3f2", "#ff8a96", "#7ccf8f", "#d6a3f5", "#ffb347", "#5fd6e4", "#e0a583"),
        *("#d5d55a", "#ff7fd0", "#9f9ff5"),
    ),
}
# Four images, six coders of features, and the boxes alone.
ANCHOR_COLOURS = {
    "light": (
        *("#333333", "#a0522d", "#6a5acd", "#1c8c7c"),
        *("#9a7d00", "#b0568f", "#6b8e23", "#4d87a0", "#5c6370", "#b5652b"),
        "#5c6370",
    ),
    "dark": (
        *("#eeeeee", "#e0a583", "#b9aef5", "#7fdccb"),
        *("#e0c94a", "#eda6d8", "#b6d47a", "#9cc6e0", "#aab2bf", "#eebd94"),
        "#aab2bf",
    ),
}
FIRST_COLOUR = {"learned": 0, "part": 0, "image": 0, "feature": 4, "local": 10}
DASHES = {"learned": "", "image": "6 3", "feature": "2 2.5", "local": ""}


@dataclasses.dataclass(frozen=True)
class Look:
    """How a system is drawn.

    Attributes:
      kind: "learned", "image", "feature" or "local"; "part" for the parts of a bar.
      colour: index into the colours of its kind.
    """

    kind: str
    colour: int

    @property
    def css(self) -> str:
        """The class of its elements."""
        strong = self.kind in ("learned", "part")
        colours = (LEARNED_COLOURS if strong else ANCHOR_COLOURS)["light"]
        index = (FIRST_COLOUR.get(self.kind, 0) + self.colour) % len(colours)
        return f"{'l' if strong else 'a'}{index}"


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a curve.

    Attributes:
      x: positive.
      y: where it is.
      interval: (low, high) of y, or None.
      words: shown when it is pointed at.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The points of a system, in the order of the line."""

    name: str
    look: Look
    points: Sequence[Point]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A drawn chart: its content, size, what it shows in words, and the curves of its legend."""

    content: str
    width: int
    height: int
    alt: str
    legend: Sequence[tuple[str, Look]] = ()

    def svg(self) -> str:
        """The element for a page, which brings the style; "" where nothing was drawn."""
        if not self.content:
            return ""
        return (
            f'<svg class="chart curves" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.alt, quote=True)}">{self.content}</svg>'
        )

    def file(self) -> str:
        """A whole SVG file in light colours on white, with its legend below."""
        room = self.width // 2 - 34  # for the words of a column
        short = all(len(name) * LETTER < room for name, _ in self.legend)
        columns = 2 if short else 1
        rows = "".join(
            f'<g transform="translate({12 + (i % columns) * self.width // 2} '
            f'{self.height + 8 + (i // columns) * ROW})">{swatch(look)}'
            f'<text x="34" y="3.5">{escape(name)}</text></g>'
            for i, (name, look) in enumerate(self.legend)
        )
        height = self.height + 8 + ROW * math.ceil(len(self.legend) / columns)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {height}" '
            f'width="{2 * self.width}" height="{2 * height}" class="chart">'
            f"<title>{escape(self.alt)}</title><style>{FILE_CSS}</style>"
            f'<rect width="{self.width}" height="{height}" fill="#fff"/>'
            f"{self.content}{rows}</svg>\n"
        )


def _rules(scheme: str) -> str:
    rows = []
    for family, colours in (("l", LEARNED_COLOURS[scheme]), ("a", ANCHOR_COLOURS[scheme])):
        for i, colour in enumerate(colours):
            rows.append(f".ln.{family}{i},.er.{family}{i}{{stroke:{colour}}}")
            rows.append(f".mk.{family}{i},.seg.{family}{i}{{fill:{colour}}}")
    return "".join(rows)


_SHAPES = (
    ".ln{fill:none;stroke-width:1.3}.ln.learned{stroke-width:2.4}"
    ".er{stroke-width:1;opacity:.55}.mk{stroke:none}"
)
CSS = (
    f"{_SHAPES}{_rules('light')}.ref{{stroke:var(--soft);stroke-dasharray:1 3;stroke-width:1.4}}"
    "svg.chart.curves{max-width:46rem}svg.line-key{width:2.2em;height:.9em;display:inline-block}"
    ".curve-charts{display:grid;gap:1.2rem;"
    "grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr))}"
    ".seg{stroke:var(--paper);stroke-width:.6}td.wrap:last-child{min-width:11rem}"
    f"@media (prefers-color-scheme: dark){{{_rules('dark')}}}"
    f"@media print{{{_rules('light')}.curve-charts{{grid-template-columns:1fr 1fr}}"
    ".scroll{overflow:visible}table{font-size:6.8pt}th,td{padding-right:.3rem}"
    "td.n,th.n{white-space:normal}td.wrap:last-child{min-width:0}.key{break-after:avoid}}"
)
FILE_CSS = (
    f"{_SHAPES}{_rules('light')}text{{font:10.5px Helvetica,Arial,'DejaVu Sans',sans-serif;"
    "fill:#1a1c20}.grid{stroke:#d9dce2}.axis{stroke:#5c6370}.seg{stroke:#fff;stroke-width:.6}"
    ".ref{stroke:#5c6370;stroke-dasharray:1 3;stroke-width:1.4}"
)


def mark(look: Look, x: float, y: float, words: str = "") -> str:
    """The sign of a point."""
    title = f"<title>{escape(words)}</title>" if words else ""
    css = f'class="mk {look.css}"'
    if look.kind == "image":
        place = f'x="{x - 2.6:.1f}" y="{y - 2.6:.1f}" width="5.2" height="5.2"'
        return f"<rect {css} {place}>{title}</rect>"
    if look.kind == "feature":
        points = f"{x:.1f},{y - 3.4:.1f} {x - 3.2:.1f},{y + 2.6:.1f} {x + 3.2:.1f},{y + 2.6:.1f}"
        return f'<polygon {css} points="{points}">{title}</polygon>'
    if look.kind == "local":
        points = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y:.1f} {x:.1f},{y + 5:.1f} {x - 5:.1f},{y:.1f}"
        return f'<polygon {css} points="{points}">{title}</polygon>'
    return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="3.4">{title}</circle>'


def swatch(look: Look) -> str:
    """A short piece of a curve, or a piece of a bar, 28 wide around the height 0."""
    if look.kind == "part":
        return f'<rect class="seg {look.css}" x="9" y="-5" width="10" height="10"/>'
    return f'<path class="{_line(look)}" d="M0 0H28"{_dash(look)}/>{mark(look, 14, 0)}'


def _line(look: Look) -> str:
    return f"ln {look.css}{' learned' if look.kind == 'learned' else ''}"


def _dash(look: Look) -> str:
    dashes = DASHES.get(look.kind, "")
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def legend(entries: Sequence[tuple[str, Look]]) -> str:
    """Which curve is which system, as a line of HTML that wraps."""
    keys = [
        f'<span><svg class="line-key" viewBox="-1 -6 30 12" aria-hidden="true">{swatch(look)}</svg>'
        f" {escape(name)}</span>"
        for name, look in entries
    ]
    return f'<p class="key">{"".join(keys)}</p>' if keys else ""


def short_number(value: float) -> str:
    """A tick on a logarithmic axis: 500, 20k, 3M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return tick_label(value)


class _Scale:
    """Data to the picture along one axis."""

    def __init__(self, values: Sequence[float], *, log: bool, start: float, end: float):
        self.log = log
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            return log_ticks(10**self.low, 10**self.high)
        return ticks(self.low, self.high, 6)

    def label(self, value: float) -> str:
        return short_number(value) if self.log else tick_label(value)


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> str:
    parts, base = [], HEIGHT - BOTTOM
    for value in y.ticks():
        at = y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{y.label(value)}</text>'
        )
    last = -math.inf
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{base + 3}"/>')
        if at - last > 26:  # labels that would touch are left out
            words = x.label(value)
            parts.append(f'<text x="{at:.1f}" y="{base + 15}" text-anchor="middle">{words}</text>')
            last = at
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 7}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text transform="translate(12 {(TOP + base) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def curve_chart(
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    log_y: bool = False,
    reference: float | None = None,
) -> Chart:
    """Curves over a logarithmic axis.

    Args:
      curves: of the systems; points that are not finite, or not positive on a logarithmic axis, are
        left out.
      x_label: what x is, with its unit.
      y_label: what y is.
      alt: the chart in words.
      log_y: a logarithmic scale for y too.
      reference: a dotted line at this height.

    Returns:
      The chart; empty where there is no point.
    """
    curves = [Curve(c.name, c.look, _drawable(c.points, log_y)) for c in curves]
    curves = [c for c in curves if c.points]
    if not curves:
        return Chart("", WIDTH, HEIGHT, alt)
    heights = [p.y for c in curves for p in c.points]
    heights += [] if reference is None or (log_y and reference <= 0) else [reference]
    x = _Scale([p.x for c in curves for p in c.points], log=True, start=LEFT, end=WIDTH - RIGHT)
    y = _Scale(heights, log=log_y, start=HEIGHT - BOTTOM, end=TOP)
    parts = [_axes(x, y, x_label, y_label)]
    if reference is not None:
        at = f"{y(reference):.1f}"
        parts.append(f'<line class="ref" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
    for curve in reversed(curves):  # the first ones are drawn last, on top
        parts.append(_draw(curve, x, y))
    return Chart("".join(parts), WIDTH, HEIGHT, alt, [(c.name, c.look) for c in curves])


def _drawable(points: Sequence[Point], log_y: bool) -> list[Point]:
    return [
        p
        for p in points
        if math.isfinite(p.x) and p.x > 0 and math.isfinite(p.y) and (p.y > 0 or not log_y)
    ]


def _draw(curve: Curve, x: _Scale, y: _Scale) -> str:
    places = [(x(p.x), y(p.y)) for p in curve.points]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts = [f'<polyline class="{_line(curve.look)}" points="{line}"{_dash(curve.look)}/>']
    for p, (a, b) in zip(curve.points, places, strict=True):
        if p.interval and all(math.isfinite(v) for v in p.interval):
            low, high = (min(max(y(v), TOP), HEIGHT - BOTTOM) for v in p.interval)
            parts.append(
                f'<line class="er {curve.look.css}" x1="{a:.1f}" x2="{a:.1f}" '
                f'y1="{low:.1f}" y2="{high:.1f}"/>'
            )
        parts.append(mark(curve.look, a, b, f"{curve.name}: {p.words}"))
    return "".join(parts)
