"""The held-out sweeps of a run by the rules of KITTI's own benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data.kitti_format import KittiObject, format_labels, parse_labels
from jaxcomp.data.lidar_records import LidarFrame
from jaxcomp.evaluate.kitti import METRICS, evaluate
from jaxcomp.evaluate.kitti_frames import KittiFrame
from jaxcomp.evaluate.kitti_rules import DIFFICULTIES, MIN_HEIGHTS
from jaxcomp.ops.boxes3d import kitti_columns
from jaxcomp.workdir import atomic_write

KITTI_ROWS = 375  # of the images that KITTI's smallest heights are meant for
MEASURES = (*METRICS, "aos")
RECALLS = ("r40", "r11")


class LidarScores:
    """Collects lidar detections of one or several variants and evaluates them together."""

    def __init__(self, frames: Sequence[LidarFrame], classes: Sequence[str]):
        """Starts with no detections.

        Args:
          frames: the held-out frames, in the order of their rows.
          classes: names of labels 0, 1, ...
        """
        self.frames, self.classes = list(frames), tuple(classes)
        self._found: dict[str, dict[int, KittiFrame]] = {}

    def add(self, variant: str, row: int, found: Mapping[str, Any]) -> None:
        """Takes the detections of one frame.

        Args:
          variant: what to call them ("detector", "before", ...).
          row: of the frame.
          found: "boxes" [D, 7], "scores" [D], "labels" [D], "valid" [D].
        """
        frame = self.frames[row]
        columns = kitti_columns(
            found["boxes"],
            found["scores"],
            found["labels"],
            frame.calibration,
            (frame.height, frame.width),
            self.classes,
            valid=found["valid"],
        )
        self._found.setdefault(variant, {})[row] = KittiFrame(name=frame.name, **columns)

    def finish(self, folder: Path | None = None) -> dict[str, Any]:
        """Evaluates the frames that every variant has seen.

        Args:
          folder: gets result files in the official form, `VARIANT/FRAME.txt`, the labels beside
            them, `labels/FRAME.txt`, and `frames.txt`; None writes nothing. The scores are those
            of the files, rounded as these are.

        Returns:
          {variant: {"scores": {class or "mean": {"2d", "bev", "3d", "aos": {"r40", "r11":
          {difficulty: percent}}}}, "objects": {class: {difficulty: count}}, "notes"}}.
        """
        seen = sorted(set.intersection(*(set(store) for store in self._found.values())))
        if folder is not None:
            names = "".join(f"{self.frames[i].name}\n" for i in seen)
            atomic_write(folder / "frames.txt", names)
        truth = [self._labels(folder, i) for i in seen]
        rows = {self.frames[i].difficulty_rows for i in seen}
        # The limits follow the size of the images, as the difficulty of the labels does.
        heights = tuple(h * (max(rows) if rows else KITTI_ROWS) / KITTI_ROWS for h in MIN_HEIGHTS)
        results = {}
        for variant, store in self._found.items():
            frames = [self._results(folder, variant, store[i]) for i in seen]
            result = evaluate(truth, frames, self.classes, METRICS, min_heights=heights)
            results[variant] = {k: result[k] for k in ("scores", "objects", "notes", "min_heights")}
        return results

    def _labels(self, folder: Path | None, row: int) -> KittiFrame:
        frame = self.frames[row]
        return _written(folder and folder / "labels", frame.name, list(frame.objects))

    def _results(self, folder: Path | None, variant: str, found: KittiFrame) -> KittiFrame:
        objects = [KittiObject(**row) for row in found.rows()]
        return _written(folder and folder / variant, found.name, objects)


def _written(folder: Path | None, name: str, objects: Sequence[KittiObject]) -> KittiFrame:
    """A frame as it is read back from its file, which is written if there is a folder for it."""
    text = format_labels(list(objects))
    if folder is not None:
        atomic_write(folder / f"{name}.txt", text)
    return KittiFrame.from_objects(parse_labels(text, name), name)


def flat_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of one variant for `summary.json`, in percent.

    Returns:
      {"map_3d_moderate_r40": the mean over classes, "ap_3d_moderate_r40_Car": ..., and so on};
      what does not exist is left out.
    """
    flat = {}
    for name, measures in result["scores"].items():
        for measure in MEASURES:
            table = measures.get(measure) or {}
            for recalls in RECALLS:
                for level in DIFFICULTIES:
                    value = (table.get(recalls) or {}).get(level)
                    if value is not None and np.isfinite(value):
                        key = f"{measure}_{level}_{recalls}"
                        flat[f"map_{key}" if name == "mean" else f"ap_{key}_{name}"] = float(value)
    return flat
