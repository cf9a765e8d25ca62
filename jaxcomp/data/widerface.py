"""WIDERFace's labels: the official text and MATLAB files, and RetinaFace's with five landmarks.

Images are named "event/image" without an ending in the evaluation's files, and by their path in the
label files. Boxes are x, y, width, height in pixels. Landmarks are left eye, right eye, nose, left
and right corner of the mouth, as the viewer sees them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxcomp.data.matlab import read_matlab
from jaxcomp.errors import DataError

POINTS = 5
MISSING = -1.0  # of a coordinate of a landmark
ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
SUBSETS = ("easy", "medium", "hard")
_LANDMARK_COLUMNS = (19, 20)  # box, five times x, y, state, and perhaps a quality


@dataclasses.dataclass(frozen=True, eq=False)
class FaceLabels:
    """The N faces of one image.

    Attributes:
      image: its path, relative to the folder of the images.
      boxes: float32 [N, 4] x, y, width, height; may reach beyond the image or have no area.
      landmarks: float32 [N, 5, 2] x, y; -1 where there are none.
      has_landmarks: [N] bool.
      attributes: int32 [N, 6], see `ATTRIBUTES`; -1 where the file has none.
    """

    image: str
    boxes: np.ndarray
    landmarks: np.ndarray
    has_landmarks: np.ndarray
    attributes: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def inside(self, height: int, width: int) -> FaceLabels:
        """The faces with some area in an image of this size, their boxes clipped to it."""
        limit = np.array([width, height] * 2, np.float32)
        corners = np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], 1)
        corners = np.clip(corners, 0, limit)
        size = corners[:, 2:] - corners[:, :2]
        keep = (size > 0).all(1)
        boxes = np.concatenate([corners[:, :2], size], 1)
        columns = (self.landmarks, self.has_landmarks, self.attributes)
        return FaceLabels(self.image, boxes[keep], *(column[keep] for column in columns))


def read_face_boxes(path: str | os.PathLike[str]) -> list[FaceLabels]:
    """Reads `wider_face_train_bbx_gt.txt` or `wider_face_val_bbx_gt.txt`.

    For each image its path, the number of faces, and a line for each: box and six attributes. An
    image without faces has 0 and one line of zeros.

    Raises:
      DataError: the file is missing, ends early, or a line is not of this form.
    """
    lines = _lines(path)
    labels, place = [], 0
    while place < len(lines):
        image = lines[place]
        if not image:
            place += 1
            continue
        where = f"{path}, line {place + 2}"
        try:
            count = int(lines[place + 1])
        except (ValueError, IndexError):
            raise DataError(f"{where}: the number of faces of {image!r} is needed") from None
        rows = lines[place + 2 : place + 2 + max(count, 1)]
        if count < 0 or len(rows) < count:
            raise DataError(f"{where}: {count} faces of {image!r}, {len(rows)} lines follow")
        if count == 0 and not (rows and set(rows[0].split()) == {"0"}):
            rows = []  # some writers leave the line of zeros out
        values = _numbers(rows[:count], (4, 10), f"{path}, image {image!r}")
        labels.append(_labels(image, values[:, :4], attributes=values[:, 4:]))
        place += 2 + len(rows)
    return labels


def read_landmark_labels(path: str | os.PathLike[str]) -> list[FaceLabels]:
    """Reads RetinaFace's `label.txt`.

    For each image "# path" and a line for each face: the box, or the box and x, y, state of five
    landmarks (-1 where they are not marked), perhaps followed by a quality.

    Raises:
      DataError: the file is missing or a line is not of this form.
    """
    images: list[tuple[str, list[str]]] = []
    for number, line in enumerate(_lines(path), 1):
        if line.startswith("#"):
            images.append((line[1:].strip(), []))
        elif line and not images:
            raise DataError(f"{path}, line {number}: faces before the first '# image' line")
        elif line:
            images[-1][1].append(line)
    labels = []
    for image, rows in images:
        if not image:
            raise DataError(f"{path}: a '#' line names no image")
        values = _numbers(rows, (4, *_LANDMARK_COLUMNS), f"{path}, image {image!r}")
        points = None
        if values.shape[1] in _LANDMARK_COLUMNS:
            points = values[:, 4:19].reshape(-1, POINTS, 3)[..., :2]
        labels.append(_labels(image, values[:, :4], points))
    return labels


def _labels(
    image: str,
    boxes: np.ndarray,
    points: np.ndarray | None = None,
    attributes: np.ndarray | None = None,
) -> FaceLabels:
    count = len(boxes)
    landmarks = np.full((count, POINTS, 2), MISSING, np.float32)
    if points is not None:
        landmarks = points.astype(np.float32)
    there = ~(landmarks == MISSING).all(2).any(1)
    landmarks = np.where(there[:, None, None], landmarks, np.float32(MISSING))
    kinds = np.full((count, len(ATTRIBUTES)), -1, np.int32)
    if attributes is not None and attributes.shape[1]:
        kinds = attributes.astype(np.int32)
    return FaceLabels(image, boxes.astype(np.float32), landmarks, there, kinds)


def _lines(path: str | os.PathLike[str]) -> list[str]:
    try:
        return [line.strip() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the path") from error


def _numbers(rows: Sequence[str], widths: Sequence[int], where: str) -> np.ndarray:
    """[N, one of `widths`] finite numbers."""
    split = [row.split() for row in rows]
    for row in split:
        if len(row) not in widths or len(row) != len(split[0]):
            raise DataError(f"{where}: {len(row)} columns in {' '.join(row)[:60]!r}, not {widths}")
    try:
        values = np.array(split, np.float64).reshape(len(rows), len(split[0]) if split else 4)
    except ValueError as error:
        raise DataError(f"{where}: not a number ({error})") from None
    if not np.isfinite(values).all():
        raise DataError(f"{where}: a number is not finite")
    return values


@dataclasses.dataclass(frozen=True, eq=False)
class WiderTruth:
    """The ground truth of the evaluation.

    Attributes:
      boxes: "event/image" to float64 [N, 4] x, y, width, height of all faces.
      subsets: "easy", "medium" and "hard", each "event/image" to [N] bool, the faces that count.
    """

    boxes: dict[str, np.ndarray]
    subsets: dict[str, dict[str, np.ndarray]]


def read_widerface_truth(folder: str | os.PathLike[str]) -> WiderTruth:
    """Reads `wider_face_val.mat` and `wider_{easy,medium,hard}_val.mat`.

    Raises:
      DataError: a file is missing or damaged, or they do not belong together.
    """
    path = Path(folder) / "wider_face_val.mat"
    names, boxes = [], []
    for name, value in _entries(path, "face_bbx_list"):
        names.append(name)
        boxes.append(np.asarray(value, np.float64).reshape(-1, 4))
    subsets = {}
    for subset in SUBSETS:
        path = Path(folder) / f"wider_{subset}_val.mat"
        entries = list(_entries(path, "gt_list"))
        if [name for name, _ in entries] != names:
            raise DataError(f"{path}: has other images than wider_face_val.mat; copy both again")
        subsets[subset] = {
            name: _members(rows, len(own), f"{path}, image {name!r}")
            for (name, rows), own in zip(entries, boxes, strict=True)
        }
    return WiderTruth(dict(zip(names, boxes, strict=True)), subsets)


def _entries(path: Path, variable: str) -> Iterator[tuple[str, np.ndarray]]:
    """("event/image", array) of a list by event and image."""
    content = read_matlab(path)
    missing = [k for k in ("event_list", "file_list", variable) if k not in content]
    if missing:
        raise DataError(f"{path}: has no {missing[0]!r}; it is not of WIDERFace's evaluation")
    lists = (content["event_list"], content["file_list"], content[variable])
    try:
        for event, files, values in zip(*lists, strict=True):
            for file, value in zip(files, values, strict=True):
                yield f"{event}/{file}", value
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: its lists do not fit each other ({error})") from error


def _members(rows: np.ndarray, count: int, where: str) -> np.ndarray:
    """[count] bool from indices that begin with 1."""
    index = np.asarray(rows, np.int64).reshape(-1) - 1
    if len(index) and not 0 <= index.min() <= index.max() < count:
        raise DataError(f"{where}: tells of face {index.max() + 1}, there are {count}")
    member = np.zeros(count, bool)
    member[index] = True
    return member
