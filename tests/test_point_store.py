"""Points on disk: whole or not there, of one detector and one set of frames."""

import dataclasses

import numpy as np
import pytest

from jaxcomp.errors import CheckpointError
from jaxcomp.evaluate.detection import Frame
from jaxcomp.jobs import point_store
from jaxcomp.jobs.point_store import Fingerprint, PointStore

PRINT = Fingerprint("a" * 64, "b" * 64, 2, ("Car",))


def frame(found, truth, ignored=0):
    rng = np.random.default_rng(found + 10 * truth)
    return Frame(
        rng.random((found, 4)).astype("f4"),
        rng.random(found).astype("f4"),
        np.ones(found, "i4"),
        rng.random((truth, 4)).astype("f4"),
        np.full(truth, 2, "i4"),
        rng.random((ignored, 4)).astype("f4"),
    )


def test_frames_survive_the_arrays():
    frames = [frame(3, 2, 1), frame(0, 0), frame(0, 4), frame(5, 0, 2)]
    again = point_store.unpack_frames(
        point_store.pack_frames(frames), point_store.pack_truth(frames)
    )
    assert len(again) == len(frames)
    for one, other in zip(frames, again, strict=True):
        for field in dataclasses.fields(Frame):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    with pytest.raises(CheckpointError, match="2 frames"):
        point_store.unpack_frames(
            point_store.pack_frames(frames[:2]), point_store.pack_truth(frames)
        )


def test_a_point_is_there_when_both_files_are(tmp_path):
    store = PointStore(tmp_path, PRINT)
    assert not store.has("avif-35")
    store.write("avif-35", {"bytes": 3}, {"x": [1, 2]})
    record, arrays = store.read("avif-35")
    assert record == {"bytes": 3} and arrays["x"].tolist() == [1, 2]
    (tmp_path / "points" / "avif-35.npz").write_bytes(b"PK\x03\x04cut short")
    with pytest.raises(CheckpointError, match=r"avif-35\.npz.*damaged"):
        store.read("avif-35")
    (tmp_path / "points" / "avif-35.npz").unlink()  # as the message says
    assert not store.has("avif-35")


@pytest.mark.parametrize("change", [
    {"detector": "c" * 64}, {"frames": "d" * 64}, {"count": 3}, {"classes": ("Car", "Van")},
])  # fmt: skip
def test_other_data_are_refused(tmp_path, change):
    PointStore(tmp_path, PRINT)
    PointStore(tmp_path, PRINT)  # the same go on
    with pytest.raises(CheckpointError, match=f"other data: {next(iter(change))}"):
        PointStore(tmp_path, dataclasses.replace(PRINT, **change))


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / point_store.RECORD).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        PointStore(tmp_path, PRINT)


def test_names_of_files_are_plain():
    name = point_store.file_name("random, task + feature loss", 2.5e-4, "ab12")
    assert name == "random_task_+_feature_loss_0.00025_ab12"
    assert point_store.file_name("../x y", None) == "x_y"
