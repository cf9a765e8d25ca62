"""KITTI folders of every layout: reading, splitting, junk, batches, augmentation, resume."""

import json
import logging
import shutil
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from jaxcomp.config import apply_overrides, base_config, validate
from jaxcomp.data import kitti, kitti_files, kitti_format, kitti_targets, make_splits
from jaxcomp.data.kitti_format import KittiObject
from jaxcomp.errors import ConfigError, DataError

REST = "1.50 1.60 3.90 1.00 1.70 20.00 0.10"  # dimensions, location, rotation
CAR = f"Car 0.00 0 0.20 10.00 8.00 40.00 30.00 {REST}"
WALKER = f"Pedestrian 0.00 1 0.20 50.50 5.00 60.00 35.00 {REST}"
VAN = f"Van 0.00 0 0.20 60.00 5.00 70.00 20.00 {REST}"
TRAM = f"Tram 0.00 0 0.20 70.00 5.00 80.00 20.00 {REST}"
NOWHERE = "DontCare -1 -1 -10 80.00 0.00 90.00 9.00 -1 -1 -1 -1000 -1000 -1000 -10"
SIZE = (37, 93)  # rows, columns
CALIBRATION = kitti_format.format_calibration(
    kitti_format.Calibration(np.eye(3, 4) * 7, np.eye(3), np.eye(3, 4))
)


def draw(path, seed, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return noise


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def object_folder(root, count=6, lists=True):
    """Frames 000000... in the object layout; the lists put every third frame into validation."""
    for i in range(count):
        name = f"{i:06d}"
        draw(root / f"training/image_2/{name}.png", i)
        write(root / f"training/label_2/{name}.txt", f"{CAR}\n{WALKER}\n{VAN}\n{TRAM}\n{NOWHERE}\n")
        write(root / f"training/calib/{name}.txt", CALIBRATION)
        write(root / f"training/velodyne/{name}.bin", "")
    if lists:
        names = [f"{i:06d}" for i in range(count)]
        write(root / "ImageSets/train.txt", "\n".join(n for i, n in enumerate(names) if i % 3))
        write(root / "ImageSets/val.txt", "\n".join(names[::3]) + "\n")
    return root


def tracking_folder(root, sequences=4, length=3):
    for s in range(sequences):
        for i in range(length):
            draw(root / f"training/image_02/{s:04d}/{i:06d}.png", 10 * s + i)
        lines = [f"{i} 7 {CAR}" for i in range(length - 1)]  # the last frame is empty
        lines += [f"0 3 {VAN.replace('Van 0.00', 'Person 1')}", f"0 -1 {NOWHERE}"]
        write(root / f"training/label_02/{s:04d}.txt", "\n".join(lines))
        text = CALIBRATION.replace("R0_rect:", "R_rect").replace("Tr_velo_to_cam:", "Tr_velo_cam")
        write(root / f"training/calib/{s:04d}.txt", text)
    return root


def config_of(root, **changes):
    config = base_config(classes=("Car", "Pedestrian"))
    config.data.update(
        name="kitti", dir=str(root), train_size=0, val_size=0, height=80, width=192,
        resize="shortest", min_side=74, max_side=190, max_boxes=6,
    )  # fmt: skip
    config.training.batch_size = 2
    with config.unlocked():
        config.classes = changes.pop("classes", config.classes)
    config.data.update(changes)
    return config


def names_of(root, **changes):
    loaded = kitti.load_kitti(config_of(root, **changes))
    return {split: [item.name for item in items] for split, items in loaded.splits.items()}


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_holds_native_pixels_and_boxes_in_network_pixels(tmp_path):
    root = object_folder(tmp_path)
    big = draw(root / "training/image_2/000003.png", 99, (40, 90))
    splits = make_splits(config_of(root))
    (batch,) = splits.validation()
    assert batch["image"].shape == (2, 64, 96, 3) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"][1, :40, :90], big)
    assert not batch["image"][1, 40:].any() and not batch["image"][1, :, 90:].any()
    np.testing.assert_array_equal(batch["native_size"], np.float32([SIZE, (40, 90)]))
    # 93 columns meet the longest side of 190 after 37 rows meet the shortest of 74.
    np.testing.assert_array_equal(batch["image_size"], np.float32([(74, 186), (74, 166)]))
    assert {k: batch[k].dtype for k in ("native_size", "image_size", "boxes", "image_id")} == {
        "native_size": np.float32, "image_size": np.float32, "boxes": np.float32,
        "image_id": np.int32,
    }  # fmt: skip
    np.testing.assert_array_equal(batch["image_id"], [0, 1])
    np.testing.assert_array_equal(batch["mask"], [1, 1])
    np.testing.assert_allclose(batch["boxes"][0, 0], [20, 16, 80, 60])  # the larger one goes first
    sx, sy = 166 / 90, 74 / 40
    np.testing.assert_allclose(batch["boxes"][1, 0], [10 * sx, 8 * sy, 40 * sx, 30 * sy], rtol=1e-6)


def test_car_and_pedestrian_count_neighbours_and_dontcare_are_ignored(tmp_path):
    (batch,) = make_splits(config_of(object_folder(tmp_path))).validation()
    valid, ignore, labels = (batch[k][0] for k in ("valid", "ignore", "labels"))
    boxes = batch["boxes"][0] / 2
    assert valid.tolist() == [True, True] + [False] * 4
    assert ignore.tolist() == [False, False, True, True, False, False]  # no row for the tram
    assert sorted(zip(labels[:4].tolist(), boxes[:4, 0].tolist(), strict=True)) == [
        (0, 60.0), (0, 80.0), (1, 10.0), (2, 50.5),
    ]  # fmt: skip
    assert not boxes[4:].any()


def test_the_last_validation_batch_is_padded(tmp_path):
    config = config_of(object_folder(tmp_path, 7))
    first, last = make_splits(config, 2).validation()
    assert first["mask"].tolist() == [1, 1] and last["mask"].tolist() == [1, 0]
    np.testing.assert_array_equal(last["image"][1], last["image"][0])
    assert last["image_id"].tolist() == [2, 2]


def test_image_ids_index_the_annotations(tmp_path):
    config = config_of(object_folder(tmp_path))
    truth = kitti.annotations(config, "train")
    assert [item.name for item in truth] == ["000001", "000002", "000004", "000005"]
    assert [found.type for found in truth[0].objects] == [
        "Car", "Pedestrian", "Van", "Tram", "DontCare",
    ]  # fmt: skip
    assert (truth[0].height, truth[0].width) == SIZE
    assert kitti_format.format_labels(truth[0].objects).splitlines()[0] == CAR
    for batch in make_splits(config).train_once():
        for image, index in zip(batch["image"], batch["image_id"], strict=True):
            stored = kitti.read_frame(truth[index].frame)
            np.testing.assert_array_equal(image[: SIZE[0], : SIZE[1]], stored)
    with pytest.raises(DataError, match=r"'val'.*train, validation"):
        kitti.annotations(config, "val")


def test_training_resumes_exactly_and_caching_changes_nothing(tmp_path):
    root = object_folder(tmp_path, 9)
    splits = make_splits(config_of(root, augment=True))
    assert splits.steps_per_epoch == 3
    running = splits.train()
    for _ in range(4):
        next(running)
    state = json.loads(json.dumps(running.get_state()))
    expected = [next(running) for _ in range(5)]
    for changes in ({}, {"cache": False, "workers": 1, "num_threads": 0}):
        resumed = make_splits(config_of(root, augment=True, **changes)).train()
        resumed.set_state(state)
        for batch in expected:
            again = next(resumed)
            assert batch.keys() == again.keys()
            for key in batch:
                np.testing.assert_array_equal(batch[key], again[key], err_msg=key)


def test_images_that_do_not_fit_the_network_are_named(tmp_path):
    root = object_folder(tmp_path)
    draw(root / "training/image_2/000004.png", 0, (90, 90))
    config = config_of(root, height=64)
    with pytest.raises(DataError, match=r"000001\.png: .*74 x 186.*64 x 192"):
        make_splits(config)
    with pytest.raises(DataError, match=r"000001\.png: .*37 x 93"):
        make_splits(config_of(root, resize="none"))


# --- finding the data -----------------------------------------------------------------------------


def test_the_folder_comes_from_the_config_or_the_environment(tmp_path, monkeypatch):
    object_folder(tmp_path / "a")
    monkeypatch.delenv("KITTI_ROOT", raising=False)
    with pytest.raises(DataError, match=r"config\.data\.dir.*KITTI_ROOT.*training/image_2"):
        kitti.load_kitti(config_of(""))
    monkeypatch.setenv("KITTI_ROOT", str(tmp_path / "a"))
    assert len(names_of("")["validation"]) == 2
    assert len(names_of(tmp_path / "a/training")["validation"]) == 2  # one folder too deep
    monkeypatch.setenv("KITTI_ROOT", str(tmp_path / "b"))
    with pytest.raises(DataError, match=r"/b \(from the environment variable KITTI_ROOT\)"):
        kitti.load_kitti(config_of(""))
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"/b: does not look like KITTI.*training/image_02"):
        kitti.load_kitti(config_of(""))


def test_missing_folders_are_named(tmp_path):
    root = object_folder(tmp_path)
    shutil.rmtree(root / "training/label_2")
    with pytest.raises(DataError, match=r"label_2: missing; unpack data_object_label_2\.zip"):
        kitti.load_kitti(config_of(root))
    (root / "training/label_2").mkdir()
    shutil.rmtree(root / "training/image_2")
    (root / "training/image_2").mkdir()
    with pytest.raises(DataError, match="no image"):
        kitti.load_kitti(config_of(root))


def test_hidden_files_and_jpegs(tmp_path):
    root = object_folder(tmp_path)
    (root / "training/image_2/._000000.png").write_bytes(b"resource fork")
    Image.open(root / "training/image_2/000000.png").save(root / "training/image_2/000000.jpg")
    Image.open(root / "training/image_2/000003.png").save(root / "training/image_2/000003.jpg")
    (root / "training/image_2/000003.png").unlink()
    frames = {frame.name: frame.image.name for frame in kitti.list_frames(str(root))}
    assert frames["000000"] == "000000.png" and frames["000003"] == "000003.jpg"
    assert len(frames) == 6
    assert len(names_of(root)["validation"]) == 2


def test_frames_give_lidar_and_calibration_for_those_who_need_them(tmp_path):
    root = object_folder(tmp_path)
    (root / "training/image_2/000004.png").unlink()
    frames = kitti.list_frames(str(root))
    assert frames[4].image is None and frames[4].velodyne.name == "000004.bin"
    assert frames[4].velodyne_reduced is None
    np.testing.assert_array_equal(frames[4].calibration().p2, np.eye(3, 4) * 7)
    (root / "training/calib/000003.txt").unlink()
    truth = kitti.annotations(config_of(root), "validation")  # it takes no part in detection
    assert [item.name for item in truth] == ["000000", "000003"]
    with pytest.raises(DataError, match="frame 000003: no calibration file"):
        truth[1].frame.calibration()


# --- splits ---------------------------------------------------------------------------------------


def test_lists_decide_the_split(tmp_path):
    root = object_folder(tmp_path)
    found = names_of(root)
    assert found == {
        "train": ["000001", "000002", "000004", "000005"], "validation": ["000000", "000003"],
    }  # fmt: skip
    assert names_of(root, seed=5) == found


def test_without_lists_frames_are_split_with_a_loud_warning(tmp_path, caplog):
    root = object_folder(tmp_path, 20, lists=False)
    found = names_of(root)
    assert "KITTI IS SPLIT BY FRAME" in caplog.text and "ImageSets" in caplog.text
    assert len(found["validation"]) == 4 and len(found["train"]) == 16
    assert not set(found["train"]) & set(found["validation"])
    assert names_of(root) == found != names_of(root, seed=1)
    assert len(names_of(root, val_share=0.5)["validation"]) == 10
    write(root / "ImageSets/trainval.txt", "\n".join(f"{i:06d}" for i in range(10)))
    found = names_of(root)
    assert sorted(found["train"] + found["validation"]) == [f"{i:06d}" for i in range(10)]


def mapping(root, drives=5):
    """Line 20 - i of the mapping belongs to frame i, four frames to a drive."""
    lines = [f"2011_09_26 drive_{(19 - i) // (20 // drives)} {i:010d}" for i in range(20)]
    write(root / "mapping/train_mapping.txt", "\n".join(lines) + "\n")
    write(root / "mapping/train_rand.txt", ",".join(str(20 - i) for i in range(20)) + "\n")


def test_the_development_kits_mapping_keeps_drives_together(tmp_path, caplog):
    root = object_folder(tmp_path, 20, lists=False)
    mapping(root)
    found = names_of(root)
    assert "SPLIT BY FRAME" not in caplog.text
    drives = {split: {int(n) // 4 for n in names} for split, names in found.items()}
    assert len(drives["validation"]) == 1 and len(found["validation"]) == 4
    assert not drives["train"] & drives["validation"]
    write(root / "mapping/train_rand.txt", "1,2,21")
    with pytest.raises(DataError, match=r"train_rand\.txt: entry 3 is '21'"):
        kitti.load_kitti(config_of(root))


def test_tracking_is_split_by_sequence(tmp_path, caplog):
    root = tracking_folder(tmp_path)
    found = names_of(root)
    sequences = {split: {name[:4] for name in names} for split, names in found.items()}
    assert len(sequences["validation"]) == 1 and len(sequences["train"]) == 3
    assert not sequences["train"] & sequences["validation"]
    assert len(found["train"]) == 9 and "SPLIT BY FRAME" not in caplog.text
    assert names_of(root) == found
    assert len({tuple(names_of(root, seed=s)["validation"]) for s in range(8)}) > 1


def test_caps_choose_nested_seeded_frames(tmp_path):
    root = object_folder(tmp_path, 12)
    whole = names_of(root, train_size=999)["train"]
    assert whole == names_of(root)["train"] and len(whole) == 8
    few, more = (names_of(root, train_size=n, val_size=2)["train"] for n in (3, 5))
    assert len(few) == 3 and len(more) == 5 and set(few) < set(more) < set(whole)
    assert few == sorted(few) and few == names_of(root, train_size=3)["train"]
    assert len(names_of(root, val_size=2)["validation"]) == 2


def test_one_frame_or_sequence_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match="cannot be split"):
        kitti.load_kitti(config_of(tracking_folder(tmp_path / "a", 1)))
    root = object_folder(tmp_path / "b")
    write(root / "ImageSets/val.txt", "\n")
    with pytest.raises(DataError, match=r"the validation split .* has no usable frame"):
        kitti.load_kitti(config_of(root))


# --- junk -----------------------------------------------------------------------------------------


def _cut(root):
    path = root / "training/image_2/000001.png"
    path.write_bytes(path.read_bytes()[:-200])


def _append(line):
    def change(root):
        path = root / "training/label_2/000001.txt"
        path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")

    return change


def _list(name, line):
    def change(root):
        path = root / f"ImageSets/{name}.txt"
        path.write_text(path.read_text().strip() + f"\n{line}\n")

    return change


LABEL = r"label_2/000001\.txt:6: "
JUNK = {
    "columns": (_append("Car 0 0 0 1 2 3"), "object", LABEL + "7 columns"),
    "word": (_append(CAR.replace("40.00", "x")), "object", LABEL + "right is 'x'"),
    "nan": (_append(CAR.replace("20.00", "nan")), "object", LABEL + "z is 'nan'"),
    "inf": (_append(CAR.replace("20.00", "inf")), "object", LABEL + "z is 'inf'"),
    "inverted": (_append(CAR.replace("40.00", "4.00")), "object", LABEL + "box .* ends before"),
    "outside": (
        _append(CAR.replace("10.00", "93.00").replace("40.00", "99.00")),
        "object",
        LABEL + r"Car at \(93, 8, 99, 30\) has no pixel",
    ),
    "flat": (_append(CAR.replace("30.00", "8.00")), "object", LABEL + "Car at .* has no pixel"),
    "bytes": (_append("\x89PNG\xff\x00"), "object", LABEL + "1 columns"),
    "no label": (
        lambda r: (r / "training/label_2/000001.txt").unlink(),
        "frame",
        r"image_2/000001\.png: no label file",
    ),
    "cut image": (_cut, "frame", r"image_2/000001\.png: cannot decode"),
    "text image": (
        lambda r: write(r / "training/image_2/000001.png", "no image"),
        "frame",
        r"image_2/000001\.png: cannot decode",
    ),
    "empty image": (
        lambda r: write(r / "training/image_2/000001.png", ""),
        "frame",
        r"image_2/000001\.png: cannot decode",
    ),
    "huge image": (
        lambda r: Image.new("1", (5000, 2)).save(r / "training/image_2/000001.png"),
        "frame",
        r"image_2/000001\.png: 2 x 5000 pixels",
    ),
    "no image": (
        lambda r: (r / "training/image_2/000001.png").unlink(),
        "frame",
        r"000001.* (without an|has no) image",
    ),
    "unknown name": (_list("train", "123456"), "frame", r"train\.txt:5: frame '123456' has no"),
    "twice": (_list("train", "000001"), "frame", r"train\.txt:5: frame '000001' is listed twice"),
    "both": (_list("train", "000003"), "frame", "frame '000003' is in val.txt as well"),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_left_out_and_reported_or_fatal(tmp_path, caplog, name):
    root = object_folder(tmp_path)
    before = kitti.annotations(config_of(root), "train")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    change, kind, words = JUNK[name]
    change(root)
    after = kitti.annotations(config_of(root), "train")
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert f"1 {kind} left out" in record.getMessage()
    with pytest.raises(DataError, match=words) as caught:
        kitti.load_kitti(config_of(root, on_junk="fatal"))
    assert str(caught.value) in record.getMessage() or name == "no image"
    lost = kind == "frame" and name not in ("unknown name", "twice", "both")
    assert after == (before[1:] if lost else before)
    assert len(list(make_splits(config_of(root), 1).validation())) == 2


@pytest.mark.parametrize("make", [object_folder, tracking_folder])
def test_a_refused_folder_leaves_no_threads(tmp_path, make):
    """A generator that still held its threads hung when the garbage was collected."""
    root = make(tmp_path)
    for path in (root / "training").glob("label_*/*"):
        path.write_text("junk\n" + path.read_text())
    before = set(threading.enumerate())
    with pytest.raises(DataError, match="1 columns") as caught:
        kitti.load_kitti(config_of(root, on_junk="fatal"))
    assert caught.tb is not None  # which keeps every frame of the stack alive
    assert set(threading.enumerate()) <= before


def test_junk_is_counted_and_the_first_are_shown(tmp_path, caplog):
    root = object_folder(tmp_path)
    write(root / "training/label_2/000001.txt", "junk\n" * 8)
    (root / "training/label_2/000002.txt").unlink()
    truth = kitti.annotations(config_of(root), "train")
    assert "8 objects and 1 frame left out" in caplog.text and "and 4 more" in caplog.text
    assert truth[0].name == "000001" and truth[0].objects == ()


def test_empty_labels_are_frames_without_objects_and_boxes_are_clipped(tmp_path, caplog):
    root = object_folder(tmp_path)
    write(root / "training/label_2/000000.txt", "")
    write(root / "training/label_2/000003.txt", CAR.replace("10.00", "-5.00"))
    (batch,) = make_splits(config_of(root, on_junk="fatal")).validation()
    assert not batch["valid"][0].any() and not batch["ignore"][0].any()
    assert batch["boxes"][1, 0].tolist() == [0, 16, 80, 60]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    truth = kitti.annotations(config_of(root), "validation")
    assert truth[1].objects[0].box[0] == -5  # as in the file


def test_grey_and_deep_images_are_converted_and_said(tmp_path, caplog):
    root = object_folder(tmp_path)
    caplog.set_level(logging.INFO)
    grey = np.arange(37 * 93, dtype=np.uint16).reshape(37, 93) * 17
    Image.fromarray(grey).save(root / "training/image_2/000000.png")
    Image.fromarray((grey >> 8).astype(np.uint8)).save(root / "training/image_2/000003.png")
    (batch,) = make_splits(config_of(root)).validation()
    np.testing.assert_array_equal(batch["image"][0, :37, :93, 2], grey >> 8)
    np.testing.assert_array_equal(batch["image"][1], batch["image"][0])
    assert "2 images are not 8-bit RGB" in caplog.text


def test_damage_behind_a_sound_header_blanks_the_row(tmp_path, caplog):
    root = object_folder(tmp_path)
    path = root / "training/image_2/000000.png"
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    for _ in range(2):
        (batch,) = make_splits(config_of(root)).validation()
        assert not batch["image"][0].any() and batch["image"][1].any()
        assert not batch["valid"][0].any() and batch["valid"][1].any()
        assert batch["ignore"][0].tolist() == [True] + [False] * 5
        assert batch["boxes"][0].tolist() == [[0, 0, 186, 74]] + [[0] * 4] * 5
    assert caplog.text.count("frame 000000 left out") == 2
    splits = make_splits(config_of(root, on_junk="fatal"))
    with pytest.raises(DataError, match=r"000000\.png: cannot decode"):
        list(splits.validation())


def test_classes_that_do_not_occur_are_refused_or_reported(tmp_path, caplog):
    root = object_folder(tmp_path)
    with pytest.raises(DataError, match=r"classes=\('car', 'Bus'\).*Car 4, Pedestrian 4"):
        kitti.load_kitti(config_of(root, classes=("car", "Bus")))
    kitti.load_kitti(config_of(root, classes=("Car", "Cyclist")))
    assert "no training object of Cyclist counts" in caplog.text


# --- tracking and TFDS ----------------------------------------------------------------------------


def test_tracking_labels_by_frame(tmp_path):
    config = config_of(tracking_folder(tmp_path))
    truth = kitti.annotations(config, "validation")
    kinds = [[found.type for found in item.objects] for item in truth]
    assert kinds == [["Car", "Person_sitting", "DontCare"], ["Car"], []]
    assert truth[0].objects[0].box == (10, 8, 40, 30)
    assert truth[0].objects[1].truncated == 0.5  # level 1
    sequence = truth[0].frame.sequence
    assert truth[2].name == f"{sequence}_000002" and truth[2].frame.number == 2
    calibration = truth[0].frame.calibration()
    np.testing.assert_array_equal(calibration.p2, np.eye(3, 4) * 7)
    np.testing.assert_array_equal(calibration.r0_rect, np.eye(3))
    batch = next(make_splits(config).validation())
    assert batch["labels"][0, :3].tolist() == [1, 0, 0] and batch["valid"][0].sum() == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 1 Car 0 0", r"label_02/0002\.txt:5: 5 columns, expected 17"),
        (f"a 1 {CAR}", r"label_02/0002\.txt:5: frame is 'a'"),
        (f"0.5 1 {CAR}", r"label_02/0002\.txt:5: frame is 0\.5; write an integer"),
        (f"9 1 {CAR}", r"label_02/0002\.txt: frame 9 has labels but no image"),
    ],
)
def test_junk_in_tracking_labels_is_named(tmp_path, caplog, line, words):
    root = tracking_folder(tmp_path)
    path = root / "training/label_02/0002.txt"
    path.write_text(path.read_text() + f"\n{line}\n")
    with pytest.raises(DataError, match=words):
        kitti.load_kitti(config_of(root, on_junk="fatal"))
    names = names_of(root)
    assert len(names["train"] + names["validation"]) == 12
    assert "1 object left out" in caplog.text or "1 frame left out" in caplog.text


def test_a_tracking_sequence_without_labels_is_left_out(tmp_path, caplog):
    root = tracking_folder(tmp_path)
    (root / "training/label_02/0002.txt").unlink()
    draw(root / "training/image_02/0001/last.png", 0)
    names = names_of(root)
    assert len(names["train"] + names["validation"]) == 9
    assert "label_02/0002.txt: missing; the sequence has 3 frames" in caplog.text
    assert "last.png: the name is no frame number" in caplog.text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The object folder as TFDS's own code stores it; its box conversion is the reference."""
    with _quiet():
        import tensorflow_datasets as tfds
        from etils import epath
        from tensorflow_datasets.datasets.kitti import kitti_dataset_builder as official
    root = object_folder(tmp_path_factory.mktemp("object"))

    class Kitti(official.Builder, skip_registration=True):
        name = "kitti"
        code_path = epath.Path(official.__file__)
        pkg_dir_path = code_path.parent

        def _split_generators(self, dl_manager):
            return {
                "train": self._examples(["000004", "000001", "000002"]),
                "validation": self._examples(["000000", "000003"]),
            }

        def _examples(self, names):
            for name in names:
                with open(root / f"training/label_2/{name}.txt", "rb") as lines:
                    objects = official._parse_kitti_annotations(
                        line.replace(b"\n", b"") for line in lines
                    )
                for item in objects:
                    item["bbox"] = official._build_bounding_box(item.pop("bbox_raw"), *SIZE)
                image = str(root / f"training/image_2/{name}.png")
                yield name, {"image": image, "image/file_name": f"{name}.png", "objects": objects}

    folder = tmp_path_factory.mktemp("tfds")
    with _quiet():
        Kitti(data_dir=folder, file_format="array_record").download_and_prepare()
    del tfds
    return root, folder


def _quiet():
    import warnings

    return warnings.catch_warnings(action="ignore")


def test_tfds_gives_what_the_folders_give(prepared, caplog):
    root, folder = prepared
    want = {
        item.name: item
        for split in kitti.SPLITS
        for item in kitti.annotations(config_of(root), split)
    }
    config = config_of(folder)
    for split, names in (("train", "124"), ("validation", "03")):
        found = kitti.annotations(config, split)
        assert [item.name for item in found] == [f"00000{i}" for i in names]
        for item in found:
            expected = tuple(x for x in want[item.name].objects if x.type != "DontCare")
            assert item.objects == expected and (item.height, item.width) == SIZE
    assert "no DontCare" in caplog.text
    (batch,) = make_splits(config).validation()
    (same,) = make_splits(config_of(root)).validation()
    np.testing.assert_array_equal(batch["image"], same["image"])
    np.testing.assert_array_equal(batch["boxes"][:, :3], same["boxes"][:, :3])
    with pytest.raises(DataError, match="no calibration"):
        found[0].frame.calibration()
    with pytest.raises(DataError, match="no separate files"):
        kitti.list_frames(str(folder))


def test_tfds_folders_of_other_kinds_are_refused(prepared, tmp_path):
    copy = tmp_path / "kitti"
    shutil.copytree(prepared[1] / "kitti", copy)
    assert kitti_files.find_layout(tmp_path) == kitti_files.find_layout(copy)
    layout, version = kitti_files.find_layout(copy)
    assert layout == "tfds" and kitti_files.find_layout(version) == (layout, version)
    record = next(version.glob("*train*.array_record*"))
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(DataError, match=r"kitti.*cannot be read"):
        kitti.load_kitti(config_of(tmp_path, on_junk="fatal"))
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"'tfrecord'.*file_format='array_record'"):
        kitti.load_kitti(config_of(tmp_path))
    info.write_text("{")
    with pytest.raises(DataError, match=r"dataset_info\.json: cannot be read"):
        kitti.load_kitti(config_of(tmp_path))


# --- targets and augmentation ---------------------------------------------------------------------


def thing(kind="Car", box=(0.0, 0.0, 20.0, 20.0), truncated=0.0, occluded=0):
    return KittiObject(kind, truncated, occluded, 0.0, box, (1, 1, 1), (0, 0, 9), 0.0)


def targets(*objects, classes=("Car", "Pedestrian"), boxes=4):
    return kitti_targets.make_targets(objects, (40, 80), (80, 240), classes, boxes)


@pytest.mark.parametrize(
    ("item", "valid", "ignore"),
    [
        (thing(), True, False),
        (thing(occluded=2, truncated=0.8), True, False),
        (thing(occluded=-1, truncated=-1.0), True, False),  # unknown
        (thing(occluded=3), False, True),
        (thing(truncated=0.81), False, True),
        (thing(box=(0.0, 0.0, 20.0, 9.9)), False, True),
        (thing(box=(0.0, -9.0, 20.0, 9.9)), False, True),  # its height inside the image
        (thing(box=(0.0, 0.0, 20.0, 10.0)), True, False),
        (thing("Person_sitting"), False, True),
        (thing("DontCare", occluded=-1), False, True),
        (thing("Cyclist"), False, False),
        (thing("Misc"), False, False),
    ],
)
def test_what_counts(item, valid, ignore):
    found = targets(item)
    assert (found["valid"].tolist(), found["ignore"].tolist()) == (
        [valid, False, False, False], [ignore, False, False, False],
    )  # fmt: skip


def test_neighbours_follow_the_classes():
    van, rider = thing("Van"), thing("Cyclist")
    assert not targets(van, classes=("Pedestrian",))["ignore"].any()
    found = targets(van, rider, classes=("Cyclist", "Van"))
    assert found["valid"].sum() == 2 and sorted(found["labels"][:2].tolist()) == [1, 2]


def test_objects_that_count_go_first_and_the_rest_is_told(tmp_path, caplog):
    many = [thing(box=(0.0, 0.0, 10.0 + i, 20.0)) for i in range(5)]
    found = targets(thing("DontCare", box=(0.0, 0.0, 80.0, 40.0)), *many)
    assert found["valid"].all() and found["left_out"] == 2  # an object and the region
    assert (found["boxes"][:, 2] / 3).tolist() == [14, 13, 12, 11]
    make_splits(config_of(object_folder(tmp_path), max_boxes=1))
    assert "4 frames have more than 1 objects and regions" in caplog.text


@given(
    st.lists(st.tuples(*[st.floats(-20, 100, width=32)] * 4), max_size=6),
    st.sampled_from([(40, 80), (37, 93)]),
)
def test_boxes_stay_inside_the_image(corners, native):
    boxes = [(min(a, c), min(b, d), max(a, c) + 1.0, max(b, d) + 1.0) for a, b, c, d in corners]
    found = kitti_targets.make_targets([thing(box=b) for b in boxes], native, native, ("Car",), 8)
    real = found["boxes"][found["valid"] | found["ignore"]]
    assert len(real) == len(boxes) and (real >= 0).all()
    assert (real[:, 2:] >= real[:, :2]).all() and (real[:, [2, 3]] <= native[::-1]).all()


def test_a_flip_keeps_the_object_under_its_box(tmp_path):
    root = object_folder(tmp_path, 12)
    boxes = {}
    for i in range(12):  # one white object on black, of different places and image widths
        x, width = 5 + i, 93 - i
        image = np.zeros((37, width, 3), np.uint8)
        image[6:30, x : x + 20] = 255
        Image.fromarray(image).save(root / f"training/image_2/{i:06d}.png")
        line = f"Car 0 0 0 {x} 6 {x + 20} 30 {REST}"
        write(root / f"training/label_2/{i:06d}.txt", line)
        boxes[f"{i:06d}"] = x
    config = config_of(root, augment=True, resize="stretch", height=64, width=192)
    splits, truth = make_splits(config, 8), kitti.annotations(config, "train")
    flipped = 0
    for batch, _ in zip(splits.train(), range(4), strict=False):
        for image, box, size, row in zip(
            batch["image"], batch["boxes"], batch["native_size"], batch["image_id"], strict=True
        ):
            scale = np.array([size[1] / 192, size[0] / 64] * 2)
            left, top, right, bottom = np.round(box[0] * scale).astype(int)
            bright = image[..., 0] > 100
            assert bright[top:bottom, left:right].all()
            assert bright.sum() == (bottom - top) * (right - left) == 24 * 20
            assert not box[1:].any()
            assert not image[:, int(size[1]) :].any()
            flipped += left != boxes[truth[row].name]
    assert 0 < flipped < 32


@pytest.mark.parametrize("seed", range(4))
def test_jitter_is_that_of_torchvision(seed):
    """On Pillow images torchvision's ColorJitter calls exactly these enhancers."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    changes = kitti_targets.draw_changes(rng, 6)
    for row in range(6):
        want = Image.fromarray(image)
        for place in changes.order[row]:
            want = enhancers[place](want).enhance(float(changes.factors[row, place]))
        want = np.asarray(want).astype(int)
        found = kitti_targets.change_image(image, changes, row).astype(int)
        found = found[:, ::-1] if changes.flip[row] else found
        assert np.abs(found - want).max() <= 1  # the mean grey is rounded once, not for each pixel
        assert np.abs(found - image).max() > 3


def test_changes_are_seeded_and_in_range():
    one, two = (kitti_targets.draw_changes(np.random.default_rng(3), 400) for _ in range(2))
    np.testing.assert_array_equal(one.factors, two.factors)
    assert one.factors.min() >= 0.8 and one.factors.max() <= 1.2 and 120 < one.flip.sum() < 280
    assert (np.sort(one.order, axis=1) == [0, 1, 2]).all()
    assert len({tuple(row) for row in one.order.tolist()}) == 6


# --- config ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.on_junk=ignore", "on_junk='ignore'"),
        ("data.val_share=0", "more than 0"),
        ("data.val_share=0.95", "at most 0.9"),
        ("data.train_size=-1", "at least 0"),
    ],
)
def test_config_values_out_of_range_are_refused(override, words):
    config = base_config()
    config.data.name = "kitti"
    with pytest.raises(ConfigError, match=words):
        validate(apply_overrides(config, [override]))


def test_zero_frames_mean_all_of_kitti_but_no_scenes():
    config = base_config()
    config.data.update(name="kitti", train_size=0, val_size=0)
    validate(config)
    config.data.name = "scenes"
    with pytest.raises(ConfigError, match=r"train_size=0.*made to order"):
        validate(config)


# --- real frames ----------------------------------------------------------------------------------


def test_real_frames(shared, caplog):
    root = shared / "data" / "kitti"
    config = config_of(root, height=416, width=1344, min_side=800, max_side=1333, max_boxes=32,
                       cache=False, classes=("Car", "Pedestrian", "Cyclist"))  # fmt: skip
    loaded = kitti.load_kitti(config)
    listed = {
        split: set(
            (root / f"ImageSets/{split[:5].replace('valid', 'val')}.txt").read_text().split()
        )
        for split in kitti.SPLITS
    }
    images = {path.stem for path in (root / "training/image_2").iterdir()}
    for split, items in loaded.splits.items():
        assert [item.name for item in items] == sorted(listed[split] & images)
    lost = len((listed["train"] | listed["validation"]) - images)
    assert f"{lost} frames left out" in caplog.text and "object left out" not in caplog.text
    assert loaded.canvas() == (384, 1248)

    splits = kitti.splits_of(loaded, config, 5)
    batch = next(splits.validation())
    for image, row, size, network in zip(
        *(batch[k] for k in ("image", "image_id", "native_size", "image_size")), strict=True
    ):
        item = loaded.splits["validation"][row]
        stored = np.asarray(Image.open(item.frame.image))
        np.testing.assert_array_equal(image[: stored.shape[0], : stored.shape[1]], stored)
        assert tuple(size) == stored.shape[:2] and max(network) in (1332, 1333)
        text = item.frame.label.read_text()
        assert list(item.objects) == kitti_format.parse_labels(text)
        assert item.frame.calibration().p2.shape == (3, 4)
    train = next(splits.train())
    real = train["boxes"][train["valid"]]
    assert len(real) and (real >= 0).all() and (real[:, 2:] > real[:, :2]).all()
    lidar_only = [frame for frame in kitti.list_frames(str(root)) if frame.image is None]
    assert any(frame.velodyne_reduced for frame in lidar_only)
