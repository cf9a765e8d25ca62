"""Detection accuracy: VOC average precision at one overlap, and COCO's summary.

Detections and ground truth are matched within each image. A frame is a `Frame`; nothing here
depends on how it was detected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

IGNORE_COVERAGE = 0.5


@dataclasses.dataclass(frozen=True)
class Frame:
    """Detections and ground truth of one image; boxes are xyxy pixels.

    Attributes:
      boxes: [D, 4] detections.
      scores: [D].
      labels: [D] int, 1-based classes.
      truth_boxes: [N, 4].
      truth_labels: [N] int.
      ignore_boxes: [M, 4] regions in which unmatched detections count neither way.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    truth_boxes: np.ndarray
    truth_labels: np.ndarray
    ignore_boxes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4)))


def image_sizes(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """(height, width) of a batch's images, [B, 2] float32; without "image_size" unpadded ones."""
    if "image_size" in batch:
        return batch["image_size"].astype(np.float32)  # numpy, or traced inside a training step
    count, height, width = batch["image"].shape[:3]
    return np.tile(np.asarray([[height, width]], np.float32), (count, 1))


def native_factors(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """What takes boxes from the network's pixels to those of the stored image, [B, 1, 4]."""
    if "native_size" not in batch:
        return np.ones((len(batch["image"]), 1, 4), np.float32)
    factor = np.asarray(batch["native_size"], np.float32) / image_sizes(batch)
    return np.tile(factor[:, ::-1], 2)[:, None]


def pixel_sizes(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """(height, width) of the images as they are stored, without padding, [B, 2] float32."""
    return np.asarray(batch.get("native_size", image_sizes(batch)), np.float32)


def frames_from_batch(
    detections: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
) -> list[Frame]:
    """Frames of a batch of padded detections and padded ground truth; padding rows are left out.

    Boxes are in pixels of the stored image, whatever size the network saw.
    """
    frames = []
    factors = native_factors(batch)
    found_boxes, truth_boxes = (np.asarray(x["boxes"]) * factors for x in (detections, batch))
    for i in np.flatnonzero(batch["mask"]):
        found, truth, ignore = (
            np.asarray(x, bool)
            for x in (detections["valid"][i], batch["valid"][i], batch["ignore"][i])
        )
        frames.append(
            Frame(
                found_boxes[i][found],
                np.asarray(detections["scores"][i])[found],
                np.asarray(detections["labels"][i])[found],
                truth_boxes[i][truth],
                np.asarray(batch["labels"][i])[truth],
                truth_boxes[i][ignore],
            )
        )
    return frames


def _pairwise(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(IoU, share of `a` inside `b`) of all pairs, [N, M] float64."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    intersection = np.prod(np.maximum(size, 0.0), -1)
    area_a, area_b = (np.prod(np.maximum(x[:, 2:] - x[:, :2], 0.0), -1) for x in (a, b))
    union = area_a[:, None] + area_b[None] - intersection
    return intersection / np.maximum(union, 1e-12), intersection / np.maximum(
        area_a[:, None], 1e-12
    )


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Detections of one class over a data set, best score first.

    Attributes:
      scores: [D] falling scores of the counted detections.
      true_positive: [D] bool.
      truth_count: objects of the class.
    """

    scores: np.ndarray
    true_positive: np.ndarray
    truth_count: int

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """(precision, recall) after each detection."""
        hits = np.cumsum(self.true_positive)
        precision = hits / np.arange(1, len(hits) + 1)
        return precision, hits / max(self.truth_count, 1)


def match_class(frames: Sequence[Frame], label: int, iou_threshold: float = 0.5) -> PrecisionRecall:
    """Matches the detections of one class the way VOC does (Everingham et al., 2010, sec. 4.2).

    Over all frames by falling score, each detection is compared with the object of highest overlap
    in its own frame; it is right when the overlap reaches the threshold and the object is free.
    A wrong one that lies mostly inside an ignored region is left out.
    """
    scores, best, index, covered, frame_of, counts = [], [], [], [], [], []
    for frame_id, frame in enumerate(frames):
        own = np.asarray(frame.labels) == label
        truth = np.asarray(frame.truth_boxes).reshape(-1, 4)[
            np.asarray(frame.truth_labels) == label
        ]
        counts.append(len(truth))
        boxes = np.asarray(frame.boxes).reshape(-1, 4)[own]
        overlap = np.concatenate([_pairwise(boxes, truth)[0], np.full((len(boxes), 1), -1.0)], 1)
        best.append(overlap.max(1))
        index.append(overlap.argmax(1))
        inside = _pairwise(boxes, frame.ignore_boxes)[1]
        covered.append(inside.max(1, initial=0.0) > IGNORE_COVERAGE)
        scores.append(np.asarray(frame.scores)[own])
        frame_of.append(np.full(own.sum(), frame_id))
    score, overlap, row, inside, frame_id = (
        np.concatenate(x) if x else np.zeros(0) for x in (scores, best, index, covered, frame_of)
    )
    order = np.argsort(-score, kind="stable")
    taken: set[tuple[int, int]] = set()
    right = np.zeros(len(order), bool)
    counted = np.ones(len(order), bool)
    for place, i in enumerate(order):
        key = (int(frame_id[i]), int(row[i]))
        if overlap[i] >= iou_threshold and key not in taken:
            taken.add(key)
            right[place] = True
        else:
            counted[place] = not inside[i]
    return PrecisionRecall(score[order][counted], right[counted], int(sum(counts)))


def average_precision(result: PrecisionRecall) -> tuple[float, float]:
    """(11-point, all-point) average precision; 0 for a class without objects.

    The 11-point form averages the best precision at recall >= 0, 0.1, ..., 1 (VOC 2007), the
    all-point form is the area below the monotone envelope (VOC 2010 on).
    """
    if result.truth_count == 0 or len(result.scores) == 0:
        return 0.0, 0.0
    precision, recall = result.curve()
    # A sum of tenths is not exact in binary; the tolerance keeps recall 0.3 at threshold 0.3.
    eleven = [precision[recall >= t - 1e-12].max(initial=0.0) for t in np.arange(11) / 10]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(np.concatenate([[0.0], recall]))
    return float(np.mean(eleven)), float((envelope * steps).sum())


def voc_metrics(
    frames: Sequence[Frame], classes: Sequence[str], iou_threshold: float = 0.5
) -> dict[str, float]:
    """Mean and per-class AP.

    Args:
      frames: the data set.
      classes: names of labels 1, 2, ...
      iou_threshold: overlap of a right detection.

    Returns:
      {"map50": 11-point mean, "map50_allpoint": ..., "ap50_<Class>": ..., "f1": best F1 over
      scores, classes pooled}; the suffix follows the threshold. A class without objects counts 0.
    """
    suffix = f"{round(iou_threshold * 100)}"
    results = [match_class(frames, i + 1, iou_threshold) for i in range(len(classes))]
    points = np.asarray([average_precision(r) for r in results])
    out = {f"map{suffix}": points[:, 0].mean(), f"map{suffix}_allpoint": points[:, 1].mean()}
    out |= {f"ap{suffix}_{name}": p for name, p in zip(classes, points[:, 0], strict=True)}
    out[f"f1_{suffix}"] = _best_f1(results)
    return {name: float(value) for name, value in out.items()}


def _best_f1(results: Sequence[PrecisionRecall]) -> float:
    scores = np.concatenate([r.scores for r in results])
    if len(scores) == 0:
        return 0.0
    right = np.concatenate([r.true_positive for r in results])[np.argsort(-scores, kind="stable")]
    hits = np.cumsum(right)
    found = np.arange(1, len(hits) + 1)
    return float((2 * hits / np.maximum(found + sum(r.truth_count for r in results), 1)).max())


def coco_metrics(
    frames: Sequence[Frame], classes: Sequence[str], *, crowd_ignored: bool = True
) -> dict[str, float]:
    """COCO's twelve summary numbers, by pycocotools.

    Ignored regions enter as crowd boxes of every class. Keys: coco_ap, coco_ap50, coco_ap75,
    coco_ap_small/medium/large, coco_ar1/10/100, coco_ar_small/medium/large; -1 where a size class
    has no objects (COCO's own convention).
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = _coco_dataset(frames, classes, crowd_ignored)
    results = [
        {"image_id": i + 1, "category_id": int(c), "bbox": _xywh(b), "score": float(s)}
        for i, f in enumerate(frames)
        for b, s, c in zip(f.boxes, f.scores, f.labels, strict=True)
    ]
    names = (
        *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
        *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
    )
    if not results:
        return {f"coco_{name}": 0.0 for name in names}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {f"coco_{n}": float(v) for n, v in zip(names, evaluation.stats, strict=True)}


def _xywh(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _coco_dataset(frames: Sequence[Frame], classes: Sequence[str], crowd: bool) -> dict:
    annotations: list[dict] = []

    def add(image: int, box: np.ndarray, category: int, is_crowd: int) -> None:
        xywh = _xywh(box)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image + 1,
                "category_id": category,
                "bbox": xywh,
                "area": xywh[2] * xywh[3],
                "iscrowd": is_crowd,
            }
        )

    for i, frame in enumerate(frames):
        for box, label in zip(frame.truth_boxes, frame.truth_labels, strict=True):
            add(i, box, int(label), 0)
        for box in frame.ignore_boxes if crowd else ():
            for category in range(1, len(classes) + 1):
                add(i, box, category, 1)
    return {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(frames))],
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(classes)],
        "annotations": annotations,
    }
