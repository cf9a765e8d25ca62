"""Train the detector, measure it on held-out frames, and export its weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcomp import data, trees
from jaxcomp.errors import CheckpointError
from jaxcomp.evaluate.detection import (
    coco_metrics,
    frames_from_batch,
    image_sizes,
    native_factors,
    pixel_sizes,
    voc_metrics,
)
from jaxcomp.evaluate.pictures import draw_detections, keep_pictures
from jaxcomp.interop.detector_weights import detector_from_torch
from jaxcomp.interop.torch_weights import read_weights
from jaxcomp.jobs.job import Job, canvas_of, export_weights, variables_of, write_arrays
from jaxcomp.jobs.kitti_scores import kitti_scores
from jaxcomp.jobs.weights import WRITERS
from jaxcomp.loaders import DETECTOR_FILE, Detector, find_file, load_detector
from jaxcomp.log import LOG
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN
from jaxcomp.models.transform import frames_of
from jaxcomp.tasks.detect import DetectTask, detector_config, sampling_config
from jaxcomp.train import EpochSummary, FitResult
from jaxcomp.workdir import atomic_write

SHOWN_SCORE = 0.3  # weaker detections would cover the picture
# What decides the parameters' shapes.
SHAPES = (
    *("num_classes", "stem_features", "stage_blocks", "stage_features", "bottleneck"),
    *("fpn_features", "anchor_ratios", "rpn_convs", "pool_size", "box_convs"),
    *("box_conv_features", "box_fc"),
)


def build(config: Any) -> Job:
    """The job of a `configs/detector.py` config."""
    cfg = detector_config(config.model)
    task = DetectTask(
        FasterRCNN(cfg),
        sampling_config(config.sampling),
        canvas_of(config),
        frozen_stages=config.model.get("frozen_stages", 0),
        initial=functools.partial(
            initial_variables, config.model.get("pretrained", ""), cfg, config.seed
        ),
    )
    if config.model.get("pretrained", ""):
        find_file(config.model.pretrained, DETECTOR_FILE)  # before the data are read
    splits = data.make_splits(config)
    return Job(
        task=task,
        splits=splits,
        callbacks=(functools.partial(_write_predictions, config, task, splits),),
        evaluate=functools.partial(_evaluate, config, task, splits),
        fingerprint=splits.fingerprint,
    )


def initial_variables(path: str, cfg: DetectorConfig, seed: int) -> dict[str, Any] | None:
    """Variables to start from, None for a random start.

    Args:
      path: empty, torchvision's `.pth` or `.safetensors`, or a `detector.npz`, run directory or
        pattern of ours. A predictor for other classes is drawn anew.
      cfg: sizes of the network.
      seed: of that draw.

    Raises:
      CheckpointError: the file is missing, broken or of another network.
    """
    if not path:
        return None
    file = find_file(path, DETECTOR_FILE)
    if file.suffix in WRITERS:
        weights = read_weights(file)
        variables, report = detector_from_torch(
            weights, cfg, replace_head=True, seed=seed, source=repr(str(file))
        )
        LOG.info("Starting from %s: %d tensors.", file, report.tensors)
        if report.replaced:
            LOG.info("Its predictor has %d classes: a new one.", report.file_classes)
        return variables
    detector = load_detector(file)
    own = dataclasses.asdict(cfg)
    wanted = {k: v for k, v in own.items() if k in SHAPES}
    found = {k: v for k, v in dataclasses.asdict(detector.model.cfg).items() if k in SHAPES}
    if wanted != found:
        other = {k: (found[k], wanted[k]) for k in wanted if found[k] != wanted[k]}
        raise CheckpointError(
            f"config.model.pretrained={path!r} is a detector of other sizes (file, config): {other}"
        )
    LOG.info("Starting from %s.", file)
    return detector.variables


def _write_predictions(config: Any, task: DetectTask, splits: Any, summary: EpochSummary) -> None:
    """Held-out frames with the detections of this epoch, as pictures."""
    every = config.evaluation.pictures_every
    if not every or (summary.epoch % every and summary.epoch != summary.epochs):
        return
    batch = next(iter(splits.validation()))
    variables = variables_of(summary.state.params, summary.state.stats)
    images = frames_of(batch, task.canvas)
    found = _detections(task.model, variables, images, image_sizes(batch))
    boxes = np.asarray(found["boxes"]) * native_factors(batch)
    folder = summary.workdir / "predictions" / f"epoch_{summary.epoch:03d}"
    rows = np.flatnonzero(batch["mask"])[: config.evaluation.pictures]
    for i, row in enumerate(rows):
        height, width = (int(n) for n in pixel_sizes(batch)[row])
        picture = draw_detections(
            batch["image"][row, :height, :width],
            [
                (config.classes[label - 1], float(score), box)
                for box, score, label in zip(
                    boxes[row], found["scores"][row], found["labels"][row], strict=True
                )
                if label > 0 and score >= SHOWN_SCORE
            ],
        )
        atomic_write(folder / f"pred_{i:02d}.png", picture)


@functools.partial(jax.jit, static_argnums=0)
def _detections(model: FasterRCNN, variables: Any, images: Any, sizes: Any) -> dict[str, Any]:
    return model.apply(variables, images, sizes)


def _export(config: Any, variables: Any, path: Path, metrics: Mapping[str, Any]) -> None:
    """Parameters in half precision, statistics in single."""
    meta = {
        "kind": "detector",
        "model": config.model.to_dict(),
        "classes": list(config.classes),
        "height": config.data.height,
        "width": config.data.width,
        **{name: config.data[name] for name in ("resize", "min_side", "max_side")},
        "data": config.data.name,
        "seed": config.seed,
    }
    export_weights(path, variables, config, meta, metrics, collections=("params",))


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
    official = kitti_scores(config, detector.classes)
    metrics, arrays = evaluate_detector(
        detector,
        splits.validation(),
        canvas_of(config),
        progress,
        config.evaluation.pictures,
        official.add if official else lambda *_: None,
    )
    if official:
        metrics["kitti"] = official.finish(workdir / "results")
    _export(config, variables, path, {k: metrics[k] for k in ("map50", "accuracy")})
    write_arrays(workdir / "evaluation.npz", arrays)
    count = sum(x.size for x in jax.tree.leaves(result.state.params))
    return {
        **metrics,
        "params": count,
        "params_digest": trees.tree_digest(result.state.params),
        "weights_bytes": path.stat().st_size,
    }


def evaluate_detector(
    detector: Detector,
    batches: Any,
    canvas: tuple[int, int],
    progress: Callable[[int], None] = lambda n: None,
    limit: int = 8,
    observe: Callable[[str, Any, Any], None] = lambda *_: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Accuracy on batches of frames, and pictures of `limit` of them for the report.

    Returns:
      ({"map50", "accuracy", "frames"}, arrays named as `evaluate.split` names them).
    """
    frames: list = []
    pictures: dict[str, list] = {}
    for batch in batches:
        features = detector.head(frames_of(batch, canvas))
        found = {k: np.asarray(v) for k, v in detector.tail(features, image_sizes(batch)).items()}
        frames += frames_from_batch(found, batch)
        observe("detector", batch, found)
        keep_pictures(pictures, batch, {"after": found}, {}, limit=limit)
        progress(len(frames))
    accuracy = voc_metrics(frames, detector.classes)
    metrics = {
        "frames": len(frames),
        "map50": accuracy["map50"],
        "accuracy": accuracy | coco_metrics(frames, detector.classes),
    }
    return metrics, {k: np.stack(v) for k, v in pictures.items()}
