"""From sweeps to the batches that PointPillars sees, with a count of what did not fit."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.models.pointpillars_config import PointPillarsConfig
from jaxcomp.ops.voxelise import pillar_batch

_LOG = logging.getLogger(__name__)
COUNTED = ("sweeps", "overflowing_sweeps", "dropped_pillars")
COUNTED += ("bad_sweeps", "bad_points", "empty_sweeps")


class Voxeliser:
    """Voxelises lists of sweeps on static shapes; warns about and counts what gets lost.

    The first sweep of a kind is told, then the 2nd, 4th, 8th, ...: a log stays readable and shows
    that it goes on. Threads may share one.

    Attributes:
      cfg: grid and limits.
    """

    def __init__(
        self,
        cfg: PointPillarsConfig,
        *,
        train: bool = False,
        pad_points: int | None = None,
        pad_pillars: int | None = None,
    ):
        """Describes the shapes.

        Args:
          cfg: grid and limits.
          train: keep `max_pillars` of a sweep, not `max_pillars_eval`.
          pad_points: points of a padded sweep, see `voxelise.voxelise_batch`.
          pad_pillars: pillars of a padded sweep, likewise.
        """
        self.cfg = cfg
        self._most = cfg.max_pillars if train else cfg.max_pillars_eval
        self._pads = {"pad_points": pad_points, "pad_pillars": pad_pillars}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, sweeps: Sequence[Any]) -> dict[str, np.ndarray]:
        """A batch as `voxelise.pillar_batch` makes it; sweeps [N_i, 4] x, y, z, intensity.

        Raises:
          ShapeError: no sweep, or something that is none.
        """
        batch = pillar_batch(
            sweeps,
            self.cfg.grid,
            max_points=self.cfg.max_points,
            max_pillars=self._most,
            **self._pads,
        )
        with self._lock:
            self._note(batch)
        return batch

    def counts(self) -> dict[str, int]:
        """What happened so far; the names are those of `COUNTED`."""
        with self._lock:
            return {name: self._counts[name] for name in COUNTED}

    def _note(self, batch: Mapping[str, np.ndarray]) -> None:
        overflow, bad = batch["overflow"], batch["bad"]
        lost = {
            "overflowing_sweeps": overflow > 0,
            "bad_sweeps": bad > 0,
            "empty_sweeps": batch["counts"].sum(1) == 0,
        }
        before = self._counts.copy()
        self._counts.update(
            {
                "sweeps": len(overflow),
                "dropped_pillars": int(overflow.sum()),
                "bad_points": int(bad.sum()),
                **{name: int(rows.sum()) for name, rows in lost.items()},
            }
        )
        for name in lost:
            if _doubled(before[name], self._counts[name]):
                _LOG.warning("%s", self._words(name))

    def _words(self, name: str) -> str:
        count = self._counts
        of = f"{count[name]} of {count['sweeps']} sweeps so far"
        if name == "overflowing_sweeps":
            return (
                f"lidar: no room for {count['dropped_pillars']} pillars, in {of}; raise "
                "max_pillars of the model or the padded number of points"
            )
        if name == "bad_sweeps":
            return f"lidar: {count['bad_points']} points are not finite and left out, in {of}"
        return f"lidar: no point in range in {of}; check the sensor and the range of the model"


def _doubled(before: int, now: int) -> bool:
    """Whether a count reached a power of two."""
    return now.bit_length() > before.bit_length()
