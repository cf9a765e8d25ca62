"""WIDERFace: the evaluation against stored figures and a slow one, labels, prediction files."""

import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.data.matlab import read_matlab
from jaxcomp.data.widerface import (
    read_face_boxes,
    read_landmark_labels,
    read_widerface_truth,
)
from jaxcomp.errors import DataError
from jaxcomp.evaluate.widerface import average_precision, evaluate_widerface, text_table
from jaxcomp.evaluate.widerface_files import read_predictions, write_predictions

LEVELS = ("easy", "medium", "hard")


@pytest.fixture(scope="module")
def oracle(shared):
    return np.load(shared / "oracles" / "metrics_wider.npz", allow_pickle=False)


def scene_of(oracle):
    names = {i: f"event/{i}" for i in range(40)}
    truth = {n: oracle["gt"][oracle["gt"][:, 0] == i, 1:] for i, n in names.items()}
    found = {n: oracle["pred"][oracle["pred"][:, 0] == i, 1:] for i, n in names.items()}
    subsets = {}
    for level in LEVELS:
        keep = oracle[f"keep_{level}"]
        subsets[level] = {n: np.zeros(len(truth[n]), bool) for n in names.values()}
        for image, face in keep:
            subsets[level][names[image]][face - 1] = True
    return truth, found, subsets


def test_stored_figures(oracle):
    result = evaluate_widerface(*scene_of(oracle))
    aps = [result["subsets"][level]["ap"] for level in LEVELS] + [result["mean"]]
    np.testing.assert_allclose(aps, oracle["ap_easy_medium_hard_mean"], atol=1e-9, rtol=0)
    for level in LEVELS:
        curve = result["subsets"][level]["curve"]
        ours = np.stack([curve["precision"], curve["recall"]], 1)
        wanted = np.nan_to_num(oracle[f"pr_{level}"])
        np.testing.assert_allclose(ours, wanted, atol=1e-12, rtol=0)
    json.dumps(result)
    assert "vga640" in text_table(result, "vga640")


def slow(truth, found, kept):
    """The rules, one threshold and image after the other."""
    scores = np.concatenate([d[:, 4] for d in found.values()])
    low, high = min(scores.min(), 1), max(scores.max(), 0)
    curve = []
    for step in range(1000):
        threshold, proposals, right = 1 - (step + 1) / 1000, 0, 0
        for name, faces in truth.items():
            detections = found[name]
            if len(faces) == 0 or len(detections) == 0:
                continue
            reach = np.flatnonzero((detections[:, 4] - low) / (high - low) >= threshold)
            taken = set()
            for x, y, w, h, _ in detections[: reach[-1] + 1 if len(reach) else 0]:
                corners = faces[:, :2] + faces[:, 2:]
                size = np.minimum(corners, (x + w, y + h)) - np.maximum(faces[:, :2], (x, y)) + 1
                inside = np.prod(np.maximum(size, 0), 1)
                overlap = inside / ((w + 1) * (h + 1) + np.prod(faces[:, 2:] + 1, 1) - inside)
                best = overlap.argmax()
                if overlap[best] >= 0.5 and not kept[name][best]:
                    continue
                proposals += 1
                if overlap[best] >= 0.5 and best not in taken:
                    taken.add(best)
                    right += 1
        curve.append((proposals, right))
    return np.array(curve)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_against_the_slow_form(seed):
    """Also with lists that are not sorted, images without faces and without detections."""
    rng = np.random.default_rng(seed)
    truth, found, kept = {}, {}, {}
    for i in range(5):
        faces = rng.integers(1, 30, (rng.integers(0, 5), 4)).astype(float)
        own = faces[rng.integers(0, max(len(faces), 1), rng.integers(0, 7))] if len(faces) else []
        own = np.reshape(own, (-1, 4)) + rng.integers(-3, 4, (len(own), 4))
        truth[f"e/{i}"], kept[f"e/{i}"] = faces, rng.random(len(faces)) < 0.6
        found[f"e/{i}"] = np.column_stack([own, rng.random(len(own))])
    if sum(map(len, found.values())) < 2 or not any(k.any() for k in kept.values()):
        return
    part = evaluate_widerface(truth, found, {"all": kept})["subsets"]["all"]
    proposals, right = slow(truth, found, kept).T
    np.testing.assert_allclose(part["curve"]["precision"], right / np.maximum(proposals, 1))
    faces = sum(k.sum() for k in kept.values())
    np.testing.assert_allclose(part["curve"]["recall"], right / faces)


def test_perfect_and_empty_results():
    truth = {"e/a": [[10, 10, 20, 20], [50, 50, 8, 8]], "e/b": []}
    subsets = {"easy": {"e/a": [True, False], "e/b": []}}
    exact = {"e/a": [[10, 10, 20, 20, 0.9], [50, 50, 8, 8, 0.3]], "e/b": []}
    assert evaluate_widerface(truth, exact, subsets)["subsets"]["easy"]["ap"] == 1.0
    none = evaluate_widerface(truth, {"e/a": [], "e/b": []}, subsets)
    assert none["subsets"]["easy"]["ap"] == 0.0
    nobody = {"easy": {"e/a": [False, False], "e/b": []}}
    assert evaluate_widerface(truth, exact, nobody)["subsets"]["easy"]["ap"] is None
    same = {"e/a": [[10, 10, 20, 20, 0.5]], "e/b": []}
    result = evaluate_widerface(truth, same, subsets)
    assert result["subsets"]["easy"]["ap"] == 1.0 and "same" in result["notes"][0]


def test_average_precision_of_a_known_curve():
    assert average_precision(np.array([0.5, 1.0]), np.array([1.0, 0.5])) == 0.75


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({}, "missing"),
        ({"e/a": [], "e/z": []}, "e/z"),
        ({"e/a": [[1, 2, 3, 4]]}, "shape"),
        ({"e/a": [[1, 2, 3, 4, np.nan]]}, "finite"),
    ],
)
def test_bad_detections(found, word):
    with pytest.raises(DataError, match=word):
        evaluate_widerface({"e/a": [[1, 2, 3, 4]]}, found, {"easy": {"e/a": [True]}})


def test_prediction_files_round_trip(tmp_path):
    found = {
        "0--Parade/a": np.array([[1.6, 2.2, 10.9, 5, 0.25], [3, 4, 5, 6, 0.75]]),
        "1--Handshaking/b": np.zeros((0, 5)),
    }
    write_predictions(tmp_path, found)
    ours = read_predictions(tmp_path)
    assert list(ours) == list(found) and ours["1--Handshaking/b"].shape == (0, 5)
    np.testing.assert_array_equal(ours["0--Parade/a"], [[3, 4, 5, 6, 0.75], [1, 2, 11, 5, 0.25]])
    write_predictions(tmp_path, found, whole_pixels=False)
    np.testing.assert_array_equal(
        read_predictions(tmp_path, found)["0--Parade/a"], found["0--Parade/a"][::-1]
    )
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "name"),
        ("b\n0\n", "name"),
        ("a\n2\n1 2 3 4 0.5\n", "2 finite"),
        ("a\n1\n1 2 3 4\n", "every line"),
        ("a\n1\n1 2 3 x 0.5\n", "every line"),
        ("a\n1\n1 2 3 4 nan\n", "finite"),
        ("a\nmany\n", "every line"),
    ],
)
def test_bad_prediction_files(tmp_path, text, word):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "a.txt").write_text(text)
    with pytest.raises(DataError, match=word):
        read_predictions(tmp_path)
    with pytest.raises(DataError, match="missing"):
        read_predictions(tmp_path, ["e/c"])
    with pytest.raises(DataError, match="no such folder"):
        read_predictions(tmp_path / "none")
    with pytest.raises(DataError, match="event/image"):
        write_predictions(tmp_path, {"../x": []})


def test_official_ground_truth(shared):
    truth = read_widerface_truth(shared / "data" / "widerface")
    assert len(truth.boxes) == 3226
    counts = {k: sum(int(m.sum()) for m in v.values()) for k, v in truth.subsets.items()}
    assert counts == {"easy": 7211, "medium": 13319, "hard": 31958}
    first = next(iter(truth.boxes))
    assert first == "0--Parade/0_Parade_marchingband_1_465" and truth.boxes[first].shape == (126, 4)


def test_official_ground_truth_against_scipy(shared):
    io = pytest.importorskip("scipy.io")
    path = shared / "data" / "widerface" / "wider_hard_val.mat"
    theirs, ours = io.loadmat(path), read_matlab(path)
    assert set(ours) == {k for k in theirs if not k.startswith("_")}
    for i in (0, 30, 60):
        for j in (0, len(ours["file_list"][i]) - 1):
            for name in ("gt_list", "face_bbx_list"):
                np.testing.assert_array_equal(ours[name][i][j], theirs[name][i, 0][j, 0])


@pytest.mark.parametrize("how", ["short", "flipped", "text", "none"])
def test_damaged_matlab_files(shared, tmp_path, how):
    content = (shared / "data" / "widerface" / "wider_easy_val.mat").read_bytes()
    path = tmp_path / "x.mat"
    if how == "short":
        path.write_bytes(content[:5000])
    elif how == "flipped":
        path.write_bytes(content[:300] + bytes([content[300] ^ 255]) + content[301:])
    elif how == "text":
        path.write_bytes(zlib.compress(b"x" * 1000))
    with pytest.raises(DataError):
        read_matlab(path)


BOXES = """0--Parade/a.jpg
2
449 330 122 149 0 0 0 0 0 0
-5 4 20 30 2 0 1 0 2 0
0--Parade/empty.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/b.jpg
1
10 20 0 0 0 0 0 1 0 0
"""


def test_box_labels(tmp_path):
    path = tmp_path / "gt.txt"
    path.write_text(BOXES)
    a, empty, b = read_face_boxes(path)
    assert (a.image, len(a), len(empty), len(b)) == ("0--Parade/a.jpg", 2, 0, 1)
    assert a.attributes[1].tolist() == [2, 0, 1, 0, 2, 0] and not a.has_landmarks.any()
    assert empty.landmarks.shape == (0, 5, 2)
    assert len(b.inside(100, 100)) == 0  # no area
    clipped = a.inside(400, 500)
    np.testing.assert_array_equal(clipped.boxes, [[449, 330, 51, 70], [0, 4, 15, 30]])
    assert len(a.inside(2, 2)) == 0


def test_landmark_labels(tmp_path):
    marked = " ".join(f"{10 + i} {20 + i} 0.0" for i in range(5))
    path = tmp_path / "label.txt"
    path.write_text(
        f"# a/b.jpg\n1 2 30 40 {marked} 0.82\n5 6 7 8 {'-1.0 -1.0 -1.0 ' * 5}0.3\n# c.jpg\n"
        "# d.jpg\n1 2 3 4\n"
    )
    a, c, d = read_landmark_labels(path)
    assert a.has_landmarks.tolist() == [True, False]
    np.testing.assert_array_equal(a.landmarks[0], [[10 + i, 20 + i] for i in range(5)])
    assert (a.landmarks[1] == -1).all() and len(c) == 0 and len(d) == 1
    assert not d.has_landmarks.any()


@pytest.mark.parametrize(
    ("reader", "text", "word"),
    [
        (read_face_boxes, "a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n", "2 faces"),
        (read_face_boxes, "a.jpg\nx\n", "number of faces"),
        (read_face_boxes, "a.jpg", "number of faces"),
        (read_face_boxes, "a.jpg\n1\n1 2 3\n", "3 columns"),
        (read_face_boxes, "a.jpg\n1\n1 2 3 inf\n", "finite"),
        (read_landmark_labels, "1 2 3 4\n", "before"),
        (read_landmark_labels, "# a.jpg\n1 2 3\n", "3 columns"),
        (read_landmark_labels, "# a.jpg\n1 2 3 y\n", "not a number"),
        (read_landmark_labels, "#\n", "names no image"),
    ],
)
def test_bad_labels(tmp_path, reader, text, word):
    path = tmp_path / "label.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=word):
        reader(path)
    with pytest.raises(DataError, match="cannot be read"):
        reader(tmp_path / "none.txt")
