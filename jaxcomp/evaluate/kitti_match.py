"""Matches of detections with ground truth by KITTI's rules, at every score threshold at once.

KITTI matches twice. The first pass has no threshold: each object takes the free detection with the
highest *score* among those that overlap enough, and the scores of the right ones decide at which
thresholds precision is sampled. The second pass is at one such threshold: each object takes the
free detection with the largest *overlap*, and what no object took is wrong.

Frames do not influence each other, and the second pass changes in a frame only at the scores of
its own detections. So it is done there alone, and what changes is kept as an event: the counts of
the whole set at any threshold are the sum of the events at or above it, exactly, and so are those
of any re-weighted set.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxcomp.evaluate.kitti_frames import Objects
from jaxcomp.ops.native import compiled

_RECALL = "void(i1[::1], i1[::1], f8[::1], f8[::1], i8[::1], i8[::1], i8[::1], f8, f8[::1])"
_EVENTS = (
    "void(i1[::1], i1[::1], b1[::1], f8[::1], f8[::1], f8[::1], f8[::1], i8[::1], i8[::1], i8[::1],"
    " i8[::1], f8, f8[:, ::1])"
)
# What an object is to one class and difficulty.
OTHER, COUNTS, IGNORED = -1, 0, 1


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """What one class, metric and difficulty needs for the curve of any re-weighting of frames.

    Attributes:
      objects: [F] int64 objects of the frame that count.
      hit_score: [H] scores of the right detections of the first pass, falling.
      hit_frame: [H] int64 their frames.
      event_score: [E] falling.
      event_frame: [E] int64.
      event: [E, 3] what the threshold's passing this score adds in this frame: right and wrong
        detections, and the orientation similarities of the right ones.
    """

    objects: np.ndarray
    hit_score: np.ndarray
    hit_frame: np.ndarray
    event_score: np.ndarray
    event_frame: np.ndarray
    event: np.ndarray


def match(
    truth: Objects,
    found: Objects,
    states: tuple[np.ndarray, np.ndarray],
    overlap: np.ndarray,
    base: np.ndarray,
    limit: float,
    covered: np.ndarray,
) -> Matches:
    """Both passes over all frames.

    Args:
      truth: ground truth, G objects.
      found: detections, D objects.
      states: [G] and [D] int8 of `OTHER`, `COUNTS`, `IGNORED`.
      overlap: [P] of the pairs within frames.
      base: [G] first pair of each object of the ground truth.
      limit: a match needs an overlap above it.
      covered: [D] bool, not wrong where no object takes it.
    """
    truth_state, found_state = states
    args = (found.score, overlap, base, truth.start, found.start)
    hits = np.full(len(truth_state), np.nan)
    compiled(_recall_loop, _RECALL)(truth_state, found_state, *args, limit, hits)
    order = np.lexsort((-found.score, found.frame))
    event = np.zeros((len(found_state), 3))
    compiled(_event_loop, _EVENTS)(
        truth_state, found_state, covered, truth.alpha, found.alpha, *args, order, limit, event
    )
    right = np.flatnonzero(~np.isnan(hits))
    right = right[np.argsort(-hits[right], kind="stable")]
    change = np.flatnonzero(event.any(1))
    change = change[np.argsort(-found.score[change], kind="stable")]
    counted = np.bincount(truth.frame[truth_state == COUNTS], minlength=len(truth.start) - 1)
    return Matches(
        counted, hits[right], truth.frame[right],
        found.score[change], found.frame[change], event[change],
    )  # fmt: skip


def _recall_loop(truth, found, score, overlap, base, truth_start, found_start, limit, hits):
    """First pass: fills `hits` with the score of the right detection of each object."""
    taken = np.zeros(len(found), np.bool_)
    for f in range(len(truth_start) - 1):
        first, last = found_start[f], found_start[f + 1]
        for g in range(truth_start[f], truth_start[f + 1]):
            if truth[g] < 0:
                continue
            best = -1
            for d in range(first, last):
                if found[d] < 0 or taken[d] or overlap[base[g] + d - first] <= limit:
                    continue
                if best < 0 or score[d] > score[best]:
                    best = d
            if best >= 0:
                taken[best] = True
                if truth[g] == 0 and found[best] == 0:
                    hits[g] = score[best]


def _event_loop(
    truth, found, covered, truth_alpha, found_alpha, score, overlap, base, truth_start, found_start,
    order, limit, event,
):  # fmt: skip
    """Second pass at the score of each detection: fills `event` with what changed in its frame.

    Ignored detections are left out: here an object takes one only where no other overlaps, and
    that changes neither the right nor the wrong ones.
    """
    taken = np.zeros(len(found), np.bool_)
    for f in range(len(truth_start) - 1):
        first, last = found_start[f], found_start[f + 1]
        right, wrong, similar = 0.0, 0.0, 0.0
        for k in range(first, last):
            at = order[k]
            if found[at] != 0:
                continue
            event[at, 0], event[at, 1], event[at, 2] = -right, -wrong, -similar
            right, wrong, similar = 0.0, 0.0, 0.0
            taken[first:last] = False
            for g in range(truth_start[f], truth_start[f + 1]):
                if truth[g] < 0:
                    continue
                best, most = -1, limit
                for d in range(first, last):
                    if found[d] != 0 or taken[d] or score[d] < score[at]:
                        continue
                    if overlap[base[g] + d - first] > most:
                        best, most = d, overlap[base[g] + d - first]
                if best >= 0:
                    taken[best] = True
                    if truth[g] == 0:
                        right += 1.0
                        similar += 0.5 + 0.5 * np.cos(truth_alpha[g] - found_alpha[best])
            for d in range(first, last):
                if found[d] == 0 and score[d] >= score[at] and not (taken[d] or covered[d]):
                    wrong += 1.0
            event[at, 0] += right
            event[at, 1] += wrong
            event[at, 2] += similar
