"""`grid.html` of a run: accuracy against bytes, heat map, usage, stages, sweeps with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs.residual_vq import usage_report
from jaxcomp.data.lidar_records import LidarRecords
from jaxcomp.evaluate.birds_eye import bev_entry
from jaxcomp.jobs.rq_files import Counts
from jaxcomp.models.pointpillars import PointPillarsConfig
from jaxcomp.report import curves, html, pictures, plots
from jaxcomp.report.curves import Curve, Look, Point, curve_chart
from jaxcomp.report.reading import read_records
from jaxcomp.tasks.stages import StageSchedule
from jaxcomp.workdir import atomic_write

PAGE = "grid.html"
AP, LABEL = "map_3d_moderate_r40", "3-D AP, moderate, 40 recalls (%)"
WIDTH = 600  # pixels of a sweep's picture along x
_CELL = (74, 40)
NO_INTENSITY = " Draco keeps no reflectance; the detector gets a constant in its place."
Row = Mapping[str, Any]


class Pictures:
    """Keeps the detections of the first sweeps by system."""

    def __init__(self, cfg: PointPillarsConfig, records: LidarRecords, count: int):
        """For the first `count` sweeps."""
        self._cfg, self._records, self._count = cfg, records, count
        self._found: dict[int, dict[str, Mapping[str, Any]]] = {}

    def keep(self, row: int, name: str, found: Mapping[str, Any]) -> None:
        """Takes the detections of a sweep."""
        if row < self._count:
            self._found.setdefault(row, {})[name] = found

    def panels(self, names: Sequence[tuple[str, str]]) -> str:
        """Every kept sweep with its true boxes and those of some systems: (name, caption)."""
        out = []
        low, high = self._cfg.low, self._cfg.high
        scale = WIDTH / (high[0] - low[0])
        for row, found in sorted(self._found.items()):
            truth = {k: self._records.targets(row)[k] for k in ("boxes", "labels", "valid")}
            boxes = {"truth": truth} | {f"s{i}": found[name] for i, (name, _) in enumerate(names)}
            entry = bev_entry(self._records.sweep(row), boxes, low, high, scale)
            captions = ["ground truth", *(words for _, words in names)]
            shown = [
                (words, _shown(entry, prefix))
                for prefix, words in zip(boxes, captions, strict=True)
            ]
            out.append(
                pictures.panels(entry["image"], row, f"sweep{row}", shown, self._cfg.classes)
            )
        return (pictures.class_key(self._cfg.classes) + "".join(out)) if out else ""


def _shown(entry: Mapping[str, np.ndarray], prefix: str) -> pictures.Found:
    keep = entry[f"{prefix}_valid"].astype(bool)
    scores = entry.get(f"{prefix}_scores")
    if scores is not None:
        keep &= scores >= pictures.SHOWN_SCORE
        scores = scores[keep]
    return entry[f"{prefix}_outlines"][keep], entry[f"{prefix}_labels"][keep], scores


def write_page(
    workdir: Path,
    table: Sequence[Row],
    counts: Counts | None,
    kept: Pictures,
    plan: StageSchedule | None = None,
) -> None:
    """Writes the page and its figures (`accuracy_bytes.svg`, `heat_map.svg`).

    Args:
      workdir: of the run.
      table: of `rq_grid.measure`.
      counts: of the training sweeps, or None if they are not known.
      kept: sweeps with boxes.
      plan: the stages of the run; None if nothing was trained in it.
    """
    accuracy, heat = accuracy_chart(table), heat_map(table)
    atomic_write(workdir / "accuracy_bytes.svg", accuracy.file())
    if heat:
        atomic_write(workdir / "heat_map.svg", _alone(heat))
    draco = any("draco" in row["name"] for row in table)
    sections = [
        '<p><a href="index.html">The run</a></p>' if plan else "",
        html.section(
            "Accuracy against bytes", curves.legend(accuracy.legend) + accuracy.svg(),
            "Real bytes of whole files a sweep, mean over the held-out sweeps; the dotted line is "
            "the detector on its own features." + (NO_INTENSITY if draco else ""),
        ),
        html.section("Every point", heat, "3-D AP, and bytes a sweep below it."),
        html.section(
            "Use of the codebooks", _usage(counts) if counts else "",
            "Over the training sweeps; a row is dead if it is chosen less than 1 % as often as "
            "the mean.",
        ),
        html.section("Training, stage by stage", _stages(workdir, plan) if plan else ""),
        html.section("Sweeps from above", kept.panels(_three(table))),
        html.section(
            "Table", _table(table),
            "Bytes are those of a sweep; saved: by contexts, of the bytes of the indices with one "
            "table for each codebook; dense: the map of all cells at fixed length, over the file.",
        ),
    ]  # fmt: skip
    body = html.document("Residual codes of a lidar detector", "".join(sections), curves.CSS)
    atomic_write(workdir / PAGE, body)


def _codes(table: Sequence[Row]) -> list[Row]:
    return [r for r in table if r["system"] == "residual codes"]


def accuracy_chart(table: Sequence[Row]) -> curves.Chart:
    """AP over bytes: a line for each size, a mark for each anchor."""
    lines: dict[str, list[Row]] = {}
    for row in _codes(table):
        lines.setdefault(f"{row['embeddings']} rows", []).append(row)
    drawn = [
        Curve(name, Look("learned", i), [_point(r) for r in sorted(rows, key=lambda r: r["bytes"])])
        for i, (name, rows) in enumerate(lines.items())
    ]
    whole = next((r for r in table if "embeddings" not in r and r["bytes"] and _raw(r)), None)
    others = [r for r in table if r["system"] != "residual codes" and not _raw(r)]
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


def _raw(row: Row) -> bool:
    from jaxcomp.jobs.rq_grid import UNCOMPRESSED

    return row["system"] == UNCOMPRESSED


def _point(row: Row) -> Point:
    value = float(row.get(AP, float("nan")))
    return Point(
        row["bytes"], value, None, f"{row['name']}: {value:.2f}, {row['bytes']:,.0f} bytes"
    )


def heat_map(table: Sequence[Row]) -> str:
    """AP by number of codebooks and size, with the bytes in every cell; an SVG element."""
    rows = [r for r in _codes(table) if isinstance(r["embeddings"], int) and AP in r]
    if not rows:
        return ""
    counts = sorted({r["codebooks"] for r in rows})
    sizes = sorted({r["embeddings"] for r in rows})
    low, high = min(r[AP] for r in rows), max(r[AP] for r in rows)
    width, height = 70 + _CELL[0] * len(sizes), 44 + _CELL[1] * len(counts)
    parts = []
    for row in rows:
        x = 60 + _CELL[0] * sizes.index(row["embeddings"])
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
        words = f"{count} book{'s' if count > 1 else ''}"
        parts.append(f'<text x="54" y="{34 + _CELL[1] * i}" text-anchor="end">{words}</text>')
    for i, size in enumerate(sizes):
        x = 96 + _CELL[0] * i
        parts.append(f'<text x="{x}" y="{height - 18}" text-anchor="middle">{size} rows</text>')
    alt = "3-D AP by number of codebooks and rows: " + "; ".join(
        f"{r['name']} {r[AP]:.1f} at {r['bytes']:,.0f} bytes" for r in rows
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(alt, quote=True)}">{"".join(parts)}</svg>'
    )


def _alone(svg: str) -> str:
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" '
                       'font-size="11" ', 1) + "\n"  # fmt: skip


def _usage(counts: Counts) -> str:
    """Perplexity by codebook, a line for each size, and a table with dead shares."""
    series, rows = [], []
    for n in sorted({n for _, n in counts}):
        line, books = [], sorted(k for k, m in counts if m == n)
        for k in books:
            report = {
                key: float(v) for key, v in usage_report(jnp.asarray(counts[k, n]), n).items()
            }
            line.append(report["perplexity"])
            rows.append(
                [f"{k}, {n} rows", f"{report['perplexity']:.1f}",
                 f"{report['used']:.1%}", f"{report['dead']:.1%}"]
            )  # fmt: skip
        series.append((f"{n} rows", books, line))
    chart = plots.line_chart(
        series, x_label="codebook", y_label="perplexity", log_y=True,
        alt="perplexity of every codebook by its number of rows",
    )  # fmt: skip
    heading = ("codebook", "perplexity", "used", "dead")
    return html.charts([html.figure(chart, "Perplexity")]) + html.table(rows, heading, numeric=3)


_CURVES = (
    ("vq_loss", "error of the codes (mean square)"),
    ("det_loss", "detection loss"),
    ("perplexity", "perplexity"),
    ("dead", "share of dead rows"),
)


def _stages(workdir: Path, plan: StageSchedule) -> str:
    """Training and validation by epoch; a stage is `plan.stage_epochs` of them."""
    epochs = [r for r in read_records(workdir) if r.get("kind") == "epoch"]
    figures = []
    for name, words in _CURVES:
        series = []
        for split in ("train", "val"):
            pairs = [
                (r["epoch"], r[split][name])
                for r in epochs
                if name in (r.get(split) or {}) and not _silent(split, name, r)
            ]
            if pairs:
                series.append((split, [p[0] for p in pairs], [p[1] for p in pairs]))
        chart = plots.line_chart(
            series, x_label=f"epoch ({plan.stage_epochs} a stage)", y_label=words,
            alt=f"{words} by epoch",
        )  # fmt: skip
        figures.append(html.figure(chart, words))
    return html.charts(f for f in figures if f)


def _silent(split: str, name: str, record: Mapping[str, Any]) -> bool:
    """Epochs of averaging do not run the tail."""
    return split == "train" and name == "det_loss" and record["train"].get("warmup", 0) > 0


def _three(table: Sequence[Row]) -> list[tuple[str, str]]:
    """The features as they are, and the smallest, a middle and the largest point."""
    codes = sorted(_codes(table), key=lambda r: r["bytes"])
    chosen = {r["name"]: r for r in (codes[0], codes[len(codes) // 2], codes[-1])}
    raw = next(r for r in table if _raw(r))
    names = [(raw["name"], raw["name"])]
    return names + [(n, f"{n} codes, {r['bytes']:,.0f} bytes a sweep") for n, r in chosen.items()]


def _table(table: Sequence[Row]) -> str:
    rows = [
        [r["name"], f"{r['bytes']:,.0f}", f"{r.get(AP, float('nan')):.2f}",
         f"{r['saved']:.1%}" if r.get("saved") is not None else "",
         f"{r['ratio']:.1f}" if "ratio" in r else ""]
        for r in sorted(table, key=lambda r: r["bytes"])
    ]  # fmt: skip
    heading = ("system", "bytes", "3-D AP", "saved", "dense")
    return html.table(rows, heading, numeric=4)
