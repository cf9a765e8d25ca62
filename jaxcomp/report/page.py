"""The page of a run, and one over several runs."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxcomp.errors import CheckpointError
from jaxcomp.report import pictures, plots, tables
from jaxcomp.report.style import CSS
from jaxcomp.workdir import atomic_write

Record = Mapping[str, Any]
PAGE = "index.html"
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


# --- reading -----------------------------------------------------------------------------------


def read_summary(run: Path) -> dict[str, Any]:
    """The content of `summary.json`.

    Raises:
      CheckpointError: the directory has none (the run is not finished) or it is damaged.
    """
    path = run / "summary.json"
    if not path.exists():
        raise CheckpointError(f"{str(path)!r} is not there; let the run finish, or name another.")
    content = _read_json(path)
    if not content:
        raise CheckpointError(
            f"{str(path)!r} is damaged; write it again with python -m jaxcomp.main --mode=eval."
        )
    return content


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none to read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_records(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; what cannot be read is left out."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except (OSError, ValueError):
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run
        if isinstance(record, dict):
            records.append(record)
    return records


def read_arrays(run: Path) -> dict[str, np.ndarray]:
    """The arrays of `evaluation.npz`; empty where there is no readable file."""
    try:
        # numpy closes a file of ours only: one that it opens stays open if it is damaged.
        with open(run / "evaluation.npz", "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}


# --- pieces ------------------------------------------------------------------------------------


def _document(title: str, body: str) -> str:
    """A whole page that loads nothing and runs nothing, whatever its content."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str, note: str = "") -> str:
    """A section, or nothing where it would be empty."""
    if not content:
        return ""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{words}{content}\n</section>\n"


def _figure(chart: str, caption: str) -> str:
    if not chart:
        return ""
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _charts(figures: Iterable[str]) -> str:
    content = "".join(figures)
    return f'<div class="charts">{content}</div>' if content else ""


def _table(rows: Sequence[Sequence[str]], heading: Sequence[str] = (), numeric: int = 1) -> str:
    """A table of texts: the first column names a row, the next `numeric` ones align right."""

    def cell(i: int, text: str, tag: str) -> str:
        kind = ' class="n"' if 1 <= i <= numeric else ' class="wrap"'
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    lines = []
    if heading:
        cells = "".join(cell(i, text, "th") for i, text in enumerate(heading))
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    body = []
    for row in rows:
        cells = "".join(cell(i, text, "td") for i, text in enumerate(row) if i)
        body.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    lines.append(f"<tbody>{''.join(body)}</tbody>")
    kind = "" if heading else ' class="facts"'
    return f'<div class="scroll"><table{kind}>{"".join(lines)}</table></div>'


# --- sections ----------------------------------------------------------------------------------


def _headline(summary: Record) -> str:
    rows = tables.headline_rows(summary)
    large = [row for row in rows if row[0] in tables.LARGE]
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b>{escape(name)}<br>'
        f"<span>{escape(note)}</span></div>"
        for name, value, note in large
    )
    everything = _table([*rows, *tables.run_rows(summary)])
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
    rates = [("learning rate", *_points([(r.get(unit), r) for r in source], "lr"))]
    chart = plots.line_chart(
        rates,
        x_label=unit,
        y_label="learning rate",
        alt=_alt("learning rate", rates, unit),
        log_y=_spans_decades(rates[0][2]),
    )
    return _charts([*figures, _figure(chart, "Learning rate")])


def _spans_decades(values: Sequence[float]) -> bool:
    positive = [v for v in values if v > 0]
    return bool(positive) and max(positive) > 20 * min(positive)


def _points(pairs: Sequence[tuple[Any, Record]], name: str) -> tuple[list[float], list[float]]:
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
    series = [(split, *_points(pairs, name)) for split, pairs in groups.items()]
    series = [s for s in series if s[1]]
    alt = _alt(label, series, unit)
    chart = plots.line_chart(series, x_label=unit, y_label=label, alt=alt)
    return _figure(chart, label[:1].upper() + label[1:])


def _alt(label: str, series: Sequence[plots.Series], unit: str) -> str:
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
        figures.append(_figure(chart, f"Bit allocation: {words}."))
    if sizes.size:
        words = f"{sizes.size} files of {sizes.min():,.0f} to {sizes.max():,.0f} bytes"
        words += f", mean {sizes.mean():,.1f}"
        chart = plots.histogram(
            sizes, x_label="bytes per frame", y_label="frames", alt=f"histogram of {words}"
        )
        figures.append(_figure(chart, f"Bytes per frame: {words} (dashed)."))
    if errors.size:
        chart = plots.histogram(
            errors,
            x_label="relative MSE",
            y_label="frames",
            alt=f"histogram of the relative MSE of {errors.size} frames, mean {errors.mean():.4g}",
        )
        figures.append(_figure(chart, f"Relative MSE per frame, mean {errors.mean():.4g}."))
    return _charts(figures)


def _features(arrays: Mapping[str, np.ndarray]) -> str:
    if "original" not in arrays or "restored" not in arrays or not len(arrays["original"]):
        return ""
    name = str(int(arrays["image_id"][0])) if "image_id" in arrays else "0"
    original, restored = (np.asarray(arrays[k][0]) for k in ("original", "restored"))
    return pictures.colour_key() + pictures.feature_maps(original, restored, name)


def _scenes(arrays: Mapping[str, np.ndarray], summary: Record) -> str:
    if "image" not in arrays:
        return ""
    codec, classes = summary.get("task") != "detect", tables.class_names(summary)
    frames = range(len(arrays["image"]))
    return "".join(pictures.detection_panels(arrays, i, classes, codec) for i in frames)


def _accuracy(summary: Record) -> str:
    after, before = summary.get("accuracy"), summary.get("accuracy_uncompressed")
    if not isinstance(after, Mapping):
        return ""
    if not isinstance(before, Mapping):
        rows = [[_metric_name(k), _metric(v)] for k, v in after.items()]
        return _table(rows, ("measure", "value"))
    rows = [[_metric_name(k), _metric(before.get(k)), _metric(v)] for k, v in after.items()]
    return _table(rows, ("measure", "before", "after"), numeric=2)


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
        parts.append(_table(rows, numeric=0))
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


# --- pages -------------------------------------------------------------------------------------


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
    config = _read_json(run / "config.json")
    finished = _read_json(run / "summary.json")
    summary = finished or {
        k: config[k] for k in ("task", "level", "profile") if config.get(k) is not None
    }
    atomic_write(run / PAGE, run_page(summary, config, read_records(run), read_arrays(run)))
    return run / PAGE


def run_page(
    summary: Record,
    config: Record,
    records: Sequence[Record],
    arrays: Mapping[str, np.ndarray],
) -> str:
    """The page as text.

    Args:
      summary: content of `summary.json`; without metrics for a run that is not finished.
      config: content of `config.json`, shown if the summary holds none.
      records: lines of `metrics.jsonl`.
      arrays: content of `evaluation.npz`, or empty.

    Returns:
      HTML.
    """
    if "map50" in summary or "bytes_per_frame" in summary:
        top = f"<p>{escape(tables.lead(summary))}</p>\n{_headline(summary)}"
    else:
        top = '<p class="alert">This run is not finished: there are no measurements yet.</p>'
    weak = f"Detections below a score of {pictures.SHOWN_SCORE:g} are not drawn."
    sections = [
        _section("Training", _alerts(records) + _curves(records)),
        _section("Where the bits go", _bits(arrays)),
        _section(
            "Features before and after",
            _features(arrays),
            "The channels that vary most in one held-out frame. In each row the original and the "
            "decoded map share one colour scale; the difference spans as many units, with zero "
            "in the middle.",
        ),
        _section("Detections", _scenes(arrays, summary), weak),
        _section("Accuracy", _accuracy(summary)),
        _section("Provenance", _provenance(summary, config)),
    ]
    return _document(tables.page_title(summary), top + "\n" + "".join(sections))


def build_index(dirs: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Writes a page with a table over several finished runs, which links to theirs.

    Args:
      dirs: run directories.
      out: the page to write.

    Returns:
      The path of the page.

    Raises:
      CheckpointError: a run is not finished, or the page cannot be written.
    """
    out = Path(out)
    runs = [(Path(d), read_summary(Path(d))) for d in dirs]
    atomic_write(out, index_page([(_link(run, out), s) for run, s in runs]))
    return out


def _link(run: Path, out: Path) -> str:
    """The way from a page to the page of a run."""
    return quote(Path(os.path.relpath(run / PAGE, out.parent)).as_posix())


def index_page(runs: Sequence[tuple[str, Record]]) -> str:
    """A page over runs given as (link, summary)."""
    ordered = sorted(runs, key=lambda pair: tables.order(pair[1]))
    columns = tables.columns_for([summary for _, summary in ordered])
    heading = "".join(f'<th class="n" scope="col">{escape(h)}</th>' for h, _ in columns)
    body = []
    for link, summary in ordered:
        cells = [f'<td class="n">{escape(content(summary))}</td>' for _, content in columns[1:]]
        name = f'<a href="{escape(link, quote=True)}">{escape(columns[0][1](summary))}</a>'
        body.append(f'<tr><th class="n" scope="row">{name}</th>{"".join(cells)}</tr>')
    table = (
        f'<div class="scroll"><table><thead><tr>{heading}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    data = sorted({str(s.get("data", "unnamed data")) for _, s in ordered})
    note = (
        f"Held-out frames of {', '.join(data)}. Bytes are the mean size of the files; raw is the "
        "level as float32. mAP is the 11-point mean at IoU 0.5, before and after this one level "
        "was replaced by what was read back. Times are medians a frame."
    )
    charts = _section("Rate and accuracy", _comparison([summary for _, summary in ordered]))
    return _document("Runs compared", f"<p>{escape(note)}</p>{table}{charts}")


def _comparison(summaries: Sequence[Record]) -> str:
    """Rate, error and accuracy by level, where the runs differ in nothing but the level."""
    pairs = [(s.get("level"), s) for s in summaries]
    if len({x for x, _ in pairs}) < 2 or len({s.get("rate_weight") for s in summaries}) > 1:
        return ""
    figures = []
    for name, label in (
        ("bits_per_value", "bits per value"),
        ("relative_mse", "relative MSE"),
        ("map50_kept", "share of mAP kept"),
    ):
        series = [(label, *_points(pairs, name))]
        chart = plots.line_chart(
            series, x_label="level", y_label=label, alt=_alt(label, series, "level")
        )
        figures.append(_figure(chart, label[:1].upper() + label[1:]))
    return _charts(figures)
