"""Train a light face detector, measure it on held-out images, and export its weights."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import trees, weights_file
from jaxcomp.data.face_records import FaceRecords, face_records, splits_of
from jaxcomp.errors import CheckpointError
from jaxcomp.interop.featherface_weights import mobilenet_from_torch, with_body
from jaxcomp.interop.torch_weights import read_weights
from jaxcomp.jobs import face_counts
from jaxcomp.jobs.face_monitor import StopRule, TrainingMonitor
from jaxcomp.jobs.face_scores import evaluate_faces, save_pictures
from jaxcomp.jobs.job import Job, canvas_of, export_weights, variables_of, write_arrays
from jaxcomp.loaders import find_file
from jaxcomp.loaders_face import FACE_FILE, FACE_KIND, LoadedFaceDetector, load_face_detector
from jaxcomp.log import LOG
from jaxcomp.models.featherface import FaceConfig, FaceDetector
from jaxcomp.tasks.face import (
    FaceTask,
    Regularisation,
    distillation_config,
    face_loss_config,
    face_model_config,
    init_variables,
)
from jaxcomp.train import EpochSummary, FitResult

BODY_FILE = "mobilenet.npz"
MONITOR_FILE = "training_metrics.json"
BUCKET = 32  # images of a folder have all sizes: padded to multiples of this, few are compiled


def build(config: Any) -> Job:
    """The job of a `configs/featherface.py` config."""
    cfg = face_model_config(config.model)
    teacher = load_teacher(config.distil.teacher)
    for path, name in ((config.model.pretrained, FACE_FILE), (config.model.body, BODY_FILE)):
        if path:
            find_file(path, name)  # before the data are read
    records = face_records(config)
    training = config.training
    splits = splits_of(records, training.batch_size, config.seed, config.data.num_threads)
    steps = math.ceil(splits.steps_per_epoch / training.accumulation) * training.epochs
    task = FaceTask(
        FaceDetector(cfg),
        face_loss_config(config.loss),
        initial=functools.partial(initial_variables, config, cfg),
        teacher=teacher,
        distillation=distillation_config(config.distil, steps),
        regularisation=Regularisation(**dict(config.regularise)),
        monitor_gradients=training.monitor_gradients,
    )
    return Job(
        task=task,
        splits=splits,
        callbacks=(_Watcher(config, records["validation"]),),
        evaluate=functools.partial(_evaluate, config, records["validation"]),
        fingerprint=splits.fingerprint,
        stop=stop_rule(training.smart_stopping),
    )


def stop_rule(section: Any) -> StopRule | None:
    """The rule of a config's `training.smart_stopping`; None if its patience is 0."""
    if not section.patience:
        return None
    window = (section.window_start, section.window_end)
    return StopRule(section.patience, section.min_epoch, window, section.min_delta)


def load_teacher(path: str) -> tuple[FaceDetector, dict[str, Any]] | None:
    """The network that teaches, with its variables; None without a path.

    Args:
      path: a run directory, a `face_detector.npz`, a pattern, or a PyTorch file.

    Raises:
      CheckpointError: it is missing, damaged or no face detector.
    """
    if not path:
        return None
    detector = load_face_detector(find_file(path, FACE_FILE))
    LOG.info("Teacher: %s, %s.", path, detector.digest[:12])
    return detector.model, dict(detector.variables)


def initial_variables(config: Any, cfg: FaceConfig) -> dict[str, Any] | None:
    """Variables to start from, None for a random start.

    `config.model.pretrained` names a face detector of the same sizes, `config.model.body` an
    ImageNet MobileNet for the body alone.

    Raises:
      CheckpointError: a file is missing, broken or of another network.
    """
    path, body = config.model.pretrained, config.model.body
    if path:
        detector = load_face_detector(find_file(path, FACE_FILE))
        wanted = trees.leaves_by_path(
            jax.eval_shape(functools.partial(init_variables, FaceDetector(cfg)), jax.random.key(0))
        )
        found = trees.leaves_by_path(detector.variables)
        trees.check_same(found, wanted, path)
        LOG.info("Starting from %s.", path)
        return dict(detector.variables)
    if not body:
        return None
    file = find_file(body, BODY_FILE)
    if file.suffix == ".npz":
        classifier, meta = weights_file.load_npz(file)
        if meta.get("kind") != "mobilenet":
            raise CheckpointError(f"{body!r} holds {meta.get('kind')!r}, a MobileNet is needed")
    else:
        classifier = mobilenet_from_torch(read_weights(file), source=repr(str(file)))
    start = init_variables(FaceDetector(cfg), jax.random.key(config.seed))
    LOG.info("The body starts from %s.", body)
    return with_body(start, jax.tree.map(jnp.asarray, classifier))


class _Watcher:
    """Tells each epoch to the monitor; measures the accuracy where the config asks for it."""

    def __init__(self, config: Any, records: FaceRecords):
        self._config, self._records = config, records
        self._detector: LoadedFaceDetector | None = None
        self._last = time.perf_counter()

    def __call__(self, summary: EpochSummary) -> None:
        config, train = self._config, summary.train
        every = config.evaluation.ap_every
        ap = self._ap(summary) if every and summary.epoch % every == 0 else None
        now = time.perf_counter()
        prefix = "grad_norm_by/"
        norms = {k.removeprefix(prefix): v for k, v in train.items() if k.startswith(prefix)}
        monitor = TrainingMonitor(
            1, summary.workdir / MONITOR_FILE, config.alerts.grad_norm
        )  # fmt: skip
        monitor.log_epoch_metrics(
            epoch=summary.epoch,
            train_loss=train.get("loss", math.nan),
            val_loss=summary.val["loss"],
            val_map=ap,
            learning_rate=summary.lr,
            grad_stats={"grad_norm_current": summary.grad_norm, **norms},
            alpha=train.get("alpha"),
            epoch_time=now - self._last,
            epochs=summary.epochs,
        )
        self._last = now

    def _ap(self, summary: EpochSummary) -> float | None:
        """Mean AP of a part of the held-out images with the weights of this epoch."""
        config = self._config
        variables = variables_of(summary.state.params, summary.state.stats)
        # Copies: the next step takes the buffers.
        own = jax.tree.map(lambda x: jnp.array(np.asarray(x)), variables)
        if self._detector is None:
            model = FaceDetector(face_model_config(config.model))
            self._detector = LoadedFaceDetector(model, own, {"digest": "in training"}, BUCKET)
        self._detector.variables = own
        metrics, _ = evaluate_faces(
            self._detector,
            self._records,
            protocol=config.evaluation.protocol,
            heights=config.evaluation.heights,
            rows=config.evaluation.ap_images,
        )
        return metrics["ap_mean"]


def _export(config: Any, variables: Any, path: Path, metrics: Mapping[str, Any]) -> None:
    """The weights in single precision."""
    meta = {
        "kind": FACE_KIND,
        "model": dataclasses.asdict(face_model_config(config.model)),
        "variant": config.model.name,
        "data": config.data.name,
        "seed": config.seed,
    }
    export_weights(path, variables, config, meta, metrics, dtype=np.float32)


def _evaluate(
    config: Any,
    records: FaceRecords,
    result: FitResult,
    workdir: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Accuracy of the *exported* weights, so that the number belongs to the file."""
    path = workdir / FACE_FILE
    variables = variables_of(result.state.params, result.state.stats)
    _export(config, variables, path, {})
    detector = load_face_detector(path, bucket=BUCKET)
    metrics, pictures = evaluate_faces(
        detector,
        records,
        protocol=config.evaluation.protocol,
        heights=config.evaluation.heights,
        pictures=config.evaluation.pictures,
        folder=workdir / "results",
        progress=progress,
    )
    _export(config, variables, path, {k: v for k, v in metrics.items() if k.startswith("ap_")})
    save_pictures(workdir / "pictures", pictures)
    same = [p for p in pictures if p.shape == pictures[0].shape]
    write_arrays(workdir / "evaluation.npz", {"drawn": np.stack(same)} if same else {})
    return {
        **metrics,
        "variant": config.model.name,
        "teacher": config.distil.teacher,
        "params": sum(x.size for x in jax.tree.leaves(result.state.params)),
        "params_digest": trees.tree_digest(result.state.params),
        "weights_bytes": path.stat().st_size,
    }


def describe(config: Any) -> dict[str, Any]:
    """Parameters, MACs and activations by module for one image of `data.height` x `data.width`.

    Raises:
      ConfigError: the number of parameters is not the documented one.
    """
    return face_counts.describe(
        config.model.name, face_model_config(config.model), canvas_of(config)
    )
