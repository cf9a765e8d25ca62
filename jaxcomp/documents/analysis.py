"""Analysis files: what a codec makes of a few held-out frames, level by level.

level_analysis/level_L/lambda_X/   of a codec for one level: every frame
fpn_analysis/lambda_X/             of a codec for all: every level, averaged over the frames
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.documents.wording import RULE, block, document, lambda_exponent, lambda_label

LEVEL_CHARACTER = (
    ("highest", "fine details and edges", "small objects"),
    ("high", "local features", "medium objects"),
    ("medium", "balance of detail and meaning", "general detection"),
    ("low", "semantic features", "large objects"),
    ("lowest", "global context", "very large objects"),
)


def level_analysis_folder(level: int, rate_weight: float) -> str:
    """The folder of a level's analysis files below the run directory, with forward slashes."""
    return f"level_analysis/level_{level}/lambda_{lambda_label(rate_weight)}"


def pyramid_analysis_path(rate_weight: float, epoch: int) -> str:
    """The analysis file of a pyramid codec below the run directory, with forward slashes."""
    name = f"lambda_{lambda_exponent(rate_weight)}_epoch_{epoch}_analysis.txt"
    return f"fpn_analysis/lambda_{lambda_label(rate_weight)}/{name}"


def _statistics(original: np.ndarray, restored: np.ndarray, bits: float) -> dict[str, float]:
    """Numbers of one sample; both arrays [H, W, C]."""
    x, y = np.asarray(original, np.float64), np.asarray(restored, np.float64)
    mse, energy = float(np.square(x - y).mean()), float(np.square(x).mean())
    norm, peak = float(np.linalg.norm(x)), float(np.abs(x).max())
    return {
        "mse": mse,
        "bpp": float(bits) / (x.shape[0] * x.shape[1]),
        "orig_norm": norm,
        "recon_norm": float(np.linalg.norm(y)),
        "ratio": float(np.linalg.norm(y)) / norm if norm else math.nan,
        "mean": float(x.mean()),
        "std": float(x.std()),
        "max": peak,
        "recon_mean": float(y.mean()),
        "recon_std": float(y.std()),
        "recon_max": float(np.abs(y).max()),
        "relative": mse / energy if energy else math.nan,
        "psnr": 10 * math.log10(peak**2 / mse) if mse and peak else math.inf,
    }


def level_analysis(
    *, level: int, rate_weight: float, epoch: int, samples: Sequence[Mapping[str, Any]]
) -> str:
    """`level_L_lambda_X_epoch_E_analysis.txt`: rate, error and statistics of some frames.

    Args:
      level: pyramid level, 0 for P2.
      rate_weight: the weight of the rate in the loss.
      epoch: counted from 1.
      samples: one mapping a frame: "original" and "restored" [H, W, C] float, "bits" its
        estimated code length.

    Returns:
      The text of the file. BPP is bits per feature position (H x W), PSNR has the largest
      magnitude of the original as its peak, and the relative MSE its mean square as unit.
    """
    lines = [
        f"FPN Level {level} Analysis",
        RULE,
        f"Epoch: {epoch}",
        f"Lambda: {lambda_label(rate_weight)}",
        f"Batch Size: {len(samples)}",
        f"FPN Level: {level}",
    ]
    lines += block("Level Characteristics", _level_rows(level, samples))
    rows = [_statistics(s["original"], s["restored"], s["bits"]) for s in samples]
    for i, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        lines += block(f"Sample {i}", _sample_rows(np.shape(sample["original"]), row))
    if rows:
        lines += ["", f"Overall MSE: {np.mean([r['mse'] for r in rows]):.6f}"]
        lines += [f"Overall BPP: {np.mean([r['bpp'] for r in rows]):.4f}"]
        lines += [f"Overall Relative MSE: {np.mean([r['relative'] for r in rows]):.6f}"]
    else:
        lines += ["", "No frame was analysed."]
    return document(lines)


def _level_rows(level: int, samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """What the level is, whatever the codec does to it."""
    stride = 4 * 2**level
    rows: list[tuple[str, Any]] = [
        ("Pyramid Key", f"P{level + 2}"),
        ("Stride", f"{stride} (1/{stride} of the input)"),
    ]
    if level < len(LEVEL_CHARACTER):
        resolution, content, use = LEVEL_CHARACTER[level]
        rows += [("Resolution", resolution), ("Content", content), ("Typical Use", use)]
    if samples:
        size = int(np.size(samples[0]["original"]))
        rows.append(("Values per Frame", f"{size:,} ({4 * size:,} bytes as float32)"))
    return rows


def _sample_rows(shape: Sequence[int], row: Mapping[str, float]) -> list[tuple[str, Any]]:
    """The lines of one sample."""
    return [
        ("Shape", f"[{', '.join(map(str, shape))}] (height, width, channels)"),
        ("MSE", f"{row['mse']:.6f}"),
        ("BPP", "n/a, one stream for all" if math.isnan(row["bpp"]) else f"{row['bpp']:.4f}"),
        ("Orig Norm", f"{row['orig_norm']:.3f}"),
        ("Recon Norm", f"{row['recon_norm']:.3f}"),
        ("Norm Ratio", f"{row['ratio']:.4f}"),
        ("Orig Mean / Std / Max", f"{row['mean']:.4f} / {row['std']:.4f} / {row['max']:.4f}"),
        (
            "Recon Mean / Std / Max",
            f"{row['recon_mean']:.4f} / {row['recon_std']:.4f} / {row['recon_max']:.4f}",
        ),
        ("Relative MSE", f"{row['relative']:.6f}"),
        ("PSNR", f"{row['psnr']:.2f} dB"),
    ]


def pyramid_analysis(
    *,
    treatment: str,
    rate_weight: float,
    epoch: int,
    levels: Sequence[Sequence[Mapping[str, Any]]],
    bits: Sequence[float],
    first: int = 0,
) -> str:
    """`lambda_X_epoch_E_analysis.txt`: rate, error and statistics of every level.

    Args:
      treatment: of the levels, "joint" or "random".
      rate_weight: the weight of the rate in the loss.
      epoch: counted from 1.
      levels: of each level its samples as for `level_analysis`, finest level first; "bits" is None
        where all levels share a stream.
      bits: estimated code length of each frame, all levels together.
      first: number of the finest level, 0 for P2.

    Returns:
      The text of the file: means over the frames, units as in `level_analysis`. The overall BPP
      counts the positions of all levels, the overall errors all their values alike.
    """
    lines = ["FPN Compression Analysis", RULE, f"Treatment: {treatment}", f"Epoch: {epoch}"]
    lines += [f"Lambda: {lambda_label(rate_weight)}", f"Batch Size: {len(bits)}"]
    if not bits:
        return document([*lines, "", "No frame was analysed."])
    rows = [_mean_statistics(samples) for samples in levels]
    for i, (samples, row) in enumerate(zip(levels, rows, strict=True), first):
        shape = np.shape(samples[0]["original"])
        content = [*_level_rows(i, samples), *_sample_rows(shape, row)]
        lines += block(f"Level {i}", content)
    sizes = np.asarray([np.size(samples[0]["original"]) for samples in levels], np.float64)
    energy = sum(row["energy"] for row in rows) / sizes.sum()
    mse = float(np.average([row["mse"] for row in rows], weights=sizes))
    positions = sum(int(np.prod(np.shape(samples[0]["original"])[:2])) for samples in levels)
    overall = [
        ("MSE", f"{mse:.6f}"),
        ("BPP", f"{np.mean(bits) / positions:.4f}"),
        ("Relative MSE", f"{mse / energy if energy else math.nan:.6f}"),
        ("Bytes per Frame, Estimated", f"{np.mean(bits) / 8:,.0f}"),
    ]
    return document([*lines, "", *(f"Overall {name}: {value}" for name, value in overall)])


def _mean_statistics(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of the numbers of a level's samples; no BPP where its bits are not known."""
    known = [math.nan if s["bits"] is None else s["bits"] for s in samples]
    rows = [
        _statistics(s["original"], s["restored"], b) for s, b in zip(samples, known, strict=True)
    ]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    means["max"], means["recon_max"] = (max(r[n] for r in rows) for n in ("max", "recon_max"))
    return means | {"energy": float(np.mean([row["orig_norm"] ** 2 for row in rows]))}
