"""Features of a frozen detector as the workloads that code them need them: made, cached, stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

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
from jaxcomp.data.photos import at_own_size
from jaxcomp.errors import CheckpointError, NonFiniteError
from jaxcomp.evaluate.detection import image_sizes
from jaxcomp.jobs.job import canvas_of
from jaxcomp.loaders import Detector, FaceSplit, load_split_detector
from jaxcomp.loaders.token_head import TokenHead
from jaxcomp.log import LOG
from jaxcomp.models.transform import frames_of
from jaxcomp.tasks.face_distortion import FaceDistortion
from jaxcomp.tasks.feature_codec import levels_of
from jaxcomp.tasks.tail_distortion import REGIONS, TailDistortion
from jaxcomp.types import DataSplits

_WAITING = "Another run makes the features in %s; this one goes on when they are there."
_ROWS = 16  # crops that the tail sees at a time
INPUT = ("resize", "height", "width", "min_side", "max_side")  # how images reach the network


AnyDetector: TypeAlias = Detector | FaceSplit
Judge: TypeAlias = TailDistortion | FaceDistortion


def frozen_detector(config: Any) -> AnyDetector:
    """The detector whose features are coded; an error names the ways to one."""
    kind = config.detector.get("kind", "faster_rcnn")
    try:
        return load_split_detector(config.detector.path, kind)
    except CheckpointError as error:
        if kind == "face":
            raise CheckpointError(
                f"{error} (config.detector.path; `python -m jaxcomp.main --config=configs/"
                "featherface.py` trains one, files of PyTorch are read as they are)"
            ) from error
        raise CheckpointError(
            f"{error} (config.detector.path; `python -m jaxcomp.main --config=configs/detector.py"
            "[:kitti]` trains one, `python -m jaxcomp import-weights` brings torchvision's)"
        ) from error


def check_channels(config: Any, detector: AnyDetector) -> None:
    """Raises `CheckpointError` unless the config is for the detector's levels and channels."""
    levels = levels_of(config.model)
    if levels != detector.levels:
        raise CheckpointError(
            f"the detector {config.detector.path or '(shipped)'!r} has the levels "
            f"{' '.join(detector.levels)}, but the config is for {' '.join(levels)}; give another "
            "--config.detector.path=FILE_OR_RUN"
        )
    channels = detector.channels
    if channels != config.model.in_channels:
        raise CheckpointError(
            f"the detector {config.detector.path or '(shipped)'!r} has {channels} channels per "
            f"level, but config.model.in_channels={config.model.in_channels}; give another "
            "--config.detector.path=FILE_OR_RUN, or change in_channels"
        )


def with_classes(config: Any, detector: AnyDetector) -> Any:
    """A copy of the config that names the detector's classes, for readers of labelled data."""
    copy = ConfigDict(config)
    with copy.unlocked():
        copy.classes = detector.classes
    return copy


def pyramid_head(config: Any, detector: AnyDetector) -> Callable[[Any, Any], Any]:
    """`head(variables, batch) -> {level: [B, H_l, W_l, C]}` of a frozen detector."""
    canvas = canvas_of(config)

    def head(variables: Any, batch: Any) -> Any:
        return detector.features(variables, frames_of(batch, canvas))

    return head


def tail_of(config: Any, detector: AnyDetector, head: Callable[[Any, Any], Any]) -> Judge | None:
    """What judges the decoded features of a config, None if their squared error alone does."""
    training = config.training
    if not training.task_weight:
        return None
    return _judge(
        detector,
        training.task_weight,
        training.task_regions,
        feature_weight=training.feature_weight,
        head=head,
    )


def _judge(detector: AnyDetector, weight: float, regions: int, **options: Any) -> Judge:
    """The tail of a detector as a judge; that of a face detector has no regions."""
    if isinstance(detector, FaceSplit):
        return FaceDistortion(detector.model, weight, **options)
    return TailDistortion(detector.model, weight, regions=regions, **options)


def held_out_batches(images: DataSplits) -> Iterator[Mapping[str, Any]]:
    """The held-out batches of a measurement; photos without labels one by one, at their own size.

    Validation in training keeps its one canvas, so that its step is compiled once.
    """
    for batch in images.validation():
        if "boxes" in batch:
            yield batch
        else:
            yield from at_own_size(batch)


def with_truth(
    config: Any, detector: AnyDetector, batches: Iterable[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """Batches with ground truth; without labels it is what the uncoded features give.

    Then the detections from `evaluation.truth_score` on are the objects, so that an accuracy is
    the agreement with the detector that nothing was coded for. Labelled data stay as they are.
    """
    for batch in batches:
        if "boxes" in batch:
            yield batch
            continue
        features = detector.head(frames_of(batch, canvas_of(config)))
        found = detector.tail(features, image_sizes(batch))
        found = {name: np.asarray(value) for name, value in found.items()}
        valid = found["valid"] & (found["scores"] >= config.evaluation.truth_score)
        truth = {"boxes": found["boxes"], "labels": found["labels"], "valid": valid}
        yield {**batch, **truth, "ignore": np.zeros_like(valid)}


def frozen_part(config: Any, detector: AnyDetector, tail: Judge | None) -> Any:
    """What the task keeps of the detector: its variables where a step runs a part of it."""
    needed = tail is not None or not config.data.cache_features
    return detector.variables if needed else digest_only(detector)


def digest_only(detector: AnyDetector | TokenHead) -> dict[str, np.ndarray]:
    """Stands for the frozen network where only its cached features are used.

    The trainer compares the digest of what is frozen on resume, so a run cannot go on with the
    features of another one.
    """
    return {"digest": np.frombuffer(bytes.fromhex(detector.digest), np.uint8)}


def pyramids(
    config: Any,
    detector: AnyDetector,
    levels: Sequence[str],
    batches: Iterable[Mapping[str, Any]],
    tail: Judge | None = None,
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
    detector: AnyDetector,
    levels: Sequence[str],
    images: DataSplits,
    tail: Judge | None = None,
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


def balanced(
    config: Any, detector: AnyDetector, training: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Rows of features in which the detector finds an object, and as many of the others.

    Most crops of photos hold no face; without this, most steps would learn background alone.
    """
    if not config.data.get("balanced", False):
        return training
    count, hits = _frames(training), list[np.ndarray]()
    for start in range(0, count, _ROWS):
        part = {name: training[name][start : start + _ROWS] for name in detector.levels}
        size = np.full((len(part[detector.levels[0]]), 2), config.data.crop, np.float32)
        found = detector.tail(part, size)
        sure = np.asarray(found["scores"]) >= config.data.found_score
        hits.append((sure & np.asarray(found["valid"])).any(1))
    hit = np.concatenate(hits)
    with_object, without = np.flatnonzero(hit), np.flatnonzero(~hit)
    if not len(with_object):
        LOG.warning("The detector finds nothing in the training crops; all of them are used.")
        return training
    chosen = np.random.default_rng(config.seed).permutation(without)[: len(with_object)]
    rows = np.sort(np.concatenate([with_object, chosen]))
    LOG.info("Of %d crops %d are used; %d hold an object.", count, len(rows), len(with_object))
    return {name: np.take(x, rows, axis=0) for name, x in training.items()}


def stored_pyramids(
    config: Any,
    detector: AnyDetector,
    levels: Sequence[str],
    images: DataSplits,
    tail: Judge | None,
) -> tuple[Any, Any]:
    """`cached_pyramids` that stay on disk, in half precision, for all runs of a sweep.

    All levels and their regions are stored, whatever this run needs of them. The size is told, and
    compared with the free space, before the head runs.
    """
    folder = Path(config.data.feature_store)
    regions = config.training.task_regions
    judge = _judge(detector, 1.0, regions)
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
    detector: AnyDetector,
    images: DataSplits,
    origin: Mapping[str, Any],
    judge: Judge,
) -> tuple[Any, Any]:
    """Makes and writes all features of a config, after a look at the free space."""
    folder = Path(config.data.feature_store)
    first = next(pyramids(config, detector, detector.levels, images.validation(), judge))
    shapes = {key: x.shape[1:] for key, x in first.items()}
    frames = images.steps_per_epoch * config.training.batch_size + config.data.val_size
    needed = store_bytes(frames, shapes)
    check_space(folder, needed)
    LOG.info("Features of about %d frames take %.2f GB in %s.", frames, needed / 1e9, folder)
    batches = {"train": images.train_once(), "validation": images.validation()}
    parts = {s: pyramids(config, detector, detector.levels, b, judge) for s, b in batches.items()}
    return write_store(folder, origin, parts)


def _frames(arrays: Mapping[str, Any]) -> int:
    return len(next(iter(arrays.values())))


def _stacked(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part.pop(key) for part in parts]) for key in tuple(parts[0])}
