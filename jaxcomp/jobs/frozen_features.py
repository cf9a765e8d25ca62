"""Features of a frozen detector as the workloads that code them need them: made, cached, stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcomp.data.feature_store import (
    check_space,
    open_store,
    sole_writer,
    store_bytes,
    write_store,
)
from jaxcomp.errors import CheckpointError, NonFiniteError
from jaxcomp.evaluate.detection import image_sizes
from jaxcomp.jobs.job import canvas_of
from jaxcomp.loaders import Detector, load_detector
from jaxcomp.log import LOG
from jaxcomp.models.fpn import LEVELS
from jaxcomp.models.transform import frames_of
from jaxcomp.tasks.tail_distortion import REGIONS, TailDistortion
from jaxcomp.types import DataSplits

_WAITING = "Another run makes the features in %s; this one goes on when they are there."
INPUT = ("resize", "height", "width", "min_side", "max_side")  # how images reach the network


def frozen_detector(config: Any) -> Detector:
    """The detector whose features are coded; an error names the ways to one."""
    try:
        return load_detector(config.detector.path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (config.detector.path; `python -m jaxcomp.main --config=configs/detector.py"
            "[:kitti]` trains one, `python -m jaxcomp import-weights` brings torchvision's)"
        ) from error


def check_channels(config: Any, detector: Detector) -> None:
    """Raises `CheckpointError` unless the config is for the detector's channels."""
    channels = detector.model.cfg.fpn_features
    if channels != config.model.in_channels:
        raise CheckpointError(
            f"the detector {config.detector.path or '(shipped)'!r} has {channels} channels per "
            f"level, but config.model.in_channels={config.model.in_channels}; give another "
            "--config.detector.path=FILE_OR_RUN, or change in_channels"
        )


def with_classes(config: Any, detector: Detector) -> Any:
    """A copy of the config that names the detector's classes, for readers of labelled data."""
    copy = ConfigDict(config)
    with copy.unlocked():
        copy.classes = detector.classes
    return copy


def pyramid_head(config: Any, detector: Detector) -> Callable[[Any, Any], Any]:
    """`head(variables, batch) -> {level: [B, H_l, W_l, C]}` of a frozen detector."""
    canvas = canvas_of(config)

    def head(variables: Any, batch: Any) -> Any:
        return detector.model.apply(variables, frames_of(batch, canvas), method="features")

    return head


def tail_of(
    config: Any, detector: Detector, head: Callable[[Any, Any], Any]
) -> TailDistortion | None:
    """What judges the decoded features of a config, None if their squared error alone does."""
    training = config.training
    if not training.task_weight:
        return None
    return TailDistortion(
        detector.model,
        weight=training.task_weight,
        feature_weight=training.feature_weight,
        regions=training.task_regions,
        head=head,
    )


def frozen_part(config: Any, detector: Detector, tail: TailDistortion | None) -> Any:
    """What the task keeps of the detector: its variables where a step runs a part of it."""
    needed = tail is not None or not config.data.cache_features
    return detector.variables if needed else digest_only(detector)


def digest_only(detector: Detector) -> dict[str, np.ndarray]:
    """Stands for the frozen detector where only its cached features are used.

    The trainer compares the digest of what is frozen on resume, so a run cannot go on with the
    features of another detector.
    """
    return {"digest": np.frombuffer(bytes.fromhex(detector.digest), np.uint8)}


def pyramids(
    config: Any,
    detector: Detector,
    levels: Sequence[str],
    batches: Iterable[Mapping[str, Any]],
    tail: TailDistortion | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Features {level: [B, H_l, W_l, C]} batch by batch, without padding rows.

    With a tail, also the regions of these levels, "regions_LEVEL" [B, R, 4].
    """
    propose = jax.jit(tail.propose) if tail else None
    for batch in batches:
        pyramid, real = detector.head(frames_of(batch, canvas_of(config))), batch["mask"]
        found = {}
        for level in levels:
            x = np.asarray(pyramid[level])
            if not np.isfinite(x).all():
                raise NonFiniteError(f"the detector's {level!r} features hold NaN or infinity")
            found[level] = x[np.asarray(real, bool)]
        if propose:
            regions = propose(detector.variables, pyramid, image_sizes(batch))
            for key in (REGIONS + level for level in levels if REGIONS + level in regions):
                found[key] = np.asarray(regions[key])[np.asarray(real, bool)]
        yield found


def cached_pyramids(
    config: Any,
    detector: Detector,
    levels: Sequence[str],
    images: DataSplits,
    tail: TailDistortion | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The frozen head runs once over the data instead of once an epoch: (training, held out).

    With a tail, the levels' regions stand beside them as "regions_LEVEL".
    """
    if config.data.feature_store:
        return stored_pyramids(config, detector, levels, images, tail)
    training, held_out = (
        _stacked(list(pyramids(config, detector, levels, batches, tail)))
        for batches in (images.train_once(), images.validation())
    )
    LOG.info(
        "Cached %s features of %d + %d frames: %s each, %.0f MB.",
        *(" ".join(levels), len(training[levels[0]]), len(held_out[levels[0]])),
        " ".join(str(training[level].shape[1:]) for level in levels),
        sum(x.nbytes for x in (*training.values(), *held_out.values())) / 1e6,
    )
    return training, held_out


def stored_pyramids(
    config: Any,
    detector: Detector,
    levels: Sequence[str],
    images: DataSplits,
    tail: TailDistortion | None,
) -> tuple[Any, Any]:
    """`cached_pyramids` that stay on disk, in half precision, for all runs of a sweep.

    All levels and their regions are stored, whatever this run needs of them. The size is told, and
    compared with the free space, before the head runs.
    """
    folder = Path(config.data.feature_store)
    regions = config.training.task_regions
    judge = TailDistortion(detector.model, weight=1.0, regions=regions)
    origin = {
        "detector": detector.digest,
        "data": images.fingerprint,
        "sizes": [config.data.train_size, config.data.val_size],
        "input": {name: config.data[name] for name in INPUT},
        "data_name": [config.data.name, config.data.seed],
        "regions": regions,
    }
    found = open_store(folder, origin)
    if found is None:
        with sole_writer(folder, origin, lambda: LOG.info(_WAITING, folder)):
            found = open_store(folder, origin) or _store(config, detector, images, origin, judge)
    wanted = {*levels, *(REGIONS + level for level in levels if tail)}
    training, held_out = ({k: x for k, x in part.items() if k in wanted} for part in found)
    LOG.info(
        "Features of %d + %d frames are read from %s.", *map(_frames, (training, held_out)), folder
    )
    return training, held_out


def _store(
    config: Any,
    detector: Detector,
    images: DataSplits,
    origin: Mapping[str, Any],
    judge: TailDistortion,
) -> tuple[Any, Any]:
    """Makes and writes all features of a config, after a look at the free space."""
    folder = Path(config.data.feature_store)
    first = next(pyramids(config, detector, LEVELS, images.validation(), judge))
    shapes = {key: x.shape[1:] for key, x in first.items()}
    frames = images.steps_per_epoch * config.training.batch_size + config.data.val_size
    needed = store_bytes(frames, shapes)
    check_space(folder, needed)
    LOG.info("Features of about %d frames take %.2f GB in %s.", frames, needed / 1e9, folder)
    batches = {"train": images.train_once(), "validation": images.validation()}
    parts = {s: pyramids(config, detector, LEVELS, b, judge) for s, b in batches.items()}
    return write_store(folder, origin, parts)


def _frames(arrays: Mapping[str, Any]) -> int:
    return len(next(iter(arrays.values())))


def _stacked(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part.pop(key) for part in parts]) for key in tuple(parts[0])}
