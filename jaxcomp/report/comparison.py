"""A folder of a comparison: its tables, figures and page, from `rate_accuracy.json` and arrays.

rate_accuracy.{json,csv,md,tex}   every point
bd.{json,csv,md}                  every pair of curves
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
from jaxcomp.report import comparison_tables as tables
from jaxcomp.report import curves, html, pictures, raster
from jaxcomp.report.bars import bar_legend
from jaxcomp.report.comparison_figures import (
    LEVELS,
    all_figures,
    chosen_points,
    detector_times,
    in_order,
    three_rates,
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
        html.section("How much lies between the curves", _bd(results), _BD_NOTE),
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
        html.section("Where the bits go in a picture", _heat(results, read, base), _HEAT_NOTE),
        html.section("Boxes before and after", _boxes(results, read, base)),
        html.section(
            "Time",
            _bars(figures.get("codec_times"))
            + _legend(figures.get("latency"))
            + _grid(figures, "latency")
            + _latency_table(results),
            f"One frame at a time on {_hardware(results)}: {detector_times(results)}. Of each "
            f"system {kept}. End to end adds the link to the work at its two ends: {_PLACES}",
        ),
        html.section("Complexity", _complexity(results)),
        html.section("All points", _points(results), "Numbers in brackets are 95 % intervals."),
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


def _bd(results: Record) -> str:
    """A table for each learned system, and in a line the pairs that have no number."""
    pairs = tables.bd_pairs(results["bd"])
    measured = [p for p in pairs if _has_number(p)]
    parts = []
    for system in dict.fromkeys(p["test"] for p in measured):
        own = [p for p in measured if p["test"] == system]
        main = _bd_table([p for p in own if p["measure"] == "map50"])
        rest = [(n, _bd_table([p for p in own if p["measure"] == n])) for n in tables.MEASURES]
        more = "".join(
            f"<h4>At equal {tables.MEASURES[n]}</h4>{table}" for n, table in rest if n != "map50"
        )
        parts.append(
            f"<h3>{escape(system)}</h3><p>At equal {tables.MEASURES['map50']}:</p>{main}"
            f"<details><summary>At equal mAP@0.75 and F1</summary>{more}</details>"
        )
    return "".join(parts) + _without_number([p for p in pairs if not _has_number(p)])


def _has_number(pair: Record) -> bool:
    return any(
        pair.get(method, {}).get(name) is not None
        for method in ("pchip", "akima")
        for name in ("bd_rate", "bd_quality")
    )


def _bd_table(pairs: list[Any]) -> str:
    columns = [c for c in tables.BD_COLUMNS if c[0] not in ("system", "at equal", "why none")]
    heading = [name.strip() for name, _ in columns]
    return html.table(tables.cells(pairs, columns), heading, len(heading)) if pairs else ""


def _without_number(pairs: list[Any]) -> str:
    """What could not be compared, by reason."""
    reasons: dict[str, dict[str, dict[str, None]]] = {}
    for pair in pairs:
        reason = pair.get("pchip", {}).get("reason") or "no number"
        reasons.setdefault(reason, {}).setdefault(pair["test"], {})[pair["anchor"]] = None
    items = [
        f"<li>{escape(test)} against {escape(', '.join(anchors))}: {escape(reason)}.</li>"
        for reason, tests in reasons.items()
        for test, anchors in tests.items()
    ]
    words = "<p>No number, at one measure or more:</p>"
    return f'{words}<ul class="note">{"".join(items)}</ul>' if items else ""


def _points(results: Record) -> str:
    heading = [name for name, _ in tables.RATE_COLUMNS]
    table = html.table(tables.cells(results["points"], tables.RATE_COLUMNS), heading, len(heading))
    missing = "".join(
        f'<p class="note">Not measured: {escape(name)} ({escape(why)}).</p>'
        for name, why in results["missing"].items()
    )
    return missing + table + _classes(results)


def _classes(results: Record) -> str:
    """AP of each class, and KITTI's own numbers where there are any."""
    base = results["uncompressed"]
    columns: list[tables.Column] = [
        ("system", tables.coded_system),
        ("setting", tables.setting),
        ("bytes/frame", lambda p: number(p["bytes_per_frame"])),
    ]
    for name in results["classes"]:
        columns.append((f"AP@0.5 {name}", _number_at("accuracy", f"ap50_{name}", form=".3f")))
    for name in base.get("kitti", {}).get("scores", {}):
        for grade in ("easy", "moderate", "hard"):
            path = ("kitti", "scores", name, "2d", "r40", grade)
            columns.append((f"KITTI {name} {grade}", _number_at(*path, form=".1f")))
    whole = {**base, "setting": None, "bytes_per_frame": None}
    rows = tables.cells([whole, *results["points"]], columns)
    table = html.table(rows, [name for name, _ in columns], len(columns))
    return f"<details><summary>By class and difficulty</summary>{table}</details>"


def _number_at(*path: str, form: str) -> Callable[[Record], str]:
    def words(record: Record) -> str:
        value: Any = record
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return number(value, form)

    return words


def _latency_table(results: Record) -> str:
    links = results["latency"]["links_mbit_s"]
    heading = ["system", "setting", "bytes", "encode ms", "decode ms", "edge ms", "server ms"]
    heading += [f"at {n:g} Mbit/s" for n in links]
    rows = []
    for point in chosen_points(results):
        times = results["latency"]["rows"][point["system"]]
        rows.append(
            [
                point["system"],
                tables.setting(point),
                number(point["bytes_per_frame"]),
                number(point["encode_ms"], ".1f"),
                number(point["decode_ms"], ".1f"),
                number(point["path_ms"]["edge"], ".1f"),
                number(point["path_ms"]["server"], ".1f"),
                *(number(times[f"{n:g}"], ".1f") for n in links),
            ]
        )
    slow = results["latency"]["edge_slowdown"]
    note = f'<p class="note">Edge taken as {slow:g} times slower.</p>' if slow != 1 else ""
    return html.table(rows, heading, len(heading)) + note


def _complexity(results: Record) -> str:
    cost = results["uncompressed"]["complexity"]
    rows = [
        ["detector", number(cost["parameters"]), "", ""],
        ["detector: head", "", number(cost["head_kmac_per_pixel"], ".2f"), ""],
        ["detector: tail", "", number(cost["tail_kmac_per_pixel"], ".2f"), ""],
    ]
    for name, points in in_order(results).items():
        own = points[0].get("complexity")
        if own:
            columns = ("encoder_kmac_per_pixel", "decoder_kmac_per_pixel")
            rows.append(
                [name, number(own["parameters"]), *(number(own[c], ".2f") for c in columns)]
            )
    heading = ["part", "parameters", "kMAC/pixel (encoder, head, tail)", "decoder"]
    return html.table(rows, heading, 3)


def _best_learned(results: Record) -> list[Record]:
    """The curve of the learned system whose chosen point is the cheapest that keeps enough."""
    rows = [row for row in results["systems"] if row["kind"] == "learned"]
    by_name = {p["name"]: p for p in results["points"]}
    if not rows:
        return []
    best = min(rows, key=lambda r: (not r["keeps"], by_name[r["chosen"]]["bytes_per_frame"]))
    return [by_name[name] for name in best["points"]]


def _heat(results: Record, read: ReadArrays, base: Arrays) -> str:
    curve = _best_learned(results)
    if not curve or "picture_0" not in base:
        return ""
    image, shown = np.asarray(base["picture_0"]), []
    for point in three_rates(curve):
        arrays = read(point["name"])
        maps = [np.asarray(x, float) for key, x in arrays.items() if key.startswith("heat_")]
        if maps:
            shown.append((point, np.sum(maps, 0)))
    if not shown:
        return ""
    figures = []
    top = max(float(np.percentile(heat, 99.5)) for _, heat in shown) or 1.0
    source = pictures.data_uri(image, photo=True)
    figures.append(_picture(source, image.shape, "the picture"))
    for point, heat in shown:
        bits = float(heat.mean()) * np.prod(results["uncompressed"]["canvas"])
        words = f"{point['system']}, {tables.setting(point)}, {bits / 8:,.0f} bytes estimated"
        mixed = pictures.overlay(image, heat, top)
        figures.append(_picture(pictures.data_uri(mixed, photo=True), image.shape, words))
    wide = " wide" if image.shape[1] > pictures.NATURAL else ""
    key = pictures.heat_key("0", f"{top:.3g} bits per pixel and more")
    return f'{key}<div class="frame{wide}">{"".join(figures)}</div>'


def _picture(uri: str, shape: tuple[int, ...], words: str) -> str:
    alt = escape(f"bits over the picture: {words}", quote=True)
    image = f'<img class="map" src="{uri}" width="{shape[1]}" height="{shape[0]}" alt="{alt}">'
    return html.figure(image, words)


def _boxes(results: Record, read: ReadArrays, base: Arrays) -> str:
    """Ground truth, the detector alone, and the best learned system at three rates."""
    curve, classes = _best_learned(results), results["classes"]
    count = sum(f"picture_{i}" in base for i in range(8))
    if not curve or not count:
        return ""
    truth = {"counts": base["truth_counts"], "boxes": base["truth_boxes"]}
    sets = [("ground truth", truth | {"labels": base["truth_labels"]})]
    sets.append(("features as they are", dict(base)))
    for point in three_rates(curve):
        arrays = read(point["name"])
        if "boxes" in arrays:
            words = f"{point['system']}, {tables.setting(point)}"
            sets.append((words, dict(arrays)))
    frames = []
    for i in range(count):
        entries = []
        for words, found in sets:
            sizes = found.get("frame_bytes")
            more = "" if sizes is None else f", {int(sizes[i]):,} bytes"
            entries.append((words + more, _found(found, i)))
        image = np.asarray(base[f"picture_{i}"], np.uint8)
        name = int(base["image_ids"][i])
        frames.append(pictures.panels(image, name, f"frame{i}", entries, classes))
    note = (
        '<p class="note">The number at a box is its score in per cent; detections below '
        f"{100 * pictures.SHOWN_SCORE:.0f} are not drawn.</p>"
    )
    return note + pictures.class_key(classes) + "".join(frames)


def _found(arrays: Arrays, i: int) -> pictures.Found:
    """Boxes, labels and scores of frame `i` that are shown."""
    counts = np.asarray(arrays["counts"])
    rows = slice(int(counts[:i].sum()), int(counts[: i + 1].sum()))
    boxes, labels = (np.asarray(arrays[name])[rows] for name in ("boxes", "labels"))
    if "scores" not in arrays:
        return boxes, labels, None
    scores = np.asarray(arrays["scores"])[rows]
    keep = scores >= pictures.SHOWN_SCORE
    return boxes[keep], labels[keep], scores[keep]


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
