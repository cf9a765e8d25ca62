"""Anchors, decoding and suppression of face detections inside an ONNX graph, for any size."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcomp.interop.onnx_graph import Graph, Value
from jaxcomp.models.featherface import FaceConfig

Outputs = dict[str, tuple[Value, Any, tuple[Any, ...]]]
POINTS = 5


def priors(g: Graph, cfg: FaceConfig, maps: list[Value], image: Value) -> Value:
    """Anchors [A, 4] in pixels (centre, side), as `ops.priors.make_priors` times the image."""
    levels = []
    for x, step, sizes in zip(maps, cfg.steps, cfg.min_sizes, strict=True):
        axes = [_places(g, x, axis, step) for axis in (3, 2)]
        shape = g.op("Concat", g.size(x, 2, 4), g.integers(len(sizes)), axis=0)
        centre = [
            g.op("Expand", g.op("Unsqueeze", place, g.integers(*around)), shape)
            for place, around in zip(axes, ((0, 2), (1, 2)), strict=True)
        ]
        side = g.op("Expand", g.constant(np.asarray(sizes).reshape(1, 1, -1)), shape)
        parts = [g.op("Unsqueeze", v, g.integers(3)) for v in (*centre, side, side)]
        stacked = g.op("Concat", *parts, axis=3)
        levels.append(g.op("Reshape", stacked, g.integers(-1, 4)))
    del image
    return g.op("Concat", *levels, axis=0)


def _places(g: Graph, x: Value, axis: int, step: int) -> Value:
    """Centres of a level along one axis, pixels."""
    count = g.op("Squeeze", g.size(x, axis, axis + 1))
    index = g.op("Range", g.constant(0, np.int64), count, g.constant(1, np.int64))
    place = g.op("Cast", index, to=1)
    return g.scale(g.add(place, g.constant(0.5)), float(step))


def decoded(
    g: Graph, cfg: FaceConfig, found: dict[str, Value], maps: list[Value], image: Value
) -> Outputs:
    """Boxes, landmarks and scores of what is kept, as `FaceDetector.decode` gives them."""
    anchors = priors(g, cfg, maps, image)
    middle, side = (
        g.op("Slice", anchors, g.integers(a), g.integers(b), g.integers(1))
        for a, b in ((0, 2), (2, 4))
    )
    shift, grow = (
        g.op("Slice", found["boxes"], g.integers(a), g.integers(b), g.integers(2))
        for a, b in ((0, 2), (2, 4))
    )
    spread = g.scale(side, cfg.variances[0])
    centre = g.add(middle, g.op("Mul", shift, spread))
    half = g.scale(g.op("Mul", side, g.op("Exp", g.scale(grow, cfg.variances[1]))), 0.5)
    low, high = g.op("Sub", centre, half), g.add(centre, half)
    boxes = g.op("Concat", low, high, axis=2)
    tile = [g.op("Tile", v, g.integers(1, POINTS)) for v in (middle, spread)]
    points = g.add(tile[0], g.op("Mul", found["landmarks"], tile[1]))
    scores = g.op("Gather", found["classes"], g.constant(1, np.int64), axis=2)

    boxes, points, scores = _best(g, cfg, boxes, points, scores)
    # Areas count one pixel more on each side, as the original's do.
    wider = g.add(boxes, g.constant([0, 0, 1, 1]))
    kept = g.op(
        "NonMaxSuppression", wider, g.op("Unsqueeze", scores, g.integers(1)),
        g.integers(cfg.max_detections), g.constant([cfg.nms_iou]),
        g.constant([cfg.score_threshold]),
    )  # fmt: skip
    batch = g.op("Gather", kept, g.constant(0, np.int64), axis=1)
    place = g.op("Gather", kept, g.integers(0, 2), axis=1)
    parts = {"boxes": boxes, "landmarks": points, "scores": scores}
    out: Outputs = {}
    for name, tail in (("boxes", (4,)), ("landmarks", (10,)), ("scores", ())):
        out[name] = (g.op("GatherND", parts[name], place), np.float32, ("faces", *tail))
    return out | {"batch_index": (batch, np.int64, ("faces",))}


def _best(g: Graph, cfg: FaceConfig, boxes: Value, points: Value, scores: Value) -> list[Value]:
    """The candidates with the highest scores of each image."""
    count = g.op("Min", g.size(scores, 1, 2), g.integers(cfg.candidates))
    values, index = g.op("TopK", scores, count, axis=1, outputs=2)
    wide = g.op("Unsqueeze", index, g.integers(2))
    out = []
    for x, width in ((boxes, 4), (points, 10)):
        shape = g.op("Concat", g.op("Shape", index), g.integers(width), axis=0)
        out.append(g.op("GatherElements", x, g.op("Expand", wide, shape), axis=1))
    return [*out, values]
