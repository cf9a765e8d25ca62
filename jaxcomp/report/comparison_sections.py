"""The parts of a comparison's page that are tables or pictures, each as HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import numpy as np

from jaxcomp.report import comparison_tables as tables
from jaxcomp.report import html, pictures
from jaxcomp.report.comparison_figures import chosen_points, in_order, three_rates
from jaxcomp.report.tables import number

Record = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
ReadArrays = Callable[[str], Arrays]  # the arrays of a point by its name


def deltas(results: Record) -> str:
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


def gain_pairs(results: Record) -> list[dict[str, Any]]:
    """`comparison_tables.gain_pairs` of the learned systems of a comparison."""
    learned = [row["system"] for row in results["systems"] if row["kind"] == "learned"]
    return tables.gain_pairs(results["bd"], learned)


def gains(results: Record) -> str:
    """Systems that treat the levels alike first: they differ in their training alone."""
    pairs = gain_pairs(results)
    same = _gain_table([p for p in pairs if p["same"]])
    other = _gain_table([p for p in pairs if not p["same"]])
    folded = f"<details><summary>Other treatments of the levels</summary>{other}</details>"
    return same + (folded if same else other) if other else same


def _gain_table(pairs: list[Any]) -> str:
    heading = [name for name, _ in tables.GAIN_COLUMNS]
    cells = tables.cells(pairs, tables.GAIN_COLUMNS)
    return html.table(cells, heading, len(heading)) if pairs else ""


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


def points(results: Record) -> str:
    """Every point, what was not measured, and the accuracy by class."""
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
        columns.append((f"AP@0.5 {name}", _class_accuracy(f"ap50_{name}")))
    for name in base.get("kitti", {}).get("scores", {}):
        for grade in ("easy", "moderate", "hard"):
            path = (name, "2d", "r40", grade)
            columns.append((f"KITTI {name} {grade}", _official(path)))
    whole = {**base, "setting": None, "bytes_per_frame": None}
    rows = tables.cells([whole, *results["points"]], columns)
    table = html.table(rows, [name for name, _ in columns], len(columns))
    return f"<details><summary>By class and difficulty</summary>{table}</details>"


def _class_accuracy(name: str) -> Callable[[Record], str]:
    return lambda p: tables.with_interval(
        _at(p, "accuracy", name), _at(p, "intervals", name), ".3f"
    )


def _official(path: tuple[str, ...]) -> Callable[[Record], str]:
    return lambda p: tables.with_interval(
        _at(p, "kitti", "scores", *path), _at(p, "kitti", "intervals", "scores", *path), ".1f"
    )


def _at(record: Record, *path: str) -> Any:
    """What stands at a place in a record, None where it has no such place."""
    value: Any = record
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def latencies(results: Record) -> str:
    """Times of the points that stand for their systems, and their sums over some links."""
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


def complexity(results: Record) -> str:
    """Parameters and multiply-accumulates of the detector and of each codec."""
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


def local(results: Record) -> str:
    """What boxes alone cost at the edge, and what cannot be done with them; empty without them."""
    boxes = [p for p in results["points"] if p["kind"] == "local"]
    if not boxes:
        return ""
    cost = results["uncompressed"]["complexity"]
    head, tail = (cost[f"{part}_kmac_per_pixel"] for part in ("head", "tail"))
    rows = [["remote inference: image encoder at the edge", "0", number(head + tail, ".2f")]]
    best = _best_learned(results)
    for point in best[:1]:
        own = point["complexity"]
        edge, behind = head + own["encoder_kmac_per_pixel"], own["decoder_kmac_per_pixel"] + tail
        work = [number(edge, ".2f"), number(behind, ".2f")]
        rows.append([f"split inference: head and encoder ({point['system']})", *work])
    rows.append(["local inference: the whole detector", number(head + tail, ".2f"), "0"])
    heading = ["", "kMAC/pixel of networks at the edge", "behind the link"]
    words = (
        f"{number(boxes[0]['bytes_per_frame'])} bytes a frame are enough for boxes because all "
        f"work is done before they are sent: the edge needs the memory for all "
        f"{number(cost['parameters'])} parameters and the time for head and tail. And the boxes "
        "are all there is: no other task and no other tail can be run on them later, no class "
        "added, no lower threshold of scores taken, and a better detector has to reach every edge."
    )
    return f"<p>{escape(words)}</p>" + html.table(rows, heading, 2)


def _best_learned(results: Record) -> list[Record]:
    """The curve of the learned system whose chosen point is the cheapest that keeps enough."""
    rows = [row for row in results["systems"] if row["kind"] == "learned"]
    by_name = {p["name"]: p for p in results["points"]}
    if not rows:
        return []
    best = min(rows, key=lambda r: (not r["keeps"], by_name[r["chosen"]]["bytes_per_frame"]))
    return [by_name[name] for name in best["points"]]


def bit_maps(results: Record, read: ReadArrays, base: Arrays) -> str:
    """The best learned system at three rates: where in a picture its bits go."""
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


def boxes(results: Record, read: ReadArrays, base: Arrays) -> str:
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
