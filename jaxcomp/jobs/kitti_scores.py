"""The held-out frames of a run by the rules of KITTI's own benchmark, in native pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data.kitti_format import KittiObject, format_labels, parse_labels
from jaxcomp.evaluate.detection import native_factors
from jaxcomp.evaluate.kitti import evaluate
from jaxcomp.evaluate.kitti_frames import KittiFrame
from jaxcomp.evaluate.kitti_rules import TYPES
from jaxcomp.workdir import atomic_write

NO_BOX = {"truncated": -1.0, "occluded": -1, "alpha": -10.0, "rotation_y": -10.0}
LEAST_SETS = 10  # of frames, for an interval
NO_SIZE, NO_PLACE = (-1.0, -1.0, -1.0), (-1000.0, -1000.0, -1000.0)


class KittiScores:
    """Collects detections of one or several variants and evaluates them together.

    Attributes:
      annotations: `data.kitti.Annotation` of the held-out frames, in the order of `image_id`.
      classes: names of labels 1, 2, ...
    """

    def __init__(self, annotations: Sequence[Any], classes: Sequence[str]):
        """Starts with no detections."""
        self.annotations, self.classes = annotations, tuple(classes)
        self._found: dict[str, dict[int, list[KittiObject]]] = {}

    def add(self, variant: str, batch: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Takes the padded detections (network pixels) of a batch's real rows."""
        boxes = np.asarray(found["boxes"]) * native_factors(batch)
        store = self._found.setdefault(variant, {})
        for row in np.flatnonzero(batch["mask"]):
            store[int(batch["image_id"][row])] = [
                self._object(boxes[row, i], found["scores"][row, i], found["labels"][row, i])
                for i in np.flatnonzero(found["valid"][row])
            ]

    def _object(self, box: np.ndarray, score: Any, label: Any) -> KittiObject:
        x1, y1, x2, y2 = (float(v) for v in box)
        return KittiObject(
            self.classes[int(label) - 1],
            box=(x1, y1, x2, y2),
            dimensions=NO_SIZE,
            location=NO_PLACE,
            score=float(score),
            **NO_BOX,
        )

    def name(self, image_id: int) -> str:
        """The frame's name in KITTI's folders."""
        return self.annotations[image_id].name

    def finish(self, folder: Path, bootstrap: int = 0) -> dict[str, Any]:
        """Writes result files in the official form and evaluates what they hold.

        `folder/VARIANT/FRAME.txt` are the detections, `folder/labels/FRAME.txt` the labels,
        whatever layout they came from, of the frames in `folder/frames.txt`: those that were seen.

        Args:
          folder: where they go.
          bootstrap: sets of frames behind 95 % intervals; 0, or too few for any, for none.

        Returns:
          {variant: {"scores": {class or "mean": {"2d": {"r40", "r11": {difficulty: percent}}}},
          "objects": {class: {difficulty: how many count}}, "notes", with a bootstrap
          "intervals"}}; classes that KITTI's evaluation does not know are left out.
        """
        seen = sorted(set.intersection(*(set(store) for store in self._found.values())))
        atomic_write(folder / "frames.txt", "".join(f"{self.name(i)}\n" for i in seen))
        truth = [self._frame(folder / "labels", i, self.annotations[i].objects) for i in seen]
        known = {name.lower() for name in TYPES} | {t.lower() for f in truth for t in f.type}
        classes = [name for name in self.classes if name.lower() in known]
        results = {}
        for variant, store in self._found.items():
            frames = [
                self._frame(folder / variant, i, [o for o in store[i] if o.type in classes])
                for i in seen
            ]
            drawn = bootstrap if bootstrap >= LEAST_SETS else 0
            result = evaluate(truth, frames, classes, ("2d",), bootstrap=drawn) if classes else {}
            names = ("scores", "objects", "notes", *(("intervals",) if drawn else ()))
            results[variant] = {k: result.get(k, {}) for k in names}
        return results

    def _frame(self, folder: Path, i: int, objects: Sequence[KittiObject]) -> KittiFrame:
        """Writes the objects of a frame and reads them again, rounded as the files are."""
        text = format_labels(list(objects))
        atomic_write(folder / f"{self.name(i)}.txt", text)
        return KittiFrame.from_objects(parse_labels(text, self.name(i)), self.name(i))


def kitti_scores(config: Any, classes: Sequence[str]) -> KittiScores | None:
    """Scores for the held-out frames of a config; None where the data are not KITTI's."""
    if config.data.name != "kitti":
        return None
    from jaxcomp.data.kitti import annotations

    return KittiScores(annotations(config, "validation", report=False), classes)
