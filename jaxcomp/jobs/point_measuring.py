"""One operating point over all frames: bytes, detections, errors of the features, times.

    uncompressed  image ─► head ─────────────────────────────► tail
    learned       image ─► head ─► codec ─► bytes ─► codec ──► tail
    feature       image ─► head ─► anchor ─► bytes ─► anchor ► tail
    image         image ─► anchor ─► bytes ─► anchor ─► head ► tail
    local         image ─► head ─► tail ─► bytes of the boxes

All kinds end in the same tail and are judged on the same frames.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.evaluate.anchors import Anchor
from jaxcomp.evaluate.detection import Frame, coco_metrics, frames_from_batch, voc_metrics
from jaxcomp.jobs import point_coding
from jaxcomp.jobs.kitti_scores import KittiScores
from jaxcomp.jobs.point_coding import Coded
from jaxcomp.jobs.point_frames import HeldOut, Pyramid, timed
from jaxcomp.jobs.point_store import pack_frames, pack_truth
from jaxcomp.jobs.point_systems import CodecPoint

PICTURES = 2  # frames whose pixels are kept for the page
SETTINGS = {"image": "quality", "hevc": "QP", "vvc": "QP", "uniform": "bits"}
Point = tuple[dict[str, Any], dict[str, np.ndarray]]
Official = Callable[[str], Any]  # a point's name -> `OfficialScores`, None for data of others


class OfficialScores:
    """One point by KITTI's own rules; its result files go to a folder."""

    def __init__(self, scores: KittiScores, name: str, folder: Path, bootstrap: int = 0):
        """Starts with no detections; `bootstrap` as of `KittiScores.finish`."""
        self._scores = KittiScores(scores.annotations, scores.classes)
        self._name, self._folder, self._bootstrap = name, folder, bootstrap

    def add(self, batch: Any, found: Any) -> None:
        """Takes the padded detections of a batch."""
        self._scores.add(self._name, batch, found)

    def finish(self) -> dict[str, Any]:
        """{"scores", "objects", "notes"} of `kitti_scores`, and "intervals"."""
        return self._scores.finish(self._folder, self._bootstrap)[self._name]


@dataclasses.dataclass
class _Sums:
    """What is added up frame by frame."""

    frames: list[Frame] = dataclasses.field(default_factory=list)
    coded: list[Coded] = dataclasses.field(default_factory=list)
    errors: list[dict[str, float]] = dataclasses.field(default_factory=list)
    values: dict[str, int] = dataclasses.field(default_factory=dict)


def settings_of(anchor: Anchor) -> str:
    """What the point of an anchor counts: "quality", "QP" or "bits"; "" if it has none."""
    if anchor.point is None:
        return ""
    return SETTINGS.get(anchor.name.partition("-")[0], SETTINGS["image"])


def accuracy_of(frames: list[Frame], classes: tuple[str, ...]) -> dict[str, float]:
    """VOC's numbers at IoU 0.5 and 0.75, and COCO's summary."""
    found = voc_metrics(frames, classes) | voc_metrics(frames, classes, 0.75)
    return found | coco_metrics(frames, classes)


def measure_uncompressed(held: HeldOut, official: Official, tick: Callable[[], None]) -> Point:
    """The detector as it is: the accuracy that others lose, and what all points are judged with.

    Its arrays also hold the ground truth, the pictures and the statistics of the features. The
    canvas, and with it the complexity, is that of the first frame.
    """
    sums, scores = _Sums(), official("uncompressed")
    head_ms, tail_ms, pictures = [], [], []
    moments: dict[str, list[Any]] = {level: [0, 0.0, 0.0] for level in held.detector.levels}
    shapes: dict[str, list[int]] = {}
    for i, (batch, pyramid) in enumerate(held.pyramids()):
        found = held.tail(pyramid, batch)
        if i < 8:  # the first calls of all have compiled both halves
            head_ms.append(timed(held.head, batch)[1])
            tail_ms.append(timed(held.tail, pyramid, batch)[1])
        for level, x in pyramid.items():
            one = moments[level]
            one[0] += x.shape[1] * x.shape[2]
            one[1] = one[1] + x.sum((0, 1, 2), dtype=np.float64)
            one[2] = one[2] + np.square(x, dtype=np.float64).sum((0, 1, 2))
        _detect(sums, scores, batch, found)
        if i == 0:
            canvas = tuple(32 * n for n in pyramid["p5"].shape[1:3])
        if i < PICTURES:
            pictures.append(held.pixels_of(batch))
        for level, x in pyramid.items():  # photos have sizes of their own: the largest
            shapes[level] = list(map(max, x.shape[1:], shapes.get(level, x.shape[1:])))
        tick()
    accuracy = accuracy_of(sums.frames, held.detector.classes)
    record = {
        "kind": "uncompressed",
        "system": "uncompressed",
        "frames": held.count,
        "accuracy": accuracy,
        "shapes": shapes,
        "canvas": canvas,
        "pixels_per_frame": float(held.pixels.mean()),
        "head_ms": float(np.median(head_ms)),
        "tail_ms": float(np.median(tail_ms)),
        "scales": {level: _scale(*one) for level, one in moments.items()},
        "complexity": point_coding.detector_complexity(held.detector, canvas, int(held.pixels[0])),
    }
    arrays = pack_frames(sums.frames) | pack_truth(sums.frames)
    arrays |= {"image_ids": held.image_ids, "pixels": held.pixels}
    arrays |= {f"picture_{i}": image for i, image in enumerate(pictures)}
    return _with_official(record, scores), arrays


def _scale(count: int, total: np.ndarray, square: np.ndarray) -> float:
    """Root mean square of a level's features around the means of their channels."""
    variance = np.maximum(square / count - np.square(total / count), 0.0)
    return float(max(np.sqrt(variance.mean()), 1e-12))


def measure_codec(
    point: CodecPoint,
    held: HeldOut,
    scales: Mapping[str, float],
    official: Official,
    tick: Callable[[], None],
) -> Point:
    """A trained codec: real bytes, and the tail on what was read back."""
    codec, sums, scores = point.codec, _Sums(), official(point.name)
    heat: dict[str, np.ndarray] = {}
    compiled = set[tuple]()
    for i, (batch, pyramid) in enumerate(held.pyramids()):
        sizes = tuple(x.shape for x in pyramid.values())
        if sizes not in compiled:  # the first calls compile; their time is no latency
            point_coding.code_learned(codec, pyramid)
            compiled.add(sizes)
        if i == 0:
            size = tuple(32 * n for n in pyramid["p5"].shape[1:3])
            found = point_coding.heat_maps(codec, pyramid, size)
            heat = {f"heat_{name}": x for name, x in found.items()}
            cost = point_coding.codec_complexity(codec, pyramid, int(held.pixels[0]))
        coded = point_coding.code_learned(codec, pyramid)
        _count(sums, pyramid, coded, scales)
        found = held.tail({**pyramid, **coded.restored}, batch)
        _detect(sums, scores, batch, found)
        tick()
    record = {
        "kind": "learned",
        "setting": point.rate_weight,
        "setting_name": "rate weight",
        "treatment": codec.meta.get("treatment", "level"),
        "levels_coded": list(codec.levels),
        "whole": point.whole,
        "digest": codec.digest,
        "path": os.path.relpath(point.path),
        "complexity": cost,
    }
    return _finish(point.name, point.system, record, sums, held, scores, heat)


def measure_anchor(
    anchor: Anchor,
    kind: str,
    held: HeldOut,
    scales: Mapping[str, float],
    official: Official,
    tick: Callable[[], None],
) -> Point:
    """An anchor of the kind "image", "feature" or "detections"."""
    one = {"image": _image_frame, "feature": _feature_frame, "detections": _local_frame}[kind]
    sums, scores = _Sums(), official(anchor.label)
    for i, (batch, pyramid) in enumerate(held.pyramids()):
        if i == 0:  # imports and the like are no latency
            one(anchor, held, batch, pyramid)
        coded, found = one(anchor, held, batch, pyramid)
        _count(sums, pyramid, coded, scales)
        _detect(sums, scores, batch, found)
        tick()
    record = {
        "kind": {"detections": "local"}.get(kind, kind),
        "setting": anchor.point,
        "setting_name": settings_of(anchor),
        "whole": True,
    }
    return _finish(anchor.label, anchor.name, record, sums, held, scores, {})


def _image_frame(anchor: Anchor, held: HeldOut, batch: Any, pyramid: Pyramid) -> Any:
    coded, image = point_coding.code_image(anchor, held.pixels_of(batch))
    seen = held.with_pixels(batch, image)
    restored = held.head(seen)
    return dataclasses.replace(coded, restored=restored), held.tail(restored, seen)


def _feature_frame(anchor: Anchor, held: HeldOut, batch: Any, pyramid: Pyramid) -> Any:
    coded = point_coding.code_features(anchor, pyramid)
    return coded, held.tail({**pyramid, **coded.restored}, batch)


def _local_frame(anchor: Anchor, held: HeldOut, batch: Any, pyramid: Pyramid) -> Any:
    found = held.tail(pyramid, batch)
    blob, encode_ms = timed(anchor.encode, found)
    boxes, decode_ms = timed(anchor.decode, blob)
    padded = {name: x[None] for name, x in boxes.items()}
    padded["valid"] = np.ones(padded["scores"].shape, bool)
    return Coded(len(blob), {}, encode_ms, decode_ms), padded


def _detect(sums: _Sums, scores: Any, batch: Any, found: Any) -> None:
    sums.frames += frames_from_batch(found, batch)
    if scores:
        scores.add(batch, found)


def _count(sums: _Sums, pyramid: Pyramid, coded: Coded, scales: Mapping[str, float]) -> None:
    """Adds one frame; errors are relative to the variance of the level in these frames."""
    errors = {}
    for level, x in coded.restored.items():
        error = float(np.square(pyramid[level] - x, dtype=np.float64).sum())
        errors[level] = error / scales[level] ** 2
        sums.values[level] = sums.values.get(level, 0) + x.size
    sums.errors.append(errors)
    sums.coded.append(dataclasses.replace(coded, restored={}))  # their arrays are not needed more


def _finish(
    name: str,
    system: str,
    record: dict[str, Any],
    sums: _Sums,
    held: HeldOut,
    scores: Any,
    arrays: Mapping[str, np.ndarray],
) -> Point:
    coded, values = sums.coded, sum(sums.values.values())
    sizes = np.asarray([c.frame_bytes for c in coded], np.int64)
    is_image = record["kind"] == "image"
    estimates = [c.estimated_bits for c in coded if c.estimated_bits is not None]
    level_errors = {k: sum(e[k] for e in sums.errors) / n for k, n in sums.values.items()}
    # All values alike, each in units of its level: what the codecs are trained on.
    relative = [sum(e.values()) / max(values / held.count, 1) for e in sums.errors]
    full = {
        "name": name,
        "system": system,
        **record,
        "frames": held.count,
        "bytes_per_frame": float(sizes.mean()),
        "bpp_image": float(8 * sizes.sum() / held.pixels.sum()),
        "bits_per_value": float(8 * sizes.sum() / values) if values and not is_image else None,
        "estimated_bytes_per_frame": float(np.mean(estimates)) / 8 if estimates else None,
        "payload_bytes_per_frame": _stream_bytes(coded, total=True),
        "stream_bytes_per_frame": _stream_bytes(coded),
        "relative_mse": float(np.mean(relative)) if values else None,
        "level_relative_mse": level_errors,
        "encode_ms": float(np.median([c.encode_ms for c in coded])),
        "decode_ms": float(np.median([c.decode_ms for c in coded])),
        **_median_parts(coded),
        "accuracy": accuracy_of(sums.frames, held.detector.classes),
    }
    packed = pack_frames(sums.frames) | {"frame_bytes": sizes, **arrays}
    if values:
        packed["frame_relative_mse"] = np.asarray(relative)
    if estimates:
        packed["frame_estimated_bits"] = np.asarray(estimates)
    return _with_official(full, scores), packed


def _stream_bytes(coded: list[Coded], total: bool = False) -> Any:
    names = dict.fromkeys(name for c in coded for name in c.payload)
    means = {n: sum(c.payload.get(n, 0) for c in coded) / 8 / len(coded) for n in names}
    if total:
        return sum(means.values()) if means else None
    return means


def _median_parts(coded: list[Coded]) -> dict[str, float]:
    names = coded[0].parts_ms if coded else {}
    return {name: float(np.median([c.parts_ms[name] for c in coded])) for name in names}


def _with_official(record: dict[str, Any], scores: Any) -> dict[str, Any]:
    return {**record, "kitti": scores.finish()} if scores else record
