"""What the report says of a codec for the tokens of an H-JEPA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxcomp.report.plain import MISSING, number

TASK = "token_codec"
LARGE = ("k-NN", "Linear probe", "Attentive probe")
Summary = Mapping[str, Any]


def rows(s: Summary) -> list[tuple[str, str, str]]:
    """(what, accuracies, how they were counted) of each probe; none without labels."""
    out = []
    for name, words in zip(("knn", "linear", "attentive"), LARGE, strict=True):
        if s.get(name) is None:
            continue
        before, after, anew = (
            number(s.get(f"{p}{name}"), ".3f") for p in ("uncoded_", "", "refit_")
        )
        note = f"uncoded → decoded, fitted on uncoded features; {anew} fitted on decoded ones"
        out.append((words, f"{before} → {after}", note))
    return out


def title(s: Summary) -> str:
    """What a run is, in a few words."""
    weight = s.get("rate_weight")
    more = f", rate weight {number(weight, 'g')}" if weight is not None else ""
    return f"Token codec for level {s.get('level')}{more}"


def lead(s: Summary) -> str:
    """What was measured, in plain sentences."""
    shape = s.get("feature_shape") or ()
    raw, size = (number(s.get(f"{k}bytes_per_frame"), ",.1f") for k in ("raw_", ""))
    text = (
        f"The tokens of level {s.get('level')}, {' × '.join(map(str, shape)) or MISSING} values or "  # noqa: RUF001
        f"{raw} bytes as raw float32, were written to files of {size} bytes a picture on average "
        f"and read back, {number(s.get('container_bytes_per_frame'), ',.1f')} of them container, "
        f"for {number(s.get('frames'))} held-out pictures ({s.get('data', 'unnamed data')})."
    )
    if s.get("knn") is None:
        return f"{text} The pictures have no labels, so no probe says what is left."
    probes = " and ".join(
        f"{words} of {number(s.get(f'uncoded_{name}'), '.3f')} became {number(s.get(name), '.3f')}"
        for name, words in (("knn", "a k-NN accuracy"), ("linear", "a linear probe's"))
    )
    return f"{text} On the mean of the tokens, {probes}."
