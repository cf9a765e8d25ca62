"""The figures of a comparison, by name: each is drawn once, for the page and as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxcomp.report.bars import stacked_bars
from jaxcomp.report.comparison_tables import MEASURES, setting
from jaxcomp.report.curves import Chart, Curve, Look, Point, curve_chart
from jaxcomp.report.tables import number

Record = Mapping[str, Any]
LEVELS = ("p2", "p3", "p4", "p5", "p6")


def looks(results: Record) -> dict[str, Look]:
    """How each system is drawn, the same in every figure."""
    counts: dict[str, int] = {}
    found: dict[str, Look] = {}
    for point in results["points"]:
        kind = point["kind"]
        if point["system"] not in found:
            found[point["system"]] = Look(kind, counts.get(kind, 0))
            counts[kind] = counts.get(kind, 0) + 1
    return found


def in_order(results: Record) -> dict[str, list[Record]]:
    """{system: its points, cheapest first}, learned ones before the anchors."""
    systems: dict[str, list[Record]] = {}
    for point in results["points"]:
        systems.setdefault(point["system"], []).append(point)
    ordered = sorted(systems.items(), key=lambda item: item[1][0]["kind"] != "learned")
    return {k: sorted(v, key=lambda p: p["bytes_per_frame"]) for k, v in ordered}


def chosen_points(results: Record) -> list[Record]:
    """The point that stands for each system."""
    by_name = {point["name"]: point for point in results["points"]}
    return [by_name[row["chosen"]] for row in results["systems"]]


def rate_accuracy(results: Record, measure: str) -> Chart:
    """Accuracy over bytes of all whole systems; intervals on the learned ones."""
    style, curves = looks(results), []
    for name, points in in_order(results).items():
        if not points[0].get("whole", True):
            continue
        learned = points[0]["kind"] == "learned"
        curves.append(
            Curve(
                name,
                style[name],
                [
                    Point(
                        p["bytes_per_frame"],
                        p["accuracy"][measure],
                        tuple(p["intervals"][measure]) if learned else None,
                        f"{setting(p)} {number(p['bytes_per_frame'])} bytes, "
                        f"{p['accuracy'][measure]:.4f}",
                    )
                    for p in points
                ],
            )
        )
    label, base = MEASURES[measure], results["uncompressed"]["accuracy"][measure]
    ends = "; ".join(
        f"{c.name} {c.points[0].y:.3f} at {c.points[0].x:,.0f} to {c.points[-1].y:.3f} at "
        f"{c.points[-1].x:,.0f} bytes"
        for c in curves
    )
    return curve_chart(
        curves,
        x_label="bytes per frame",
        y_label=label,
        alt=f"{label} over bytes per frame, {base:.3f} uncompressed: {ends}",
        reference=base,
    )


def rate_distortion(results: Record, level: str) -> Chart:
    """Relative error of a level over its own bytes, of the coders that give it a stream."""
    style, curves = looks(results), []
    for name, points in in_order(results).items():
        found = [
            Point(
                p["stream_bytes_per_frame"][level],
                p["level_relative_mse"][level],
                None,
                f"{setting(p)} {p['stream_bytes_per_frame'][level]:,.0f} bytes, "
                f"{p['level_relative_mse'][level]:.4g}",
            )
            for p in points
            if level in p.get("stream_bytes_per_frame", {}) and level in p["level_relative_mse"]
        ]
        if found:
            curves.append(Curve(name, style[name], sorted(found, key=lambda p: p.x)))
    words = level.upper()
    return curve_chart(
        curves,
        x_label=f"bytes of {words} per frame",
        y_label="relative MSE",
        alt=f"relative mean squared error of {words} over its bytes for {len(curves)} systems",
        log_y=True,
    )


def total_distortion(results: Record) -> Chart:
    """Relative error of all levels together over all bytes; the joint codec has its curve here."""
    style = looks(results)
    curves = [
        Curve(
            name,
            style[name],
            [
                Point(p["bytes_per_frame"], p["relative_mse"], None, setting(p))
                for p in points
                if p.get("relative_mse")
            ],
        )
        for name, points in in_order(results).items()
        if points[0].get("whole", True) and points[0]["kind"] != "local"
    ]
    return curve_chart(
        curves,
        x_label="bytes per frame",
        y_label="relative MSE, all levels",
        alt="relative mean squared error of the whole pyramid over bytes per frame",
        log_y=True,
    )


def level_shares(results: Record) -> Chart:
    """Whose bytes they are: the levels of each point that stands for its system."""
    rows = []
    for point in chosen_points(results):
        sizes = point.get("stream_bytes_per_frame") or {}
        total = sum(sizes.values())
        if total:
            shares = {name.upper(): 100 * size / total for name, size in sizes.items()}
            rows.append((f"{point['system']}, {number(point['bytes_per_frame'])} bytes", shares))
    return stacked_bars(
        rows,
        x_label="per cent of the payload",
        alt="share of each level in the bytes of a frame",
        total=False,
    )


def codec_times(results: Record) -> Chart:
    """Encoding and decoding by the learned systems' points, network and coder apart."""
    parts = {
        "encode: network": "encode_transform_ms",
        "encode: coder": "encode_coder_ms",
        "decode: coder": "decode_coder_ms",
        "decode: network": "decode_transform_ms",
    }
    rows = [
        (_name_and_setting(point), {words: point[key] for words, key in parts.items()})
        for point in chosen_points(results)
        if "encode_transform_ms" in point
    ]
    return stacked_bars(
        rows,
        x_label="milliseconds per frame",
        alt="time to encode and decode a frame, by learned system and part",
    )


def _name_and_setting(point: Record) -> str:
    words = setting(point)
    return f"{point['system']}, {words}" if words else point["system"]


def latency(results: Record) -> Chart:
    """End-to-end time over the rate of the link, of the points that stand for their systems."""
    style, table = looks(results), results["latency"]
    curves = []
    for name, row in table["rows"].items():
        times = [(float(link), row[f"{link:g}"]) for link in table["links_mbit_s"]]
        points = [Point(x, y, None, f"{x:g} Mbit/s, {y:.1f} ms") for x, y in times]
        curves.append(Curve(name, style[name], points))
    return curve_chart(
        curves,
        x_label="link, Mbit/s",
        y_label="milliseconds, camera to boxes",
        alt="end-to-end time over the rate of the link, by system",
        log_y=True,
    )


def all_figures(results: Record) -> dict[str, Chart]:
    """Every figure that has something to show, by the name of its file."""
    drawn = {f"rate_accuracy_{name}": rate_accuracy(results, name) for name in MEASURES}
    drawn["rate_distortion"] = total_distortion(results)
    drawn |= {f"rate_distortion_{level}": rate_distortion(results, level) for level in LEVELS}
    drawn["level_shares"] = level_shares(results)
    drawn["codec_times"] = codec_times(results)
    drawn["latency"] = latency(results)
    return {name: chart for name, chart in drawn.items() if chart.content}


def detector_times(results: Record) -> str:
    """Head and tail of the detector in words."""
    base: Record = results["uncompressed"]
    return f"head {base['head_ms']:.1f} ms, tail {base['tail_ms']:.1f} ms a frame"


def three_rates(points: Sequence[Record]) -> list[Record]:
    """The cheapest, the middle and the dearest point of a curve, without repeats."""
    curve = sorted(points, key=lambda p: p["bytes_per_frame"])
    if len(curve) <= 3:
        return list(curve)
    return [curve[0], curve[len(curve) // 2], curve[-1]]
