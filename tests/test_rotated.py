"""Rotated rectangles: known areas, two implementations, an independent check, reference pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.errors import ShapeError
from jaxcomp.ops import rotated

FORMS = {
    "arrays": lambda a, b: rotated.intersection_area(a, b),
    "loop": lambda a, b: rotated.pair_areas(a, b, np.arange(len(a)), np.arange(len(b))),
}


@pytest.fixture(params=FORMS)
def shared_area(request):
    return FORMS[request.param]


def numbers(low, high):
    return st.floats(low, high, allow_subnormal=False)


boxes = st.tuples(
    numbers(-3, 3), numbers(-3, 3), numbers(0.01, 5), numbers(0.01, 5), numbers(-7, 7)
).map(lambda row: np.array([row]))


def test_reference_pairs(shared, shared_area):
    oracle = np.load(shared / "oracles" / "pointpillars.npz", allow_pickle=False)
    a, b = oracle["riou_boxes_a"], oracle["riou_boxes_b"]
    area = shared_area(a, b)
    iou = area / (rotated.area(a) + rotated.area(b) - area)
    np.testing.assert_allclose(iou, oracle["riou"], atol=1e-9, rtol=0)
    np.testing.assert_allclose(rotated.iou(a, b), oracle["riou"], atol=1e-9, rtol=0)
    matrix = rotated.iou_matrix(a, b)
    np.testing.assert_allclose(np.diag(matrix), oracle["riou"], atol=1e-9, rtol=0)


def test_known_areas(shared_area):
    square, turned = [0, 0, 2, 2, 0], [0, 0, 2, 2, np.pi / 4]
    cases = [
        (square, square, 4.0),
        (square, turned, 8 * (np.sqrt(2) - 1)),  # the regular octagon of width 2
        (square, [1, 1, 2, 2, 0], 1.0),
        (square, [2, 0, 2, 2, 0], 0.0),  # they share a side
        (square, [9, 0, 2, 2, 1], 0.0),
        (square, [0.2, 0.1, 0.5, 1.0, 0.3], 0.5),  # one inside the other
        ([5, 5, 4, 1, 0.7], [5, 5, 1, 4, 0.7], 1.0),  # a cross
        ([3, 1, 4, 2, 0.3], [3, 1, 4, 2, 0.3 + np.pi], 8.0),
        ([3, 1, 4, 2, 0.3], [3, 1, 2, 4, 0.3 + np.pi / 2], 8.0),
        (square, [0, 0, 0, 2, 0], 0.0),
        (square, [0, 0, -1, -1, 0], 0.0),
    ]
    a, b, expected = (np.array(x, float) for x in zip(*cases, strict=True))
    np.testing.assert_allclose(shared_area(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(shared_area(b, a), expected, atol=1e-12)


def test_corners_turn_clockwise_and_are_in_order():
    np.testing.assert_allclose(
        rotated.corners(np.array([1.0, 2.0, 4.0, 2.0, 0.0])), [[3, 3], [-1, 3], [-1, 1], [3, 1]]
    )
    # KITTI: x' = cos(ry) x + sin(ry) z, z' = -sin(ry) x + cos(ry) z.
    first = rotated.corners(np.array([0.0, 0.0, 4.0, 2.0, np.pi / 2]))[0]
    np.testing.assert_allclose(first, [1.0, -2.0], atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(boxes, boxes)
def test_bounds_symmetry_and_agreement(a, b):
    both = [form(x, y)[0] for form in FORMS.values() for x, y in ((a, b), (b, a))]
    np.testing.assert_allclose(both, both[0], atol=1e-12)
    assert 0 <= both[0] <= min(rotated.area(a)[0], rotated.area(b)[0]) + 1e-12
    assert rotated.iou(a, a)[0] == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes, numbers(-50, 50), numbers(-50, 50), numbers(-4, 4))
def test_moving_both_changes_nothing(a, b, x, y, turn):
    cos, sin = np.cos(turn), np.sin(turn)

    def moved(box):
        centre = [cos * box[:, 0] + sin * box[:, 1] + x, cos * box[:, 1] - sin * box[:, 0] + y]
        return np.stack([*centre, box[:, 2], box[:, 3], box[:, 4] + turn], -1)

    np.testing.assert_allclose(
        rotated.intersection_area(moved(a), moved(b)), rotated.intersection_area(a, b), atol=1e-10
    )


def half_plane_area(a, b):
    """The same another way: corners of the cell that eight half-planes leave, by their angle."""
    planes = []
    for x, y, w, h, t in (*a, *b):
        for n, d in (((np.cos(t), -np.sin(t)), w / 2), ((np.sin(t), np.cos(t)), h / 2)):
            planes += [(*n, n[0] * x + n[1] * y + d), (-n[0], -n[1], -n[0] * x - n[1] * y + d)]
    p = np.array(planes)
    points = []
    for i, j in itertools.combinations(range(8), 2):
        if abs(np.linalg.det(p[[i, j], :2])) > 1e-9:
            point = np.linalg.solve(p[[i, j], :2], p[[i, j], 2])
            if (p[:, :2] @ point <= p[:, 2] + 1e-9).all():
                points.append(point)
    if len(points) < 3:
        return 0.0
    points = np.array(points) - np.mean(points, 0)
    x, y = points[np.argsort(np.arctan2(points[:, 1], points[:, 0]))].T
    return 0.5 * abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_against_the_cell_of_the_half_planes(a, b):
    expected = half_plane_area(a, b)
    assert rotated.intersection_area(a, b)[0] == pytest.approx(expected, abs=1e-6)


def test_against_counted_points(shared_area):
    rng = np.random.default_rng(3)
    a, b = (
        np.column_stack([*rng.uniform(-1, 1, (2, 30)), *rng.uniform(1, 4, (2, 30)), angles])
        for angles in rng.uniform(-4, 4, (2, 30))
    )
    side = 400
    grid = (np.indices((side, side)).reshape(2, -1).T + 0.5) / side * 10 - 5

    def inside(box):
        axes = np.array([[np.cos(box[4]), np.sin(box[4])], [-np.sin(box[4]), np.cos(box[4])]])
        return (np.abs((grid - box[:2]) @ axes) <= box[2:4] / 2).all(1)

    counted = [(inside(p) & inside(q)).sum() * (10 / side) ** 2 for p, q in zip(a, b, strict=True)]
    # Cells of 0.025 along an outline of at most 16: 0.4 if all erred alike, but they cancel.
    np.testing.assert_allclose(shared_area(a, b), counted, atol=0.05)


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"\(3, 4\).*\[\.\.\., 5\]"):
        rotated.iou(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ShapeError, match="outside of 2 rectangles"):
        rotated.pair_areas(np.zeros((2, 5)), np.zeros((2, 5)), [2], [0])
    assert rotated.iou_matrix(np.zeros((0, 5)), np.zeros((3, 5))).shape == (0, 3)


def test_read_only_and_strided_arrays_are_taken():
    a = np.tile([0.0, 0.0, 2.0, 2.0, 0.0], (4, 1))
    a.flags.writeable = False
    rows = np.arange(2)
    rows.flags.writeable = False
    np.testing.assert_allclose(rotated.pair_areas(a[::2], a[::-1], rows, rows), 4.0)
