"""KITTI labels and calibrations: round trip, difficulty, and errors that name file and line."""

import numpy as np
import pytest

from jaxcomp.data import kitti_format as kitti
from jaxcomp.errors import DataError

LINE = "Car 0.10 1 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"


def test_labels_read_every_column():
    (item,) = kitti.parse_labels(LINE + "\n\n")
    assert (item.type, item.truncated, item.occluded, item.alpha) == ("Car", 0.10, 1, 1.85)
    assert item.box == (387.63, 181.54, 423.81, 203.12)
    assert item.dimensions == (1.67, 1.87, 3.69) and item.location == (-16.53, 2.39, 58.49)
    assert item.rotation_y == 1.57 and item.score is None


def test_labels_survive_a_round_trip():
    lines = (
        LINE + "\nDontCare -1.00 -1 -10.00 5.00 6.00 7.00 8.00 " + "-1.00 " * 3 + "-1000.00 " * 3
    )
    items = kitti.parse_labels(lines + "-10.00\n" + LINE + " 0.875")
    again = kitti.parse_labels(kitti.format_labels(items))
    assert again == items and again[2].score == 0.875 and again[1].occluded == -1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Car 1 2", ("3 columns", "15")),
        (LINE.replace("1.85", "abc"), ("alpha", "'abc'")),
        (LINE.replace("58.49", "nan"), ("z is 'nan'", "finite")),
        (LINE.replace(" 1 ", " 0.5 "), ("occluded is 0.5", "integer")),
        (LINE.replace("423.81", "23.81"), ("ends before it starts",)),
    ],
)
def test_broken_labels_name_file_and_line(line, words):
    with pytest.raises(DataError) as caught:
        kitti.parse_labels(f"{LINE}\n{line}\n", "label_2/000007.txt")
    message = str(caught.value)
    assert message.startswith("label_2/000007.txt:2: ")
    assert all(word in message for word in words), message


def _calibration() -> kitti.Calibration:
    rng = np.random.default_rng(0)
    return kitti.Calibration(rng.normal(size=(3, 4)), np.eye(3), rng.normal(size=(3, 4)))


def test_calibration_survives_a_round_trip():
    before = _calibration()
    text = kitti.format_calibration(before)
    after = kitti.parse_calibration(text)
    np.testing.assert_allclose(after.p2, before.p2, rtol=1e-11)
    np.testing.assert_allclose(after.velo_to_rect(), before.tr_velo_to_cam, rtol=1e-11)
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo",
    ]  # fmt: skip


def test_calibration_leaves_unknown_names_out():
    text = "calib_time: 09-Jan-2012 13:57:47\n" + kitti.format_calibration(_calibration())
    np.testing.assert_allclose(kitti.parse_calibration(text).p2, _calibration().p2, rtol=1e-11)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:2] + lines[3:], "P2 missing"),
        (lambda lines: [*lines[:2], lines[2] + " 1.0", *lines[3:]], ":3: P2 has 13 values"),
        (lambda lines: [*lines, "Tr 1 2 3"], ":8: no 'name:'"),
        (lambda lines: [*lines[:4], "R0_rect: " + "x " * 9, *lines[5:]], ":5: R0_rect is 'x'"),
    ],
)
def test_broken_calibration_names_file_and_line(change, words):
    lines = change(kitti.format_calibration(_calibration()).splitlines())
    with pytest.raises(DataError, match=r"calib/1\.txt") as caught:
        kitti.parse_calibration("\n".join(lines), "calib/1.txt")
    assert words in str(caught.value)


def test_difficulty_follows_kitti_and_scales_with_the_image():
    assert kitti.difficulty(40, 0, 0.0) == 0
    assert kitti.difficulty(39, 0, 0.0) == 1
    assert kitti.difficulty(100, 1, 0.0) == 1
    assert kitti.difficulty(100, 2, 0.0) == 2
    assert kitti.difficulty(100, 0, 0.4) == 2
    assert kitti.difficulty(24, 0, 0.0) == kitti.difficulty(100, 3, 0.0) == -1
    assert kitti.difficulty(100, 0, 0.51) == kitti.difficulty(100, -1, 0.0) == -1
    assert kitti.difficulty(14, 0, 0.0, image_height=128) == 0
    assert kitti.difficulty(13, 0, 0.0, image_height=128) == 1
