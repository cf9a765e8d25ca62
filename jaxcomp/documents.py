"""The text files of a run, worded as the guides and their `grep` lines expect.

Pure functions: numbers in, text out; who calls them decides where a file goes. Lines for the
terminal and for `train.log` (batches, epochs, alerts) are in `jaxcomp.log`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from jaxcomp.log import rate_distortion_ratio

RULE = "=" * 50
MAX_DECIMALS = 12  # longer names of folders would be worse to read than an exponent

# Alerts of the diagnostics file; they are stricter than those of the log on purpose: the file is
# read afterwards, when a hint costs nothing.
GRAD_NORM_ALERT = 5.0
RATIO_HIGH_ALERT = 5.0
RATIO_LOW_ALERT = 0.2

LEVEL_CHARACTER = (
    ("highest", "fine details and edges", "small objects"),
    ("high", "local features", "medium objects"),
    ("medium", "balance of detail and meaning", "general detection"),
    ("low", "semantic features", "large objects"),
    ("lowest", "global context", "very large objects"),
)


def lambda_label(rate_weight: float) -> str:
    """The rate weight with three decimals where these are exact, otherwise with enough.

    Distinct weights have distinct labels, so that no run writes over another's analysis.

    Args:
      rate_weight: the weight of the rate in the loss, finite.

    Returns:
      "0.001", "0.020", "0.00025"; beyond twelve decimals the shortest exact form, as in "1e-15".
    """
    exact = Decimal(repr(float(rate_weight)))
    exponent = exact.as_tuple().exponent
    decimals = max(3, -exponent if isinstance(exponent, int) else 3)
    return repr(float(rate_weight)) if decimals > MAX_DECIMALS else f"{exact:.{decimals}f}"


def level_analysis_folder(level: int, rate_weight: float) -> str:
    """The folder of a level's analysis files below the run directory, with forward slashes."""
    return f"level_analysis/level_{level}/lambda_{lambda_label(rate_weight)}"


def _block(title: str, rows: Sequence[tuple[str, Any]]) -> list[str]:
    """A titled block with one indented `name: value` a line, and an empty line before it."""
    return ["", f"{title}:", *(f"  {name}: {value}" for name, value in rows)]


def _document(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def training_summary(
    *,
    level: int,
    config_name: str,
    detection_checkpoint: str,
    rate_weight: float,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    best_validation_loss: float,
    in_channels: int,
    hidden_channels: int,
    latent_channels: int,
    parameters: int,
) -> str:
    """`training_summary.txt`, of which `grep "Best Validation Loss:" | cut -d' ' -f4` reads a line.

    Args:
      level: pyramid level, 0 for P2.
      config_name: what was trained.
      detection_checkpoint: where the features come from.
      rate_weight: the weight of the rate in the loss.
      learning_rate: the initial one.
      batch_size: frames a step.
      epochs: how many were run.
      best_validation_loss: the lowest of them.
      in_channels: channels of the features, also of the decoded ones.
      hidden_channels: channels inside the transforms.
      latent_channels: channels that are coded.
      parameters: trained values in total.

    Returns:
      The text of the file.
    """
    lines = [
        f"FPN Level {level} Compression Training Summary",
        RULE,
        "Approach: Specific FPN Level Training",
        f"Config: {config_name}",
        f"Detection Checkpoint: {detection_checkpoint}",
        f"FPN Level: {level}",
        f"Lambda: {lambda_label(rate_weight)}",
        f"Learning Rate: {learning_rate:.2e}",
        f"Batch Size: {batch_size}",
        f"Total Epochs: {epochs}",
        f"Best Validation Loss: {best_validation_loss:.4f}",
    ]
    lines += _block(
        "Model Architecture",
        [
            ("Input Channels", in_channels),
            ("Output Channels", in_channels),
            ("Hidden Channels", hidden_channels),
            ("Latent Channels", latent_channels),
            ("Total Parameters", f"{parameters:,}"),
        ],
    )
    lines += [
        "",
        "Training Strategy:",
        f"- One codec for FPN level {level} (P{level + 2}) alone",
        "- The detector is frozen; only the codec is trained",
        "- Loss: MSE of the normalised features + Lambda x bits per feature position",
        "- The state of the lowest validation loss is the one that is kept",
    ]
    return _document(lines)


def _six(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(name)
    return "n/a" if value is None else f"{value:.6f}"


def training_diagnostics(
    *,
    epoch: int,
    train: Mapping[str, float],
    val: Mapping[str, float],
    grad_norm: float,
    learning_rate: float,
    rate_weight: float,
    parameters: int,
    trainable: int,
) -> str:
    """`training_diagnostics_epoch_E.txt`: losses, health and, where needed, warnings.

    Args:
      epoch: counted from 1.
      train: averages of the epoch: "loss", "mse", "bpp"; an absent one reads n/a.
      val: the same on held-out frames.
      grad_norm: mean gradient norm before clipping.
      learning_rate: at the end of the epoch.
      rate_weight: the weight of the rate in the loss.
      parameters: values in total.
      trainable: values that the optimiser may change.

    Returns:
      The text of the file; the last lines are warnings where a threshold is passed: gradient norm
      above 5, rate-distortion ratio above 5 or below 0.2.
    """
    ratio = rate_distortion_ratio(val, rate_weight)
    lines = [f"Training Diagnostics - Epoch {epoch}", RULE]
    losses = [
        (f"{split} {label}", _six(metrics, name))
        for name, label in (("loss", "Loss"), ("mse", "MSE"), ("bpp", "BPP"))
        for split, metrics in (("Training", train), ("Validation", val))
    ]
    lines += _block("Loss Metrics", losses)
    lines += _block(
        "Optimization Health",
        [
            ("Gradient Norm", f"{grad_norm:.6f}"),
            ("Learning Rate", f"{learning_rate:.2e}"),
            ("Lambda", f"{rate_weight:.2e}"),
            ("Rate-Distortion Ratio", "n/a" if ratio is None else f"{ratio:.6f}"),
        ],
    )
    lines += _block(
        "Model Parameters", [("Total", f"{parameters:,}"), ("Trainable", f"{trainable:,}")]
    )
    warnings = diagnostic_warnings(grad_norm, ratio)
    return _document([*lines, *([""] if warnings else []), *warnings])


def diagnostic_warnings(grad_norm: float, ratio: float | None) -> list[str]:
    """The WARNING lines of the diagnostics file.

    Args:
      grad_norm: mean gradient norm before clipping; NaN warns as well.
      ratio: rate weight x rate / distortion, or None where it is not known.

    Returns:
      One line for each threshold that is passed.
    """
    found = []
    if not grad_norm <= GRAD_NORM_ALERT:
        found.append(
            f"WARNING: High gradient norm ({grad_norm:.3f} > {GRAD_NORM_ALERT:g}): "
            "lower the learning rate or clip_norm."
        )
    if ratio is not None and ratio > RATIO_HIGH_ALERT:
        found.append(
            f"WARNING: Rate dominates the loss (ratio {ratio:.3f} > {RATIO_HIGH_ALERT:g}): "
            "a smaller lambda gives a lower MSE."
        )
    if ratio is not None and ratio < RATIO_LOW_ALERT:
        found.append(
            f"WARNING: Distortion dominates the loss (ratio {ratio:.3f} < {RATIO_LOW_ALERT:g}): "
            "a larger lambda gives a lower rate."
        )
    return found


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
    lines += _block("Level Characteristics", _level_rows(level, samples))
    rows = [_statistics(s["original"], s["restored"], s["bits"]) for s in samples]
    for i, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        lines += _block(f"Sample {i}", _sample_rows(np.shape(sample["original"]), row))
    if rows:
        lines += ["", f"Overall MSE: {np.mean([r['mse'] for r in rows]):.6f}"]
        lines += [f"Overall BPP: {np.mean([r['bpp'] for r in rows]):.4f}"]
        lines += [f"Overall Relative MSE: {np.mean([r['relative'] for r in rows]):.6f}"]
    else:
        lines += ["", "No frame was analysed."]
    return _document(lines)


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
        ("BPP", f"{row['bpp']:.4f}"),
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
