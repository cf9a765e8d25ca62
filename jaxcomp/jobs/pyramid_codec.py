"""Train one codec for the whole pyramid, code every held-out frame, measure detections.

What differs from `jobs.feature_codec` is the treatment of the levels; the rest is shared with it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import data, documents, trees
from jaxcomp.codecs import bitstream, factorised
from jaxcomp.codecs.tables import build_tables
from jaxcomp.data.levels import cached_levels, level_draws
from jaxcomp.evaluate.split import FeatureCoder
from jaxcomp.jobs import feature_codec as shared
from jaxcomp.jobs import frozen_features
from jaxcomp.jobs.found_faces import with_found
from jaxcomp.jobs.frozen_features import AnyDetector, Judge
from jaxcomp.jobs.job import Job, variables_of
from jaxcomp.loaders import CODEC_FILE, PyramidCodec, codec_tree, save_codec
from jaxcomp.log import LOG
from jaxcomp.models.fpn import LEVELS
from jaxcomp.tasks.feature_codec import (
    JOINT_MODEL,
    LOSS_CONVENTION,
    RANDOM_MODEL,
    codec_from_config,
    levels_of,
)
from jaxcomp.tasks.pyramid_codec import PyramidTask, pyramid_statistics, pyramid_task
from jaxcomp.train import EpochSummary, FitResult
from jaxcomp.types import DataSplits
from jaxcomp.workdir import atomic_write

TREATMENTS = {JOINT_MODEL: "joint", RANDOM_MODEL: "random"}
ANALYSIS_EPOCHS = 10
MOST_CUT = 0.01  # a larger share of cut features gets a warning


def build(config: Any) -> Job:
    """The job of a `configs/fpn_joint.py` or `configs/fpn_random.py` config."""
    treatment = TREATMENTS[config.model.name]
    detector = frozen_features.frozen_detector(config)
    frozen_features.check_channels(config, detector)
    images = data.make_splits(with_found(config, detector))
    head = frozen_features.pyramid_head(config, detector)
    tail = frozen_features.tail_of(config, detector, head)
    splits, statistics = _data(config, detector, images, treatment == "random", tail)
    task = pyramid_task(
        treatment,
        codec_from_config(config.model),
        config.training.rate_weight,
        statistics,
        level_weights=config.training.get("level_weights", "elements"),
        levels=detector.levels,
        head=head,
        frozen=frozen_features.frozen_part(config, detector, tail),
        tail=tail,
        initial=shared.initial_params(config),
    )
    _tell_cut(task, splits)
    return Job(
        task=task,
        splits=splits,
        callbacks=(functools.partial(_write_epoch, config, _passing(task), splits),),
        evaluate=functools.partial(_evaluate, config, task, detector, images, statistics),
        fingerprint=images.fingerprint,
    )


def _data(
    config: Any, detector: AnyDetector, images: DataSplits, draw: bool, tail: Judge | None
) -> tuple[DataSplits, dict[str, np.ndarray]]:
    """Batches for training, of one drawn level each or of all, and statistics of every level."""
    levels, robust = detector.levels, bool(config.model.get("limit", 0.0))
    if config.data.cache_features:
        training, held_out = frozen_features.cached_pyramids(config, detector, levels, images, tail)
        training = frozen_features.balanced(config, detector, training)
        size = config.training.batch_size
        splits = cached_levels(training, held_out, size, config.seed, levels=levels, draw=draw)
        return splits, pyramid_statistics([training], levels, robust)
    batches = itertools.islice(images.train_once(), shared.STATISTICS_BATCHES)
    pyramids = frozen_features.pyramids(config, detector, levels, batches)
    statistics = pyramid_statistics(pyramids, levels, robust)
    return level_draws(images, levels, config.seed) if draw else images, statistics


def _tell_cut(task: PyramidTask, splits: DataSplits) -> None:
    """Says how much of a few cached held-out features is cut: a limit may be too low."""
    batch = next(iter(splits.validation()), {}) if task.codec.limit else {}
    shares = {
        name: float(task.share_cut(jnp.asarray(batch[name]), task.part(name)))
        for name in task.levels
        if name in batch
    }
    if shares:
        words = " ".join(f"{name} {100 * share:.3g} %" for name, share in shares.items())
        tell = LOG.warning if max(shares.values()) > MOST_CUT else LOG.info
        tell("Features beyond config.model.limit=%g are cut: %s.", task.codec.limit, words)


def _passing(task: PyramidTask) -> Callable[..., Any]:
    """`(frozen, variables, batch) -> (features, decoded, bits)`, compiled."""

    @jax.jit
    def passed(frozen: Any, variables: Any, batch: Any) -> Any:
        features = task.features(frozen, batch)
        return features, *task.decoded(variables, features)

    return passed


def _write_epoch(
    config: Any,
    passed: Callable[..., Any],
    splits: DataSplits,
    summary: EpochSummary,
) -> None:
    """The documented text files of an epoch."""
    shared.write_diagnostics(config, summary)
    if summary.epoch % ANALYSIS_EPOCHS == 0 or summary.epoch in (1, summary.epochs):
        _write_analysis(config, passed, splits, summary)


def _write_analysis(
    config: Any,
    passed: Callable[..., Any],
    splits: DataSplits,
    summary: EpochSummary,
) -> None:
    """Rate, error and statistics of every level on a few held-out frames."""
    batch = next(iter(splits.validation()))
    variables = variables_of(summary.state.params, summary.state.stats)
    rows = np.flatnonzero(batch["mask"])[: config.evaluation.pictures]
    few = jax.tree.map(lambda x: x[rows], dict(batch))
    variables = factorised.refresh_quantiles(variables)
    features, restored, bits = passed(summary.frozen, variables, few)
    weight = config.training.rate_weight
    text = documents.pyramid_analysis(
        treatment=TREATMENTS[config.model.name],
        rate_weight=weight,
        epoch=summary.epoch,
        levels=[
            _samples(np.asarray(features[level]), np.asarray(restored[level]), bits.get(level))
            for level in levels_of(config.model)
        ],
        bits=[float(b) for b in sum(bits.values())],
        first=LEVELS.index(levels_of(config.model)[0]),
    )
    atomic_write(summary.workdir / documents.pyramid_analysis_path(weight, summary.epoch), text)


def _samples(x: np.ndarray, restored: np.ndarray, bits: Any) -> list[dict[str, Any]]:
    """The samples of a level for its analysis; without bits where the level has no stream."""
    sizes = [None] * len(x) if bits is None else [float(b) for b in bits]
    rows = zip(x, restored, sizes, strict=True)
    return [{"original": a, "restored": b, "bits": n} for a, b, n in rows]


def pyramid_coder(codec: PyramidCodec, statistics: dict[str, np.ndarray]) -> FeatureCoder:
    """A loaded codec as the evaluation needs it, with the statistics of the levels."""

    def payload_bits(blob: bytes) -> dict[str, int]:
        return {s.name: 8 * len(s.payload) for s in bitstream.read(blob).streams}

    return FeatureCoder(
        levels=codec.levels,
        compress=codec.compress,
        decompress=codec.decompress,
        ideal_bits=codec.coder.ideal_bits,
        payload_bits=payload_bits,
        scales={level: float(statistics["scale"][i]) for i, level in enumerate(codec.levels)},
        means={level: statistics["mean"][i] for i, level in enumerate(codec.levels)},
    )


def _evaluate(
    config: Any,
    task: PyramidTask,
    detector: AnyDetector,
    images: DataSplits,
    statistics: dict[str, np.ndarray],
    result: FitResult,
    workdir: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Real bytes of every held-out frame, and detections with all levels replaced."""
    variables = variables_of(result.state.params, result.state.stats)
    variables = jax.tree.map(jnp.asarray, factorised.refresh_quantiles(variables))
    treatment = TREATMENTS[config.model.name]
    record = shared.codec_record(config, task.codec, detector)
    codec = save_codec(
        workdir / CODEC_FILE,
        codec_tree(variables, build_tables(task.codec, variables)),
        {"treatment": treatment, "levels": detector.levels, **record},
    )
    coder = pyramid_coder(codec, statistics)
    metrics, _ = shared.measure(config, detector, coder, images, workdir, progress)
    count = factorised.parameter_count(variables)
    shared.write_summary(config, result, workdir, count, treatment)
    return {
        "level": None,
        "treatment": treatment,
        "params": count,
        "params_digest": trees.tree_digest(result.state.params),
        "detector_digest": detector.digest,
        "loss_convention": LOSS_CONVENTION,
        **metrics,
    }
