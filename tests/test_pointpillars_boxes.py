"""Lidar boxes as KITTI results: there and back, projection, angles, filters."""

import numpy as np
import pytest

from jaxcomp.data import kitti_format, lidar
from jaxcomp.data.kitti_format import Calibration, KittiObject
from jaxcomp.data.lidar_boxes import lidar_objects
from jaxcomp.evaluate.kitti_frames import KittiFrame
from jaxcomp.ops import boxes3d

CLASSES = ("Pedestrian", "Cyclist", "Car")
# Axes as KITTI's: the camera's x is the lidar's -y, its y -z, its z x.
TURN = np.array([[0.0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3]])
P2 = np.array([[700.0, 0, 600, 40], [0, 700, 180, 1], [0, 0, 1, 0.003]])
PLAIN = Calibration(P2, np.eye(3), TURN)


def columns(boxes, **options):
    boxes = np.asarray(boxes, float).reshape(-1, 7)
    count = len(boxes)
    return boxes3d.kitti_columns(
        boxes, np.linspace(1, 0.5, count), np.arange(count) % 3, PLAIN, (375, 1242), CLASSES,
        **options,
    )  # fmt: skip


def test_labels_survive_the_way_to_lidar_and_back():
    rng = np.random.default_rng(0)
    objects = [
        KittiObject(
            CLASSES[i % 3], 0.0, 0, 0.0, (0, 0, 50, 50), tuple(rng.uniform(0.5, 4, 3)),
            (*rng.uniform(-9, 9, 2), rng.uniform(5, 50)), rng.uniform(-3.1, 3.1),
        )
        for i in range(30)
    ]  # fmt: skip
    found = lidar_objects(objects, PLAIN, CLASSES)
    back = boxes3d.to_camera(found.boxes, PLAIN)
    np.testing.assert_allclose(back["location"], [o.location for o in objects], atol=1e-5)
    np.testing.assert_allclose(back["dimensions"], [o.dimensions for o in objects], atol=1e-6)
    np.testing.assert_allclose(back["rotation_y"], [o.rotation_y for o in objects], atol=1e-6)


def overlap(a, b):
    """IoU of two 2-D boxes, and the share of the second inside the first."""
    size = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    shared, one, two = size.prod(), (a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()
    return shared / (one + two - shared), shared / two


def test_real_labels_agree_in_box_and_angle(shared):
    frames = lidar.kitti_frames(str(shared / "data" / "kitti"))["validation"]
    shared_part = []
    for frame in frames:
        objects = [o for o in frame.objects if o.type in CLASSES and o.truncated == 0]
        boxes = lidar_objects(objects, frame.calibration, CLASSES).boxes
        out = boxes3d.kitti_columns(
            boxes, np.ones(len(boxes)), [CLASSES.index(o.type) for o in objects],
            frame.calibration, (frame.height, frame.width), CLASSES, low=None, high=None,
        )  # fmt: skip
        assert out["type"] == [o.type for o in objects]
        for i, item in enumerate(objects):
            turned = (out["alpha"][i] - item.alpha + np.pi) % (2 * np.pi) - np.pi
            assert abs(turned) < 0.05
            shared_part.append(overlap(out["box"][i], np.array(item.box)))
    iou, covered = np.array(shared_part).T
    # The corners of a turned person's box span more than its outline, which is what is labelled.
    assert len(iou) > 30 and np.median(iou) > 0.95 and covered.min() > 0.85


def test_a_car_straight_ahead():
    out = columns([[20, 0, -1.7, 1.6, 3.9, 1.5, np.pi / 2]], high=(70, 40, 1))
    np.testing.assert_allclose(out["location"], [[0.1, 1.5, 19.7]])
    np.testing.assert_allclose(out["dimensions"], [[1.5, 1.6, 3.9]])
    # Its length lies along the lidar's x, so its near end is half of it closer.
    depth = 20 - 0.3 - 3.9 / 2
    left, right = (700 * (0.1 + s * 0.8) + 600 * depth + 40 for s in (-1, 1))
    ends = np.array([left, right]) / (depth + 0.003)
    np.testing.assert_allclose(out["box"][0, [0, 2]], ends, atol=0.5)
    assert out["alpha"][0] == pytest.approx(np.pi / 2 - np.arctan2(0.1, 19.7))


def test_range_and_image_filters():
    size = [1.6, 3.9, 1.5, 0]
    boxes = [
        [20, 0, -1.7, *size],
        [20, 0, 0.5, *size],  # above the usual limit
        [20, 39, -1.7, *size],  # beside the image
        [-9, 0, -1.7, *size],  # behind
        [80, 0, -1.7, *size],  # too far
    ]
    assert len(columns(boxes)["type"]) == 1
    assert len(columns(boxes, high=(70.4, 40.0, 1.0))["type"]) == 2
    assert len(columns(boxes, low=None)["type"]) == 3
    assert len(columns(boxes, low=None, in_image=False)["type"]) == 5
    assert len(columns(boxes, valid=[False] * 5)["type"]) == 0


def test_results_are_what_the_evaluation_takes():
    out = columns(np.zeros((0, 7)))
    assert len(KittiFrame(**out)) == 0
    frame = KittiFrame(**columns([[20, 0, -1.7, 1.6, 3.9, 1.5, 0.3]] * 3))
    assert frame.type == ("Pedestrian", "Cyclist", "Car") and frame.scored
    text = kitti_format.format_labels([KittiObject(**row) for row in frame.rows()])
    assert kitti_format.parse_labels(text)[0].score == pytest.approx(1.0)


def test_corners_are_where_the_box_says():
    corners = boxes3d.camera_corners([[1.0, 2.0, 10.0]], [[1.5, 1.6, 3.9]], [0.0])[0]
    np.testing.assert_allclose(corners.min(0), [1 - 1.95, 0.5, 10 - 0.8])
    np.testing.assert_allclose(corners.max(0), [1 + 1.95, 2.0, 10 + 0.8])
    turned = boxes3d.camera_corners([[0, 0, 0]], [[1.5, 1.6, 3.9]], [np.pi / 2])[0]
    np.testing.assert_allclose(turned.max(0), [0.8, 0.0, 1.95], atol=1e-9)
