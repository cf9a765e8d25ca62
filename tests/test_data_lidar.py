"""Sweeps of KITTI folders and scenes: files, cut to the view, labels, splits, batches."""

import functools
import logging

import numpy as np
import pytest

from jaxcomp.data import kitti_format, lidar, lidar_files
from jaxcomp.data.kitti_format import Calibration, KittiObject
from jaxcomp.data.lidar_augment import LidarAugmentation
from jaxcomp.data.lidar_boxes import inside, lidar_objects
from jaxcomp.data.lidar_records import LidarFrame, LidarRecords, pad_points
from jaxcomp.errors import DataError
from jaxcomp.ops import voxelise

CLASSES = ("Pedestrian", "Cyclist", "Car")
GRID = voxelise.PillarGrid((0.0, -39.68, -3.0), (69.12, 39.68, 1.0), (0.16, 0.16, 4.0))
PREPARE = functools.partial(
    voxelise.pillar_batch, grid=GRID, max_points=32, max_pillars=300, pad_points=512,
    pad_pillars=300,
)  # fmt: skip
CALIBRATION = Calibration(
    np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
    np.eye(3),
    np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
)


def car(x=20.0, y=0.0, kind="Car", yaw=0.3):
    """A label whose lidar box stands at (x, y, -1)."""
    return KittiObject(kind, 0.0, 0, 0.1, (500, 100, 600, 180), (1.5, 1.6, 3.9), (-y, 1.0, x), yaw)


def points_around(objects, rng, count=40):
    places = [np.array([o.location[2], -o.location[0], -0.5, 0.4]) for o in objects]
    cloud = [rng.uniform((1, -20, -2, 0), (60, 20, 0, 1), (150, 4))]
    cloud += [p + rng.normal(0, (0.2, 0.2, 0.1, 0.05), (count, 4)) for p in places]
    return np.concatenate(cloud).astype(np.float32)


def kitti_folder(root, names=6, reduced=True):
    rng = np.random.default_rng(0)
    training = root / "training"
    folder = "velodyne_reduced" if reduced else "velodyne"
    for name in (folder, "label_2", "calib"):
        (training / name).mkdir(parents=True)
    for i in range(names):
        objects = [car(15 + i), car(30, 6, "Pedestrian"), car(25, -8, "Van")]
        points_around(objects, rng).tofile(training / folder / f"{i:06d}.bin")
        (training / "label_2" / f"{i:06d}.txt").write_text(kitti_format.format_labels(objects))
        text = kitti_format.format_calibration(CALIBRATION)
        (training / "calib" / f"{i:06d}.txt").write_text(text)
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("000000\n000001\n000002\n000003\n")
    (root / "ImageSets" / "val.txt").write_text("000004\n000005\n")
    return root


# --- files ----------------------------------------------------------------------------------------


def test_a_truncated_sweep_is_named_with_its_size(tmp_path):
    path = tmp_path / "000001.bin"
    path.write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"000001\.bin: 100 bytes.*truncated"):
        lidar_files.read_sweep(path)


def test_an_empty_sweep_has_no_points_and_a_missing_one_is_an_error(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"")
    assert lidar_files.read_sweep(tmp_path / "a.bin").shape == (0, 4)
    with pytest.raises(DataError, match="cannot be read"):
        lidar_files.read_sweep(tmp_path / "b.bin")


def test_a_file_that_is_no_sweep_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate((lidar_files.MAX_POINTS + 1) * 16)
    with pytest.raises(DataError, match="more than the 4000000"):
        lidar_files.read_sweep(path)


def test_the_view_is_what_the_camera_sees():
    points = np.array(
        [[10, 0, 0], [-10, 0, 0], [10, 8.5, 0], [10, 8.6, 0], [10, 0, 2.5], [10, 0, 2.6],
         [101, 0, 0], [0, 0, 0], [np.nan, 0, 0]]
    )  # fmt: skip
    seen = lidar_files.in_view(points, CALIBRATION, (375, 1242))
    assert seen.tolist() == [True, False, True, False, True, False, False, False, False]


# --- frames ---------------------------------------------------------------------------------------


def test_splits_names_and_boxes_of_a_folder(tmp_path):
    frames = lidar.kitti_frames(str(kitti_folder(tmp_path)))
    names = {split: [f.name for f in found] for split, found in frames.items()}
    assert names == {
        "train": ["000000", "000001", "000002", "000003"],
        "validation": ["000004", "000005"],
    }
    frame = frames["train"][1]
    assert (frame.height, frame.width) == lidar.IMAGE_SIZE
    objects = lidar_objects(frame.objects, frame.calibration, CLASSES)
    np.testing.assert_allclose(objects.boxes[0], [16, 0, -1, 1.6, 3.9, 1.5, 0.3], atol=1e-5)
    assert objects.labels.tolist() == [2, 0, -1] and objects.difficulty.tolist() == [0, 0, 0]


def test_difficulty_asks_for_more_than_the_limit():
    boxes = [(0, 0, 50, h) for h in (40.0, 40.1, 25.0, 25.1)]
    objects = [KittiObject("Car", 0.0, 0, 0.0, box, (1, 1, 1), (0, 0, 9), 0.0) for box in boxes]
    assert lidar_objects(objects, CALIBRATION, CLASSES).difficulty.tolist() == [1, 0, -1, 1]


def test_dontcare_and_objects_without_size_have_no_box():
    objects = [car(), KittiObject("DontCare", -1, -1, -10, (0, 0, 9, 9), (-1, -1, -1),
                                  (-1000, -1000, -1000), -10)]  # fmt: skip
    assert len(lidar_objects(objects, CALIBRATION, CLASSES).labels) == 1
    assert lidar_objects([], CALIBRATION, CLASSES).boxes.shape == (0, 7)


def test_full_sweeps_are_cut_to_the_view(tmp_path):
    frame = lidar.kitti_frames(str(kitti_folder(tmp_path, reduced=False)))["train"][0]
    whole = lidar_files.read_sweep(tmp_path / "training" / "velodyne" / "000000.bin")
    cut = frame.read()
    assert 0 < len(cut) < len(whole)
    assert lidar_files.in_view(cut, CALIBRATION, lidar.IMAGE_SIZE).all()


def test_broken_frames_are_left_out_and_reported(tmp_path, caplog):
    root = kitti_folder(tmp_path)
    training = root / "training"
    with (training / "velodyne_reduced" / "000000.bin").open("ab") as file:
        file.write(b"abc")
    (training / "calib" / "000001.txt").unlink()
    (training / "label_2" / "000002.txt").unlink()
    (training / "velodyne_reduced" / "000005.bin").unlink()
    with caplog.at_level(logging.INFO):
        frames = lidar.kitti_frames(str(root))
    assert [f.name for f in frames["train"]] == ["000003"]
    assert [f.name for f in frames["validation"]] == ["000004"]
    for word in ("000000.bin", "no calibration file", "no label file", "3 frames left out"):
        assert word in caplog.text
    with pytest.raises(DataError, match=r"000000\.bin: \d+ bytes"):
        lidar.kitti_frames(str(root), on_junk="fatal")


def test_folders_without_sweeps_are_refused(tmp_path):
    root = kitti_folder(tmp_path)
    for path in (root / "training" / "velodyne_reduced").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no sweep in it"):
        lidar.kitti_frames(str(root))


def test_real_frames(shared):
    frames = lidar.kitti_frames(str(shared / "data" / "kitti"))
    assert {k: len(v) for k, v in frames.items()} == {"train": 74, "validation": 27}
    held = total = 0
    for frame in frames["validation"]:
        points = frame.read()
        seen = lidar_files.in_view(points, frame.calibration, (frame.height, frame.width))
        assert seen.mean() > 0.999  # they are reduced clouds
        objects = lidar_objects(frame.objects, frame.calibration, CLASSES)
        near = (objects.difficulty == 0) & (objects.boxes[:, 0] < 40)
        for box in objects.boxes[near]:
            total += 1
            held += inside(points, box).sum() >= 5
    assert total > 20 and held == total


def test_scenes_have_the_same_interface(tmp_path_factory):
    from jaxcomp.data import scenes

    settings = scenes.ScenesSettings(train_size=2, val_size=2, height=64, width=208)
    builder = scenes.prepare_scenes(settings, str(tmp_path_factory.mktemp("scenes")))
    frames = lidar.scenes_frames(builder, "validation")
    assert len(frames) == 2 and (frames[0].height, frames[0].width) == (64, 208)
    records = LidarRecords(frames, CLASSES, 32)
    assert sum(len(o.labels) for o in records.objects) > 0
    cars = [
        inside(records.sweep(row), box).sum()
        for row, objects in enumerate(records.objects)
        for box, label, level in zip(*objects, strict=True)
        if label == 2 and level == 0 and box[0] < 25
    ]
    assert not cars or min(cars) > 0
    batch = records.gather(np.arange(2), None)
    assert batch["count"].min() > 500 and batch["boxes"].shape == (2, 32, 7)
    assert records.annotations()[1].objects == frames[1].objects


# --- batches --------------------------------------------------------------------------------------


def frame_of(i, objects, points=None):
    if points is None:
        points = points_around(objects, np.random.default_rng(i))
    return LidarFrame(f"{i:06d}", lambda: points, CALIBRATION, tuple(objects), 375, 1242)


def records_of(count=6, **options):
    frames = [
        frame_of(i, [car(12 + 3 * i, i - 3.0), car(40, 10, "Pedestrian"), car(33, -9, "Tram")])
        for i in range(count)
    ]
    return LidarRecords(frames, CLASSES, 8, **{"prepare": PREPARE, **options})


def test_a_batch_of_voxelised_sweeps():
    batch = records_of().gather(np.array([3, 1]), None)
    assert batch["points"].shape == (2, 512, 4) and batch["cells"].shape == (2, 300)
    assert batch["image_id"].tolist() == [3, 1] and batch["image_id"].dtype == np.int32
    assert batch["labels"][0].tolist() == [2, 0, -1, -1, -1, -1, -1, -1]
    assert batch["valid"][0].tolist() == [True] * 3 + [False] * 5
    np.testing.assert_allclose(batch["boxes"][0, 0, :2], [21, 0], atol=1e-5)
    assert batch["overflow"].tolist() == [0, 0]


def test_points_without_voxelisation():
    records = records_of(prepare=pad_points)
    batch = records.gather(np.array([2]), None)
    count = batch["count"][0]
    np.testing.assert_array_equal(batch["points"][0, :count], records.sweep(2))
    assert batch["points"].shape == (1, 1024, 4) and not batch["points"][0, count:].any()


def test_augmented_batches_depend_on_the_seed_alone():
    records = records_of(augment=LidarAugmentation(), workers=2)
    rows = np.arange(4)
    one, two, three = (records.gather(rows, np.random.default_rng(s)) for s in (7, 7, 8))
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key])
    assert (one["boxes"] != three["boxes"]).any()
    plain = records.gather(rows, None)
    np.testing.assert_array_equal(plain["boxes"], records_of().gather(rows, None)["boxes"])


def test_splits_run_through_the_pipeline():
    splits = lidar.lidar_splits(records_of(augment=LidarAugmentation()), records_of(3), 2, seed=0)
    assert splits.steps_per_epoch == 3
    batch = next(splits.train())
    assert batch["mask"].tolist() == [1, 1] and batch["points"].shape == (2, 512, 4)
    held_out = list(splits.validation())
    assert [b["mask"].tolist() for b in held_out] == [[1, 1], [1, 0]]
    assert [b["image_id"][0] for b in held_out] == [0, 2]


def test_empty_and_broken_sweeps_and_no_objects_in_a_batch():
    nothing = np.zeros((0, 4), np.float32)
    junk = np.full((50, 4), np.nan, np.float32)
    frames = [frame_of(0, [car()]), frame_of(1, [], nothing), frame_of(2, [], junk)]
    records = LidarRecords(frames, CLASSES, 8, prepare=PREPARE, augment=LidarAugmentation())
    for rng in (None, np.random.default_rng(0)):
        batch = records.gather(np.arange(3), rng)
        assert batch["counts"].any(1).tolist() == [True, rng is not None, rng is not None]  # pasted
        assert np.isfinite(batch["points"]).all()
        assert np.isfinite(batch["boxes"]).all()
    assert records.gather(np.array([2]), None)["bad"].tolist() == [50]


def test_objects_of_a_class_go_first_where_there_is_no_room(caplog):
    frames = [frame_of(0, [car(9, -9, "Van"), car(20, 0), car(30, 0, "Pedestrian")])]
    with caplog.at_level(logging.WARNING):
        batch = LidarRecords(frames, CLASSES, 2, prepare=PREPARE).gather(np.array([0]), None)
    assert batch["labels"].tolist() == [[2, 0]] and batch["valid"].all()
    assert "frame 000000 has 3 objects, 2 are kept" in caplog.text


def test_augmentation_of_other_classes_is_refused():
    with pytest.raises(DataError, match="fills 3 classes, there are 1"):
        LidarRecords([], ("Car",), 8, augment=LidarAugmentation())


def test_annotations_are_indexed_by_image_id():
    records = records_of()
    batch = records.gather(np.array([4]), None)
    found = records.annotations()[int(batch["image_id"][0])]
    assert found.name == "000004" and (found.height, found.width) == (375, 1242)
    assert [o.type for o in found.objects] == ["Car", "Pedestrian", "Tram"]
