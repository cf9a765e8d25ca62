"""A folder of a comparison: its tables, figures and page, from `rate_accuracy.json` and arrays.

rate_accuracy.{json,csv,md,tex}   every point
bd.{json,csv,md}                  every pair of curves, at equal mAP@0.5, mAP@0.75 and F1
gains.md                          learned systems against each other, the three side by side
figures/*.svg, *.png              every figure of the page
index.html                        all of it in one file
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.errors import CheckpointError
from jaxcomp.report import comparison_sections as sections_of
from jaxcomp.report import comparison_tables as tables
from jaxcomp.report import curves, html, raster
from jaxcomp.report.bars import bar_legend
from jaxcomp.report.comparison_figures import (
    LEVELS,
    all_figures,
    chosen_points,
    detector_times,
)
from jaxcomp.report.curves import Chart
from jaxcomp.report.tables import number, percent
from jaxcomp.workdir import atomic_write, json_text

Record = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
ReadArrays = Callable[[str], Arrays]  # the arrays of a point by its name
RESULTS, PAGE = "rate_accuracy.json", "index.html"


def write(folder: Path, results: Record, read: ReadArrays) -> list[str]:
    """Writes tables, figures and page of a comparison.

    Args:
      folder: of the comparison.
      results: what `rate_accuracy.json` is to hold.
      read: the arrays of a point, for boxes and bit maps.

    Returns:
      What is missing, in words; nothing if nothing is.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    results = json.loads(json_text(dict(results)))  # NaN has become None, as it is when read again
    atomic_write(folder / RESULTS, json_text(results))
    pairs = tables.bd_pairs(results["bd"])
    texts = {
        "rate_accuracy.csv": tables.comma_separated(results["points"]),
        "rate_accuracy.md": tables.markdown(results["points"], tables.RATE_COLUMNS),
        "rate_accuracy.tex": tables.latex(results["points"], tables.RATE_COLUMNS),
        "bd.csv": tables.comma_separated(results["bd"]),
        "bd.json": json_text({"rows": results["bd"]}),
        "bd.md": tables.markdown(pairs, tables.BD_COLUMNS, 3),
        "gains.md": tables.markdown(sections_of.gain_pairs(results), tables.GAIN_COLUMNS),
    }
    for name, text in texts.items():
        atomic_write(folder / name, text)
    figures = all_figures(results)
    for name, chart in figures.items():
        file = chart.file()
        atomic_write(folder / "figures" / f"{name}.svg", file)
        picture = raster.png_of(file)
        if picture:
            atomic_write(folder / "figures" / f"{name}.png", picture)
    atomic_write(folder / PAGE, page(results, figures, read))
    return [] if raster.rasteriser() else [raster.WANTED]


def rebuild(folder: Path) -> Path:
    """Tables, figures and page again from what is in the folder; returns the page.

    Raises:
      CheckpointError: `rate_accuracy.json` is missing or damaged.
    """
    try:
        results = json.loads((folder / RESULTS).read_text())
        write(folder, results, lambda name: stored_arrays(folder, name))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(folder / RESULTS)!r} is missing or damaged ({error!r}); run the evaluation again"
        ) from error
    return folder / PAGE


def stored_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of a point in a folder; empty where they cannot be read."""
    path = folder / "points" / f"{name}.npz"
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError):
        return {}


def page(results: Record, figures: Mapping[str, Chart], read: ReadArrays) -> str:
    """The page as HTML.

    Args:
      results: content of `rate_accuracy.json`.
      figures: of `all_figures`.
      read: the arrays of a point.
    """
    base = read("uncompressed")
    kept = "the cheapest point that keeps 95 % of the uncompressed mAP@0.5, or else the best one"
    sections = [
        html.section(
            "Accuracy over bytes",
            _legend(figures.get("rate_accuracy_map50"))
            + _grid(figures, *(f"rate_accuracy_{m}" for m in tables.MEASURES)),
            "Real bytes of whole files, mean of all frames; the dotted line is the detector "
            "without compression. Bars at learned codecs are 95 % intervals by resampling frames.",
        ),
        html.section("What local inference cannot do", sections_of.local(results)),
        html.section("How much lies between the curves", sections_of.deltas(results), _BD_NOTE),
        html.section("What the learned systems gain", sections_of.gains(results), _GAIN_NOTE),
        html.section(
            "Error of the features",
            _legend(figures.get("rate_distortion"))
            + _grid(figures, "rate_distortion", *(f"rate_distortion_{n}" for n in LEVELS)),
            "Squared error over the variance of the level in these frames. Single levels show "
            "coders that give each level a stream of its own.",
        ),
        html.section(
            "Bits per level", _bars(figures.get("level_shares")), f"Of each system {kept}."
        ),
        html.section(
            "Where the bits go in a picture", sections_of.bit_maps(results, read, base), _HEAT_NOTE
        ),
        html.section("Boxes before and after", sections_of.boxes(results, read, base)),
        html.section(
            "Time",
            _bars(figures.get("codec_times"))
            + _legend(figures.get("latency"))
            + _grid(figures, "latency")
            + sections_of.latencies(results),
            f"One frame at a time on {_hardware(results)}: {detector_times(results)}. Of each "
            f"system {kept}. End to end adds the link to the work at its two ends: {_PLACES}",
        ),
        html.section("Complexity", sections_of.complexity(results)),
        html.section(
            "All points", sections_of.points(results), "Numbers in brackets are 95 % intervals."
        ),
        html.section("Provenance", _provenance(results)),
    ]
    lead = (
        f"{results['frames']} held-out frames of {results['data']}, "
        f"{results['image_size'][0]} × {results['image_size'][1]}; "  # noqa: RUF001
        f"uncompressed mAP@0.5 {results['uncompressed']['accuracy']['map50']:.3f}, "
        f"mAP@0.75 {results['uncompressed']['accuracy']['map75']:.3f}, "
        f"F1 {results['uncompressed']['accuracy']['f1_50']:.3f}."
    )
    notes = "".join(f'<p class="alert">{escape(note)}</p>' for note in results["notes"])
    body = f"<p>{escape(lead)}</p>{_cards(results)}{notes}{''.join(sections)}"
    return html.document("Accuracy against bytes", body, curves.CSS)


_BD_NOTE = (
    "BD-rate: mean difference in bytes at equal accuracy, negative where the system needs less. "
    "BD-accuracy: mean difference in accuracy at equal bytes. Only the range that both curves "
    "cover counts; overlap says how much of both that is, and below a half the number speaks of a "
    "small part. Leave one out is the range when each point in turn is missing. Points that are no "
    "better than a cheaper one are left out of a curve."
)
_GAIN_NOTE = (
    "The BD-accuracy (mean difference in accuracy at equal bytes, positive where the system is "
    "better) and the BD-rate (per cent of bytes at equal accuracy, negative where it needs less) "
    "of the table above by PCHIP, at all three accuracies, with 95 % intervals over frames. They "
    "do not say what another training would have given."
)
_HEAT_NOTE = (
    "Code length of each latent position under the model, summed over its channels, spread over "
    "the pixels it stands for and summed over the levels."
)
_PLACES = (
    "split inference runs head and feature encoder at the edge, remote inference the image encoder "
    "alone, local inference everything."
)


def _cards(results: Record) -> str:
    """The cheapest point of each system that keeps enough."""
    cards = []
    kept = {row["chosen"] for row in results["systems"] if row["keeps"]}
    points = sorted(
        (p for p in chosen_points(results) if p["name"] in kept), key=lambda p: p["bytes_per_frame"]
    )
    for point in points[:6]:
        share = point["accuracy"]["map50"] / max(results["uncompressed"]["accuracy"]["map50"], 1e-9)
        kept_words = f"{percent(share)} of mAP@0.5"
        words = ", ".join(filter(None, (tables.setting(point), kept_words)))
        cards.append(
            f'<div class="card"><b>{number(point["bytes_per_frame"])} bytes</b>'
            f"{escape(point['system'])}<br><span>{escape(words)}</span></div>"
        )
    words = "<p>Cheapest points that keep 95 % of the uncompressed mAP@0.5:</p>"
    return f'{words}<div class="cards">{"".join(cards)}</div>' if cards else ""


def _legend(chart: Chart | None) -> str:
    return curves.legend(chart.legend) if chart else ""


def _grid(figures: Mapping[str, Chart], *names: str) -> str:
    shown = "".join(
        html.figure(figures[name].svg(), _caption(name)) for name in names if name in figures
    )
    return f'<div class="curve-charts">{shown}</div>' if shown else ""


def _caption(name: str) -> str:
    """What a figure shows, from the name of its file."""
    for measure, words in tables.MEASURES.items():
        if name == f"rate_accuracy_{measure}":
            return f"{words} over bytes per frame."
    if name == "rate_distortion":
        return "All levels together, over all bytes."
    if name == "latency":
        return "From the camera to the boxes, over the rate of the link."
    level = name.rpartition("_")[2].upper()
    return f"{level} over its own bytes."


def _bars(chart: Chart | None) -> str:
    return bar_legend(chart) + html.figure(chart.svg(), "") if chart else ""


def _hardware(results: Record) -> str:
    hardware = results.get("hardware", {})
    return f"{hardware.get('cpu', 'this machine')}, {hardware.get('cores', '?')} cores"


def _provenance(results: Record) -> str:
    rows = []
    for name in ("commit", "data", "frames_digest", "detector_digest"):
        if results.get(name):
            rows.append([name.replace("_", " "), str(results[name])])
    for name in ("hardware", "versions", "bootstrap"):
        value = results.get(name)
        if isinstance(value, Mapping):
            rows.append([name, ", ".join(f"{k} {v}" for k, v in value.items())])
    again = f"<p>Again:</p><pre>{escape(results['command'])}</pre>" if results["command"] else ""
    return again + html.table(rows, numeric=0)
