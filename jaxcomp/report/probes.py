"""What the report says of features that were learned without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcomp.report import html, pictures
from jaxcomp.report.plain import number

TASK = "jepa"
# Names in `evaluation.npz`, what they show, and in words.
PICTURES = {
    "masks": "Held-out pictures above their masks: red is predicted, dark is neither seen nor "
    "predicted",
    "attention": "Where the class token of the last block looks: picture, mean over heads, each "
    "head",
    "neighbours": "Held-out pictures and the training pictures with the nearest features of level "
    "0; green frames have the same label",
}


def names(summary: Mapping[str, Any]) -> list[str]:
    """Feature sets that were probed: the encoder's and each level's, as means over tokens."""
    found = summary.get("probes", {}).get("trained", {})
    return [name for name in found if name.endswith("_mean")]


def title(name: str) -> str:
    """Words for "level0_mean"."""
    stem = name.removesuffix("_mean")
    return f"level {stem.removeprefix('level')}" if stem.startswith("level") else stem


def rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, accuracy, compared with what) of each probe."""
    pixels, out = summary.get("probes", {}).get("pixels", {}), []
    for name in names(summary):
        for probe, words in (
            ("knn", "k-NN"),
            ("linear", "linear probe"),
            ("attentive", "attentive"),
        ):
            value = summary.get(f"{name}_{probe}")
            if value is None:
                continue
            note = f"untrained {number(summary.get(f'initial_{name}_{probe}'), '.3f')}"
            if probe in pixels:
                note += f", raw pixels {number(pixels[probe], '.3f')}"
            out.append((f"{title(name)}, {words}", number(value, ".3f"), note))
        out += _few_labels(summary, name)
    collapse = summary.get("collapse", {})
    for key, words in (("target_std", "deviation"), ("target_rankme", "RankMe")):
        if key in collapse:
            note = "of the target encoder on held-out pictures, last epoch"
            out.append((f"Targets, {words}", number(collapse[key], ".3g"), note))
    weights = number(summary.get("weights_bytes"), ",.0f", " bytes")
    return [*out, ("Weights", weights, "the exported file")]


def _few_labels(summary: Mapping[str, Any], name: str) -> list[tuple[str, str, str]]:
    """Linear probes that saw a share of the labels."""
    found, probes = [], summary.get("probes", {})
    kinds = (
        ("untrained", probes.get("initial", {}).get(name)),
        ("raw pixels", probes.get("pixels")),
    )
    for share, value in (probes["trained"][name].get("low_shot") or {}).items():
        others = [(words, (one or {}).get("low_shot", {}).get(share)) for words, one in kinds]
        told = ", ".join(
            f"{words} {number(one, '.3f')}" for words, one in others if one is not None
        )
        what = f"{title(name)}, {100 * float(share):g} % of the labels"
        found.append((what, number(value, ".3f"), f"linear probe; {told}".rstrip("; ")))
    return found


def lead(summary: Mapping[str, Any]) -> str:
    """What was measured, in plain sentences."""
    best = max(names(summary), key=lambda n: summary.get(f"{n}_linear", 0), default=None)
    if best is None:
        return "The pictures have no labels, so no probe says what the features know."
    values = [summary.get(f"{prefix}{best}_linear") for prefix in ("", "initial_")]
    values.append(summary.get("pixels_linear"))
    ours, untrained, pixels = (number(v, ".3f") for v in values)
    return (
        f"A linear probe on features learned without labels is right for {ours} of the held-out "
        f"pictures (tokens of the {title(best)}), on those of the same network untrained for "
        f"{untrained}, on raw pixels for {pixels}."
    )


def panels(arrays: Mapping[str, np.ndarray]) -> str:
    """The pictures of a run."""
    figures = [
        f'<figure><img src="{pictures.data_uri(np.asarray(arrays[name], np.uint8), photo=True)}" '
        f'alt="{words}" style="max-width:100%"><figcaption>{words}</figcaption></figure>'
        for name, words in PICTURES.items()
        if name in arrays
    ]
    return html.charts(figures) if figures else ""
