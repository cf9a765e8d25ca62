"""WIDERFace's average precision for easy, medium and hard faces.

    scores of the whole set to [0, 1] ──► image by image, in the order of its list: each detection
    belongs to the face it overlaps most ──► precision and recall at 1,000 thresholds ──► AP

The rules are those of the benchmark's evaluation (Yang et al., "WIDER FACE: a face detection
benchmark", 2016), with its habits:

- Overlaps are of boxes with one pixel more on each side; 0.5 and more is a match.
- A detection whose face does not belong to the subset counts neither as right nor as wrong. One
  whose face is taken already is wrong.
- Lists are taken in their order, which should be that of falling scores; a threshold ends a list
  behind its last detection that reaches it.
- In an image without any face (or without detections) nothing is wrong.
- The area is that under the envelope of the precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.errors import DataError
from jaxcomp.ops.native import compiled

SUBSETS = ("easy", "medium", "hard")
THRESHOLDS = 1 - (np.arange(1000) + 1) / 1000
MATCH = 0.5
_LOOP = (
    "void(f8[:, ::1], f8[::1], i8[::1], f8[:, ::1], i8[::1], b1[:, ::1], f8[::1], f8,"
    " i8[:, :, ::1])"
)

Boxes = Mapping[str, Any]


def evaluate_widerface(
    truth: Boxes, found: Boxes, subsets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Average precision of each subset of the faces.

    Args:
      truth: image name to [N, 4] boxes of all faces: x, y, width, height, pixels.
      found: image name to [M, 5] detections: x, y, width, height, score, best first. Every image of
        `truth` must be there; [0, 5] for no detection.
      subsets: name, as "easy", to image name to [N] bool, the faces that belong to it.

    Returns:
      A JSON-ready tree {"images", "detections", "subsets": {name: {"ap", "faces", "curve":
      {"threshold", "precision", "recall": 1,000 numbers each}}}, "mean": of the APs, "notes"}; an
      AP is None where a subset has no face.

    Raises:
      DataError: an image is missing or unknown, or an array has another shape or is not finite.
    """
    scene = _Scene.build(truth, found, subsets)
    counts = np.zeros((len(subsets), len(THRESHOLDS), 2), np.int64)
    compiled(_match_loop, _LOOP)(
        scene.found, scene.score, scene.found_start, scene.truth, scene.truth_start, scene.kept,
        THRESHOLDS, MATCH, counts,
    )  # fmt: skip
    faces = scene.kept.sum(1)
    out = {
        name: _subset(counts[i], int(faces[i])) for i, name in enumerate(subsets)
    }  # fmt: skip
    aps = [part["ap"] for part in out.values()]
    return {
        "images": len(truth),
        "detections": len(scene.score),
        "subsets": out,
        "mean": None if not aps or None in aps else float(np.mean(aps)),
        "notes": scene.notes,
    }


def _subset(counts: np.ndarray, faces: int) -> dict[str, Any]:
    """AP and curve from the (proposals, right ones) at each threshold."""
    proposals, right = counts.T
    precision = right / np.maximum(proposals, 1)
    recall = right / max(faces, 1)
    curve = {"threshold": THRESHOLDS, "precision": precision, "recall": recall}
    return {
        "ap": average_precision(recall, precision) if faces else None,
        "faces": faces,
        "curve": {name: values.tolist() for name, values in curve.items()},
    }


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the envelope of a curve with rising recall, from 0 to 1."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * envelope[steps + 1]).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class _Scene:
    """All images in arrays; image i has the rows start[i] to start[i + 1]."""

    truth: np.ndarray
    truth_start: np.ndarray
    found: np.ndarray
    score: np.ndarray
    found_start: np.ndarray
    kept: np.ndarray
    notes: list[str]

    @classmethod
    def build(cls, truth: Boxes, found: Boxes, subsets: Mapping[str, Mapping[str, Any]]) -> _Scene:
        _same_images(truth, found, "detections")
        boxes, start = _gather(truth, list(truth), 4, "ground truth")
        detections, found_start = _gather(found, list(truth), 5, "detections")
        kept = np.zeros((len(subsets), len(boxes)), np.bool_)
        for i, (name, members) in enumerate(subsets.items()):
            _same_images(truth, members, f"subset {name!r}")
            for j, image in enumerate(truth):
                rows = np.asarray(members[image], bool).reshape(-1)
                if len(rows) != start[j + 1] - start[j]:
                    raise DataError(
                        f"{image!r}: subset {name!r} tells of {len(rows)} faces, there are "
                        f"{start[j + 1] - start[j]}"
                    )
                kept[i, start[j] : start[j + 1]] = rows
        score, notes = _normalise(detections[:, 4])
        ends = found_start[1:-1]
        rising = np.flatnonzero(np.diff(detections[:, 4]) > 0) + 1
        unsorted = np.setdiff1d(rising, ends)
        if len(unsorted):
            images = len(np.unique(np.searchsorted(found_start, unsorted, side="right")))
            notes.append(f"the detections of {images} images are not in the order of their scores")
        return cls(
            _corners(boxes), start, _corners(detections[:, :4]), score, found_start, kept, notes
        )


def _same_images(truth: Boxes, other: Mapping[str, Any], what: str) -> None:
    missing = [name for name in truth if name not in other]
    unknown = [name for name in other if name not in truth]
    if missing or unknown:
        raise DataError(
            f"{what}: {len(missing)} images are missing ({missing[:2]}), {len(unknown)} are not in "
            f"the ground truth ({unknown[:2]}); give every image, without detections an empty list"
        )


def _gather(lists: Boxes, names: Sequence[str], width: int, what: str):
    arrays = []
    for name in names:
        array = np.asarray(lists[name], np.float64)
        array = array.reshape(0, width) if array.size == 0 else array
        if array.ndim != 2 or array.shape[1] != width or not np.isfinite(array).all():
            raise DataError(
                f"{name!r}: {what} of shape {array.shape}; give finite numbers [N, {width}]"
            )
        arrays.append(array)
    start = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)])
    return np.concatenate(arrays) if arrays else np.zeros((0, width)), start.astype(np.int64)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """x, y, width, height -> x1, y1, x2, y2."""
    return np.ascontiguousarray(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))


def _normalise(score: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Scores of the whole set brought to [0, 1]; as the original, 0 is at 1 or below."""
    low, high = min(score.min(initial=1.0), 1.0), max(score.max(initial=0.0), 0.0)
    if len(score) and high <= low:
        return np.ones(len(score)), ["all scores are the same: every threshold takes everything"]
    return np.ascontiguousarray((score - low) / (high - low)), []


def _match_loop(
    found, score, found_start, truth, truth_start, kept, thresholds, limit, counts
):  # fmt: skip
    """Adds to `counts` [subsets, thresholds, 2] the proposals and right ones of every image."""
    subsets = kept.shape[0]
    for image in range(len(found_start) - 1):
        first, last = found_start[image], found_start[image + 1]
        begin, end = truth_start[image], truth_start[image + 1]
        if first == last or begin == end:
            continue
        best = np.full(last - first, -1, np.int64)
        for d in range(first, last):
            x1, y1, x2, y2 = found[d]
            area = (x2 - x1 + 1) * (y2 - y1 + 1)
            most = -1.0
            for g in range(begin, end):
                width = min(x2, truth[g, 2]) - max(x1, truth[g, 0]) + 1
                height = min(y2, truth[g, 3]) - max(y1, truth[g, 1]) + 1
                overlap = 0.0
                if width > 0 and height > 0:
                    inside = width * height
                    other = (truth[g, 2] - truth[g, 0] + 1) * (truth[g, 3] - truth[g, 1] + 1)
                    overlap = inside / (area + other - inside)
                if overlap > most:
                    most = overlap
                    if overlap >= limit:
                        best[d - first] = g
        reach = np.empty(last - first)  # highest score from here to the end of the list
        high = -np.inf
        for d in range(last - 1, first - 1, -1):
            high = max(high, score[d])
            reach[d - first] = high
        for s in range(subsets):
            taken = np.zeros(end - begin, np.bool_)
            proposals = 0
            right = 0
            d = 0
            for t in range(len(thresholds)):
                while d < last - first and reach[d] >= thresholds[t]:
                    g = best[d]
                    d += 1
                    if g < 0:
                        proposals += 1
                    elif kept[s, g]:
                        proposals += 1
                        if not taken[g - begin]:
                            taken[g - begin] = True
                            right += 1
                counts[s, t, 0] += proposals
                counts[s, t, 1] += right


def text_table(result: Mapping[str, Any], protocol: str) -> str:
    """What `evaluate_widerface` returns as text.

    Args:
      result: the tree.
      protocol: how the images were given to the network; it is printed beside every AP.
    """
    lines = [f"{'subset':<10}{'AP':>8}{'faces':>8}  protocol"]
    for name, part in result["subsets"].items():
        lines.append(f"{name:<10}{_percent(part['ap']):>8}{part['faces']:>8}  {protocol}")
    lines.append(f"{'mean':<10}{_percent(result['mean']):>8}{'':>8}  {protocol}")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
