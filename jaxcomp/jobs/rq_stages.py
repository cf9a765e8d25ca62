"""How well the codes of a stage do on held-out sweeps, told when the stage ends."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs import rq_stream
from jaxcomp.codecs.rq_stream import Point
from jaxcomp.data.lidar_records import LidarRecords
from jaxcomp.jobs.lidar_scores import LidarScores, flat_scores
from jaxcomp.jobs.rq_codec import Quantiser, with_encoder
from jaxcomp.loaders_lidar import LidarDetector
from jaxcomp.log import LOG
from jaxcomp.tasks.residual_vq import rows_of
from jaxcomp.tasks.stages import StageSchedule
from jaxcomp.train import EpochSummary

MEASURES = ("map_3d_moderate_r40", "map_bev_moderate_r40")


class StageAccuracy:
    """A callback of the trainer: average precision of the point that a stage has just trained.

    Indices are not coded: they come back from a file as they are, and bytes are counted at the end
    of the run, for all points.
    """

    def __init__(
        self, plan: StageSchedule, detector: LidarDetector, records: LidarRecords, count: int
    ):
        """Measures nothing yet.

        Args:
          plan: the stages.
          detector: whose tail finds the objects.
          records: held-out sweeps.
          count: how many of them are looked at, 0 for none.
        """
        self._plan, self._detector, self._records = plan, detector, records
        self._count = min(count, len(records))

    def __call__(self, summary: EpochSummary) -> dict[str, Any] | None:
        """{"stage", "codebooks", "embeddings", "sweeps", "map_3d_moderate_r40", ...} in percent.

        None within a stage, and where nothing is to be measured.
        """
        over = summary.stage_over or summary.epoch == summary.epochs
        if not self._count or not over:
            return None
        index = (summary.epoch - 1) // self._plan.stage_epochs
        point = stage_point(self._plan, index)
        encoder = summary.state.params.get("encoder")
        quantiser = self._quantiser if encoder is None else self._with(encoder)
        quantiser.rows = jnp.asarray(rows_of(summary.state.params, summary.state.stats))
        flat = accuracy(quantiser, self._records, point, self._count)
        found = {name: flat[name] for name in MEASURES if name in flat}
        words = ", ".join(f"{name} {value:.2f}" for name, value in found.items()) or "no objects"
        LOG.info(
            "%s, %d codebooks of up to %d rows: %s on %d held-out sweeps.",
            self._plan.name(index), len(point), max(point), words, self._count,
        )  # fmt: skip
        where = {"stage": index, "codebooks": len(point), "embeddings": max(point)}
        return where | {"sweeps": self._count} | found

    @functools.cached_property
    def _quantiser(self) -> Quantiser:
        """One for all stages, so that it is compiled once."""
        return self._with(None)

    def _with(self, encoder: Any) -> Quantiser:
        detector = with_encoder(self._detector, encoder)
        return Quantiser(detector, jnp.zeros((self._plan.codebooks, self._plan.sizes[-1], 1)))


def stage_point(plan: StageSchedule, index: int) -> Point:
    """What the codebooks of a stage stand for: those before it take part as in its training."""
    rows = plan.trained(index)
    last = sum(n > 0 for n in rows) - 1
    before = rows[last] if plan.previous == "matched" else plan.sizes[-1]
    return (before,) * last + (rows[last],)


def accuracy(
    quantiser: Quantiser, records: LidarRecords, point: Point, count: int
) -> dict[str, float]:
    """`flat_scores` of the first `count` sweeps with the codes of a point."""
    detector, rows = quantiser.detector, np.asarray(quantiser.rows)
    scores = LidarScores(records.frames, detector.classes)
    for row in range(count):
        frame = quantiser.frame(quantiser.vectors(records.sweep(row)), point)
        canvas = rq_stream.features(frame, rows)
        scores.add("codes", row, {k: v[0] for k, v in detector.tail(canvas[None]).items()})
    return flat_scores(scores.finish()["codes"])
