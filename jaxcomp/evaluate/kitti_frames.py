"""Objects of a KITTI frame as arrays, from labels, from a detector, and back to rows of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxcomp.errors import DataError

# The values that KITTI writes where a column does not apply.
_ABSENT = {
    "alpha": -10.0, "dimensions": -1.0, "location": -1000.0, "rotation_y": -10.0,
    "truncated": -1.0, "occluded": -1.0, "score": np.nan,
}  # fmt: skip
_WIDTH = {"box": 4, "dimensions": 3, "location": 3}
FIELDS = ("box", *_ABSENT)


@dataclasses.dataclass(frozen=True, eq=False)
class KittiFrame:
    """Ground truth or detections of one frame, N objects; columns as in KITTI's label files.

    Whatever is left out gets the value that KITTI writes for "none". Arrays become float64.

    Attributes:
      type: [N] names, as "Car"; case does not matter.
      box: [N, 4] left, top, right, bottom, pixels.
      score: [N] confidences of detections; None for ground truth.
      alpha: [N] observation angle, radians; -10 for none.
      dimensions: [N, 3] height, width, length, metres; -1 for none.
      location: [N, 3] x, y, z of the bottom centre, camera frame, metres; -1000 for none.
      rotation_y: [N] heading, radians; -10 for none.
      truncated: [N] 0 (whole) to 1; -1 for unknown.
      occluded: [N] 0 to 3; -1 for unknown.
      name: what errors call the frame; where both sides have names, they must agree.
      scored: whether `score` was given.

    Raises:
      DataError: an array has another length or width, or holds NaN or infinity.
    """

    type: Sequence[str]
    box: Any
    score: Any = None
    alpha: Any = None
    dimensions: Any = None
    location: Any = None
    rotation_y: Any = None
    truncated: Any = None
    occluded: Any = None
    name: str = ""
    scored: bool = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", tuple(str(name) for name in self.type))
        object.__setattr__(self, "scored", self.score is not None)
        for field in FIELDS:
            object.__setattr__(self, field, self._column(field, getattr(self, field)))
        if (self.box[:, 2:] < self.box[:, :2]).any():
            row = int((self.box[:, 2:] < self.box[:, :2]).any(1).argmax())
            raise DataError(
                f"{self._where(row)}: box {self.box[row].tolist()} ends before it starts; "
                "order it left, top, right, bottom"
            )

    def __len__(self) -> int:
        return len(self.type)

    def _column(self, field: str, value: Any) -> np.ndarray:
        shape = (len(self), _WIDTH[field]) if field in _WIDTH else (len(self),)
        if value is None and field in _ABSENT:
            return np.full(shape, _ABSENT[field])
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{self._where()}: {field} is not an array of numbers") from None
        if array.size == 0 and len(self) == 0:
            return np.zeros(shape)
        if array.shape != shape:
            raise DataError(
                f"{self._where()}: {field} has shape {array.shape}; {len(self)} types need {shape}"
            )
        if not np.isfinite(array).all():
            row = int((~np.isfinite(array)).reshape(len(array), -1).any(1).argmax())
            raise DataError(
                f"{self._where(row)}: {field} is {array[row].tolist()}; give finite numbers"
            )
        return array

    def _where(self, row: int | None = None) -> str:
        frame = f"frame {self.name!r}" if self.name else "a frame"
        return frame if row is None else f"{frame}, object {row} ({self.type[row]})"

    @classmethod
    def from_objects(cls, objects: Sequence[Any], name: str = "") -> KittiFrame:
        """A frame of objects with the attributes of KITTI's columns, as parsed from a label file.

        Raises:
          DataError: some objects have a score and others have none, or as the class does.
        """
        columns: dict[str, Any] = {f: [getattr(x, f) for x in objects] for f in FIELDS}
        scores = columns.pop("score")
        missing = [i for i, score in enumerate(scores) if score is None]
        if missing and len(missing) < len(scores):
            raise DataError(
                f"frame {name!r}, object {missing[0]} has no score and others have one; "
                "give detections a score and ground truth none"
            )
        return cls(
            type=[x.type for x in objects],
            score=None if missing else scores,
            name=name,
            **columns,
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The objects as plain values by column, "type" first; score is None for ground truth."""
        columns = {f: getattr(self, f).tolist() for f in FIELDS}
        for i, name in enumerate(self.type):
            row: dict[str, Any] = {"type": name, **{f: columns[f][i] for f in FIELDS}}
            row |= {f: tuple(row[f]) for f in _WIDTH}
            row["occluded"] = int(row["occluded"])
            row["score"] = row["score"] if self.scored else None
            yield row


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """The objects of many frames in one array per column, in the order of the frames.

    Attributes:
      kind: [N] lower-case names.
      frame: [N] int64 index of the frame.
      start: [F + 1] int64; frame f has the objects start[f] to start[f + 1].
      Others: as in `KittiFrame`.
    """

    kind: np.ndarray
    frame: np.ndarray
    start: np.ndarray
    box: np.ndarray
    score: np.ndarray
    alpha: np.ndarray
    dimensions: np.ndarray
    location: np.ndarray
    rotation_y: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray

    @classmethod
    def gather(cls, frames: Sequence[KittiFrame]) -> Objects:
        """All objects of the frames."""
        counts = [len(frame) for frame in frames]
        columns = {f: np.concatenate([getattr(frame, f) for frame in frames]) for f in FIELDS}
        kind = [name.lower() for frame in frames for name in frame.type]
        return cls(
            kind=np.array(kind, dtype="U32" if not kind else None),
            frame=np.repeat(np.arange(len(frames)), counts),
            start=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            **columns,
        )

    def select(self, keep: np.ndarray) -> Objects:
        """Those objects for which the [N] bool array `keep` is true."""
        counts = np.bincount(self.frame[keep], minlength=len(self.start) - 1)
        columns = {f: getattr(self, f)[keep] for f in ("kind", "frame", *FIELDS)}
        return Objects(start=np.concatenate([[0], np.cumsum(counts)]), **columns)

    def is_kind(self, *names: str) -> np.ndarray:
        """[N] bool: of one of these types."""
        return np.isin(self.kind, [name.lower() for name in names])

    @property
    def height(self) -> np.ndarray:
        """[N] height of the boxes in pixels."""
        return self.box[:, 3] - self.box[:, 1]

    @property
    def has_3d(self) -> np.ndarray:
        """[N] bool: positive dimensions and a location."""
        there = np.column_stack([self.dimensions > 0, self.location > -1000])
        return np.asarray(there.all(1))
