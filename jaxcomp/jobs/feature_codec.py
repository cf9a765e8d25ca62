"""Train a codec for one pyramid level, code every held-out frame to a file, measure detections."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import data, documents, trees, weights_file
from jaxcomp.codecs import bitstream, factorised
from jaxcomp.codecs.tables import build_tables
from jaxcomp.config import split_argv
from jaxcomp.data.pipeline import array_splits
from jaxcomp.errors import CheckpointError
from jaxcomp.evaluate.split import LevelCoder, evaluate_level
from jaxcomp.jobs.frozen_features import (
    INPUT,
    AnyDetector,
    cached_pyramids,
    check_channels,
    frozen_detector,
    frozen_part,
    held_out_batches,
    pyramid_head,
    pyramids,
    tail_of,
    with_classes,
    with_truth,
)
from jaxcomp.jobs.job import Job, canvas_of, variables_of, write_arrays
from jaxcomp.jobs.kitti_scores import kitti_scores
from jaxcomp.loaders import (
    CODEC_FILE,
    LevelCodec,
    codec_tree,
    load_codec,
)
from jaxcomp.models.fpn import LEVELS
from jaxcomp.models.transform import frames_of
from jaxcomp.tasks.feature_codec import (
    LOSS_CONVENTION,
    FeatureCodecTask,
    codec_from_config,
    level_statistics,
    levels_of,
)
from jaxcomp.train import EpochSummary, FitResult
from jaxcomp.types import DataSplits
from jaxcomp.workdir import atomic_write

STATISTICS_BATCHES = 64  # enough frames for a mean and a scale when features are not cached
ANALYSIS_EPOCHS = 5


def build(config: Any) -> Job:
    """The job of a `configs/fpn_level.py` config."""
    detector = frozen_detector(config)
    check_channels(config, detector)
    images = data.make_splits(with_classes(config, detector))
    level = LEVELS[config.level]
    whole = pyramid_head(config, detector)
    tail = tail_of(config, detector, whole)
    robust = bool(config.model.get("limit", 0.0))
    if config.data.cache_features:
        training, held_out = (
            {"features" if key == level else key: x for key, x in arrays.items()}
            for arrays in cached_pyramids(config, detector, (level,), images, tail)
        )
        splits = array_splits(training, held_out, config.training.batch_size, config.seed)
        statistics = level_statistics(iter([training["features"]]), robust)
    else:
        splits = images
        batches = itertools.islice(images.train_once(), STATISTICS_BATCHES)
        pyramid = pyramids(config, detector, (level,), batches)
        statistics = level_statistics((features[level] for features in pyramid), robust)
    codec = codec_from_config(config.model)
    task = FeatureCodecTask(
        codec,
        config.training.rate_weight,
        statistics,
        level=config.level,
        head=lambda variables, batch: whole(variables, batch)[level],
        frozen=frozen_part(config, detector, tail),
        tail=tail,
        initial=initial_params(config),
    )
    decode = jax.jit(codec.apply)
    return Job(
        task=task,
        splits=splits,
        callbacks=(functools.partial(_write_epoch, config, task, decode, splits),),
        evaluate=functools.partial(_evaluate, config, task, detector, images),
        fingerprint=images.fingerprint,
    )


def initial_params(config: Any) -> Any:
    """The params of the codec that a config starts from, None if there is none.

    The features' statistics are those of this run, not of that codec.

    Raises:
      CheckpointError: the codec cannot be read, or is several codecs put together.
    """
    path = config.model.initial
    if not path:
        return None
    codec = load_codec(path)
    if len(codec.coder.models) > 1 and codec.meta.get("treatment") == "assembled":
        raise CheckpointError(
            f"config.model.initial={path!r} is an assembled pyramid; give the codec of one level"
        )
    return next(iter(codec.coder.models.values())).variables["params"]


def _write_epoch(
    config: Any,
    task: FeatureCodecTask,
    decode: Callable[..., Any],
    splits: DataSplits,
    summary: EpochSummary,
) -> None:
    """The documented text files of an epoch."""
    write_diagnostics(config, summary)
    if summary.epoch % ANALYSIS_EPOCHS == 0 or summary.epoch in (1, summary.epochs):
        _write_analysis(config, task, decode, splits, summary)


def write_diagnostics(config: Any, summary: EpochSummary) -> None:
    """`training_diagnostics_epoch_E.txt`."""
    count = factorised.parameter_count(
        variables_of(summary.state.params, jax.tree.map(np.asarray, summary.state.stats))
    )
    text = documents.training_diagnostics(
        epoch=summary.epoch,
        train=summary.train,
        val=summary.val,
        grad_norm=summary.grad_norm,
        learning_rate=summary.lr,
        rate_weight=config.training.rate_weight,
        parameters=count,
        trainable=sum(x.size for x in jax.tree.leaves(summary.state.params)),
    )
    atomic_write(summary.workdir / f"training_diagnostics_epoch_{summary.epoch}.txt", text)


def _write_analysis(
    config: Any,
    task: FeatureCodecTask,
    decode: Callable[..., Any],
    splits: DataSplits,
    summary: EpochSummary,
) -> None:
    """Rate, error and feature statistics of a few held-out frames."""
    batch = next(iter(splits.validation()))
    variables = variables_of(summary.state.params, summary.state.stats)
    x = task.features(summary.frozen, batch)
    out = decode(factorised.refresh_quantiles(variables), x)
    samples = [
        {
            "original": np.asarray(x[i]),
            "restored": np.asarray(out["x_hat"][i]),
            "bits": float(out["bits"][i].sum()),
        }
        for i in np.flatnonzero(batch["mask"])[: config.evaluation.pictures]
    ]
    weight = config.training.rate_weight
    folder = summary.workdir / documents.level_analysis_folder(config.level, weight)
    text = documents.level_analysis(
        level=config.level, rate_weight=weight, epoch=summary.epoch, samples=samples
    )
    name = f"level_{config.level}_lambda_{weight:.2e}_epoch_{summary.epoch}_analysis.txt"
    atomic_write(folder / name, text)


def codec_record(config: Any, codec: Any, detector: AnyDetector) -> dict[str, Any]:
    """What `codec.npz` says of its network and where it comes from."""
    return network_record(config, codec) | {
        "detector": config.detector.path or "shipped",
        "input": {name: config.data[name] for name in INPUT},
        "detector_digest": detector.digest,
        "detector_levels": detector.levels,
        "detector_kind": config.detector.get("kind", "faster_rcnn"),
    }


def network_record(config: Any, codec: Any) -> dict[str, Any]:
    """What `codec.npz` says of its network and of the loss, whatever the features are."""
    return {
        "model": {
            "in_channels": codec.in_channels,
            "n_hidden": codec.n_hidden,
            "n_channels": codec.n_channels,
            "stages": codec.stages,
            "dtype": str(codec.dtype),
            **({"limit": codec.limit} if codec.limit else {}),
        },
        "rate_weight": config.training.rate_weight,
        "loss": LOSS_CONVENTION,
        "seed": config.seed,
    }


def _export(
    config: Any, codec: Any, variables: Any, detector: AnyDetector, path: Path
) -> LevelCodec:
    """Builds the integer tables and writes `codec.npz`; returns the codec it holds."""
    tables = build_tables(codec, variables)
    record = codec_record(config, codec, detector)
    meta = {"kind": "codec", "level": config.level, **record}
    weights_file.export_npz(path, codec_tree(variables, tables), meta)
    return LevelCodec(codec, variables, tables, meta)


def config_file(workdir: Path) -> str | None:
    """The `--config` of the command that made a run directory, None if it is not on record."""
    try:
        argv = json.loads((workdir / "provenance.json").read_text())["argv"]
    except (OSError, ValueError, KeyError):
        return None
    return split_argv(argv)[0]


def level_coder(codec: LevelCodec) -> LevelCoder:
    """A loaded codec as the evaluation needs it."""

    def bits(variables: Any, x: Any) -> Any:
        return codec.codec.apply(variables, x)["bits"].sum((1, 2))

    def payload_bits(blob: bytes) -> int:
        return sum(8 * len(stream.payload) for stream in bitstream.read(blob).streams)

    channel_bits = jax.jit(bits)
    return LevelCoder(
        level=codec.level,
        compress=codec.compress,
        decompress=lambda blob: np.asarray(codec.decompress(blob)[codec.level]),
        ideal_bits=lambda x: channel_bits(codec.variables, jnp.asarray(x)),
        payload_bits=payload_bits,
        scale=float(codec.variables["stats"]["scale"]),
        mean=np.asarray(codec.variables["stats"]["mean"]),
    )


def measure(
    config: Any,
    detector: AnyDetector,
    coder: Any,
    images: DataSplits,
    workdir: Path,
    progress: Callable[[int], None],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`evaluate_level` of a run: its files go to `workdir`, KITTI's own accuracy joins in."""
    official = kitti_scores(with_classes(config, detector), detector.classes)
    metrics, arrays = evaluate_level(
        frame_name=official.name if official else "{:06d}".format,
        head=lambda batch: detector.head(frames_of(batch, canvas_of(config))),
        tail=detector.tail,
        coder=coder,
        batches=with_truth(config, detector, held_out_batches(images)),
        classes=detector.classes,
        streams=workdir / "streams",
        pictures=config.evaluation.pictures,
        progress=progress,
        observe=official.add if official else lambda *_: None,
    )
    if official:
        metrics["kitti"] = official.finish(workdir / "results")
    write_arrays(workdir / "evaluation.npz", arrays)
    return metrics, arrays


def write_summary(
    config: Any, result: FitResult, workdir: Path, parameters: int, treatment: str = "level"
) -> None:
    """`training_summary.txt`; treatments are those of `documents.training_summary`."""
    training, network = config.training, config.model
    levels = levels_of(network)
    joined = len(levels) if treatment == "joint" else 1
    judged = " and what the frozen tail makes of them" if training.task_weight else ""
    text = documents.training_summary(
        level=config.level if treatment == "level" else None,
        levels=[LEVELS.index(name) for name in levels],
        treatment=treatment,
        config_name=config_file(workdir) or network.name,
        detection_checkpoint=config.detector.path or "shipped with jaxcomp",
        rate_weight=training.rate_weight,
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        epochs=result.epochs,
        best_validation_loss=result.best_loss,
        in_channels=network.in_channels * joined,
        hidden_channels=network.n_hidden,
        latent_channels=network.n_channels,
        parameters=parameters,
        distortion=f"MSE of the normalised features{judged}",
    )
    atomic_write(workdir / "training_summary.txt", text)


def _evaluate(
    config: Any,
    task: FeatureCodecTask,
    detector: AnyDetector,
    images: DataSplits,
    result: FitResult,
    workdir: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Real bytes of every held-out frame, and detections before and after."""
    variables = variables_of(result.state.params, result.state.stats)
    variables = jax.tree.map(jnp.asarray, factorised.refresh_quantiles(variables))
    codec = _export(config, task.codec, variables, detector, workdir / CODEC_FILE)
    metrics, arrays = measure(config, detector, level_coder(codec), images, workdir, progress)
    count = factorised.parameter_count(variables)
    write_summary(config, result, workdir, count)
    return {
        "params": count,
        "params_digest": trees.tree_digest(result.state.params),
        "detector_digest": detector.digest,
        "loss_convention": LOSS_CONVENTION,
        "feature_shape": [int(n) for n in arrays["shape"]],
        **metrics,
    }
