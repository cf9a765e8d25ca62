"""KITTI folders as people have them: finds the layout and lists the frames without reading them.

Three layouts are known: the official object folders, the tracking folders, and what TFDS prepares
under the name `kitti` (see `jaxcomp.data.kitti_tfds`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from jaxcomp.data import kitti_format
from jaxcomp.errors import DataError

ENVIRONMENT = "KITTI_ROOT"
_IMAGES = (".png", ".jpg", ".jpeg")
_OBJECT = {  # field of KittiFrame, in its order: folder, endings
    "image": ("image_2", _IMAGES),
    "label": ("label_2", (".txt",)),
    "calib": ("calib", (".txt",)),
    "velodyne": ("velodyne", (".bin",)),
    "velodyne_reduced": ("velodyne_reduced", (".bin",)),
}
_LOOKED_FOR = (
    "training/image_2 and training/label_2 (object layout), training/image_02 and "
    "training/label_02 (tracking layout), or kitti/<version>/dataset_info.json (TFDS)"
)


@dataclasses.dataclass(frozen=True)
class KittiFrame:
    """The files of one frame; those that do not exist are None.

    Attributes:
      name: "000123"; in the tracking layout "0004_000123", the sequence and the frame. Result files
        of the official evaluation are called `<name>.txt`.
      sequence: the tracking sequence or TFDS split; empty in the object layout.
      number: the frame in its sequence (tracking) or the record in its split (TFDS), else -1.
      image: left colour image.
      label: label file; in the tracking layout that of the whole sequence.
      calib: calibration file; in the tracking layout that of the whole sequence.
      velodyne: lidar sweep, float32 (x, y, z, reflectance) rows.
      velodyne_reduced: the same with the points outside the camera's view removed.
    """

    name: str
    sequence: str = ""
    number: int = -1
    image: Path | None = None
    label: Path | None = None
    calib: Path | None = None
    velodyne: Path | None = None
    velodyne_reduced: Path | None = None

    def calibration(self) -> kitti_format.Calibration:
        """Reads the calibration.

        Raises:
          DataError: the frame has none, or the file is broken.
        """
        if self.calib is None:
            raise DataError(
                f"kitti frame {self.name}: no calibration file; unpack data_object_calib.zip (or "
                "data_tracking_calib.zip) beside the images. TFDS's copy of KITTI has none"
            )
        return kitti_format.parse_calibration(read_text(self.calib), str(self.calib))


def read_text(path: Path) -> str:
    """A text file; bytes that are no text become marks that no parser accepts.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error


def find_root(folder: str) -> Path:
    """The data folder: `folder`, else the environment variable KITTI_ROOT.

    Raises:
      DataError: neither is set, or the folder does not exist.
    """
    source, chosen = "config.data.dir", folder
    if not chosen:
        source, chosen = f"the environment variable {ENVIRONMENT}", os.environ.get(ENVIRONMENT, "")
    if not chosen:
        raise DataError(
            f"kitti: no folder is given; set config.data.dir or the environment variable "
            f"{ENVIRONMENT} to the one that holds {_LOOKED_FOR}"
        )
    root = Path(chosen).expanduser()
    if not root.is_dir():
        raise DataError(
            f"kitti: {root} (from {source}) is no folder; correct config.data.dir or {ENVIRONMENT}"
        )
    return root


def find_layout(root: Path) -> tuple[str, Path]:
    """("object" or "tracking", the `training` folder) or ("tfds", the folder of the version).

    Raises:
      DataError: the folder holds none of them.
    """
    for training in (root / "training", root):
        for layout, folders in (
            ("object", ("image_2", "label_2")),
            ("tracking", ("image_02", "label_02")),
        ):
            there = [name for name in folders if (training / name).is_dir()]
            if there:
                return layout, training
    prepared = _prepared(root)
    if prepared is None:
        raise DataError(
            f"{root}: does not look like KITTI; looked for {_LOOKED_FOR}; "
            f"set config.data.dir or {ENVIRONMENT} to the folder that holds one of these"
        )
    return "tfds", prepared


def _prepared(root: Path) -> Path | None:
    """The newest version of TFDS's `kitti` in a data_dir, a `kitti` folder or a version folder."""
    if (root / "dataset_info.json").is_file():
        return root
    found = [
        path.parent
        for pattern in ("*/dataset_info.json", "kitti/*/dataset_info.json")
        for path in root.glob(pattern)
        if path.parent.name.replace(".", "").isdecimal() and path.parent.parent.name == "kitti"
    ]
    return max(found, key=lambda p: [int(x) for x in p.name.split(".") if x], default=None)


def require_folders(layout: str, training: Path) -> None:
    """Raises `DataError` if the images or labels of an object or tracking folder are missing."""
    names = ("image_2", "label_2") if layout == "object" else ("image_02", "label_02")
    kind = "object" if layout == "object" else "tracking"
    for name in names:
        if not (training / name).is_dir():
            raise DataError(
                f"{training / name}: missing; unpack data_{kind}_{name}.zip there (found the "
                f"{kind} layout; looked for {' and '.join(names)})"
            )


def object_frames(training: Path) -> list[KittiFrame]:
    """Every frame that has a file of any kind, by name."""
    found = {field: _files(training / name, ends) for field, (name, ends) in _OBJECT.items()}
    names = sorted(set().union(*found.values()))
    return [KittiFrame(name, "", -1, *(found[f].get(name) for f in _OBJECT)) for name in names]


def tracking_frames(training: Path) -> list[KittiFrame]:
    """Every frame that has an image or a sweep, by sequence and frame."""
    labels, calibs = _files(training / "label_02", (".txt",)), _files(training / "calib", (".txt",))
    frames = []
    for sequence in _folders(training / "image_02", training / "velodyne"):
        images = _files(training / "image_02" / sequence, _IMAGES)
        sweeps = _files(training / "velodyne" / sequence, (".bin",))
        reduced = _files(training / "velodyne_reduced" / sequence, (".bin",))
        for stem in sorted(images.keys() | sweeps.keys()):
            files = (images, dict.fromkeys([stem], labels.get(sequence)),
                     dict.fromkeys([stem], calibs.get(sequence)), sweeps, reduced)  # fmt: skip
            number = int(stem) if stem.isdecimal() else -1
            paths = (group.get(stem) for group in files)
            frames.append(KittiFrame(f"{sequence}_{stem}", sequence, number, *paths))
    return frames


def _folders(*places: Path) -> list[str]:
    names = {
        entry.name
        for place in places
        if place.is_dir()
        for entry in os.scandir(place)
        if entry.is_dir() and not entry.name.startswith(".")
    }
    return sorted(names)


def _files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Stem to path of the files with one of the endings, the first of which wins; {} if absent."""
    if not folder.is_dir():
        return {}
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    found: dict[str, Path] = {}
    for ending in reversed(endings):
        for name in names:
            if name.lower().endswith(ending):
                found[name[: -len(ending)]] = folder / name
    return found
