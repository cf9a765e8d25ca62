"""The street world: determinism, labels that fit the pictures, lidar that fits the boxes."""

import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from PIL import Image

from jaxcomp import data
from jaxcomp.data import detection, images, kitti_format, scenes_frame, scenes_mesh, scenes_worker
from jaxcomp.data import scenes as scenes_builder
from jaxcomp.errors import ConfigError, DataError

SMALL = scenes_frame.SceneSettings(height=64, width=208, seed=5, beams=16, azimuths=96)


@pytest.fixture(scope="module")
def frames():
    settings = scenes_frame.SceneSettings(seed=1)
    return [scenes_frame.render_frame(settings, "train", i) for i in range(12)]


def _same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return np.array_equal(a, b)


def test_frames_do_not_depend_on_the_number_of_workers():
    alone = dict(scenes_worker.examples(SMALL, "train", 5, workers=1))
    pair = dict(scenes_worker.examples(SMALL, "train", 5, workers=2))
    assert list(pair) == [0, 1, 2, 3, 4]
    assert all(_same(alone[i], pair[i]) for i in alone)


def test_seed_split_and_index_each_change_the_frame():
    other_seed = scenes_frame.SceneSettings(**{**SMALL.__dict__, "seed": 6})
    images = [
        scenes_frame.frame_example(s, split, i)["image"]
        for s, split, i in ((SMALL, "train", 0), (SMALL, "train", 1), (SMALL, "validation", 0),
                            (other_seed, "train", 0))
    ]  # fmt: skip
    assert len(set(images)) == 4


def test_a_dead_worker_is_reported(capfd):
    with pytest.raises(DataError, match="ended early"):
        list(scenes_worker.examples(scenes_frame.SceneSettings(height=-4), "train", 2, workers=2))
    assert "Error" in capfd.readouterr().err


def test_labels_are_kitti_text_and_boxes_lie_in_the_image(frames):
    kinds = set()
    for frame in frames:
        text = kitti_format.format_labels(frame.objects)
        parsed = kitti_format.parse_labels(text)
        assert [p.type for p in parsed] == [o.type for o in frame.objects]
        for item in parsed:
            kinds.add(item.type)
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= 416 and 0 <= y0 < y1 <= 128
            assert 0 <= item.truncated <= 1 and item.occluded in (0, 1, 2)
    assert kinds == {"Car", "Pedestrian", "Cyclist"}


def test_boxes_in_space_project_onto_the_boxes_in_the_image(frames):
    overlaps = {"Car": [], "Pedestrian": [], "Cyclist": []}
    for frame in frames:
        for item in frame.objects:
            height, width, length = item.dimensions
            corners = scenes_mesh.box_corners(length, height, width)
            corners = corners @ scenes_mesh.rotation(item.rotation_y).T + item.location
            pixels = np.c_[corners, np.ones(8)] @ frame.calibration.p2.T
            pixels = pixels[:, :2] / pixels[:, 2:]
            around = np.clip([*pixels.min(0), *pixels.max(0)], 0, (416, 128, 416, 128))
            slack = 1.5 + 0.03 * (around[3] - around[1])
            assert (np.array(item.box[:2]) >= around[:2] - slack).all()
            assert (np.array(item.box[2:]) <= around[2:] + slack).all()
            overlaps[item.type].append(_iou(around, np.array(item.box)))
    assert np.median(overlaps["Car"]) > 0.9 and min(overlaps["Car"]) > 0.75
    assert np.median(overlaps["Pedestrian"]) > 0.6 and np.median(overlaps["Cyclist"]) > 0.55


def _iou(a, b) -> float:
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def test_lidar_points_lie_on_the_visible_cars_and_on_the_ground(frames):
    checked = 0
    for frame in frames:
        matrix = frame.calibration.velo_to_rect()
        points = frame.points[:, :3] @ matrix[:, :3].T + matrix[:, 3]
        assert frame.points.dtype == np.float32 and len(points) > 1000
        assert ((frame.points[:, 3] >= 0) & (frame.points[:, 3] <= 1)).all()
        assert points[:, 1].max() < 1.65 + 0.15  # nothing below the ground but noise
        for item, visible in zip(frame.objects, frame.visible, strict=True):
            if item.type == "Car" and visible > 0.7 and item.location[2] < 25:
                inside = _points_inside(points, item)
                assert inside >= 20, (item, inside)
                checked += 1
    assert checked >= 10


def _points_inside(points, item) -> int:
    local = (points - item.location) @ scenes_mesh.rotation(item.rotation_y)
    height, width, length = item.dimensions
    half = np.array([length / 2, 0, width / 2]) + 0.06
    flat = (np.abs(local[:, [0, 2]]) < half[[0, 2]]).all(1)
    return int((flat & (local[:, 1] > -height - 0.06) & (local[:, 1] < -0.05)).sum())


def test_visible_shares_fall_behind_other_things(frames):
    shares = np.concatenate([f.visible for f in frames])
    assert shares.max() <= 1 and shares.min() > 0.02
    assert (shares > 0.95).mean() > 0.4 and (shares < 0.8).any()
    for frame in frames:
        for item, visible in zip(frame.objects, frame.visible, strict=True):
            assert item.occluded == (0 if visible > 0.8 else 1 if visible > 0.5 else 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def _config(folder, **changes):
    section = dict(name="scenes", dir=str(folder), train_size=6, val_size=3, height=64, width=208,
                   seed=5, workers=1, max_boxes=24, augment=False, cache=True,
                   num_threads=2)  # fmt: skip
    section.update(changes)
    return ml_collections.ConfigDict({"seed": 0, "data": section, "training": {"batch_size": 2}})


def test_batches_have_the_documented_form(folder):
    splits = data.make_splits(_config(folder))
    batch = next(splits.train())
    forms = {k: (v.shape, v.dtype.name) for k, v in batch.items()}
    assert forms == {
        "image": ((2, 64, 208, 3), "uint8"), "boxes": ((2, 24, 4), "float32"),
        "labels": ((2, 24), "int32"), "valid": ((2, 24), "bool"), "ignore": ((2, 24), "bool"),
        "image_id": ((2,), "int32"), "mask": ((2,), "float32"),
    }  # fmt: skip
    assert not (batch["valid"] & batch["ignore"]).any()
    assert (batch["labels"][batch["valid"]] > 0).all()
    padding = ~(batch["valid"] | batch["ignore"])
    assert (batch["labels"][padding] == 0).all() and (batch["boxes"][padding] == 0).all()
    ids = np.concatenate([b["image_id"][b["mask"] > 0] for b in splits.validation()])
    assert ids.tolist() == [0, 1, 2]
    assert "tensorflow" not in sys.modules


def test_the_stored_pictures_are_the_rendered_ones(folder):
    frame = scenes_frame.render_frame(scenes_frame.SceneSettings(64, 208, 5), "validation", 1)
    batches = list(data.make_splits(_config(folder)).validation())
    np.testing.assert_array_equal(batches[0]["image"][1], frame.image)
    count = int((batches[0]["valid"] | batches[0]["ignore"])[1].sum())
    assert count == len(frame.objects)


def test_cached_and_decoded_batches_are_the_same(folder):
    one = data.make_splits(_config(folder)).train()
    two = data.make_splits(_config(folder, cache=False, num_threads=0)).train()
    for _ in range(4):
        assert _same(next(one), next(two))


def test_record_files_do_not_depend_on_the_workers(folder, tmp_path):
    data.make_splits(_config(folder))
    data.make_splits(_config(tmp_path, workers=2))
    digests = [
        {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in pathlib.Path(root).rglob("*array_record*")
        }
        for root in (folder, tmp_path)
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 2


def test_a_generation_that_fails_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    real = scenes_worker.examples

    def dies(*args):
        for index, example in real(*args):
            if index == 3:
                raise KeyboardInterrupt
            yield index, example

    monkeypatch.setattr(scenes_worker, "examples", dies)
    with pytest.raises(KeyboardInterrupt):
        data.make_splits(_config(tmp_path))
    monkeypatch.undo()
    splits = data.make_splits(_config(tmp_path))
    assert splits.steps_per_epoch == 3 and len(list(splits.validation())) == 2


def test_kitti_export_reads_back(folder, tmp_path):
    from jaxcomp.data import scenes

    settings = scenes.ScenesSettings(64, 208, 5, train_size=6, val_size=3)
    builder = scenes.prepare_scenes(settings, str(folder))
    assert scenes.export_kitti(builder, "validation", tmp_path) == 3
    root = tmp_path / "training"
    assert sorted(p.name for p in root.iterdir()) == ["calib", "image_2", "label_2", "velodyne"]
    frame = scenes_frame.render_frame(settings.frame(), "validation", 2)
    labels = kitti_format.parse_labels((root / "label_2/000002.txt").read_text())
    np.testing.assert_allclose(
        [o.location for o in labels], [o.location for o in frame.objects], atol=0.0051
    )
    calibration = kitti_format.parse_calibration((root / "calib/000002.txt").read_text())
    np.testing.assert_allclose(calibration.p2, frame.calibration.p2, rtol=1e-6)
    points = np.fromfile(root / "velodyne/000002.bin", np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(points, frame.points)
    with Image.open(root / "image_2/000002.png") as image:
        np.testing.assert_array_equal(np.asarray(image), frame.image)


def test_augmentation_flips_boxes_with_their_pixels():
    image = np.zeros((16, 8, 20, 3), np.uint8)
    image[:, 2:6, 3:7] = 200
    boxes = np.zeros((16, 2, 4), np.float32)
    boxes[:, 0] = (3, 2, 7, 6)
    labels = np.tile(np.array([1, 0], np.int32), (16, 1))
    batch = {"image": image, "boxes": boxes, "labels": labels, "ignore": labels > 1}
    out = detection.augment_batch(batch, np.random.default_rng(0))
    assert (out["boxes"][:, 1] == 0).all() and (image[0, 2:6, 3:7] == 200).all()
    assert {tuple(b) for b in out["boxes"][:, 0].tolist()} == {(3, 2, 7, 6), (13, 2, 17, 6)}
    for picture, (x0, y0, x1, y1) in zip(out["image"], out["boxes"][:, 0].astype(int), strict=True):
        inside = picture[y0:y1, x0:x1].min()
        assert inside > 100 and (picture > 100).all(-1).sum() == 16


def _record(**changes):
    objects = {"type": ["Car"] * 3, "box": [[0, 0, 40, 30], [0, 0, 9, 4], [5, 5, 20, 40]],
               "visible": [1.0, 1.0, 0.1], "truncated": [0.0, 0.0, 0.0]}  # fmt: skip
    return {"index": 7, "objects": {**objects, **changes}}


def test_small_hidden_and_cut_objects_are_neither_positive_nor_negative():
    targets = detection.detection_targets(_record(), 128, 4)
    assert targets["valid"].tolist() == [True, False, False, False]
    assert targets["ignore"].tolist() == [False, True, True, False]
    cut = detection.detection_targets(_record(truncated=[0.6, 0, 0]), 128, 4)
    assert not cut["valid"].any() and cut["ignore"].sum() == 3
    tall = detection.detection_targets(_record(), 512, 4)  # 30 pixels are small in 512 rows
    assert not tall["valid"].any()
    assert detection.detection_targets(_record(), 128, 1)["valid"].tolist() == [True]


def test_frames_without_objects_give_empty_targets():
    empty = {"type": [], "box": [], "visible": [], "truncated": []}
    targets = detection.detection_targets({"index": 0, "objects": empty}, 128, 3)
    assert not targets["valid"].any() and not targets["ignore"].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": ["Car", "Elephant", "Car"]}, "'Elephant'"),
        ({"box": [[0, 0, 40, 30], [9, 0, 0, 4], [5, 5, 20, 40]]}, "junk"),
        ({"box": [[0, 0, np.nan, 30], [0, 0, 9, 4], [5, 5, 20, 40]]}, "junk"),
    ],
)
def test_junk_labels_name_the_record(changes, words):
    with pytest.raises(DataError, match="record 7") as caught:
        detection.detection_targets(_record(**changes), 128, 4)
    assert words in str(caught.value)


def test_an_image_that_does_not_decode_names_its_record(folder):
    stream = io.BytesIO()
    Image.new("RGB", (208, 64)).save(stream, "PNG")
    source = [{**_record(), "image": stream.getvalue()}, {**_record(), "image": b"junk"}]
    records = detection.DetectionRecords(source, (64, 208), 4, "train")
    with pytest.raises(DataError, match=r"train record 1 .*does not decode"):
        records.gather(np.array([0]), None)


def test_an_image_of_too_many_pixels_names_its_record(monkeypatch):
    stream = io.BytesIO()
    Image.new("RGB", (208, 64)).save(stream, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="record 3: the image does not decode"):
        images.decode_image(stream.getvalue(), "record 3: the image", "make it again")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["dataset_info.json", "scenes-train.array_record-00000-of-00001"])
def test_a_damaged_folder_is_named(folder, tmp_path, name, kept):
    data.make_splits(_config(folder))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.rglob(name)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError, match="delete that folder") as caught:
        next(data.make_splits(_config(tmp_path, cache=False, num_threads=0)).train())
    assert str(caught.value).startswith(f"{path.parent}: cannot read")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": "sceens"}, ConfigError, "'sceens' is unknown; use one of: .*scenes"),
        ({"train_size": 0}, DataError, "train_size=0"),
        ({"val_size": 0}, DataError, "val_size=0"),
        ({"train_size": 1}, DataError, "less than one batch"),
    ],
)
def test_settings_that_make_no_data_are_refused(tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        data.make_splits(_config(tmp_path, **changes))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write below .*file"):
        data.make_splits(_config(tmp_path / "file"))


def test_failed_writes_of_the_record_files_are_worded(tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("write() failed: No space left on device\n=== Source Location Trace ===")

    monkeypatch.setattr(scenes_builder.Scenes, "download_and_prepare", fail)
    with pytest.raises(DataError, match=r"cannot write below .*No space left on device\)"):
        data.make_splits(_config(tmp_path))


def test_generation_works_from_standard_input_and_without_a_main_guard(tmp_path):
    code = (
        "from jaxcomp.data import scenes_frame, scenes_worker\n"
        "s = scenes_frame.SceneSettings(height=64, width=208)\n"
        "print(len(list(scenes_worker.examples(s, 'train', 2, 2))))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable], input=code, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.strip() == "2", done.stderr
