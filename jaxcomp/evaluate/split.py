"""The whole pipeline with real bytes: features, a file on disk, features again, detections.

    image ── head ──► features ──────────────────────────── tail ──► detections before
                         └─ level(s) ─► .jxc file ─► level(s) ┘  tail ──► detections after

The functions take the network as callables, so that codecs and models stay strangers.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.evaluate.detection import (
    coco_metrics,
    frames_from_batch,
    image_sizes,
    pixel_sizes,
    voc_metrics,
)
from jaxcomp.evaluate.pictures import keep_pictures

Features = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LevelCoder:
    """A codec of one level, as the evaluation needs it.

    Attributes:
      level: feature key, as in "p4".
      compress: one frame's features [1, H, W, C] -> the bytes of a `.jxc` file.
      decompress: those bytes -> [1, H, W, C] float32.
      ideal_bits: [B, H, W, C] -> [B, M], the code length of every latent channel under the model.
      payload_bits: bytes -> bits of the entropy coder's chunks, without the container around them.
      scale: root mean square of the level's features; errors are reported relative to its square.
      mean: [C], the level's mean: what a receiver knows without any bytes.
    """

    level: str
    compress: Callable[[Any], bytes]
    decompress: Callable[[bytes], np.ndarray]
    ideal_bits: Callable[[Any], np.ndarray]
    payload_bits: Callable[[bytes], int]
    scale: float
    mean: np.ndarray


@dataclasses.dataclass(frozen=True)
class FeatureCoder:
    """A codec of one or several levels, as the evaluation needs it.

    Attributes:
      levels: the feature keys that are coded, finest first.
      compress: one frame's features {level: [1, H_l, W_l, C]} -> the bytes of a `.jxc` file.
      decompress: those bytes -> {level: [1, H_l, W_l, C] float32}.
      ideal_bits: {level: [B, H_l, W_l, C]} -> {stream: [B, M]}, the code length of every latent
        channel under the model.
      payload_bits: bytes -> {stream: bits of the entropy coder's chunk}, without the container.
      scales: {level: root mean square}; errors are reported relative to its square.
      means: {level: [C]}, what a receiver knows without any bytes.
    """

    levels: tuple[str, ...]
    compress: Callable[[Mapping[str, Any]], bytes]
    decompress: Callable[[bytes], Mapping[str, np.ndarray]]
    ideal_bits: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]
    payload_bits: Callable[[bytes], Mapping[str, int]]
    scales: Mapping[str, float]
    means: Mapping[str, np.ndarray]


def _one_level(coder: LevelCoder) -> FeatureCoder:
    level = coder.level
    return FeatureCoder(
        levels=(level,),
        compress=lambda features: coder.compress(features[level]),
        decompress=lambda blob: {level: coder.decompress(blob)},
        ideal_bits=lambda features: {level: coder.ideal_bits(features[level])},
        payload_bits=lambda blob: {level: coder.payload_bits(blob)},
        scales={level: coder.scale},
        means={level: coder.mean},
    )


@dataclasses.dataclass
class _LevelTotals:
    """Sums over the frames of one level."""

    squared_error: float = 0.0
    values: int = 0
    positions: int = 0
    shape: tuple[int, ...] = ()


@dataclasses.dataclass
class _Totals:
    """Sums over frames, and what the report shows."""

    frames: int = 0
    timed: set[tuple[tuple[int, ...], ...]] = dataclasses.field(default_factory=set)
    estimated_bits: float = 0.0
    payload_bits: int = 0
    file_bytes: int = 0
    feature_sum: float = 0.0
    feature_square: float = 0.0
    feature_max: float = 0.0
    values: int = 0
    positions: int = 0
    pixels: int = 0
    encode_ms: list[float] = dataclasses.field(default_factory=list)
    decode_ms: list[float] = dataclasses.field(default_factory=list)
    channel_bits: Any = 0.0
    stream_bits: dict[str, int] = dataclasses.field(default_factory=dict)
    levels: dict[str, _LevelTotals] = dataclasses.field(default_factory=dict)
    before: list = dataclasses.field(default_factory=list)
    after: list = dataclasses.field(default_factory=list)
    without: list = dataclasses.field(default_factory=list)
    pictures: dict[str, list] = dataclasses.field(default_factory=dict)
    per_frame: list[dict[str, float]] = dataclasses.field(default_factory=list)


def evaluate_level(
    *,
    head: Callable[[Mapping[str, Any]], Features],
    tail: Callable[[Features, Any], Mapping[str, Any]],
    coder: LevelCoder | FeatureCoder,
    batches: Iterable[Mapping[str, Any]],
    classes: tuple[str, ...],
    streams: Path,
    pictures: int = 4,
    progress: Callable[[int], None] = lambda frames: None,
    observe: Callable[[str, Mapping[str, Any], Mapping[str, Any]], None] = lambda *_: None,
    frame_name: Callable[[int], str] = "{:06d}".format,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Codes every held-out frame to a file, decodes the file, and detects before and after.

    Args:
      head: a detection batch -> the pyramid.
      tail: (pyramid, image sizes [B, 2]) -> padded detections.
      coder: the codec; levels that it does not code stay as they are.
      batches: held-out detection batches.
      classes: names of labels 1, 2, ...
      streams: folder of the `.jxc` files, one a frame; made if needed, stale files are removed.
      pictures: frames of which images, features and detections are kept for the report.
      progress: called with the number of frames done.
      observe: called with "before" or "after", each batch and its detections.
      frame_name: what the file of an `image_id` is called.

    Returns:
      (metrics, arrays for the report). All rates are counted from the files.
    """
    if isinstance(coder, LevelCoder):
        coder = _one_level(coder)
    streams.mkdir(parents=True, exist_ok=True)
    stale = set(streams.glob("*.jxc"))
    totals = _Totals(levels={level: _LevelTotals() for level in coder.levels})
    for batch in batches:
        features = head(batch)
        coded = {level: features[level] for level in coder.levels}
        original = _numpy(coded)
        sizes, pixels = image_sizes(batch), pixel_sizes(batch)
        rows = np.flatnonzero(batch["mask"])
        restored = {level: x.copy() for level, x in original.items()}
        bits = _numpy(coder.ideal_bits(coded))
        for row in rows:
            path = streams / f"{frame_name(int(batch['image_id'][row]))}.jxc"
            stale.discard(path)
            frame = {level: x[row : row + 1] for level, x in original.items()}
            decoded = _code_one(coder, frame, path, totals)
            for level in coder.levels:
                restored[level][row] = decoded[level][0]
            of_row = {stream: one[row] for stream, one in bits.items()}
            _count(totals, coder, frame, decoded, of_row, pixels[row], path)
        before = _numpy(tail(features, sizes))
        after = _numpy(tail({**features, **restored}, sizes))
        # The floor: what the other levels achieve alone, or none.
        constant = {
            level: np.broadcast_to(np.asarray(coder.means[level], np.float32), x.shape)
            for level, x in original.items()
        }
        without = _numpy(tail({**features, **constant}, sizes))
        observe("before", batch, before)
        observe("after", batch, after)
        totals.without += frames_from_batch(without, batch)
        totals.before += frames_from_batch(before, batch)
        totals.after += frames_from_batch(after, batch)
        keep_pictures(
            totals.pictures,
            batch,
            {"before": before, "after": after},
            {"original": original[coder.levels[0]], "restored": restored[coder.levels[0]]},
            limit=pictures,
        )
        progress(totals.frames)
    for path in stale:
        path.unlink()
    return _metrics(totals, coder, classes), _arrays(totals, coder)


def code_maps(
    coder: LevelCoder,
    maps: np.ndarray,
    streams: Path,
    *,
    size: tuple[int, int],
    pictures: int = 0,
    progress: Callable[[int], None] = lambda frames: None,
) -> tuple[np.ndarray, dict[str, Any], dict[str, np.ndarray]]:
    """Codes every map to a file and decodes the file, for features that no detector follows.

    Args:
      coder: the codec.
      maps: [N, H, W, C] float32, one row a picture.
      streams: folder of the `.jxc` files, "000000.jxc" for the first row; stale ones are removed.
      size: (rows, columns) of a picture in pixels.
      pictures: rows of which the maps are kept for the report.
      progress: called with the number of pictures done.

    Returns:
      (decoded maps [N, H, W, C], metrics, arrays for the report). All rates are counted from the
      files.
    """
    several, level = _one_level(coder), coder.level
    totals = _Totals(levels={level: _LevelTotals()})
    streams.mkdir(parents=True, exist_ok=True)
    paths = [streams / f"{row:06d}.jxc" for row in range(len(maps))]
    restored = np.empty_like(maps)
    for row, path in enumerate(paths):
        frame = {level: maps[row : row + 1]}
        decoded = _code_one(several, frame, path, totals)
        bits = {level: np.asarray(coder.ideal_bits(frame[level]))[0]}
        _count(totals, several, frame, decoded, bits, np.asarray(size), path)
        restored[row] = decoded[level][0]
        progress(row + 1)
    for stale in set(streams.glob("*.jxc")) - set(paths):
        stale.unlink()
    kept = {"original": maps[:pictures], "restored": restored[:pictures]}
    kept["image_id"] = np.arange(len(kept["original"]))
    return restored, _rate_metrics(totals, several), _arrays(totals, several) | kept


def _numpy(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in tree.items()}


def _code_one(
    coder: FeatureCoder, x: Mapping[str, np.ndarray], path: Path, totals: _Totals
) -> dict[str, np.ndarray]:
    """Features -> file -> features of one frame {level: [1, H, W, C]}, with times."""
    shapes = tuple(one.shape for one in x.values())
    if shapes not in totals.timed:  # the first call compiles; its time is not a latency
        _numpy(coder.decompress(coder.compress(x)))
        totals.timed.add(shapes)
    start = time.perf_counter()
    blob = coder.compress(x)
    totals.encode_ms.append(1e3 * (time.perf_counter() - start))
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(blob)
    os.replace(temporary, path)
    blob = path.read_bytes()
    start = time.perf_counter()
    restored = _numpy(coder.decompress(blob))
    totals.decode_ms.append(1e3 * (time.perf_counter() - start))
    for stream, bits in coder.payload_bits(blob).items():
        totals.payload_bits += bits
        totals.stream_bits[stream] = totals.stream_bits.get(stream, 0) + bits
    return restored


def _count(
    totals: _Totals,
    coder: FeatureCoder,
    original: Mapping[str, np.ndarray],
    restored: Mapping[str, np.ndarray],
    bits: Mapping[str, np.ndarray],
    size: np.ndarray,
    path: Path,
) -> None:
    """Counts one frame, [1, H, W, C] a level."""
    stream_bytes, relative = path.stat().st_size, 0.0
    size_of_frame = sum(x.size for x in original.values())
    totals.frames += 1
    totals.file_bytes += stream_bytes
    for level, x in original.items():
        error = float(np.square(x - restored[level], dtype=np.float64).sum())
        relative += error / size_of_frame / coder.scales[level] ** 2
        one = totals.levels[level]
        one.squared_error += error
        one.values += x.size
        one.positions += x.shape[1] * x.shape[2]
        one.shape = tuple(map(max, x.shape[1:], one.shape or x.shape[1:]))
        totals.feature_sum += float(x.sum(dtype=np.float64))
        totals.feature_square += float(np.square(x, dtype=np.float64).sum())
        totals.feature_max = max(totals.feature_max, float(np.abs(x).max()))
        totals.values += x.size
        totals.positions += x.shape[1] * x.shape[2]
    totals.pixels += int(size[0] * size[1])
    estimated = sum(float(one.sum()) for one in bits.values())
    totals.estimated_bits += estimated
    # Streams of one codec share their channels; those of several stand side by side.
    stacked = np.concatenate([np.asarray(one, np.float64) for one in bits.values()])
    totals.channel_bits = totals.channel_bits + stacked
    totals.per_frame.append(
        {
            "frame": path.stem,
            "bytes": stream_bytes,
            "estimated_bits": estimated,
            "relative_mse": relative,
        }
    )


def _level_metrics(t: _Totals, coder: FeatureCoder) -> dict[str, dict[str, Any]]:
    """What belongs to a level alone; its bits where it has a stream of its own, else None."""
    rows = {}
    for level, one in t.levels.items():
        bits, values = t.stream_bits.get(level), max(one.values, 1)
        mse = one.squared_error / values
        rows[level] = {
            "shape": list(one.shape),
            "mse": mse,
            "relative_mse": mse / coder.scales[level] ** 2,
            "payload_bytes_per_frame": None if bits is None else bits / 8 / max(t.frames, 1),
            "share_of_bits": None if bits is None else bits / max(t.payload_bits, 1),
            "bpp_feature": None if bits is None else bits / max(one.positions, 1),
            "bits_per_value": None if bits is None else bits / values,
        }
    return rows


def _metrics(t: _Totals, coder: FeatureCoder, classes: tuple[str, ...]) -> dict[str, Any]:
    before, after = (voc_metrics(f, classes) for f in (t.before, t.after))
    without = voc_metrics(t.without, classes)
    before_coco, after_coco = (coco_metrics(f, classes) for f in (t.before, t.after))
    several = {"levels": _level_metrics(t, coder)} if len(coder.levels) > 1 else {}
    return {
        **_rate_metrics(t, coder),
        "map50_uncompressed": before["map50"],
        "map50": after["map50"],
        "map50_without_level": without["map50"],
        # Of a detector that finds nothing, no share can be kept.
        "map50_kept": after["map50"] / before["map50"] if before["map50"] else None,
        "accuracy_uncompressed": before | before_coco,
        "accuracy": after | after_coco,
        **several,
    }


def _rate_metrics(t: _Totals, coder: FeatureCoder) -> dict[str, Any]:
    """Bytes, bits, errors and times; all that is known without a tail."""
    frames, values = max(t.frames, 1), max(t.values, 1)
    mse = sum(one.squared_error for one in t.levels.values()) / values
    relative = sum(
        one.squared_error / values / coder.scales[level] ** 2 for level, one in t.levels.items()
    )
    peak = t.feature_max
    return {
        "frames": t.frames,
        "estimated_bits": t.estimated_bits,
        "actual_bits": t.payload_bits,
        "overhead": t.payload_bits / max(t.estimated_bits, 1e-9) - 1.0,
        "file_bits": 8 * t.file_bytes,
        "container_bytes_per_frame": (t.file_bytes - t.payload_bits / 8) / frames,
        "bytes_per_frame": t.file_bytes / frames,
        "raw_bytes_per_frame": 4 * t.values / frames,
        "compression_ratio": 4 * t.values / max(t.file_bytes, 1),
        "bpp_image": 8 * t.file_bytes / max(t.pixels, 1),
        "bpp_feature": 8 * t.file_bytes / max(t.positions, 1),
        "bits_per_value": 8 * t.file_bytes / values,
        "mse": mse,
        "relative_mse": relative,
        "psnr": float(10 * np.log10(peak**2 / max(mse, 1e-20))) if peak > 0 else 0.0,
        "feature_mean": t.feature_sum / values,
        "feature_std": float(
            np.sqrt(max(t.feature_square / values - (t.feature_sum / values) ** 2, 0))
        ),
        "feature_max": peak,
        "encode_ms": float(np.median(t.encode_ms)) if t.encode_ms else 0.0,
        "decode_ms": float(np.median(t.decode_ms)) if t.decode_ms else 0.0,
    }


def _arrays(totals: _Totals, coder: FeatureCoder) -> dict[str, np.ndarray]:
    arrays = {name: np.stack(values) for name, values in totals.pictures.items()}
    arrays["shape"] = np.asarray(totals.levels[coder.levels[0]].shape)
    arrays["channel_bits"] = np.asarray(totals.channel_bits) / max(totals.frames, 1)
    for name in ("bytes", "estimated_bits", "relative_mse"):
        arrays[f"frame_{name}"] = np.asarray([frame[name] for frame in totals.per_frame])
    return arrays
