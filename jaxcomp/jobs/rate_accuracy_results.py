"""From finished points to tables: intervals by one bootstrap, Bjontegaard deltas, latencies.

All points are drawn from with the same sets of frames, so that the interval of a difference leaves
out what is hard for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.evaluate import bd, latency
from jaxcomp.evaluate.bootstrap import detection_samples, frame_weights, interval, mean_samples
from jaxcomp.jobs.point_store import PointStore, unpack_frames

MEASURES = ("map50", "map75", "f1_50")
METHODS = ("pchip", "akima")
KEPT = 0.95  # of the uncompressed mAP@0.5: what the point that stands for a system must reach
REPLICATES = 1000
BD_REPLICATES = 200  # of them, for the intervals of the deltas, which take a curve for each
UNCOMPRESSED = "uncompressed"
Samples = dict[str, np.ndarray]
Points = Sequence[dict[str, Any]]


def collect(
    store: PointStore,
    names: Sequence[str],
    classes: Sequence[str],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    edge_slowdown: float = 1.0,
) -> dict[str, Any]:
    """Everything that tables and figures show, of points that are finished.

    Args:
      store: where they are.
      names: of the points in order.
      classes: names of labels 1, 2, ...
      replicates: sets of frames that are drawn for the 95 % intervals.
      seed: of the drawing.
      edge_slowdown: see `latency.end_to_end_ms`.

    Raises:
      CheckpointError: a point is damaged.
    """
    base, truth = store.read(UNCOMPRESSED)
    weights = frame_weights(base["frames"], replicates, seed)
    base_samples = _samples(unpack_frames(truth, truth), classes, weights)
    base |= {"intervals": _intervals(base_samples)}
    points, samples = [], {}
    for name in names:
        record, arrays = store.read(name)
        found = _samples(unpack_frames(arrays, truth), classes, weights)
        record["intervals"] = _intervals(found)
        samples[name] = found | {"rate": mean_samples(arrays["frame_bytes"], weights)}
        lost = {m: found[m] - base_samples[m] for m in MEASURES}
        record["difference"] = {m: [float(x[0]), *interval(x)] for m, x in lost.items()}
        record["path_ms"] = _path(record, base)
        points.append(record)
    return {
        "uncompressed": base,
        "points": points,
        "systems": systems_of(points, base),
        "bd": deltas(points, samples),
        "latency": _latencies(points, base, edge_slowdown),
        "bootstrap": {"replicates": replicates, "seed": seed, "level": 0.95},
    }


def _samples(frames: Any, classes: Sequence[str], weights: np.ndarray) -> Samples:
    half = detection_samples(frames, classes, weights, 0.5)
    strict = detection_samples(frames, classes, weights, 0.75)
    by_class = {f"ap50_{name}": half[f"ap50_{name}"] for name in classes}
    measures = {"map50": half["map50"], "f1_50": half["f1_50"], "map75": strict["map75"]}
    return measures | by_class


def _intervals(samples: Samples) -> dict[str, tuple[float, float]]:
    return {name: interval(drawn) for name, drawn in samples.items()}


def curves_of(points: Points) -> dict[str, list[dict[str, Any]]]:
    """{system: its points, cheapest first}; codecs of a part of the pyramid are no system."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        if point.get("whole", True):
            curves.setdefault(point["system"], []).append(point)
    return {k: sorted(v, key=lambda p: p["bytes_per_frame"]) for k, v in curves.items()}


def systems_of(points: Points, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name and kind of each system, and the point that stands for it.

    That is the cheapest one that keeps 95 % of the uncompressed mAP@0.5, or else the best one.
    """
    wanted = KEPT * base["accuracy"]["map50"]
    rows = []
    for name, curve in curves_of(points).items():
        good = [p for p in curve if p["accuracy"]["map50"] >= wanted]
        best = max(curve, key=lambda p: p["accuracy"]["map50"])
        chosen = good[0] if good else best
        row = {"system": name, "kind": chosen["kind"], "points": [p["name"] for p in curve]}
        rows.append(row | {"chosen": chosen["name"], "keeps": bool(good)})
    return rows


def deltas(points: Points, samples: Mapping[str, Samples] | None = None) -> list[dict[str, Any]]:
    """Every learned system against every anchor with a curve, and against other learned ones.

    Args:
      points: with "system", "kind", "bytes_per_frame" and "accuracy".
      samples: {point: {"rate", measure: [1 + R]}} of `frame_weights`, for intervals.

    Returns:
      Rows {"test", "anchor", "measure", "method", "bd_rate" per cent, "bd_quality" and what is
      needed to judge them}; a value is None where there is none, and "reason" says why.
    """
    curves = {k: v for k, v in curves_of(points).items() if v[0]["kind"] != "local"}
    learned = [name for name, curve in curves.items() if curve[0]["kind"] == "learned"]
    others = [name for name in curves if name not in learned]
    pairs = [(test, anchor) for test in learned for anchor in others]
    pairs += [(b, a) for i, a in enumerate(learned) for b in learned[i + 1 :]]
    return [
        _delta_row(test, anchor, measure, method, curves, samples)
        for test, anchor in pairs
        for measure in MEASURES
        for method in METHODS
    ]


def _delta_row(
    test: str,
    anchor: str,
    measure: str,
    method: str,
    curves: Mapping[str, Points],
    samples: Mapping[str, Samples] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"test": test, "anchor": anchor, "measure": measure, "method": method}
    empty = {"bd_rate": None, "bd_quality": None}
    try:
        first, second = (_curve(curves[name], measure, name) for name in (anchor, test))
    except bd.CurveError as error:
        return {**row, **empty, "reason": str(error)}
    for name, function in (("bd_rate", bd.bd_rate), ("bd_quality", bd.bd_quality)):
        delta = function(first, second, method)
        left_out = bd.leave_one_out(first, second, method, function)
        row |= {
            name: delta.value,
            f"{name}_low": delta.low,
            f"{name}_high": delta.high,
            f"{name}_overlap": delta.overlap,
            f"{name}_leave_one_out": [left_out.low, left_out.high],
            f"{name}_leave_one_out_failed": left_out.failed,
        }
        row |= {"points": delta.points, "dropped": delta.dropped}
        if delta.reason:  # of the rate, or else of the accuracy
            row.setdefault("reason", delta.reason)
        both = curves[anchor], curves[test]
        # Of the accuracy between learned systems alone: each interval takes a hundred milliseconds.
        wanted = name == "bd_rate" or both[0][0]["kind"] == "learned"
        if samples and wanted and delta.value is not None and method == METHODS[0]:
            row[f"{name}_interval"] = _interval(*both, measure, samples, function)
    return row


def _curve(points: Points, measure: str, name: str) -> bd.Curve:
    rates = [p["bytes_per_frame"] for p in points]
    return bd.curve(rates, [p["accuracy"][measure] for p in points], name)


def _interval(
    anchor: Points,
    test: Points,
    measure: str,
    samples: Mapping[str, Samples],
    function: Callable[[bd.Curve, bd.Curve, str], bd.Delta],
) -> list[float] | None:
    """95 % interval over sets of frames; None where a set of frames gives no curve."""

    def stacked(points: Points, key: str) -> np.ndarray:
        return np.stack([samples[p["name"]][key][1 : 1 + BD_REPLICATES] for p in points], 1)

    try:
        spread = bd.subset_error(
            stacked(anchor, "rate"), stacked(anchor, measure),
            stacked(test, "rate"), stacked(test, measure), measure=function,
        )  # fmt: skip
    except bd.CurveError:
        return None
    return [spread.low, spread.high]


def _path(point: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
    """{"edge", "server"}: milliseconds of a point before and behind the link."""
    head, tail = base["head_ms"], base["tail_ms"]
    encode, decode = point["encode_ms"], point["decode_ms"]
    if point["kind"] == "image":
        return {"edge": encode, "server": decode + head + tail}
    if point["kind"] == "local":
        return {"edge": head + tail + encode, "server": decode}
    return {"edge": head + encode, "server": decode + tail}


def _latencies(points: Points, base: Mapping[str, Any], slowdown: float) -> dict[str, Any]:
    """End-to-end milliseconds of the point that stands for each system."""
    chosen = {row["chosen"] for row in systems_of(points, base)}
    paths = {
        p["system"]: latency.Path(
            p["path_ms"]["edge"], p["bytes_per_frame"], p["path_ms"]["server"]
        )
        for p in points
        if p["name"] in chosen
    }
    rows = latency.latency_rows(paths, edge_slowdown=slowdown)
    return {"links_mbit_s": list(latency.LINKS), "edge_slowdown": slowdown, "rows": rows}
