"""Trained codecs and anchors on the same held-out frames with the same tail, as curves.

    folders of runs ─► codecs ─┐
                      anchors ─┴► points, one after the other ─► tables, figures, a page

Each point is written when it is complete, so a comparison that is interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm
from ml_collections import ConfigDict

from jaxcomp import config as config_lib
from jaxcomp.errors import CheckpointError, ConfigError
from jaxcomp.evaluate.anchors import KINDS, Anchor, anchors
from jaxcomp.jobs import point_measuring, rate_accuracy_results
from jaxcomp.jobs.frozen_features import AnyDetector, with_classes
from jaxcomp.jobs.kitti_scores import kitti_scores
from jaxcomp.jobs.point_frames import HeldOut
from jaxcomp.jobs.point_store import Fingerprint, PointStore
from jaxcomp.jobs.point_systems import CodecPoint, find_points, run_config
from jaxcomp.jobs.rate_accuracy_results import UNCOMPRESSED
from jaxcomp.loaders import load_split_detector
from jaxcomp.workdir import provenance

# Of the data, what decides on the held-out frames and what the network sees of them.
_FRAMES = (
    *("name", "height", "width", "resize", "min_side", "max_side"),
    *("seed", "val_size", "val_share"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare, and how.

    Attributes:
      anchors: kinds ("image", "feature", "detections") or names ("avif", "hevc-level").
      frames: the first so many held-out frames; 0 for all.
      config: a config file with arguments, instead of that of the runs.
      overrides: "data.dir=FOLDER" and the like.
      detector: its weights, instead of those that the runs name.
      replicates: sets of frames behind the intervals.
      seed: of their drawing.
      edge_slowdown: how many times slower the edge is than this machine, for the latencies.
      command: for the record.
    """

    anchors: tuple[str, ...] = KINDS
    frames: int = 0
    config: str | None = None
    overrides: tuple[str, ...] = ()
    detector: str | None = None
    replicates: int = rate_accuracy_results.REPLICATES
    seed: int = 0
    edge_slowdown: float = 1.0
    command: str = ""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A point that is to be there: its name, and what measures it."""

    name: str
    measure: Callable[[Callable[[], None]], point_measuring.Point]


def compare(paths: Sequence[Path], out: Path, options: Options = Options()) -> dict[str, Any]:
    """Measures what is missing and returns what `rate_accuracy.json` holds.

    Args:
      paths: run directories, folders of them, or `codec.npz` files.
      out: the folder of the comparison.
      options: see `Options`.

    Raises:
      CheckpointError: no codec, a damaged one, one of another detector, or a folder with points of
        other data.
      ConfigError: an unknown anchor or option, or runs of different data.
      DataError: the held-out frames cannot be read.
    """
    chosen, missing = select_anchors(options.anchors)
    codecs = find_points(paths, out / "assembled")
    config = comparison_config(codecs, options)
    detector = _detector(config, options)
    for point in codecs:
        _check_codec(point, detector)
    config = with_classes(config, detector)
    held = HeldOut(config, detector, options.frames)
    fingerprint = Fingerprint(detector.digest, held.digest, held.count, detector.classes)
    store = PointStore(out, fingerprint)
    names = _measure(
        store, held, codecs, chosen, _official(config, detector, out, options.replicates)
    )
    results = rate_accuracy_results.collect(
        store,
        names,
        detector.classes,
        replicates=options.replicates,
        seed=options.seed,
        edge_slowdown=options.edge_slowdown,
    )
    return {
        "frames": held.count,
        "classes": list(detector.classes),
        "data": "synthetic scenes" if config.data.name == "scenes" else config.data.name,
        "image_size": [config.data.height, config.data.width],
        "features_cached": held.cached,
        "detector_digest": detector.digest,
        "frames_digest": held.digest,
        "missing": missing,
        "notes": _notes(codecs, config),
        "command": options.command,
        **provenance(),
        **results,
    }


def select_anchors(words: Sequence[str]) -> tuple[list[tuple[str, Anchor]], dict[str, str]]:
    """([(kind, anchor)], {name: why it is not there}) of kinds or names of anchors.

    Raises:
      ConfigError: a word is neither; it names those that are.
    """
    offers = {kind: anchors(kind) for kind in KINDS}
    names = {a.name for offer in offers.values() for a in offer.anchors}
    names |= {name for offer in offers.values() for name in offer.missing}
    for word in words:
        if word not in KINDS and word not in names:
            hint = config_lib.nearest(word, [*KINDS, *names])
            raise ConfigError(f"--anchors={word}: no such anchor; {hint}")
    chosen: list[tuple[str, Anchor]] = []
    missing: dict[str, str] = {}
    for kind, offer in offers.items():
        wanted = [a for a in offer.anchors if kind in words or a.name in words]
        chosen += [(kind, anchor) for anchor in wanted]
        missing |= {n: why for n, why in offer.missing.items() if kind in words or n in words}
    order = {"detections": 0, "feature": 1, "image": 2}
    return sorted(chosen, key=lambda row: order[row[0]]), missing


def comparison_config(codecs: Sequence[CodecPoint], options: Options) -> ConfigDict:
    """The config whose held-out frames are compared: a file's, or that of the runs.

    Raises:
      ConfigError: there is none, or the runs saw different frames and no override settles it.
    """
    if options.config:
        return config_lib.load_config(options.config, options.overrides)
    known = [point for point in codecs if point.config]
    if not known:
        raise ConfigError(
            f"no config.json beside {str(codecs[0].path)!r}; name the data by --config=FILE, as in "
            "--config=configs/fpn_random.py"
        )
    settled = {o.partition("=")[0].removeprefix("data.") for o in options.overrides}
    first = known[0]
    for other in known[1:]:
        for key in _FRAMES:
            ours, theirs = (p.config["data"].get(key) for p in (first, other))
            if ours != theirs and key not in settled:
                raise ConfigError(
                    f"{str(other.path.parent)!r} was trained with data.{key}={theirs!r}, "
                    f"{str(first.path.parent)!r} with {ours!r}; compare them apart, or give "
                    f"--config.data.{key}=VALUE for all"
                )
    config = ConfigDict(run_config(first.path) or dict(first.config))
    return config_lib.apply_overrides(config.lock(), options.overrides)


def _detector(config: ConfigDict, options: Options) -> AnyDetector:
    path = options.detector or config.detector.path
    try:
        return load_split_detector(path, config.detector.get("kind", "faster_rcnn"))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (the runs' detector; another by --detector=FILE)"
        ) from error


def _check_codec(point: CodecPoint, detector: AnyDetector) -> None:
    try:
        point.codec.check_detector(detector)
    except CheckpointError as error:
        raise CheckpointError(f"{str(point.path)!r}: {error}") from error
    channels, wanted = point.codec.coder.channels, detector.channels
    if channels != wanted:
        raise CheckpointError(
            f"{str(point.path)!r} codes {channels} channels a level, the detector has {wanted}; "
            "give the detector it was trained for by --detector"
        )


def _official(
    config: ConfigDict, detector: AnyDetector, out: Path, replicates: int
) -> Callable[[str], point_measuring.OfficialScores | None]:
    scores = kitti_scores(config, detector.classes)

    def of(name: str) -> point_measuring.OfficialScores | None:
        if scores is None:
            return None
        return point_measuring.OfficialScores(scores, name, out / "results", replicates)

    return of


def _measure(
    store: PointStore,
    held: HeldOut,
    codecs: Sequence[CodecPoint],
    chosen: Sequence[tuple[str, Anchor]],
    official: Callable[[str], Any],
) -> list[str]:
    """Measures the points that are not there yet; names of all but the uncompressed one."""
    if not store.has(UNCOMPRESSED):
        with _progress(held.count, "uncompressed") as bar:
            record, arrays = point_measuring.measure_uncompressed(held, official, bar.update)
        store.write(UNCOMPRESSED, record, arrays)
    scales = store.read(UNCOMPRESSED)[0]["scales"]
    plans = list(_plans(held, codecs, chosen, scales, official))
    todo = [plan for plan in plans if not store.has(plan.name)]
    if len(todo) < len(plans):
        print(f"{len(plans) - len(todo)} of {len(plans)} points are there already")
    with _progress(held.count * len(todo), "points") as bar:
        for i, plan in enumerate(todo):
            bar.set_description(plan.name)
            record, arrays = plan.measure(bar.update)
            store.write(plan.name, record, arrays)
            bar.write(_line(i + 1, len(todo), record), file=sys.stdout)
    return [plan.name for plan in plans]


def _plans(
    held: HeldOut,
    codecs: Sequence[CodecPoint],
    chosen: Sequence[tuple[str, Anchor]],
    scales: Mapping[str, float],
    official: Callable[[str], Any],
) -> Iterator[_Plan]:
    tail: tuple[Any, ...] = (held, scales, official)
    for point in codecs:
        yield _Plan(point.name, functools.partial(point_measuring.measure_codec, point, *tail))
    for kind, anchor in chosen:
        measure = functools.partial(point_measuring.measure_anchor, anchor, kind, *tail)
        yield _Plan(anchor.label, measure)


def _progress(total: int, words: str) -> Any:
    hidden = not sys.stderr.isatty()
    return tqdm.tqdm(total=total, desc=words, unit="frame", dynamic_ncols=True, disable=hidden)


def _line(i: int, count: int, record: Mapping[str, Any]) -> str:
    accuracy = record["accuracy"]
    setting = (
        "" if record["setting"] is None else f" {record['setting_name']} {record['setting']:g}"
    )
    return (
        f"[{i}/{count}] {record['system']}{setting}: {record['bytes_per_frame']:,.0f} bytes/frame, "
        f"mAP50 {accuracy['map50']:.4f}, mAP75 {accuracy['map75']:.4f}, F1 {accuracy['f1_50']:.4f}"
    )


def _notes(codecs: Sequence[CodecPoint], config: ConfigDict) -> list[str]:
    """What a reader must know of the points."""
    notes = []
    parts = sorted({p.codec.levels[0] for p in codecs if not p.whole})
    if parts:
        notes.append(
            f"Codecs of {' '.join(parts)} alone leave the other levels as they are, at no cost: "
            "they are in the tables and the curves of their level, not beside whole systems."
        )
    rule = {name: config.data[name] for name in ("resize", "height", "width")}
    other = [p.name for p in codecs if p.codec.input and any(
        p.codec.input.get(k) != v for k, v in rule.items()
    )]  # fmt: skip
    if other:
        notes.append(
            f"Trained on images of other sizes than the {rule['height']} x {rule['width']} "
            f"compared here: {', '.join(other)}."
        )
    return notes
