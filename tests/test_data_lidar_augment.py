"""Augmentations of sweeps: boxes keep their points, nothing collides, everything is in range."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.data import lidar_augment, lidar_boxes
from jaxcomp.data.lidar_augment import LidarAugmentation, StoredObject
from jaxcomp.data.lidar_boxes import LidarObjects
from jaxcomp.ops import anchors3d, rotated

HOW = LidarAugmentation()
STILL = dataclasses.replace(HOW, fill=(0, 0, 0), shift=(0, 0, 0), object_turn=0.0, flip=0.0,
                            turn=0.0, scale=(1.0, 1.0))  # fmt: skip


def frame(seed, count=6):
    """Boxes apart from each other, ten points in each, some elsewhere."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((count, 7), np.float32)
    boxes[:, 0] = 8 + 9 * np.arange(count)
    boxes[:, 1] = rng.uniform(-12, 12, count)
    boxes[:, 2] = rng.uniform(-1.9, -1.5, count)
    boxes[:, 3:6] = rng.uniform((0.5, 0.8, 1.4), (1.8, 4.2, 1.8), (count, 3))
    boxes[:, 6] = rng.uniform(-3, 3, count)
    share = rng.uniform(-0.4, 0.4, (count, 10, 3)).astype(np.float32)
    along = (share[..., :2] * boxes[:, None, 3:5]) @ lidar_boxes.axes(boxes[:, 6])
    place = np.concatenate([along, (share[..., 2:] + 0.5) * boxes[:, None, 5:6]], -1)
    own = (place + boxes[:, None, :3]).reshape(-1, 3)
    free = rng.uniform((2, 20, -1), (60, 30, 0.6), (50, 3))
    points = np.concatenate([own, free])
    points = np.concatenate([points, rng.random((len(points), 1))], 1).astype(np.float32)
    labels = rng.integers(-1, 3, count).astype(np.int32)
    return points, LidarObjects(boxes, labels, np.zeros(count, np.int32))


def held(points, objects):
    return [int(lidar_boxes.inside(points, box).sum()) for box in objects.boxes]


def grown(objects, by=1e-3):
    boxes = objects.boxes.copy()
    boxes[:, 2] -= by
    boxes[:, 3:6] += 2 * by
    return objects._replace(boxes=boxes)


# --- geometry -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6))
def test_collision_is_a_shared_area(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform([-3, -3, 0, 0.2, 0.2, 1, -4], [3, 3, 0, 4, 4, 1, 4], (5, 7))
            for _ in range(2))  # fmt: skip
    flat = [x[:, [0, 1, 3, 4, 6]] for x in (a, b)]
    shared = rotated.pair_areas(*flat, *(i.ravel() for i in np.indices((5, 5)))).reshape(5, 5)
    found = lidar_boxes.collide(a, b)
    clear = (shared > 1e-6) | (shared == 0)
    np.testing.assert_array_equal(found[clear], shared[clear] > 0)
    np.testing.assert_array_equal(found.T, lidar_boxes.collide(b, a))


def test_axes_are_those_of_the_rectangles():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-3, 3, (20, 7))
    boxes[:, 3:6] = np.abs(boxes[:, 3:6])
    flat = boxes[:, [0, 1, 3, 4, 6]]
    np.testing.assert_allclose(lidar_boxes.corners(boxes), rotated.corners(flat), atol=1e-9)


def test_points_inside_are_between_the_faces():
    box = np.array([5.0, 1.0, -1.0, 2.0, 4.0, 1.5, math.pi / 2])  # length along x
    points = np.array([[6.9, 1.9, 0.0], [7.1, 1.0, 0.0], [5.0, 2.1, 0.0], [5, 1, -1.1], [5, 1, 0.6],
                       [5.0, 1.0, -1.0], [5.0, 1.0, 0.5]])  # fmt: skip
    assert lidar_boxes.inside(points, box).tolist() == [True] + [False] * 4 + [True] * 2
    assert lidar_boxes.inside(points[:0], box).shape == (0,)


def test_turning_points_goes_with_the_yaw():
    box = np.array([[0.0, 0, 0, 1, 4, 1, 0.4]])
    turned = box.copy()
    turned[0, 6] += 0.9
    corners = lidar_boxes.turn(lidar_boxes.corners(box)[0], 0.9)
    np.testing.assert_allclose(corners, lidar_boxes.corners(turned)[0], atol=1e-12)


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["move_objects", "flip", "turn_and_scale"])
def test_boxes_keep_their_points(step):
    how = dataclasses.replace(HOW, flip=1.0, object_turn=0.5)
    for seed in range(5):
        points, objects = frame(seed)
        before = points.copy(), objects.boxes.copy()
        rng = np.random.default_rng(seed)
        new_points, new = getattr(lidar_augment, step)(points, objects, rng, how)
        assert held(new_points, grown(new)) == held(points, grown(objects)) == [10] * 6
        assert (new.boxes != objects.boxes).any() and len(new_points) == len(points)
        np.testing.assert_array_equal(points, before[0])  # the input is left alone
        np.testing.assert_array_equal(objects.boxes, before[1])
        np.testing.assert_array_equal(new_points[:, 3], points[:, 3])


def test_mirroring_twice_and_turning_there_and_back_change_nothing():
    points, objects = frame(1)
    how = dataclasses.replace(HOW, flip=1.0)
    rng = np.random.default_rng(0)
    twice = lidar_augment.flip(*lidar_augment.flip(points, objects, rng, how), rng, how)
    np.testing.assert_allclose(twice[0], points)
    np.testing.assert_allclose(twice[1].boxes, objects.boxes, atol=1e-6)


def test_yaw_direction_survives_mirroring():
    points, objects = frame(2)
    how = dataclasses.replace(HOW, flip=1.0)
    _, new = lidar_augment.flip(points, objects, np.random.default_rng(0), how)
    ahead, mirrored = (lidar_boxes.axes(o.boxes[:, 6])[:, 1] for o in (objects, new))
    np.testing.assert_allclose(mirrored, ahead * [1, -1], atol=1e-6)
    assert anchors3d.direction_labels(new.boxes[:, 6]).shape == (6,)


def test_moved_objects_do_not_collide_and_blocked_ones_stay():
    box = np.float32([10, 0, -1, 2, 4, 1.5, 0])
    boxes = np.stack([box + np.float32([2.0 * i, 0, 0, 0, 0, 0, 0]) for i in range(4)])  # touching
    objects = LidarObjects(boxes, np.zeros(4, np.int32), np.zeros(4, np.int32))
    how = dataclasses.replace(HOW, tries=3, shift=(0.3, 0.0, 0.0), object_turn=0.0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, new = lidar_augment.move_objects(np.zeros((0, 4), np.float32), objects, rng, how)
        collisions = lidar_boxes.collide(new.boxes, new.boxes) & ~np.eye(4, dtype=bool)
        assert not collisions.any()


def database(seed=0):
    points, objects = frame(seed, 6)
    objects = objects._replace(labels=np.arange(6, dtype=np.int32) % 3)
    return lidar_augment.make_database([(points, objects)], 3, HOW.fill_points)


def test_the_database_takes_objects_with_a_class_a_difficulty_and_points():
    points, objects = frame(0)
    labels = np.array([0, 1, 2, 2, -1, 2], np.int32)
    levels = np.array([0, 1, 2, -1, 0, 0], np.int32)
    points = points[~lidar_boxes.inside(points, grown(objects).boxes[5])]
    found = lidar_augment.make_database(
        [(points, LidarObjects(objects.boxes, labels, levels))], 3, (10, 11, 5)
    )
    assert [len(items) for items in found] == [1, 0, 1]
    item = found[2][0]
    assert len(item.points) == 10 and np.abs(item.points[:, :2]).max() < 3
    np.testing.assert_array_equal(item.box, objects.boxes[2])


def test_pasted_objects_bring_their_points_first_and_clear_the_place():
    rng = np.random.default_rng(0)
    none = LidarObjects(np.zeros((0, 7), np.float32), np.zeros(0, np.int32), np.zeros(0, np.int32))
    stored = database()
    street = rng.uniform((0, -15, -2, 0), (60, 15, 0, 1), (20000, 4)).astype(np.float32)
    how = dataclasses.replace(HOW, fill=(1, 2, 1))
    points, objects = lidar_augment.paste(street, none, rng, how, stored)
    assert sorted(objects.labels.tolist()) == [0, 1, 1, 2]
    assert held(points[:40], grown(objects)) == [10] * 4
    inner = objects.boxes.copy()
    inner[:, 3:6] -= 0.01
    inner[:, 2] += 0.005
    assert sum(held(points[40:], objects._replace(boxes=inner))) == 0
    assert len(points) < 20040


def test_pasting_fills_up_and_rejects_collisions():
    stored = database()
    points, objects = frame(0)  # the same places: everything collides
    rng = np.random.default_rng(0)
    same = lidar_augment.paste(points, objects, rng, HOW, stored)
    np.testing.assert_array_equal(same[1].boxes, objects.boxes)
    copies = [[StoredObject(item.box, 0, item.points) for item in items * 3] for items in stored]
    empty = LidarObjects(*(c[:0] for c in objects))
    _, found = lidar_augment.paste(points[:0], empty, rng, HOW, copies)
    assert len(found.labels) == 6  # of three copies at a place one is taken
    elsewhere = objects.boxes + np.float32(100)
    full = LidarObjects(elsewhere, np.zeros(6, np.int32), objects.difficulty)
    how = dataclasses.replace(HOW, fill=(6, 0, 0))
    assert len(lidar_augment.paste(points, full, rng, how, stored)[1].labels) == 6


def test_all_steps_keep_points_and_boxes_in_range():
    points, objects = frame(3)
    points = np.concatenate([points, [[500, 0, 0, 0], [10, 0, 5, 0]]]).astype(np.float32)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        new, found = lidar_augment.augment(points, objects, rng, HOW, database())
        assert new.dtype == found.boxes.dtype == np.float32
        assert ((new[:, :3] > HOW.low) & (new[:, :3] < HOW.high)).all()
        assert ((found.boxes[:, :2] > HOW.low[:2]) & (found.boxes[:, :2] < HOW.high[:2])).all()
        assert (np.abs(found.boxes[:, 6]) <= math.pi + 1e-6).all()
        collisions = lidar_boxes.collide(found.boxes, found.boxes)
        assert not (collisions & ~np.eye(len(collisions), dtype=bool)).any()


def test_without_any_change_only_the_order_differs():
    points, objects = frame(4)
    new, found = lidar_augment.augment(points, objects, np.random.default_rng(0), STILL)
    np.testing.assert_allclose(found.boxes, objects.boxes, atol=1e-6)
    assert (new != points).any()
    np.testing.assert_allclose(np.sort(new, 0), np.sort(points, 0), atol=1e-6)


def test_a_frame_without_anything_goes_through():
    points, objects = frame(5)
    empty = LidarObjects(*(c[:0] for c in objects))
    new, found = lidar_augment.augment(points[:0], empty, np.random.default_rng(0), HOW)
    assert new.shape == (0, 4) and found.boxes.shape == (0, 7)
