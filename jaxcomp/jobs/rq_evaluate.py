"""Any point of saved codebooks on held-out sweeps, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcomp.codecs.residual_vq import checked_point
from jaxcomp.codecs.rq_stream import Point
from jaxcomp.errors import CheckpointError
from jaxcomp.jobs import rq_grid
from jaxcomp.jobs.pointpillars import lidar_data
from jaxcomp.jobs.residual_vq import asked_points, frozen_detector
from jaxcomp.jobs.rq_codec import with_encoder
from jaxcomp.jobs.rq_files import RQ_FILE, load_rq
from jaxcomp.jobs.rq_page import Pictures, write_page
from jaxcomp.loaders_lidar import LidarDetector
from jaxcomp.log import LOG


def evaluate_checkpoint(config: Any, rq_ckpt: str, workdir: str = "") -> list[dict[str, Any]]:
    """Measures saved codebooks on the held-out sweeps of a config; nothing is trained.

    Args:
      config: data, detector, and in `evaluation` the point (or the whole grid).
      rq_ckpt: `rq.npz`, a file of a stage, or a run directory.
      workdir: gets table, page, streams and results; empty: the table is printed only.

    Returns:
      The table.

    Raises:
      CheckpointError: the file cannot be read, is of another detector, or does not hold a point; or
        `workdir` holds codebooks, whose table would be lost.
    """
    if workdir and (Path(workdir) / RQ_FILE).exists():
        raise CheckpointError(
            f"--workdir={workdir!r} holds a run, whose table would be replaced; give another folder"
        )
    rows, model, meta = load_rq(rq_ckpt)
    trained = [int(n) for n in meta.get("trained", [rows.shape[1]] * len(rows))]
    finished = (sum(n > 0 for n in trained), max(trained), rows.shape[2])
    sizes = tuple(n for n in meta["sizes"] if n <= min(n for n in trained if n))
    points = [
        _held(finished, trained, point, rq_ckpt)
        for point in asked_points(config, finished, sizes or (max(trained),))
    ]
    detector = _own_detector(config, meta, rq_ckpt)
    _, records, _ = lidar_data(config, detector.cfg)
    quantiser, counts = rq_grid.Quantiser(detector, rows), meta["counts"]
    if model is None or any((k, n) not in model.tables for p in points for k, n in enumerate(p)):
        LOG.info("%s has no tables for the points asked for; learning them.", rq_ckpt)
        wanted = sorted({n for point in points for n in point})
        model, counts = rq_grid.learn_model(
            quantiser, records["train"], wanted, config.evaluation.table_frames
        )
    if counts is None:
        LOG.info("%s does not tell how often rows were chosen; nothing is 'saved'.", rq_ckpt)
    held_out = records["validation"]
    pictures = Pictures(detector.cfg, held_out, config.evaluation.pictures if workdir else 0)
    table, _ = rq_grid.measure(
        quantiser, model, held_out, points, counts=counts, anchors=config.evaluation.anchors,
        folder=Path(workdir) / "streams" if workdir else None, keep=pictures.keep,
    )  # fmt: skip
    if workdir:
        rq_grid.write_table(Path(workdir), table)
        write_page(Path(workdir), table, counts, pictures)
    print(rq_grid.markdown(table), end="")
    return table


def _own_detector(config: Any, meta: Mapping[str, Any], rq_ckpt: str) -> LidarDetector:
    """The config's detector with the head of a file, unless it is not the one of the file."""
    detector = frozen_detector(config)
    if meta.get("detector_digest") not in (None, detector.digest):
        raise CheckpointError(
            f"{rq_ckpt!r} was trained with other frozen weights ({meta['detector_digest'][:12]}, "
            f"now {detector.digest[:12]}); give the detector it had, "
            f"{meta.get('detector', 'unknown')!r}, as --config.detector.path"
        )
    return with_encoder(detector, meta["encoder"])


def _held(shape: tuple[int, ...], trained: Sequence[int], point: Point, where: str) -> Point:
    """The point, unless codebooks or rows are asked for that no stage has trained yet."""
    point = checked_point(shape, point, repr(where))
    for k, n in enumerate(point):
        if n > trained[k]:
            raise CheckpointError(
                f"{where!r}: codebook {k} holds {trained[k]} embeddings, {n} are asked for"
            )
    return point
