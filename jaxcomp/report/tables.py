"""Numbers of `summary.json` as words: one run as a list, several runs as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxcomp.report import probes, tokens
from jaxcomp.report.plain import MISSING, number, percent, significant

Summary = Mapping[str, Any]


def plain_text(text: str) -> str:
    """The text for terminals that may know ASCII only."""
    for sign, plain in (("×", "x"), ("→", "->"), ("–", "-"), ("²", "^2")):  # noqa: RUF001
        text = text.replace(sign, plain)
    return text


DETECTORS = {"detect": "Detector", "face": "Face detector", "pointpillars": "Lidar detector"}
CODES = "residual_vq"  # the task
_ENDS = ("_uncompressed", "")
LIDAR_AP = "map_3d_moderate_r40"
KITTI_MEASURES = {"2d": "KITTI AP", "bev": "KITTI BEV AP", "3d": "KITTI 3-D AP", "aos": "KITTI AOS"}


def is_detector(summary: Summary) -> bool:
    """Whether the run trained a detector, not a codec."""
    return summary.get("task") in DETECTORS


def is_finished(summary: Summary) -> bool:
    """Whether the run has been measured."""
    keys = ("map50", "bytes_per_frame", "kitti", "ap_hard", "collapse")
    return any(name in summary for name in keys)


def _setting(summary: Summary, name: str) -> Any:
    """`level` or `rate_weight` of a codec: every config has them, a detector uses neither."""
    no_codec = is_detector(summary) or summary.get("task") == probes.TASK
    return None if no_codec else summary.get(name)


def _levels(summary: Summary) -> Mapping[str, Mapping[str, Any]]:
    """Measurements of each level of a codec of several, else nothing."""
    levels = summary.get("levels")
    return levels if isinstance(levels, Mapping) else {}


def level_name(summary: Summary) -> str:
    """Level and pyramid key, as in 2 (P4); a dash for a run without a level."""
    names = [name.upper() for name in _levels(summary)]
    if names:
        return f"{names[0]}-{names[-1]} ({summary.get('treatment', 'all')})"
    level = _setting(summary, "level")
    if summary.get("task") == tokens.TASK:
        return f"{level} (tokens)"
    return f"{level} (P{level + 2})" if isinstance(level, int) else MISSING


def shape_text(summary: Summary) -> str:
    """The shape of the coded features, height x width x channels."""
    shapes = [level.get("shape") or () for level in _levels(summary).values()]
    if shapes:
        text = " + ".join("×".join(map(str, shape)) for shape in shapes)  # noqa: RUF001
        return _up_to(summary, shapes) + text
    shape = summary.get("feature_shape")
    if not isinstance(shape, Sequence) or not shape:
        return MISSING
    return _up_to(summary, [shape]) + " × ".join(map(str, shape))  # noqa: RUF001


def _up_to(summary: Summary, shapes: Sequence[Sequence[int]]) -> str:
    """Words before shapes that are the largest of all: photos are coded at sizes of their own."""
    raw = summary.get("raw_bytes_per_frame")
    smaller = isinstance(raw, float) and raw < 4 * sum(map(math.prod, shapes)) - 1
    return "up to " if smaller else ""


def class_names(summary: Summary) -> list[str]:
    """The detector's classes in the order of their labels, as the accuracy names them."""
    accuracy = summary.get("accuracy")
    if not isinstance(accuracy, Mapping):
        return [str(name) for name in summary.get("classes") or ()]
    names = accuracy
    return [name.removeprefix("ap50_") for name in names if name.startswith("ap50_")]


def _accuracy(summary: Summary, which: str, name: str) -> Any:
    accuracy = summary.get(which)
    return accuracy.get(name) if isinstance(accuracy, Mapping) else None


def _coco(summary: Summary, which: str) -> Any:
    return _accuracy(summary, which, "coco_ap")


# The rows that a page shows large.
LARGE: tuple[str, ...] = (
    *("Bytes per frame", "Ratio to raw", "Bits per value", "Relative MSE", "mAP@0.5", "COCO AP"),
    *("KITTI 3-D AP", "KITTI BEV AP"),
    *tokens.LARGE,
)


def _is_codec(summary: Summary) -> bool:
    return "bytes_per_frame" in summary


# Heading and content of the columns of a table of runs.
COLUMNS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("level", level_name),
    ("feature shape", shape_text),
    ("raw bytes", lambda s: number(s.get("raw_bytes_per_frame"))),
    ("bytes/frame", lambda s: number(s.get("bytes_per_frame"))),
    ("ratio", lambda s: number(s.get("compression_ratio"), ",.1f", "×")),  # noqa: RUF001
    ("bits/value", lambda s: number(s.get("bits_per_value"), ".4f")),
    ("relative MSE", lambda s: significant(s.get("relative_mse"))),
    ("mAP without", lambda s: number(s.get("map50_without_level"), ".3f")),
    ("mAP before", lambda s: number(s.get("map50_uncompressed"), ".3f")),
    ("mAP after", lambda s: number(s.get("map50"), ".3f")),
    ("kept %", lambda s: percent(s.get("map50_kept")).removesuffix(" %")),
    (
        "encode/decode ms",
        lambda s: f"{number(s.get('encode_ms'), ',.1f')} / {number(s.get('decode_ms'), ',.1f')}",
    ),
)
FEW_OBJECTS = 41  # KITTI samples a curve at 41 recalls
_RATE_WEIGHT = ("rate weight", lambda s: number(_setting(s, "rate_weight"), "g"))


def order(summary: Summary) -> tuple[float, float]:
    """Sorts runs by level, then by rate weight."""

    def key(name: str) -> float:
        value = _setting(summary, name)
        return value if isinstance(value, int | float) else -1.0

    return key("level"), key("rate_weight")


def sorted_runs(summaries: Iterable[Summary]) -> list[Summary]:
    """Runs by level, then by rate weight."""
    return sorted(summaries, key=order)


def columns_for(
    summaries: Sequence[Summary],
) -> tuple[tuple[str, Callable[[Summary], str]], ...]:
    """The columns of a table: the rate weight is one where the runs differ in it."""
    weights = {_setting(s, "rate_weight") for s in summaries}
    differ = len(weights - {None}) > 1
    return (COLUMNS[0], _RATE_WEIGHT, *COLUMNS[1:]) if differ else COLUMNS


def markdown_table(summaries: Iterable[Summary]) -> str:
    """A Markdown table, one run a row, by level.

    Args:
      summaries: contents of `summary.json` files; absent values show as a dash.

    Returns:
      The table, ending in a newline. mAP is the 11-point mean average precision at IoU 0.5 with
      the features as they are (before) and with this level decoded from its bytes (after).
    """
    runs = sorted_runs(summaries)
    columns = columns_for(runs)
    rows = [[heading for heading, _ in columns], ["---:"] * len(columns)]
    rows += [[_cell(content(run)) for _, content in columns] for run in runs]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def plain_table(summaries: Iterable[Summary]) -> str:
    """The same table for a terminal: aligned columns, no marks."""
    runs = sorted_runs(summaries)
    columns = columns_for(runs)
    rows = [[heading for heading, _ in columns]]
    rows += [[content(run) for _, content in columns] for run in runs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows)
    return plain_text("".join(f"{line.rstrip()}\n" for line in lines))


def headline_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """The main numbers of a run: (what, value, how it is counted)."""
    if summary.get("task") == CODES:
        return _code_rows(summary)
    if summary.get("task") == probes.TASK:
        return probes.rows(summary)
    if summary.get("task") == tokens.TASK:
        return [*tokens.rows(summary), *_file_rows(summary)]
    return _codec_rows(summary) if _is_codec(summary) else _detector_rows(summary)


def _code_rows(s: Summary) -> list[tuple[str, str, str]]:
    """Residual codes of a lidar detector: the largest point, and the range of all."""
    sizes = [r["bytes"] for r in s.get("grid") or () if r.get("system") == "residual codes"]
    ends = [number(f(sizes) if sizes else None, ",.0f") for f in (min, max)]
    note = "per cent, mean over classes, moderate, 40 recalls; features as they are → all codes"
    return [
        ("Bytes per frame", number(s.get("bytes_per_frame"), ",.0f"), "a sweep with all codes"),
        ("Ratio to raw", number(s.get("compression_ratio"), ",.0f", "×"), shape_text(s)),  # noqa: RUF001
        *(
            (
                KITTI_MEASURES[measure],
                _arrow(*(number(s.get(f"map_{measure}_moderate_r40{w}"), ".2f") for w in _ENDS)),
                note,
            )
            for measure in ("3d", "bev")
        ),
        ("Points", number(len(sizes)), f"from {ends[0]} to {ends[1]} bytes; see grid.html"),
        (
            "Encode / decode",
            f"{number(s.get('encode_ms'), ',.1f')} / {number(s.get('decode_ms'), ',.1f')} ms",
            "median a sweep with all codes, map and indices to bytes and back",
        ),
    ]


def _arrow(before: str, after: str) -> str:
    return f"{before} → {after}"


def _owner(s: Summary) -> str:
    return "each level's" if _levels(s) else "the level's"


def _codec_rows(s: Summary) -> list[tuple[str, str, str]]:
    coco = [number(_coco(s, w), ".3f") for w in ("accuracy_uncompressed", "accuracy")]
    files = _file_rows(s)
    accuracy = [
        (
            "mAP@0.5",
            _arrow(number(s.get("map50_uncompressed"), ".4f"), number(s.get("map50"), ".4f")),
            f"before → after; {percent(s.get('map50_kept'))} kept; "
            f"{number(s.get('map50_without_level'), '.4f')} with its mean alone",
        ),
        ("COCO AP", _arrow(*coco), "before → after, IoU 0.50 to 0.95"),
    ]
    return [*files[:_SIZES], *accuracy, *files[_SIZES:]]


_SIZES = 5  # rows of `_file_rows` before the accuracy


def _file_rows(s: Summary) -> list[tuple[str, str, str]]:
    """Bytes, bits, errors and times of a codec, whatever its features are for."""
    estimated, actual, frames = s.get("estimated_bits"), s.get("actual_bits"), s.get("frames")
    per_frame = [
        number(bits / 8 / frames if isinstance(bits, int | float) and frames else None, ",.1f")
        for bits in (estimated, actual)
    ]
    times = [number(s.get(name), ",.1f") for name in ("encode_ms", "decode_ms")]
    return [
        (
            "Bytes per frame",
            number(s.get("bytes_per_frame"), ",.1f"),
            "mean size of the .jxc files",
        ),
        ("Raw float32", number(s.get("raw_bytes_per_frame"), ",.0f", " bytes"), shape_text(s)),
        ("Ratio to raw", number(s.get("compression_ratio"), ",.1f", "×"), "raw / file"),  # noqa: RUF001
        ("Bits per value", number(s.get("bits_per_value"), ".4f"), "file bits / feature values"),
        (
            "Relative MSE",
            significant(s.get("relative_mse")),
            f"squared error / {_owner(s)} scale²; PSNR {number(s.get('psnr'), '.1f', ' dB')}",
        ),
        (
            "Payload",
            f"{per_frame[1]} bytes",
            f"a frame; the model estimates {per_frame[0]}, "
            f"overhead {percent(s.get('overhead'), 2)}",
        ),
        (
            "Container",
            number(s.get("container_bytes_per_frame"), ",.1f", " bytes"),
            "a frame: header, sizes and checksums, part of the file",
        ),
        (
            "Encode / decode",
            f"{' / '.join(times)} ms",
            "median a frame, features to bytes and back",
        ),
    ]


def level_rows(s: Summary) -> list[tuple[str, str, str]]:
    """Bytes and error of each level of a codec of several: (level, bytes, share and error)."""
    return [
        (
            name.upper(),
            number(level.get("payload_bytes_per_frame"), ",.1f", " bytes"),
            f"{percent(level.get('share_of_bits'))} of the payload; relative MSE "
            f"{significant(level.get('relative_mse'))}",
        )
        for name, level in _levels(s).items()
    ]


def _lidar_rows(s: Summary) -> list[tuple[str, str, str]]:
    note = "per cent, mean over classes, moderate, 40 recalls"
    rows = [
        (KITTI_MEASURES[measure], number(s.get(f"map_{measure}_moderate_r40"), ".2f"), note)
        for measure in ("3d", "bev")
    ]
    lost = s.get("voxelised", {}).get("train", {})
    return [
        *rows,
        ("Weights", number(s.get("weights_bytes"), ",.0f", " bytes"), "the exported file"),
        (
            "Overflow",
            number(lost.get("dropped_pillars"), ",.0f", " pillars"),
            f"without room in training, in {number(lost.get('overflowing_sweeps'))} of "
            f"{number(lost.get('sweeps'))} sweeps",
        ),
    ]


def _face_rows(s: Summary) -> list[tuple[str, str, str]]:
    faces, heights = s.get("faces", {}), s.get("heights", (0, 0, 0))
    rows = [
        (
            f"AP {name}",
            number(s.get(f"ap_{name}"), ".4f"),
            f"WIDERFace's rules, protocol {s.get('protocol')}; {number(faces.get(name))} faces of "
            f"{height:g} pixels and more",
        )
        for name, height in zip(("easy", "medium", "hard"), heights, strict=True)
    ]
    note = f"distilled from {s['teacher']}" if s.get("teacher") else "trained without a teacher"
    size = number(s.get("weights_bytes"), ",.0f", " bytes")
    return [*rows, ("Weights", size, f"the exported file of {s.get('variant')}, {note}")]


def _detector_rows(s: Summary) -> list[tuple[str, str, str]]:
    if s.get("task") == "pointpillars":
        return _lidar_rows(s)
    if s.get("task") == "face":
        return _face_rows(s)
    accuracy = s.get("accuracy")
    f1 = next((v for k, v in (accuracy or {}).items() if k.startswith("f1")), None)
    return [
        ("mAP@0.5", number(s.get("map50"), ".4f"), "11-point mean over classes"),
        ("COCO AP", number(_coco(s, "accuracy"), ".4f"), "IoU 0.50 to 0.95"),
        ("Best F1", number(f1, ".4f"), "classes pooled, at the best score"),
        ("Weights", number(s.get("weights_bytes"), ",.0f", " bytes"), "the exported file"),
    ]


def kitti_rows(s: Summary) -> list[tuple[str, str, str]]:
    """KITTI's own average precision by variant, class and measure: easy, moderate, hard."""
    return [
        row
        for variant, result in (s.get("kitti") or {}).items()
        for name, metrics in result["scores"].items()
        for measure in KITTI_MEASURES
        if measure in metrics
        for row in _kitti_row(variant, result, name, measure)
    ]


def _kitti_row(
    variant: str, result: Summary, name: str, measure: str
) -> list[tuple[str, str, str]]:
    """One row, or none where there is no object of the class."""
    levels = ("easy", "moderate", "hard")
    values = (result["scores"][name][measure] or {}).get("r40") or {}
    if all(values.get(d) is None for d in levels):
        return []
    text = " / ".join(number(values.get(d), ".2f") for d in levels)
    note = f"per cent, 40 recalls; easy / moderate / hard, {variant}"
    counts = result["objects"].get(name)
    if counts:
        note += f"; {' / '.join(str(counts[d]) for d in levels)} objects"
        if min(counts[d] for d in levels) < FEW_OBJECTS:
            note += ", too few to reach 100"
    return [(f"{KITTI_MEASURES[measure]} {name}", text, note)]


def run_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """What training and the model cost: (what, value, note)."""
    rows = [
        ("Frames", number(summary.get("frames")), f"held out, {summary.get('data', MISSING)}"),
        ("Parameters", number(summary.get("params")), "trained"),
        ("Training step", number(summary.get("train_step_ms"), ",.1f", " ms"), "median"),
        ("Whole run", number(summary.get("seconds"), ",.0f", " s"), "with data and evaluation"),
    ]
    return [row for row in rows if row[1] != MISSING]


def text_table(summary: Summary) -> str:
    """The short table that a run prints at its end.

    Args:
      summary: content of `summary.json`; absent values show as a dash.

    Returns:
      A title and aligned lines, ending in a newline.
    """
    title = page_title(summary)
    rows = [*headline_rows(summary), *level_rows(summary), *kitti_rows(summary), *run_rows(summary)]
    names, values = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = [title, "-" * len(title)]
    lines += [f"{n.ljust(names)}  {v.rjust(values)}  {note}".rstrip() for n, v, note in rows]
    return plain_text("\n".join(lines) + "\n")


def page_title(summary: Summary) -> str:
    """What a run is, in a few words."""
    if summary.get("task") == CODES:
        return f"Residual codes of a lidar detector, {summary.get('profile', 'own')} profile"
    if summary.get("task") == tokens.TASK:
        return tokens.title(summary)
    if summary.get("task") == "feature_codec" or _is_codec(summary):
        weight = summary.get("rate_weight")
        more = f", rate weight {number(weight, 'g')}" if weight is not None else ""
        what = "levels" if _levels(summary) else "level"
        return f"Feature codec for {what} {level_name(summary)}{more}"
    if summary.get("task") == probes.TASK:
        return f"Features without labels, {summary.get('profile', 'own')} profile"
    name = DETECTORS.get(str(summary.get("task")), str(summary.get("task", "Run")))
    return f"{name}, {summary['profile']} profile" if summary.get("profile") else name


def lead(summary: Summary) -> str:
    """What was measured, on what data, in plain sentences."""
    data, frames = summary.get("data", "unnamed data"), number(summary.get("frames"))
    chosen = summary.get("best_validation_loss") is not None
    chosen = chosen and summary.get("task") not in (CODES, probes.TASK)
    if summary.get("task") == CODES:
        text = (
            f"Codebooks for the features of a lidar detector were trained stage by stage; every "
            f"one of {frames} held-out sweeps ({data}) was written to a file at every point, read "
            "back and searched for objects. The numbers here are those of all codes."
        )
    elif summary.get("task") == tokens.TASK:
        text = tokens.lead(summary)
    elif _is_codec(summary):
        several = bool(_levels(summary))
        what = "levels" if several else "level"
        replaced = (
            "all levels replaced by what was read back."
            if several
            else "this one level replaced by what was read back; the other levels stayed as they "
            "were."
        )
        raw, size = (number(summary.get(f"{k}bytes_per_frame"), ",.0f") for k in ("raw_", ""))
        text = (
            f"The detector's features of {what} {level_name(summary)}, {shape_text(summary)} "
            f"values or {raw} bytes as raw float32, were written to files of {size} bytes a frame "
            f"on average, {number(summary.get('compression_ratio'), ',.1f')} times smaller, and "
            f"read back. On {frames} held-out frames ({data}), the detector's mAP@0.5 was "
            f"{number(summary.get('map50_uncompressed'), '.4f')} with the features as they are and "
            f"{number(summary.get('map50'), '.4f')} ({percent(summary.get('map50_kept'))} kept) "
            f"with {replaced}"
        )
    elif summary.get("task") == probes.TASK:
        text = probes.lead(summary)
    elif LIDAR_AP in summary or summary.get("task") == "pointpillars":
        text = (
            f"The lidar detector was measured on {frames} held-out sweeps ({data}): mean 3-D "
            f"average precision {number(summary.get(LIDAR_AP), '.2f')} per cent (moderate, 40 "
            "recalls, KITTI's overlaps)."
        )
    elif summary.get("task") == "face":
        text = (
            f"The face detector {summary.get('variant', '')} was measured on {frames} held-out "
            f"images ({data}): average precision {number(summary.get('ap_easy'), '.4f')} of easy, "
            f"{number(summary.get('ap_medium'), '.4f')} of medium and "
            f"{number(summary.get('ap_hard'), '.4f')} of hard faces."
        )
    else:
        text = (
            f"The detector was measured on {frames} held-out frames ({data}): "
            f"mAP@0.5 {number(summary.get('map50'), '.4f')}."
        )
    if chosen:
        text += " The state measured was chosen by its loss on the same held-out frames."
    if "synthetic" in str(data):
        text += (
            " Synthetic scenes are generated: the numbers compare codecs and settings, "
            "they do not say how well any of this works on real roads."
        )
    return text
