"""Train the detector, measure it on held-out frames, and export its weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcomp import checkpoint, data
from jaxcomp import config as config_lib
from jaxcomp.errors import NonFiniteError
from jaxcomp.evaluate.detection import (
    coco_metrics,
    frames_from_batch,
    image_sizes,
    voc_metrics,
)
from jaxcomp.evaluate.pictures import keep_pictures
from jaxcomp.jobs.job import Job, variables_of, write_arrays
from jaxcomp.loaders import DETECTOR_FILE, Detector, load_detector
from jaxcomp.models.faster_rcnn import FasterRCNN
from jaxcomp.tasks.detect import DetectTask, detector_config, sampling_config
from jaxcomp.train import FitResult

PICTURES = 8


def build(config: Any) -> Job:
    """The job of a `configs/detector.py` config."""
    task = DetectTask(FasterRCNN(detector_config(config.model)), sampling_config(config.sampling))
    splits = data.make_splits(config)
    return Job(
        task=task,
        splits=splits,
        callbacks=(),
        evaluate=functools.partial(_evaluate, config, task, splits),
    )


def _export(config: Any, variables: Any, path: Path, metrics: dict[str, Any]) -> None:
    """Parameters in half precision, statistics in single, with what is needed to use them.

    Raises:
      NonFiniteError: a parameter does not fit half precision.
    """
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), variables["params"])
    for name, leaf in checkpoint.leaves_by_path(half).items():
        if not np.isfinite(leaf).all():
            raise NonFiniteError(f"parameter {name!r} is not finite in half precision")
    tree = {**variables, "params": half}
    meta = {
        "kind": "detector",
        "model": {k: v for k, v in config.model.to_dict().items()},
        "classes": list(config.classes),
        "height": config.data.height,
        "width": config.data.width,
        "data": config.data.name,
        "seed": config.seed,
        "config": json.loads(config_lib.to_json(config)),
        "metrics": metrics,
    }
    checkpoint.export_npz(path, tree, meta)


def _evaluate(
    config: Any,
    task: DetectTask,
    splits: Any,
    result: FitResult,
    workdir: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Accuracy of the *exported* weights, so that the number belongs to the file."""
    del task
    path = workdir / DETECTOR_FILE
    variables = variables_of(result.state.params, result.state.stats)
    _export(config, variables, path, {})
    detector = load_detector(path)
    metrics, arrays = evaluate_detector(detector, splits.validation(), progress)
    _export(config, variables, path, {k: metrics[k] for k in ("map50", "accuracy")})
    write_arrays(workdir / "evaluation.npz", arrays)
    count = sum(x.size for x in jax.tree.leaves(result.state.params))
    return {
        **metrics,
        "params": count,
        "params_digest": checkpoint.tree_digest(result.state.params),
        "weights_bytes": path.stat().st_size,
    }


def evaluate_detector(
    detector: Detector, batches: Any, progress: Callable[[int], None] = lambda n: None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Accuracy on batches of frames, and pictures for the report.

    Returns:
      ({"map50", "accuracy", "frames"}, arrays named as `evaluate.split` names them).
    """
    frames: list = []
    pictures: dict[str, list] = {}
    for batch in batches:
        features = detector.head(batch["image"])
        found = {k: np.asarray(v) for k, v in detector.tail(features, image_sizes(batch)).items()}
        frames += frames_from_batch(found, batch)
        keep_pictures(pictures, batch, {"after": found}, {}, limit=PICTURES)
        progress(len(frames))
    accuracy = voc_metrics(frames, detector.classes)
    metrics = {
        "frames": len(frames),
        "map50": accuracy["map50"],
        "accuracy": accuracy | coco_metrics(frames, detector.classes),
    }
    return metrics, {k: np.stack(v) for k, v in pictures.items()}
