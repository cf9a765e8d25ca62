"""Feature maps and detections as pictures inside the page.

Feature maps are small PNG files scaled by the browser without smoothing, so that every position
stays visible; boxes are vector graphics over the camera picture, so that their labels stay sharp.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

CHANNELS = 4  # of the strongest, in the feature pictures
SHOWN_SCORE = 0.3  # weaker detections would cover the picture; the accuracy counts them
NATURAL = 800  # wider camera pictures (pixels) stand below each other, not side by side
LARGE = 200_000  # pixels from which a camera picture is stored as JPEG

# Boxes [D, 4] or outlines [D, 4, 2], labels [D] and scores [D] (None for ground truth) of a frame.
Found = tuple[np.ndarray, np.ndarray, np.ndarray | None]

# Stops of two colour scales: one that grows in lightness, and one with a neutral middle.
_SEQUENTIAL = (
    *((13, 8, 60), (62, 15, 114), (118, 27, 118), (172, 48, 104)),
    *((216, 82, 75), (243, 133, 47), (250, 193, 47), (252, 253, 191)),
)
_DIVERGING = ((24, 60, 150), (120, 160, 220), (240, 240, 240), (225, 140, 110), (150, 20, 40))


def _colours(x: np.ndarray, low: float, high: float, stops: Sequence[Any]) -> np.ndarray:
    """[H, W] float -> [H, W, 3] uint8 on a scale from `low` to `high`."""
    span = high - low if high > low else 1.0
    place = np.clip((x - low) / span, 0, 1) * (len(stops) - 1)
    table = np.asarray(stops, float)
    channels = [np.interp(place, np.arange(len(stops)), table[:, i]) for i in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def data_uri(image: np.ndarray, *, photo: bool = False) -> str:
    """[H, W, 3] uint8 as a data URI: PNG, or JPEG for large photos."""
    from PIL import Image

    jpeg = photo and image.shape[0] * image.shape[1] > LARGE
    stream = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image))
    if jpeg:
        picture.save(stream, "JPEG", quality=88)
    else:
        picture.save(stream, "PNG", optimize=True)
    kind = "jpeg" if jpeg else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _map_picture(values: np.ndarray, low: float, high: float, stops: Any, alt: str) -> str:
    height, width = values.shape
    uri = data_uri(_colours(values, low, high, stops))
    return (
        f'<img class="map" src="{uri}" width="{width}" height="{height}" '
        f'alt="{escape(alt, quote=True)}">'
    )


def strongest_channels(original: np.ndarray, count: int = CHANNELS) -> np.ndarray:
    """Indices of the channels of [H, W, C] whose values vary most over the picture."""
    return np.argsort(-original.std((0, 1)), kind="stable")[:count]


def feature_maps(original: np.ndarray, restored: np.ndarray, name: str) -> str:
    """A table of pictures: the strongest channels before, after and their difference.

    Args:
      original: [H, W, C] float, features as the detector made them.
      restored: [H, W, C] float, the same after coding and decoding.
      name: of the frame, for the alternative texts.

    Returns:
      HTML. In each row both maps have one scale, and the difference has the same number of units
      from end to end, centred at zero.
    """
    rows = []
    original, restored = (np.nan_to_num(np.asarray(x, float)) for x in (original, restored))
    for channel in strongest_channels(original):
        a, b = original[..., channel], restored[..., channel]
        low, high = float(a.min()), float(a.max())
        half = (high - low) / 2 or 1.0
        error = float(np.sqrt(np.mean((a - b) ** 2)))
        where = f"channel {channel} of frame {name}"
        cells = [
            _map_picture(a, low, high, _SEQUENTIAL, f"original features, {where}"),
            _map_picture(b, low, high, _SEQUENTIAL, f"decoded features, {where}"),
            _map_picture(
                b - a, -half, half, _DIVERGING, f"decoded minus original, {where}, rms {error:.3g}"
            ),
        ]
        label = (
            f'<th scope="row">{channel}<span class="note">{low:.2f} to {high:.2f} <br>'
            f"rms error {error:.3g}</span></th>"
        )
        rows.append(f"<tr>{label}{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    return (
        '<div class="scroll"><table class="maps"><thead><tr><th scope="col">channel</th>'
        '<th scope="col">original</th><th scope="col">decoded</th>'
        f'<th scope="col">decoded − original</th></tr></thead><tbody>{"".join(rows)}'  # noqa: RUF001
        "</tbody></table></div>"
    )


def colour_key() -> str:
    """What the colours of the feature maps mean."""
    ramp = np.linspace(0, 1, 64)[None]
    keys = []
    for stops, words in (
        (_SEQUENTIAL, ("lowest", "highest value of the original")),
        (_DIVERGING, ("decoded lower", "decoded higher")),
    ):
        picture = _map_picture(np.repeat(ramp, 4, 0), 0, 1, stops, f"{words[0]} to {words[1]}")
        keys.append(f"<span>{words[0]} {picture} {words[1]}</span>")
    return f'<p class="key">{"".join(keys)}</p>'


def _shape(box: np.ndarray) -> tuple[tuple[str, str], float, float]:
    """((SVG element, its attributes), left, top) of a box [4] or an outline [4, 2]."""
    if box.ndim == 2:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in box.tolist())
        left, top = box.min(0).tolist()
        return ("polygon", f'points="{points}"'), left, top
    x1, y1, x2, y2 = (float(v) for v in box)
    place = f'x="{x1:.1f}" y="{y1:.1f}" width="{max(x2 - x1, 0):.1f}" '
    return ("rect", f'{place}height="{max(y2 - y1, 0):.1f}"'), x1, y1


def _boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    classes: Sequence[str],
    unit: float,
) -> str:
    """Boxes with their score in per cent as SVG elements; `unit` is a size for the writing.

    The colour tells the class (see `class_key`): names would cover each other on small pictures.
    """
    parts = []
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        shape, x1, y1 = _shape(box)
        index = int(label) - 1
        name = classes[index] if 0 <= index < len(classes) else f"class {int(label)}"
        words = name if scores is None else f"{name} {float(scores[i]):.2f}"
        colour = f"c{index % 6}"
        # The label stands above its box, or inside it at the upper edge of the picture.
        text_y = y1 - 0.25 * unit if y1 > 1.2 * unit else y1 + unit
        tag, place = shape
        parts.append(f'<{tag} class="box {colour}" {place}><title>{escape(words)}</title></{tag}>')
        if scores is not None:
            parts.append(
                f'<text class="tag {colour}" x="{x1:.1f}" y="{text_y:.1f}" '
                f'font-size="{unit:.1f}">{100 * float(scores[i]):.0f}</text>'
            )
    return "".join(parts)


def class_key(classes: Sequence[str]) -> str:
    """Which colour is which class, as a line of HTML."""
    keys = [
        '<span><svg class="swatch" viewBox="0 0 12 12" role="img" '
        f'aria-label="colour of {escape(name, quote=True)}">'
        f'<rect class="box c{i % 6}" x="1" y="1" width="10" height="10"/></svg> '
        f"{escape(name)}</span>"
        for i, name in enumerate(classes)
    ]
    return f'<p class="key">{"".join(keys)}</p>' if keys else ""


def _select(arrays: Mapping[str, np.ndarray], prefix: str, i: int) -> Found | None:
    """(boxes, labels, scores or None) that are shown of frame `i`; None where there are none."""
    kind = "outlines" if f"{prefix}_outlines" in arrays else "boxes"
    names = [f"{prefix}_{name}" for name in (kind, "labels", "valid")]
    if any(name not in arrays for name in names):
        return None
    boxes, labels, valid = (np.asarray(arrays[name][i]) for name in names)
    keep = valid.astype(bool) & np.isfinite(boxes).reshape(len(boxes), -1).all(-1)
    scores = arrays.get(f"{prefix}_scores")
    if scores is None:
        return boxes[keep], labels[keep], None
    scores = np.asarray(scores[i])
    keep &= scores >= SHOWN_SCORE
    return boxes[keep], labels[keep], scores[keep]


PANELS = (("truth", "ground truth"), ("before", "detected, features as they are"))


def detection_panels(
    arrays: Mapping[str, np.ndarray], i: int, classes: Sequence[str], codec: bool
) -> str:
    """One frame, once for each of: ground truth, detections before, detections after.

    Args:
      arrays: as in `evaluation.npz`: "image" [n, H, W, 3] uint8, "truth_boxes" and so on.
      i: which frame.
      classes: names of labels 1, 2, ...
      codec: whether "after" means after decoding; otherwise it is the detector's only output.

    Returns:
      Figures; the camera picture is stored once and shown in each.
    """
    name = int(arrays["image_id"][i]) if "image_id" in arrays else i
    after = ("after", "detected, features decoded from bytes" if codec else "detected")
    entries = [(words, _select(arrays, prefix, i)) for prefix, words in (*PANELS, after)]
    shown = [(words, found) for words, found in entries if found is not None]
    return panels(np.asarray(arrays["image"][i], np.uint8), name, f"frame{i}", shown, classes)


def panels(
    image: np.ndarray,
    name: object,
    ident: str,
    entries: Sequence[tuple[str, Found]],
    classes: Sequence[str],
) -> str:
    """One picture several times, each with other boxes.

    Args:
      image: uint8 [H, W, 3]; stored once and shown in each.
      name: of the frame, for the captions.
      ident: of the picture in the page, unique.
      entries: (what the boxes are, the boxes).
      classes: names of labels 1, 2, ...

    Returns:
      Figures in a grid.
    """
    height, width = image.shape[:2]
    unit = max(width / (90 if width > NATURAL else 38), 6.0)
    figures: list[str] = []
    source = f'<image id="{ident}" href="{data_uri(image, photo=True)}" '
    source += f'width="{width}" height="{height}"/>'
    for words, found in entries:
        picture = f'<use href="#{ident}"/>' if figures else source
        alt = f"frame {name}, {words}: {len(found[0])} boxes"
        figures.append(
            f'<figure><svg class="scene" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(alt, quote=True)}">{picture}'
            f"{_boxes(*found, classes, unit)}</svg><figcaption>Frame {name}: {escape(words)}"
            f"</figcaption></figure>"
        )
    wide = " wide" if width > NATURAL else ""
    return f'<div class="frame{wide}">{"".join(figures)}</div>'


def overlay(image: np.ndarray, values: np.ndarray, top: float) -> np.ndarray:
    """A picture in grey below the colours of a map, uint8 [H, W, 3].

    Args:
      image: uint8 [H, W, 3].
      values: [h, w] from 0, stretched over the picture without smoothing.
      top: the value of the lightest colour.
    """
    height, width = image.shape[:2]
    rows, columns = (
        np.arange(n) * m // n for n, m in zip((height, width), values.shape, strict=True)
    )
    colours = _colours(values[rows][:, columns], 0.0, top, _SEQUENTIAL).astype(np.float32)
    grey = image.astype(np.float32).mean(-1, keepdims=True)
    return np.clip(0.65 * colours + 0.35 * grey, 0, 255).astype(np.uint8)


def heat_key(low: str, high: str) -> str:
    """What the colours of `overlay` mean, as a line of HTML."""
    ramp = np.repeat(np.linspace(0, 1, 64)[None], 4, 0)
    picture = _map_picture(ramp, 0, 1, _SEQUENTIAL, f"{low} to {high}")
    return f'<p class="key"><span>{escape(low)} {picture} {escape(high)}</span></p>'
