"""A small PointPillars, sweeps for it, and a KITTI folder of such sweeps."""

import numpy as np

from jaxcomp.config import load_config
from jaxcomp.data import kitti_format
from jaxcomp.data.kitti_format import Calibration, KittiObject
from jaxcomp.models.pointpillars import PointPillarsConfig

SIZES = {
    "low": (0.0, -6.4, -3.0),
    "high": (12.8, 6.4, 1.0),
    "cell": (0.8, 0.8, 4.0),
    "max_points": 4,
    "max_pillars": 64,
    "max_pillars_eval": 128,
    "encoder_features": 8,
    "block_features": (8, 8, 8),
    "block_convs": (0, 0, 0),
    "neck_features": (4, 4, 4),
    "candidates": 20,
}
CFG = PointPillarsConfig(**SIZES)
CALIBRATION = Calibration(
    np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
    np.eye(3),
    np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
)


def sweep(count=300, seed=0):
    """Points in range."""
    rng = np.random.default_rng(seed)
    return rng.uniform((0, -6, -2, 0), (12.5, 6, 0.5, 1), (count, 4)).astype(np.float32)


def label(x, y, kind="Car", size=(1.5, 1.6, 3.9)):
    """A label whose lidar box stands at (x, y, -1.7)."""
    return KittiObject(kind, 0.0, 0, 0.1, (500, 100, 600, 180), size, (-y, 1.7, x), 0.1)


def objects(boxes=(), labels=(), rows=2, most=4):
    """Padded objects of a batch, the same in each row."""
    count = len(labels)
    padded = np.zeros((rows, most, 7), np.float32)
    padded[:, :count] = np.asarray(boxes, np.float32).reshape(-1, 7)
    classes = np.full((rows, most), -1, np.int32)
    classes[:, :count] = labels
    valid = np.arange(most)[None].repeat(rows, 0) < count
    return {"boxes": padded, "labels": classes, "valid": valid, "mask": np.ones(rows, np.float32)}


def kitti_folder(root, frames=6):
    """An object folder whose lists name the last two frames for validation."""
    training = root / "training"
    for name in ("velodyne_reduced", "label_2", "calib"):
        (training / name).mkdir(parents=True)
    for i in range(frames):
        sweep(seed=i).tofile(training / "velodyne_reduced" / f"{i:06d}.bin")
        found = [label(4 + i, 0), label(8, 3, "Pedestrian", (1.7, 0.6, 0.8)), label(9, -4, "Van")]
        (training / "label_2" / f"{i:06d}.txt").write_text(kitti_format.format_labels(found))
        calibration = kitti_format.format_calibration(CALIBRATION)
        (training / "calib" / f"{i:06d}.txt").write_text(calibration)
    (root / "ImageSets").mkdir()
    lists = {"train": range(frames - 2), "val": range(frames - 2, frames)}
    for name, rows in lists.items():
        (root / "ImageSets" / f"{name}.txt").write_text("".join(f"{i:06d}\n" for i in rows))
    return root


def config(root, **changes):
    """`configs/pointpillars.py` shrunk to the toy, on a folder of `kitti_folder`."""
    sizes = {f"model.{k}": v for k, v in SIZES.items()}
    values = {
        **sizes,
        "data.name": "kitti",
        "data.dir": str(root),
        "data.train_size": 0,
        "data.val_size": 0,
        "data.pad_points": 1024,
        "data.max_boxes": 8,
        "data.num_threads": 0,
        "training.batch_size": 4,
        "training.epochs": 1,
        **changes,
    }
    return load_config("configs/pointpillars.py", [f"{k}={v}" for k, v in values.items()])
