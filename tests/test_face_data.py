"""Images with faces for training: changes keep labels and pixels together; folders; bad input."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcomp.config import apply_overrides, load_config
from jaxcomp.data import face_augment
from jaxcomp.data.face_augment import FaceAugmentation
from jaxcomp.data.face_records import FaceRecords, face_splits, procedural, widerface_source
from jaxcomp.data.faces import FaceSettings
from jaxcomp.data.widerface import FaceLabels
from jaxcomp.errors import ConfigError, DataError

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "featherface.py"
PLAIN = FaceAugmentation(colours=0.0)


def marked(height, width, boxes, has=None):
    """A gray image whose faces are red with a green dot at each landmark."""
    image = np.full((height, width, 3), 90, np.uint8)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    has = np.ones(len(boxes), bool) if has is None else np.array(has)
    place = np.array([[0.25, 0.3], [0.75, 0.3], [0.5, 0.5], [0.25, 0.75], [0.75, 0.75]])
    points = boxes[:, None, :2] + place * boxes[:, None, 2:]
    for (x, y, w, h), marks in zip(boxes.astype(int), points, strict=True):
        image[y : y + h, x : x + w] = (200, 0, 0)
        for a, b in marks.astype(int):
            image[b - 2 : b + 3, a - 2 : a + 3] = (0, 200, 0)
    points[~has] = -1
    kinds = np.full((len(boxes), 6), -1, np.int32)
    return image, FaceLabels("event/one", boxes, points.astype(np.float32), has, kinds)


def colour_at(image, x, y):
    return image[int(y), int(x)].astype(int)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_faces_and_landmarks_stay_on_their_pixels(seed):
    image, labels = marked(120, 160, [[20, 30, 40, 50], [90, 20, 44, 44]])
    rng = np.random.default_rng(seed)
    changed, found = face_augment.augment(image, labels, (96, 96), PLAIN, rng)
    assert changed.shape == (96, 96, 3) and changed.dtype == np.uint8
    assert len(found) >= 1
    for points in found.landmarks:
        for x, y in points:
            if 3 < x < 93 and 3 < y < 93:
                red, green, _ = colour_at(changed, x, y)
                assert green > red
        eye, other, nose, corner, last = points
        assert eye[0] < nose[0] < other[0] and corner[0] < last[0]
    assert (found.boxes[:, 2:] > 0).all()


def test_a_crop_keeps_a_whole_face_and_the_middles_inside():
    image, labels = marked(100, 100, [[5, 5, 20, 20], [60, 60, 30, 30]])
    for seed in range(30):
        cut, found, cropped = face_augment.crop(
            image, labels, PLAIN, np.random.default_rng(seed)
        )  # fmt: skip
        assert cropped and cut.shape[0] == cut.shape[1] and len(found)
        whole = found.boxes[:, 2:].round()
        assert (whole == (20, 20)).all(1).any() or (whole == (30, 30)).all(1).any()


def test_an_image_without_faces_is_padded_to_a_square():
    image, labels = marked(40, 100, [])
    changed, found = face_augment.augment(
        image, labels, (64, 64), FaceAugmentation(colours=0.0, mirror=0.0), np.random.default_rng(0)
    )
    assert len(found) == 0
    np.testing.assert_array_equal(changed[-1, 5], face_augment.MEAN_RGB)
    np.testing.assert_allclose(changed[5, 5], 90, atol=1)


def test_mirroring_twice_changes_nothing():
    image, labels = marked(50, 60, [[5, 5, 20, 20], [30, 10, 20, 20]], has=[True, False])
    once = face_augment.mirror(image, labels)
    assert (once[1].landmarks[1] == -1).all()
    again, found = face_augment.mirror(*once)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_allclose(found.landmarks, labels.landmarks, atol=1e-4)
    np.testing.assert_allclose(found.boxes, labels.boxes, atol=1e-4)


def test_colours_change_within_limits_and_without_probability_not_at_all():
    image, _ = marked(30, 30, [[5, 5, 20, 20]])
    same = face_augment.distort(image, PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(same, image)
    always = FaceAugmentation(colours=1.0)
    seen = {face_augment.distort(image, always, np.random.default_rng(i)).tobytes() for i in (1, 2)}
    assert len(seen) == 2


def test_targets_are_padded_and_the_largest_kept():
    _, labels = marked(100, 100, [[5, 5, 20, 20], [60, 60, 30, 30]], has=[True, False])
    two = face_augment.targets(labels, (100, 100), 4)
    assert two["labels"].tolist() == [-1, 1, 0, 0]
    np.testing.assert_allclose(two["boxes"][1], [0.05, 0.05, 0.25, 0.25], atol=1e-6)
    assert not two["landmarks"][0].any() and two["landmarks"][1].all()
    one = face_augment.targets(labels, (100, 100), 1)
    np.testing.assert_allclose(one["boxes"], [[0.6, 0.6, 0.9, 0.9]], atol=1e-6)


@pytest.mark.parametrize("values", [{"scales": (0.0,)}, {"mirror": 2.0}, {"tries": 0}])
def test_settings_out_of_range(values):
    with pytest.raises(ConfigError):
        FaceAugmentation(**values)


def small(*overrides):
    sizes = ("data.train_size=6", "data.val_size=3", "data.height=64", "data.width=64")
    batch = ("training.batch_size=4",)
    config = load_config(f"{CONFIG}:v1", sizes + batch)
    return apply_overrides(config, ("data.largest=60", "data.max_boxes=8", *overrides))


def test_batches_are_the_same_for_one_and_two_processes():
    splits = face_splits(small(), 4)
    whole = next(splits.train())
    parts = [next(splits.sharded(i, 2).train()) for i in (0, 1)]
    for key, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([p[key] for p in parts]))
    assert whole["image"].shape == (4, 64, 64, 3) and whole["boxes"].shape == (4, 8, 4)
    held = list(splits.validation())
    assert [b["mask"].sum() for b in held] == [3]
    other = face_splits(small("data.seed=1"), 4)
    assert other.fingerprint != splits.fingerprint


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "train" / "images" / "0--Event"
    images.mkdir(parents=True)
    for name, mode in (("a", "RGB"), ("b", "L"), ("c", "RGBA")):
        Image.new(mode, (60, 40)).save(images / f"{name}.png")
    Image.new("RGB", (1, 1)).save(images / "d.png")
    (images / "e.png").write_bytes(b"no image")
    marks = " ".join(f"{10 + i}.0 {12 + i}.0 0.0" for i in range(5))
    missing = " ".join(["-1.0"] * 15)
    lines = ["# 0--Event/a.png", f"5 5 20 20 {marks} 0.9", f"30 10 50 50 {missing} 0.1"]
    lines += ["# 0--Event/none.png"]
    for name in "bcd":
        lines += [f"# 0--Event/{name}.png", f"0 0 9 9 {missing} 0.5"]
    lines += ["# 0--Event/e.png", f"1 1 4 4 {missing} 0.5"]
    (tmp_path / "train" / "label.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_widerface_folders_of_all_kinds_of_images(folder, caplog):
    source = widerface_source(str(folder), "train")
    assert source.names == tuple(f"0--Event/{n}" for n in "abcde")  # none.png has no face
    records = FaceRecords(source, (32, 32), 4, how=FaceAugmentation())
    for rng in (None, np.random.default_rng(0)):
        batch = records.gather(np.arange(5), rng)
        assert batch["mask"].tolist() == [1, 1, 1, 1, 0]
        assert batch["image"].shape == (5, 32, 32, 3) and np.isfinite(batch["boxes"]).all()
    whole = records.gather(np.arange(1), None)
    assert whole["labels"][0].tolist() == [-1, 1, 0, 0]
    assert whole["boxes"].max() <= 1  # the second face reaches beyond the image
    assert "e.png" in caplog.text
    strict = FaceRecords(source, (32, 32), 4, on_junk="fatal")
    with pytest.raises(DataError, match=r"e\.png"):
        strict.gather(np.arange(5), None)


def test_folders_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        widerface_source("", "train")
    with pytest.raises(DataError, match="wider_face_val_bbx_gt"):
        widerface_source(str(folder), "validation")
    (folder / "train" / "label.txt").write_text("# 0--Event/a.png\n")
    with pytest.raises(DataError, match="no image"):
        widerface_source(str(folder), "train")


def test_procedural_images_of_both_splits_differ():
    settings_ = FaceSettings(height=64, width=64, largest=60.0)
    first, second = (procedural(settings_, start, 2) for start in (0, 10))
    assert first.fingerprint != second.fingerprint and first.names != second.names
    assert (first.read(1)[0] != second.read(1)[0]).any()
