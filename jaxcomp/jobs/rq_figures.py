"""Accuracy against bytes, and the heat map of the grid, of residual codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxcomp.jobs.rq_grid import UNCOMPRESSED
from jaxcomp.report import curves
from jaxcomp.report.curves import Curve, Look, Point, curve_chart

AP, LABEL = "map_3d_moderate_r40", "3-D AP, moderate, 40 recalls (%)"
_CELL = (74, 40)
_MARGIN = 84  # of the heat map, for the names of its rows
Row = Mapping[str, Any]


def codes(table: Sequence[Row]) -> list[Row]:
    """The points."""
    return [r for r in table if r["system"] == "residual codes"]


def accuracy_chart(table: Sequence[Row]) -> curves.Chart:
    """AP over bytes: a line for each size, a mark for each anchor."""
    lines: dict[str, list[Row]] = {}
    for row in codes(table):
        mixed = not isinstance(row["embeddings"], int)
        lines.setdefault(row["name"] if mixed else f"{row['embeddings']} rows", []).append(row)
    drawn = [
        Curve(name, Look("learned", i), [_point(r) for r in sorted(rows, key=lambda r: r["bytes"])])
        for i, (name, rows) in enumerate(lines.items())
    ]
    whole = next((r for r in table if "embeddings" not in r and r["bytes"] and is_raw(r)), None)
    others = [r for r in table if r["system"] != "residual codes" and not is_raw(r)]
    for i, row in enumerate(others):
        kind = "image" if row["name"].startswith("points") else "feature"
        drawn.append(Curve(row["name"], Look(kind, i), [_point(row)]))
    return curve_chart(
        drawn,
        x_label="bytes per sweep",
        y_label=LABEL,
        alt=f"{LABEL} over bytes per sweep: "
        + "; ".join(
            f"{r['name']} {r.get(AP, float('nan')):.1f} at {r['bytes']:,.0f}" for r in table
        ),
        reference=None if whole is None else whole.get(AP),
    )


def close_up(table: Sequence[Row]) -> str:
    """The codes alone: anchors far below would flatten their curves."""
    kept = [row for row in table if row["system"] == "residual codes" or is_raw(row)]
    return accuracy_chart(kept).svg() if len(kept) < len(table) else ""


def is_raw(row: Row) -> bool:
    """Whether it is the detector on its own features."""
    return row["system"] == UNCOMPRESSED


def _point(row: Row) -> Point:
    value = float(row.get(AP, float("nan")))
    return Point(
        row["bytes"], value, None, f"{row['name']}: {value:.2f}, {row['bytes']:,.0f} bytes"
    )


def heat_map(table: Sequence[Row]) -> str:
    """AP by number of codebooks and size, with the bytes in every cell; an SVG element."""
    rows = [r for r in codes(table) if isinstance(r["embeddings"], int) and AP in r]
    if not rows:
        return ""
    counts = sorted({r["codebooks"] for r in rows})
    sizes = sorted({r["embeddings"] for r in rows})
    low, high = min(r[AP] for r in rows), max(r[AP] for r in rows)
    width, height = _MARGIN + 10 + _CELL[0] * len(sizes), 44 + _CELL[1] * len(counts)
    parts = []
    for row in rows:
        x = _MARGIN + _CELL[0] * sizes.index(row["embeddings"])
        y = 10 + _CELL[1] * counts.index(row["codebooks"])
        share = (row[AP] - low) / (high - low) if high > low else 1.0
        colour = f"rgb({int(68 + 185 * share)},{int(60 + 170 * share)},{int(130 - 90 * share)})"
        style = f"fill:{'#111' if share > 0.5 else '#fff'};font-size"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_CELL[0] - 2}" height="{_CELL[1] - 2}" '
            f'fill="{colour}"/><text x="{x + 36}" y="{y + 17}" text-anchor="middle" '
            f'style="{style}:12px">{row[AP]:.1f}</text><text x="{x + 36}" y="{y + 31}" '
            f'text-anchor="middle" style="{style}:9px">{row["bytes"]:,.0f} B</text>'
        )
    for i, count in enumerate(counts):
        words = f"{count} codebook{'s' if count > 1 else ''}"
        parts.append(
            f'<text x="{_MARGIN - 6}" y="{34 + _CELL[1] * i}" text-anchor="end">{words}</text>'
        )
    for i, size in enumerate(sizes):
        x = _MARGIN + 36 + _CELL[0] * i
        parts.append(f'<text x="{x}" y="{height - 18}" text-anchor="middle">{size} rows</text>')
    alt = "3-D AP by number of codebooks and rows: " + "; ".join(
        f"{r['name']} {r[AP]:.1f} at {r['bytes']:,.0f} bytes" for r in rows
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(alt, quote=True)}">{"".join(parts)}</svg>'
    )


def as_file(svg: str) -> str:
    """The same as a file: with fonts of its own, on white."""
    own = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" '
    head, content = svg.replace("<svg ", own, 1).split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="#fff"/>{content}\n'
