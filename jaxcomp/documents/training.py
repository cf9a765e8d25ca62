"""`training_summary.txt` and `training_diagnostics_epoch_E.txt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxcomp.documents.wording import RULE, block, document, lambda_label
from jaxcomp.log import rate_distortion_ratio

# Alerts of the diagnostics file; they are stricter than those of the log on purpose: the file is
# read afterwards, when a hint costs nothing.
GRAD_NORM_ALERT = 5.0
RATIO_HIGH_ALERT = 5.0
RATIO_LOW_ALERT = 0.2

LEVEL_MSE = "fpn_mse/"  # prefix of the metrics that are errors of single levels

# Treatment: title, approach and strategy; {0} is the level of a codec for one.
TREATMENTS = {
    "level": (
        "FPN Level {0}",
        "Specific FPN Level Training",
        "One codec for FPN level {0} (P{1}) alone",
        "bits per feature position",
    ),
    "joint": (
        "FPN Joint",
        "Joint FPN Training",
        "One codec for all levels: resized to P{0}, concatenated, coded as one map",
        "bits per feature position of all levels",
    ),
    "random": (
        "FPN Random Level",
        "Random FPN Level Training",
        "One codec shared by all levels, trained on a random one at each step",
        "bits per feature position, averaged over the levels",
    ),
}


def training_summary(
    *,
    level: int | None,
    treatment: str = "level",
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
    distortion: str = "MSE of the normalised features",
    levels: Sequence[int] = (0, 1, 2, 3, 4),
) -> str:
    """`training_summary.txt`, of which `grep "Best Validation Loss:" | cut -d' ' -f4` reads a line.

    Args:
      level: pyramid level, 0 for P2; None for a codec of all levels.
      treatment: one of `TREATMENTS`.
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
      distortion: what the loss weighs against the rate, in words.
      levels: numbers of the detector's levels, as `level`.

    Returns:
      The text of the file.
    """
    names = (levels[0] + 2,) if level is None else (level, level + 2)
    first, last = levels[0], levels[-1]
    title, approach, strategy, rate = (words.format(*names) for words in TREATMENTS[treatment])
    lines = [
        f"{title} Compression Training Summary",
        RULE,
        f"Approach: {approach}",
        f"Config: {config_name}",
        f"Detection Checkpoint: {detection_checkpoint}",
        f"FPN Levels: {first}-{last} (P{first + 2}-P{last + 2})"
        if level is None
        else f"FPN Level: {level}",
        f"Lambda: {lambda_label(rate_weight)}",
        f"Learning Rate: {learning_rate:.2e}",
        f"Batch Size: {batch_size}",
        f"Total Epochs: {epochs}",
        f"Best Validation Loss: {best_validation_loss:.4f}",
    ]
    lines += block(
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
        f"- {strategy}",
        "- The detector is frozen; only the codec is trained",
        f"- Loss: {distortion} + Lambda x {rate}",
        "- The state of the lowest validation loss is the one that is kept",
    ]
    return document(lines)


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
      val: the same on held-out frames; "fpn_mse/L0", ... of several levels are listed too.
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
    lines += block("Loss Metrics", losses)
    levels = sorted(name for name in val if name.startswith(LEVEL_MSE))
    if len(levels) > 1:
        rows = [(name.removeprefix(LEVEL_MSE), _six(val, name)) for name in levels]
        lines += block("Validation MSE by Level", rows)
    lines += block(
        "Optimization Health",
        [
            ("Gradient Norm", f"{grad_norm:.6f}"),
            ("Learning Rate", f"{learning_rate:.2e}"),
            ("Lambda", f"{rate_weight:.2e}"),
            ("Rate-Distortion Ratio", "n/a" if ratio is None else f"{ratio:.6f}"),
        ],
    )
    lines += block(
        "Model Parameters", [("Total", f"{parameters:,}"), ("Trainable", f"{trainable:,}")]
    )
    warnings = diagnostic_warnings(grad_norm, ratio)
    return document([*lines, *([""] if warnings else []), *warnings])


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
