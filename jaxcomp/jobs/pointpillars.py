"""Train the lidar detector, measure it on held-out sweeps, and export its weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import complexity, trees
from jaxcomp.data.lidar import lidar_splits
from jaxcomp.data.lidar_augment import LidarAugmentation
from jaxcomp.data.lidar_records import LidarRecords
from jaxcomp.data.lidar_sets import fingerprint, lidar_frames
from jaxcomp.errors import CheckpointError
from jaxcomp.evaluate.birds_eye import bev_entry
from jaxcomp.interop.pointpillars_weights import abstract_variables
from jaxcomp.jobs.job import Job, export_weights, variables_of, write_arrays
from jaxcomp.jobs.lidar_scores import LidarScores, flat_scores
from jaxcomp.loaders import find_file
from jaxcomp.loaders_lidar import KIND, LIDAR_DETECTOR_FILE, LidarDetector, load_lidar_detector
from jaxcomp.log import LOG
from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig
from jaxcomp.ops.voxelise import Pillars
from jaxcomp.tasks.lidar_input import Voxeliser
from jaxcomp.tasks.pointpillars import PointPillarsTask, loss_config, pointpillars_config
from jaxcomp.train import FitResult
from jaxcomp.types import DataSplits

PICTURE_WIDTH = 700  # pixels of a bird's-eye view along x
HEADLINE = "map_3d_moderate_r40"


def build(config: Any) -> Job:
    """The job of a `configs/pointpillars.py` config."""
    cfg = pointpillars_config(config.model, config.classes)
    if config.model.pretrained:
        find_file(config.model.pretrained, LIDAR_DETECTOR_FILE)  # before the data are read
    splits, records, voxelisers = lidar_data(config, cfg)
    task = PointPillarsTask(
        PointPillars(cfg),
        loss_config(config.loss),
        initial=functools.partial(initial_variables, config.model.pretrained, cfg),
    )
    return Job(
        task=task,
        splits=splits,
        callbacks=(),
        evaluate=functools.partial(_evaluate, config, records["validation"], voxelisers),
        fingerprint=splits.fingerprint,
    )


def lidar_data(
    config: Any, cfg: PointPillarsConfig
) -> tuple[DataSplits, dict[str, LidarRecords], dict[str, Voxeliser]]:
    """Batches of voxelised sweeps on static shapes, one for training and one for validation.

    Args:
      config: `data`, `classes`, `augment` (if `data.augment`), `seed`, `training.batch_size`.
      cfg: grid and limits of the network.

    Returns:
      (splits, {"train", "validation"} records, the same of what voxelises them and counts).
    """
    frames, data = lidar_frames(config), config.data
    voxelisers = {
        "train": Voxeliser(
            cfg, train=True, pad_points=data.pad_points, pad_pillars=cfg.max_pillars
        ),
        "validation": Voxeliser(cfg, pad_points=data.pad_points, pad_pillars=cfg.max_pillars_eval),
    }
    how = augmentation(config.augment, cfg) if data.augment else None
    records = {
        split: LidarRecords(
            frames[split],
            config.classes,
            data.max_boxes,
            prepare=voxelisers[split],
            augment=how if split == "train" else None,
            cache=data.cache,
            workers=data.workers,
        )
        for split in ("train", "validation")
    }
    splits = lidar_splits(
        records["train"],
        records["validation"],
        config.training.batch_size,
        config.seed,
        data.num_threads,
    )
    splits = dataclasses.replace(splits, fingerprint=fingerprint(frames))
    return splits, records, voxelisers


def augmentation(section: Any, cfg: PointPillarsConfig) -> LidarAugmentation:
    """The augmentation of a config's `augment` section, in the range of the network."""
    values: dict[str, Any] = dict(section)
    values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return LidarAugmentation(low=cfg.low, high=cfg.high, **values)


def initial_variables(path: str, cfg: PointPillarsConfig) -> dict[str, Any] | None:
    """Variables to start from, None for a random start.

    Args:
      path: empty, or what `load_lidar_detector` reads.
      cfg: sizes of the network.

    Raises:
      CheckpointError: the file is missing, broken or of another network.
    """
    if not path:
        return None
    detector = load_lidar_detector(path)
    trees.check_same(trees.leaves_by_path(detector.variables), abstract_variables(cfg), path)
    if detector.classes != cfg.classes:
        raise CheckpointError(
            f"config.model.pretrained={path!r} finds {detector.classes}, the config names "
            f"{cfg.classes}; give the classes of the file, in its order"
        )
    LOG.info("Starting from %s.", path)
    return detector.variables


def _export(config: Any, variables: Any, path: Path, metrics: Mapping[str, Any]) -> None:
    """Parameters in half precision, statistics in single."""
    meta = {
        "kind": KIND,
        "model": config.model.to_dict(),
        "classes": list(config.classes),
        "data": config.data.name,
        "seed": config.seed,
    }
    export_weights(path, variables, config, meta, metrics, collections=("params",))


def _evaluate(
    config: Any,
    records: LidarRecords,
    voxelisers: Mapping[str, Voxeliser],
    result: FitResult,
    workdir: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Accuracy of the *exported* weights, so that the number belongs to the file."""
    path = workdir / LIDAR_DETECTOR_FILE
    variables = variables_of(result.state.params, result.state.stats)
    _export(config, variables, path, {})
    detector = load_lidar_detector(path)
    metrics, arrays = evaluate_lidar_detector(
        detector,
        records,
        workdir / "results",
        batch_size=config.training.batch_size,
        pictures=config.evaluation.pictures,
        progress=progress,
    )
    _export(config, variables, path, {k: v for k, v in metrics.items() if k.startswith("map_")})
    write_arrays(workdir / "evaluation.npz", arrays)
    return {
        **metrics,
        "voxelised": {name: one.counts() for name, one in voxelisers.items()}
        | {"evaluation": detector.voxelise.counts()},
        "params": sum(x.size for x in jax.tree.leaves(result.state.params)),
        "params_digest": trees.tree_digest(result.state.params),
        "weights_bytes": path.stat().st_size,
    }


def evaluate_lidar_detector(
    detector: LidarDetector,
    records: LidarRecords,
    folder: Path | None = None,
    *,
    batch_size: int = 1,
    pictures: int = 8,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Accuracy on held-out sweeps, and bird's-eye views of some of them for the report.

    Args:
      detector: what to measure.
      records: the sweeps with their labels.
      folder: gets result files in the official form; None writes nothing.
      batch_size: sweeps of one forward pass.
      pictures: frames that are kept for the report.
      progress: called with the number of frames done.

    Returns:
      ({"frames", "classes", "kitti", "map_3d_moderate_r40" and so on}, arrays for the page).
    """
    scores = LidarScores(records.frames, detector.classes)
    kept: dict[str, list] = {}
    for start in range(0, len(records), batch_size):
        rows = range(start, min(start + batch_size, len(records)))
        sweeps = [records.sweep(row) for row in rows]
        found = detector.detect(sweeps)
        for i, row in enumerate(rows):
            one = {name: value[i] for name, value in found.items()}
            scores.add("detector", row, one)
            if row < pictures:
                _keep(kept, detector.cfg, records, row, {"after": one})
        progress(rows[-1] + 1)
    kitti = scores.finish(folder)
    metrics = {
        "frames": len(records),
        "classes": list(detector.classes),
        "kitti": kitti,
        **flat_scores(kitti["detector"]),
    }
    return metrics, {name: np.stack(values) for name, values in kept.items()}


def _keep(
    store: dict[str, list],
    cfg: PointPillarsConfig,
    records: LidarRecords,
    row: int,
    found: Mapping[str, Any],
) -> None:
    """Appends the picture of one frame, with its true boxes and what was found."""
    batch = records.targets(row)
    boxes = {"truth": {k: batch[k] for k in ("boxes", "labels", "valid")}, **found}
    scale = PICTURE_WIDTH / (cfg.high[0] - cfg.low[0])
    entry = bev_entry(records.sweep(row), boxes, cfg.low, cfg.high, scale)
    entry["image_id"] = np.array(row, np.int32)
    for name, value in entry.items():
        store.setdefault(name, []).append(value)


def describe(config: Any) -> dict[str, Any]:
    """Parameters and MACs by module for one sweep with as many pillars as training keeps.

    The pillar encoder computes real points only: its MACs are those of `data.pad_points` points.
    """
    cfg = pointpillars_config(config.model, config.classes)
    model = PointPillars(cfg)
    points = config.data.pad_points
    pillars = Pillars(
        jax.ShapeDtypeStruct((1, points, 4), jnp.float32),
        jax.ShapeDtypeStruct((1, points), jnp.int32),
        *(jax.ShapeDtypeStruct((1, cfg.max_pillars), jnp.int32) for _ in range(2)),
    )
    make = functools.partial(model.init, train=True)
    variables = jax.eval_shape(make, jax.random.key(0), pillars)
    rows, columns = cfg.grid.shape
    return complexity.description(
        f"{config.model.name} on {rows}x{columns} cells, {points} points",
        complexity.parameters_by_module(variables["params"], depth=1),
        complexity.macs_by_module(model.apply, variables, pillars, depth=1),
        features={"bev": [rows, columns, cfg.encoder_features]},
        map_shape=list(cfg.map_shape),
    )
