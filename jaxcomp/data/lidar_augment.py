"""Augmentations of a lidar sweep with its boxes, seeded (Yan et al., 2018; Lang et al., 2019).

    objects pasted ── every object moved ── mirrored ── turned ── scaled ── cut to range ── shuffled

Each step takes and gives (points float32 [N, 4], objects); none changes its input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxcomp.data import lidar_boxes
from jaxcomp.data.lidar_boxes import LidarObjects

Sample = tuple[np.ndarray, LidarObjects]


@dataclasses.dataclass(frozen=True)
class LidarAugmentation:
    """What is done; the defaults are those of the usual KITTI training.

    Attributes:
      low, high: range that points must lie strictly within, and boxes' centres seen from above.
      fill: objects of each class that a frame is filled up to from other frames.
      fill_points: points that an object of each class needs to be taken for that.
      shift: standard deviation of an object's displacement in x, y, z, metres.
      object_turn: largest turn of an object, radians.
      tries: displacements tried for an object; the first without a collision is taken.
      flip: probability of mirroring left to right.
      turn: largest turn of the whole frame, radians.
      scale: range of factors of the whole frame.
    """

    low: tuple[float, float, float] = (0.0, -39.68, -3.0)
    high: tuple[float, float, float] = (69.12, 39.68, 1.0)
    fill: tuple[int, ...] = (10, 10, 15)
    fill_points: tuple[int, ...] = (10, 10, 5)
    shift: tuple[float, float, float] = (0.25, 0.25, 0.25)
    object_turn: float = 0.15707963267
    tries: int = 100
    flip: float = 0.5
    turn: float = math.pi / 4
    scale: tuple[float, float] = (0.95, 1.05)


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """An object cut out of a frame: its box, and its points relative to the box's x, y, z."""

    box: np.ndarray
    difficulty: int
    points: np.ndarray


Database = Sequence[Sequence[StoredObject]]  # by class


def make_database(frames: Iterable[Sample], classes: int, least: Sequence[int]) -> Database:
    """Objects of all frames by class: those with a difficulty and enough points."""
    found: list[list[StoredObject]] = [[] for _ in range(classes)]
    for points, objects in frames:
        for box, label, level in zip(*objects, strict=True):
            if label < 0 or level < 0:
                continue
            own = points[lidar_boxes.inside(points, box)]
            if len(own) >= least[label]:
                own = own.copy()
                own[:, :3] -= box[:3]
                found[label].append(StoredObject(box, int(level), own))
    return found


def augment(
    points: np.ndarray,
    objects: LidarObjects,
    rng: np.random.Generator,
    how: LidarAugmentation,
    database: Database = (),
) -> Sample:
    """All steps in order.

    Args:
      points: float32 [N, 4].
      objects: of the frame; those of no class (-1) move along and stay.
      rng: draws everything.
      how: sizes of the steps.
      database: objects to paste, by class; empty for none.
    """
    sample = points, objects
    steps: tuple[Callable[..., Sample], ...] = (move_objects, flip, turn_and_scale)
    sample = paste(*sample, rng, how, database)
    for step in steps:
        sample = step(*sample, rng, how)
    points, objects = in_range(*sample, how)
    return points[rng.permutation(len(points))], objects


def paste(
    points: np.ndarray,
    objects: LidarObjects,
    rng: np.random.Generator,
    how: LidarAugmentation,
    database: Database,
) -> Sample:
    """Fills the frame up with objects of other frames, where they collide with nothing.

    Points of the frame inside a pasted box make room; the pasted points come first, so that they
    survive where a pillar is full.
    """
    chosen: list[tuple[int, StoredObject]] = []
    for label, stored in enumerate(database):
        missing = how.fill[label] - int((objects.labels == label).sum())
        count = min(max(missing, 0), len(stored))
        chosen += [(label, stored[i]) for i in rng.permutation(len(stored))[:count]]
    boxes, taken = objects.boxes, []
    for label, item in chosen:
        if not lidar_boxes.collide(item.box[None], boxes).any():
            boxes = np.concatenate([boxes, item.box[None]])
            taken.append((label, item))
    if not taken:
        return points, objects
    free = np.ones(len(points), bool)
    pasted = []
    for _, item in taken:
        free &= ~lidar_boxes.inside(points, item.box)
        own = item.points.copy()
        own[:, :3] += item.box[:3]
        pasted.append(own)
    labels = np.array([label for label, _ in taken], np.int32)
    levels = np.array([item.difficulty for _, item in taken], np.int32)
    objects = LidarObjects(
        boxes,
        np.concatenate([objects.labels, labels]),
        np.concatenate([objects.difficulty, levels]),
    )
    return np.concatenate([*pasted, points[free]]), objects


def move_objects(
    points: np.ndarray, objects: LidarObjects, rng: np.random.Generator, how: LidarAugmentation
) -> Sample:
    """Displaces and turns every box with its points, unless all tries collide with another box."""
    boxes = objects.boxes.copy()
    points = points.copy()
    shifts = rng.normal(0.0, how.shift, (len(boxes), how.tries, 3)).astype(np.float32)
    size = (len(boxes), how.tries)
    turns = rng.uniform(-how.object_turn, how.object_turn, size).astype(np.float32)
    owner = np.full(len(points), -1)
    for i, box in enumerate(objects.boxes):
        owner[lidar_boxes.inside(points, box) & (owner < 0)] = i
    for i in range(len(boxes)):
        tried = np.repeat(boxes[i : i + 1], how.tries, 0)
        tried[:, :3] += shifts[i]
        tried[:, 6] += turns[i]
        clear = ~lidar_boxes.collide(tried, _neighbours(boxes, i, shifts[i])).any(1)
        if not clear.any():
            continue
        first = int(clear.argmax())
        own = owner == i
        place = lidar_boxes.turn(points[own, :2] - boxes[i, :2], float(turns[i, first]))
        points[own, :2] = place + tried[first, :2]
        points[own, 2] += shifts[i, first, 2]
        boxes[i] = tried[first]
    return points, objects._replace(boxes=boxes)


def _neighbours(boxes: np.ndarray, i: int, shifts: np.ndarray) -> np.ndarray:
    """The boxes that box i could touch after any of the shifts [T, 3]."""
    reach = 0.5 * np.hypot(boxes[:, 3], boxes[:, 4])
    away = np.hypot(*(boxes[:, :2] - boxes[i, :2]).T)
    near = away <= reach + reach[i] + np.hypot(shifts[:, 0], shifts[:, 1]).max()
    near[i] = False
    return boxes[near]


def flip(
    points: np.ndarray, objects: LidarObjects, rng: np.random.Generator, how: LidarAugmentation
) -> Sample:
    """Mirrors y, sometimes."""
    if rng.random() >= how.flip:
        return points, objects
    points, boxes = points.copy(), objects.boxes.copy()
    points[:, 1] *= -1
    boxes[:, 1] *= -1
    boxes[:, 6] = np.pi - boxes[:, 6]
    return points, objects._replace(boxes=boxes)


def turn_and_scale(
    points: np.ndarray, objects: LidarObjects, rng: np.random.Generator, how: LidarAugmentation
) -> Sample:
    """Turns the frame about the sensor and scales it."""
    angle, factor = rng.uniform(-how.turn, how.turn), rng.uniform(*how.scale)
    points, boxes = points.copy(), objects.boxes.copy()
    for array in (points, boxes):
        array[:, :2] = lidar_boxes.turn(array[:, :2], angle)
        array[:, :3] *= factor
    boxes[:, 3:6] *= factor
    boxes[:, 6] += angle
    return points, objects._replace(boxes=boxes)


def in_range(points: np.ndarray, objects: LidarObjects, how: LidarAugmentation) -> Sample:
    """Cuts points and boxes to the range, yaws to [-pi, pi)."""
    low, high = (np.array(v, np.float32) for v in (how.low, how.high))
    points = points[((points[:, :3] > low) & (points[:, :3] < high)).all(1)]
    centre = objects.boxes[:, :2]
    inner = (centre > low[:2]) & (centre < high[:2])
    objects = objects.select(np.flatnonzero(inner.all(1)))
    boxes = objects.boxes.copy()
    boxes[:, 6] = lidar_boxes.wrap(boxes[:, 6])
    return points, objects._replace(boxes=boxes)
