"""Detection metrics against the stored reference numbers, and on cases with known answers."""

import json

import numpy as np
import pytest

from jaxcomp.evaluate.detection import Frame, coco_metrics, match_class, voc_metrics

CLASSES = ("Car", "Pedestrian", "Cyclist")


def parse(text, scored):
    rows = [line.split() for line in text.splitlines() if line.strip()]
    rows = [r for r in rows if r[0] in CLASSES]
    boxes = np.array([[float(v) for v in r[4:8]] for r in rows]).reshape(-1, 4)
    labels = np.array([CLASSES.index(r[0]) + 1 for r in rows], int)
    return boxes, labels, np.array([float(r[15]) for r in rows]) if scored else None


@pytest.fixture(scope="module")
def reference(shared):
    path = shared / "oracles" / "metrics_kitti_voc_coco"
    arrays = np.load(path.with_suffix(".npz"), allow_pickle=False)
    json.loads(path.with_suffix(".json").read_text())
    frames = []
    for truth, found in zip(arrays["gt_text"], arrays["det_text"], strict=True):
        truth_boxes, truth_labels, _ = parse(str(truth), False)
        boxes, labels, scores = parse(str(found), True)
        frames.append(Frame(boxes, scores, labels, truth_boxes, truth_labels))
    return frames, arrays


def test_voc_matches_reference(reference):
    frames, arrays = reference
    got = voc_metrics(frames, CLASSES)
    np.testing.assert_allclose(
        [got["map50"], got["map50_allpoint"]], arrays["voc_map_11pt_allpt"], atol=1e-9
    )
    for row, label in zip(arrays["voc"], (1, 2, 3), strict=True):
        result = match_class(frames, label)
        counts = (result.truth_count, len(result.scores), result.true_positive.sum())
        assert counts == tuple(row[:3].astype(int))
        assert got[f"ap50_{CLASSES[label - 1]}"] == pytest.approx(row[3], abs=1e-9)


def test_coco_matches_reference(reference):
    frames, arrays = reference
    got = coco_metrics(frames, CLASSES)
    np.testing.assert_allclose(list(got.values()), arrays["coco_stats12"], atol=1e-9)


BOX = np.array([[10.0, 10, 30, 30]])
NONE = np.zeros((0, 4))


def frame(boxes=NONE, scores=(), labels=(), truth=NONE, truth_labels=(), ignore=NONE):
    return Frame(
        np.asarray(boxes, float), np.asarray(scores, float), np.asarray(labels, int),
        np.asarray(truth, float), np.asarray(truth_labels, int), np.asarray(ignore, float),
    )  # fmt: skip


def test_detection_of_another_image_is_no_match():
    frames = [frame(BOX, [0.9], [1]), frame(truth=BOX, truth_labels=[1])]
    assert voc_metrics(frames, ("Car",))["map50"] == 0.0


def test_second_detection_of_an_object_is_wrong():
    twice = frame(np.repeat(BOX, 2, 0), [0.9, 0.8], [1, 1], BOX, [1])
    result = match_class([twice], 1)
    assert result.true_positive.tolist() == [True, False]


def test_ignored_region_swallows_false_alarms_only():
    alarm = frame(BOX, [0.9], [1], ignore=BOX)
    assert len(match_class([alarm], 1).scores) == 0
    hit = frame(BOX, [0.9], [1], BOX, [1], ignore=BOX)
    assert match_class([hit], 1).true_positive.tolist() == [True]


def test_no_detections_and_no_objects_are_zero():
    assert voc_metrics([frame(truth=BOX, truth_labels=[1])], ("Car", "Pedestrian"))["map50"] == 0.0
    assert coco_metrics([frame(truth=BOX, truth_labels=[1])], ("Car",))["coco_ap"] == 0.0


def test_perfect_detections_score_one():
    perfect = frame(BOX, [0.5], [1], BOX, [1])
    got = voc_metrics([perfect], ("Car",))
    assert got["map50"] == got["map50_allpoint"] == got["f1_50"] == 1.0
    assert coco_metrics([perfect], ("Car",))["coco_ap"] == pytest.approx(1.0)
