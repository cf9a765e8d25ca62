"""`grid.html` of a run: accuracy against bytes, heat map, usage, stages, sweeps with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs.residual_vq import usage_report
from jaxcomp.data.lidar_records import LidarRecords
from jaxcomp.evaluate.birds_eye import bev_entry
from jaxcomp.jobs import rq_figures
from jaxcomp.jobs.rq_figures import AP, Row
from jaxcomp.jobs.rq_files import Counts
from jaxcomp.models.pointpillars import PointPillarsConfig
from jaxcomp.report import curves, html, pictures, plots
from jaxcomp.report.reading import read_records
from jaxcomp.tasks.stages import StageSchedule
from jaxcomp.workdir import atomic_write

PAGE = "grid.html"
WIDTH = 600  # pixels of a sweep's picture along x
NO_INTENSITY = " Draco keeps no reflectance; the detector gets a constant in its place."


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
    accuracy, heat = rq_figures.accuracy_chart(table), rq_figures.heat_map(table)
    atomic_write(workdir / "accuracy_bytes.svg", accuracy.file())
    if heat:
        atomic_write(workdir / "heat_map.svg", rq_figures.as_file(heat))
    close, draco = rq_figures.close_up(table), any("draco" in row["name"] for row in table)
    words = " The second chart shows the codes alone." if close else ""
    words += NO_INTENSITY if draco else ""
    sections = [
        '<p><a href="index.html">The run</a></p>' if plan else "",
        html.section(
            "Accuracy against bytes",
            f'{curves.legend(accuracy.legend)}<div class="curve-charts">{accuracy.svg()}'
            f"{close}</div>",
            "Real bytes of whole files a sweep, mean over the held-out sweeps; the dotted line is "
            "the detector on its own features." + words,
        ),
        html.section("Every point", heat, "3-D AP, and bytes a sweep below it."),
        html.section(
            "Use of the codebooks", _usage(counts) if counts else "",
            "Over the training sweeps, a row of the table for each stage, in their order; a row of "
            "a codebook is dead if it is chosen less than 1 % as often as the mean.",
        ),
        html.section("Training, stage by stage", _stages(workdir, plan) if plan else ""),
        html.section("Sweeps from above", kept.panels(_three(table))),
        html.section(
            "Table", _table(table),
            "Bytes are those of a sweep, of the whole file, the map of pillars and the indices; "
            "saved: by contexts, of the bytes of the indices with one table for each codebook; "
            "dense: the map of all cells at fixed length, over the file; AP in %, moderate.",
        ),
    ]  # fmt: skip
    body = html.document("Residual codes of a lidar detector", "".join(sections), curves.CSS)
    atomic_write(workdir / PAGE, body)


_USES = (("perplexity", "perplexity", 1.0, True), ("dead", "dead rows (%)", 100.0, False))


def _usage(counts: Counts) -> str:
    """Perplexity and dead share by codebook, a line for each size, and a table of all stages."""
    reports = {
        (k, n): {name: float(v) for name, v in usage_report(jnp.asarray(one), n).items()}
        for (k, n), one in sorted(counts.items())
    }
    figures = []
    for name, words, factor, log in _USES:
        series = []
        for n in sorted({n for _, n in reports}):
            books = [k for k, m in reports if m == n]
            series.append((f"{n} rows", books, [factor * reports[k, n][name] for k in books]))
        chart = plots.line_chart(
            series, x_label="codebook", y_label=words, log_y=log,
            alt=f"{words} of every codebook by its number of rows",
        )  # fmt: skip
        figures.append(html.figure(chart, words))
    rows = [
        [
            f"codebook {k}, {n} rows",
            f"{r['perplexity']:.1f}",
            f"{r['used']:.1%}",
            f"{r['dead']:.1%}",
        ]
        for (k, n), r in reports.items()
    ]
    heading = ("stage", "perplexity", "used", "dead")
    return html.charts(figures) + html.table(rows, heading, numeric=3)


_CURVES = (
    ("vq_loss", "error of the codes (mean square)"),
    ("det_loss", "detection loss"),
    ("perplexity", "perplexity"),
    ("dead", "share of dead rows"),
)


def _stages(workdir: Path, plan: StageSchedule) -> str:
    """Training and validation by epoch, parted by stages; of all codebooks where all learn."""
    epochs = [r for r in read_records(workdir) if r.get("kind") == "epoch"]
    figures = []
    for name, words in _CURVES:
        lines = {split: (split, name) for split in ("train", "val")}
        if plan.joint and any(f"{name}/0" in r["train"] for r in epochs):
            lines = {f"codebook {k}": ("train", f"{name}/{k}") for k in range(plan.codebooks)}
        series = [(label, *_by_epoch(epochs, *where)) for label, where in lines.items()]
        chart = plots.line_chart(
            series, x_label=f"epoch ({plan.stage_epochs} a stage)", y_label=words,
            alt=f"{words} by epoch", spans=_spans(plan),
        )  # fmt: skip
        figures.append(html.figure(chart, words))
    return html.charts(f for f in figures if f)


def _by_epoch(
    epochs: Sequence[Mapping[str, Any]], split: str, name: str
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Epochs that have the value, and the values."""
    told = [
        (r["epoch"], r[split][name])
        for r in epochs
        if name in (r.get(split) or {}) and not _silent(split, name, r)
    ]
    return [epoch for epoch, _ in told], [value for _, value in told]


def _spans(plan: StageSchedule) -> list[tuple[float, str]]:
    """Where stages begin; the first of a codebook bears its name."""
    if plan.joint:
        return []
    words = "codebook " if plan.codebooks <= 5 else ""
    return [
        (i * plan.stage_epochs + 0.5, "" if part else f"{words}{book}")
        for i in range(plan.stages)
        for book, part in [divmod(i, len(plan.sizes))]
    ]


def _silent(split: str, name: str, record: Mapping[str, Any]) -> bool:
    """Epochs of averaging do not run the tail."""
    return split == "train" and name == "det_loss" and record["train"].get("warmup", 0) > 0


def _three(table: Sequence[Row]) -> list[tuple[str, str]]:
    """The features as they are, and the smallest, a middle and the largest point."""
    codes = sorted(rq_figures.codes(table), key=lambda r: r["bytes"])
    chosen = {r["name"]: r for r in (codes[0], codes[len(codes) // 2], codes[-1])}
    raw = next(r for r in table if rq_figures.is_raw(r))
    names = [(raw["name"], raw["name"])]
    return names + [(n, f"{n} codes, {r['bytes']:,.0f} bytes a sweep") for n, r in chosen.items()]


_FORMS = (
    ("bytes", ",.0f"), (AP, ".2f"), ("map_bev_moderate_r40", ".2f"), ("occupancy_bytes", ",.0f"),
    ("index_bytes", ",.0f"), ("saved", ".1%"), ("ratio", ".1f"), ("encode_ms", ".1f"),
    ("decode_ms", ".1f"),
)  # fmt: skip


def _table(table: Sequence[Row]) -> str:
    rows = [
        [r["name"], *("" if r.get(key) is None else f"{r[key]:{form}}" for key, form in _FORMS)]
        for r in sorted(table, key=lambda r: r["bytes"])
    ]
    heading = ("system", "bytes", "3-D AP", "BEV AP", "map", "indices", "saved", "dense",
               "encode ms", "decode ms")  # fmt: skip
    return html.table(rows, heading, numeric=9)
