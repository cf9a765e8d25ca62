"""The page of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.errors import CheckpointError
from jaxcomp.report import html, pictures, plots, probes, tables
from jaxcomp.report.reading import read_arrays, read_json, read_records
from jaxcomp.workdir import atomic_write

Record = Mapping[str, Any]
PAGE = "index.html"
MORE = {"grid.html": "Every point: accuracy against bytes, use of the codebooks, sweeps from above"}
# Bookkeeping of the trainer, and what another curve shows already.
NOT_PLOTTED = {
    "updated",
    "finite",
    "bad_leaf",
    "lr",
    "count",
    "epoch",
    "step",
    "rate_loss",
    "total",
}
CURVES = (
    ("loss", "loss"),
    ("distortion", "distortion (relative MSE)"),
    ("bpp", "bits per feature position"),
    ("mse", "MSE, feature units"),
    ("grad_norm", "gradient norm before clipping"),
)


def _headline(summary: Record) -> str:
    rows = tables.headline_rows(summary)
    large = [row for row in rows if row[0] in tables.LARGE]
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b>{escape(name)}<br>'
        f"<span>{escape(note)}</span></div>"
        for name, value, note in large
    )
    everything = html.table(
        [*rows, *tables.level_rows(summary), *tables.kitti_rows(summary), *tables.run_rows(summary)]
    )
    return f'<div class="cards">{cards}</div>\n{everything}'


def _curves(records: Sequence[Record]) -> str:
    """One chart for each metric over the epochs, or over the steps before the second epoch."""
    epochs = [r for r in records if r.get("kind") == "epoch"]
    batches = [r for r in records if r.get("kind") in ("batch", "step")]
    if len(epochs) < 2 and len(batches) > 1:
        groups = {"train": [(r.get("step"), r) for r in batches]}
        unit = "step"
    else:
        groups = {
            name: [(r.get("epoch"), r[key]) for r in epochs if isinstance(r.get(key), Mapping)]
            for name, key in (("train", "train"), ("validation", "val"))
        }
        unit = "epoch"
    figures = [_curve(groups, name, label, unit) for name, label in _curve_names(groups)]
    source = epochs if unit == "epoch" else batches
    rates = [("learning rate", *points([(r.get(unit), r) for r in source], "lr"))]
    chart = plots.line_chart(
        rates,
        x_label=unit,
        y_label="learning rate",
        alt=alt_text("learning rate", rates, unit),
        log_y=_spans_decades(rates[0][2]),
    )
    return html.charts([*figures, html.figure(chart, "Learning rate")])


def _spans_decades(values: Sequence[float]) -> bool:
    positive = [v for v in values if v > 0]
    return bool(positive) and max(positive) > 20 * min(positive)


def points(pairs: Sequence[tuple[Any, Record]], name: str) -> tuple[list[float], list[float]]:
    """X and y of the records that have numbers for both."""
    found = [
        (float(x), float(record[name]))
        for x, record in pairs
        if isinstance(x, int | float) and isinstance(record.get(name), int | float)
    ]
    return [x for x, _ in found], [y for _, y in found]


def _curve_names(groups: Mapping[str, Sequence[tuple[Any, Record]]]) -> list[tuple[str, str]]:
    """Known metrics first, then all others that are numbers; MSE only where nothing replaces it."""
    present: dict[str, None] = {}
    for pairs in groups.values():
        for _, record in pairs:
            present |= {k: None for k, v in record.items() if isinstance(v, int | float)}
    if "distortion" in present:
        present.pop("mse", None)
    known = [(name, label) for name, label in CURVES if name in present]
    skip = NOT_PLOTTED | {name for name, _ in CURVES}
    others = [(n, n.replace("_", " ")) for n in present if n not in skip]
    return known + others[:8]


def _curve(groups: Mapping[str, Any], name: str, label: str, unit: str) -> str:
    series = [(split, *points(pairs, name)) for split, pairs in groups.items()]
    series = [s for s in series if s[1]]
    alt = alt_text(label, series, unit)
    chart = plots.line_chart(series, x_label=unit, y_label=label, alt=alt)
    return html.figure(chart, label[:1].upper() + label[1:])


def alt_text(label: str, series: Sequence[plots.Series], unit: str) -> str:
    """A curve in words: where it begins and ends."""
    ends = [f"{n} from {y[0]:.4g} to {y[-1]:.4g}" for n, _, y in series if len(y)]
    return f"{label} by {unit}: {'; '.join(ends)}" if ends else f"{label} by {unit}"


def _finite(values: Any) -> np.ndarray:
    """[N] float: the numbers among the values."""
    array = np.asarray(values, float).ravel()
    return array[np.isfinite(array)]


def _bits(arrays: Mapping[str, np.ndarray]) -> str:
    channels, sizes, errors = (
        _finite(arrays.get(name, ()))
        for name in ("channel_bits", "frame_bytes", "frame_relative_mse")
    )
    figures = []
    if channels.size:
        total = max(float(channels.sum()), 1e-9)
        half = int(np.searchsorted(np.cumsum(np.sort(channels)[::-1]), total / 2)) + 1
        idle = int((channels < 0.001 * total).sum())
        words = (
            f"{channels.size} latent channels use {total:.4g} bits a frame; {half} of them hold "
            f"half of the bits, {idle} less than a thousandth each"
        )
        chart = plots.sorted_bars(
            channels,
            x_label="latent channels, largest first",
            y_label="bits per frame",
            alt=f"bits of each latent channel: {words}",
        )
        figures.append(html.figure(chart, f"Bit allocation: {words}."))
    if sizes.size:
        words = f"{sizes.size} files of {sizes.min():,.0f} to {sizes.max():,.0f} bytes"
        words += f", mean {sizes.mean():,.1f}"
        chart = plots.histogram(
            sizes, x_label="bytes per frame", y_label="frames", alt=f"histogram of {words}"
        )
        figures.append(html.figure(chart, f"Bytes per frame: {words} (dashed)."))
    if errors.size:
        chart = plots.histogram(
            errors,
            x_label="relative MSE",
            y_label="frames",
            alt=f"histogram of the relative MSE of {errors.size} frames, mean {errors.mean():.4g}",
        )
        figures.append(html.figure(chart, f"Relative MSE per frame, mean {errors.mean():.4g}."))
    return html.charts(figures)


def _features(arrays: Mapping[str, np.ndarray]) -> str:
    if "original" not in arrays or "restored" not in arrays or not len(arrays["original"]):
        return ""
    name = str(int(arrays["image_id"][0])) if "image_id" in arrays else "0"
    original, restored = (np.asarray(arrays[k][0]) for k in ("original", "restored"))
    return pictures.colour_key() + pictures.feature_maps(original, restored, name)


def _scenes(arrays: Mapping[str, np.ndarray], summary: Record) -> str:
    if "image" not in arrays:
        return ""
    codec, classes = not tables.is_detector(summary), tables.class_names(summary)
    frames = range(len(arrays["image"]))
    panels = "".join(pictures.detection_panels(arrays, i, classes, codec) for i in frames)
    return pictures.class_key(classes) + panels


def _faces(arrays: Mapping[str, np.ndarray]) -> str:
    """Pictures of a face detector: truth on the left, what was found on the right."""
    figures = [
        f'<figure><img src="{pictures.data_uri(np.asarray(picture, np.uint8), photo=True)}" '
        f'alt="held-out image {i}: true faces left, found ones right" style="max-width:100%">'
        f"<figcaption>Image {i}: ground truth, detected</figcaption></figure>"
        for i, picture in enumerate(arrays.get("drawn", ()))
    ]
    return "".join(figures)


def _accuracy(summary: Record) -> str:
    after, before = summary.get("accuracy"), summary.get("accuracy_uncompressed")
    if not isinstance(after, Mapping):
        return ""
    if not isinstance(before, Mapping):
        rows = [[_metric_name(k), _metric(v)] for k, v in after.items()]
        return html.table(rows, ("measure", "value"))
    rows = [[_metric_name(k), _metric(before.get(k)), _metric(v)] for k, v in after.items()]
    return html.table(rows, ("measure", "before", "after"), numeric=2)


def _metric(value: Any) -> str:
    """Accuracy with four digits; COCO's -1 means that there was nothing to measure."""
    absent = isinstance(value, int | float) and value < 0
    return tables.MISSING if absent else tables.number(value, ".4f")


def _metric_name(key: str) -> str:
    """Words for a key: coco_ap_small is COCO AP small, ap50_Car is AP@0.5 Car."""
    words = key.split("_")
    if words[0] == "coco":
        return " ".join(["COCO", words[1].upper(), *words[2:]])
    for prefix, name in (("map", "mAP"), ("ap", "AP")):
        if words[0].removeprefix(prefix).isdigit():
            threshold = int(words[0].removeprefix(prefix)) / 100
            return " ".join([f"{name}@{threshold:g}", *words[1:]])
    return "Best F1" if words[0] == "f1" else " ".join(words)


def _provenance(summary: Record, config: Record) -> str:
    """Where the numbers come from, and how to get them again."""
    rows = []
    for name in ("commit", "data", "seed", "params_digest", "detector_digest", "config_digest"):
        if summary.get(name) is not None:
            rows.append([name.replace("_", " "), str(summary[name])])
    for name in ("hardware", "versions"):
        value = summary.get(name)
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value is not None:
            rows.append([name, str(value)])
    if isinstance(summary.get("devices"), Sequence):
        rows.append(["devices", ", ".join(map(str, summary["devices"]))])
    parts = []
    if summary.get("command"):
        parts.append(f"<p>This run again:</p><pre>{escape(str(summary['command']))}</pre>")
    if rows:
        parts.append(html.table(rows, numeric=0))
    own = summary.get("config")
    shown = own if isinstance(own, Mapping) else config
    if shown:
        text = escape(json.dumps(shown, indent=2, sort_keys=True, default=str))
        parts.append(f"<details><summary>Whole config</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


def _alerts(records: Sequence[Record]) -> str:
    """The alerts of the last epoch; earlier ones are in the log."""
    epochs = [r for r in records if r.get("kind") == "epoch"]
    found = epochs[-1].get("alerts") if epochs else None
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        return ""
    items = "".join(f"<li>{escape(str(text))}</li>" for text in found)
    return f'<div class="alert">In the last epoch:<ul>{items}</ul></div>'


def build_page(run_dir: str | os.PathLike[str]) -> Path:
    """Writes `index.html` of a run directory from what is in it.

    Args:
      run_dir: a run directory. Sections whose files are missing or damaged are left out; without
        `summary.json` the page says that the run is not finished.

    Returns:
      The path of the page.

    Raises:
      CheckpointError: there is no such directory, or it cannot be written.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise CheckpointError(f"{str(run)!r} is not a directory; give that of a run.")
    config = read_json(run / "config.json")
    finished = read_json(run / "summary.json")
    summary = finished or {
        k: config[k] for k in ("task", "level", "profile") if config.get(k) is not None
    }
    page = run_page(summary, config, read_records(run), read_arrays(run), more_pages(run))
    atomic_write(run / PAGE, page)
    return run / PAGE


def more_pages(run: Path) -> list[str]:
    """The further pages that a run has."""
    return [name for name in MORE if (run / name).is_file()]


def run_page(
    summary: Record,
    config: Record,
    records: Sequence[Record],
    arrays: Mapping[str, np.ndarray],
    more: Sequence[str] = (),
) -> str:
    """The page as text.

    Args:
      summary: content of `summary.json`; without metrics for a run that is not finished.
      config: content of `config.json`, shown if the summary holds none.
      records: lines of `metrics.jsonl`.
      arrays: content of `evaluation.npz`, or empty.
      more: further pages beside it, keys of `MORE`.

    Returns:
      HTML.
    """
    if tables.is_finished(summary):
        links = "".join(f'<p><a href="{name}">{escape(MORE[name])}</a></p>' for name in more)
        top = f"<p>{escape(tables.lead(summary))}</p>\n{links}{_headline(summary)}"
    else:
        top = '<p class="alert">This run is not finished: there are no measurements yet.</p>'
    weak = (
        "The number at a box is its score in per cent; detections below "
        f"{100 * pictures.SHOWN_SCORE:.0f} are not drawn."
    )
    sections = [
        html.section("Training", _alerts(records) + _curves(records)),
        html.section("Where the bits go", _bits(arrays)),
        html.section(
            "Features before and after",
            _features(arrays),
            "The channels that vary most in one held-out frame. In each row the original and the "
            "decoded map share one colour scale; the difference spans as many units, with zero "
            "in the middle.",
        ),
        html.section("Detections", _scenes(arrays, summary), weak),
        html.section(
            "Faces",
            _faces(arrays),
            "Boxes with their scores, and landmarks: eyes red and blue, nose yellow, corners of "
            "the mouth green and pink. Faces below 0.5 are not drawn.",
        ),
        html.section("Masks, attention and neighbours", probes.panels(arrays)),
        html.section("Accuracy", _accuracy(summary)),
        html.section("Provenance", _provenance(summary, config)),
    ]
    return html.document(tables.page_title(summary), top + "\n" + "".join(sections))
