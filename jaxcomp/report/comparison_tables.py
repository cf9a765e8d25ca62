"""A comparison as tables: every point, and every pair of curves, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxcomp.report.tables import MISSING, number

Record = Mapping[str, Any]
Column = tuple[str, Callable[[Record], str]]
MEASURES = {"map50": "mAP@0.5", "map75": "mAP@0.75", "f1_50": "F1"}
_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "–": "--", "±": r"$\pm$"}  # noqa: RUF001


def with_interval(value: Any, interval: Any, form: str = ".3f") -> str:
    """A number with its 95 % interval in brackets."""
    words = number(value, form)
    bounds = [number(v, form) for v in interval] if isinstance(interval, Sequence) else []
    return f"{words} [{bounds[0]}, {bounds[1]}]" if len(bounds) == 2 and words != MISSING else words


def setting(point: Record) -> str:
    """What was turned to get a point, as in "QP 32"."""
    value = point.get("setting")
    return "" if value is None else f"{point.get('setting_name', '')} {value:g}".strip()


def coded_system(point: Record) -> str:
    """The system of a point; codecs of a part of the pyramid say so."""
    return point["system"] + ("" if point.get("whole", True) else " (others free)")


def _accuracy(name: str) -> Callable[[Record], str]:
    return lambda p: with_interval(p["accuracy"][name], p["intervals"][name])


def _lost(name: str) -> Callable[[Record], str]:
    def words(p: Record) -> str:
        value, low, high = p["difference"][name]
        return with_interval(value, [low, high], "+.3f")

    return words


RATE_COLUMNS: Sequence[Column] = (
    ("system", coded_system),
    ("setting", setting),
    ("bytes/frame", lambda p: number(p["bytes_per_frame"], ",.0f")),
    ("estimated", lambda p: number(p.get("estimated_bytes_per_frame"), ",.0f")),
    ("bpp", lambda p: number(p["bpp_image"], ".3f")),
    ("bits/value", lambda p: number(p.get("bits_per_value"), ".4f")),
    ("rel. MSE", lambda p: number(p.get("relative_mse"), ".4f")),
    *((words, _accuracy(name)) for name, words in MEASURES.items()),
    ("mAP@0.5 lost", _lost("map50")),
    ("COCO AP", lambda p: number(p["accuracy"].get("coco_ap"), ".3f")),
    ("encode ms", lambda p: number(p["encode_ms"], ".1f")),
    ("decode ms", lambda p: number(p["decode_ms"], ".1f")),
)


def bd_pairs(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """One row a pair of curves and measure, with both interpolations: {"pchip": …, "akima": …}."""
    pairs: dict[Any, dict[str, Any]] = {}
    for row in rows:
        key = (row["test"], row["anchor"], row["measure"])
        pair = pairs.setdefault(key, dict(zip(("test", "anchor", "measure"), key, strict=True)))
        pair[row["method"]] = row
    return list(pairs.values())


def _of(method: str, name: str, form: str, unit: str = "") -> Callable[[Record], str]:
    return lambda pair: number(pair.get(method, {}).get(name), form, unit)


def _range(pair: Record, name: str, form: str) -> str:
    values = pair.get("pchip", {}).get(name)
    if not isinstance(values, Sequence) or number(values[0], form) == MISSING:
        return MISSING
    return " to ".join(number(v, form) for v in values)


def gain_pairs(rows: Sequence[Record], learned: Sequence[str]) -> list[dict[str, Any]]:
    """What one learned system gains over another: one row a pair, with all three accuracies.

    Args:
      rows: of `bd.json`.
      learned: names of the learned systems.

    Returns:
      {"test", "anchor", "same": whether they treat the levels alike, measure: row by PCHIP}.
    """
    pairs: dict[Any, dict[str, Any]] = {}
    for row in rows:
        names = (row["test"], row["anchor"])
        if row["method"] == "pchip" and set(names) <= set(learned):
            same = len({name.partition(",")[0] for name in names}) == 1
            pair = dict(zip(("test", "anchor", "same"), (*names, same), strict=True))
            pairs.setdefault(names, pair)[row["measure"]] = row
    return sorted(pairs.values(), key=lambda pair: not pair["same"])


def _gain(measure: str, name: str, form: str) -> Callable[[Record], str]:
    def words(pair: Record) -> str:
        row = pair.get(measure, {})
        return with_interval(row.get(name), row.get(f"{name}_interval"), form)

    return words


GAIN_COLUMNS: Sequence[Column] = (
    ("system", lambda r: r["test"]),
    ("against", lambda r: r["anchor"]),
    *((f"{words} at equal bytes", _gain(m, "bd_quality", "+.4f")) for m, words in MEASURES.items()),
    *((f"% bytes at equal {words}", _gain(m, "bd_rate", "+.1f")) for m, words in MEASURES.items()),
)

BD_COLUMNS: Sequence[Column] = (
    ("system", lambda r: r["test"]),
    ("against", lambda r: r["anchor"]),
    ("at equal", lambda r: MEASURES[r["measure"]]),
    ("BD-rate, PCHIP", _of("pchip", "bd_rate", "+.1f", " %")),
    ("95 % interval", lambda r: _range(r, "bd_rate_interval", "+.0f")),
    ("leave one out", lambda r: _range(r, "bd_rate_leave_one_out", "+.0f")),
    ("overlap", lambda r: number(r.get("pchip", {}).get("bd_rate_overlap"), ".0%")),
    ("Akima", _of("akima", "bd_rate", "+.1f", " %")),
    ("BD-accuracy, PCHIP", _of("pchip", "bd_quality", "+.4f")),
    ("Akima ", _of("akima", "bd_quality", "+.4f")),
    ("overlap in rate", lambda r: number(r.get("pchip", {}).get("bd_quality_overlap"), ".0%")),
    ("why none", lambda r: str(r.get("pchip", {}).get("reason") or "")),
)


def cells(rows: Sequence[Record], columns: Sequence[Column]) -> list[list[str]]:
    """The texts of a table."""
    return [[content(row) for _, content in columns] for row in rows]


def markdown(rows: Sequence[Record], columns: Sequence[Column], words: int = 2) -> str:
    """A Markdown table; the first `words` columns align left."""
    lines = [
        "| " + " | ".join(name.strip() for name, _ in columns) + " |",
        "| " + " | ".join("---" if i < words else "---:" for i in range(len(columns))) + " |",
    ]
    lines += [
        "| " + " | ".join(c.replace("|", "/") for c in row) + " |" for row in cells(rows, columns)
    ]
    return "\n".join(lines) + "\n"


def latex(rows: Sequence[Record], columns: Sequence[Column], words: int = 2) -> str:
    """A LaTeX tabular without packages."""

    def line(texts: Sequence[str]) -> str:
        return " & ".join(map(_tex, texts)) + r" \\"

    layout = "l" * words + "r" * (len(columns) - words)
    head = line([name.strip() for name, _ in columns])
    body = [line(row) for row in cells(rows, columns)]
    rules = [rf"\begin{{tabular}}{{{layout}}}", r"\hline", head, r"\hline"]
    return "\n".join([*rules, *body, r"\hline", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def flat(record: Record, prefix: str = "") -> dict[str, Any]:
    """Every number and text of a record under a name of its own, as a CSV needs it."""
    out: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            out[name] = " ".join(map(_plain, value))
        else:
            out[name] = _plain(value)
    return out


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def comma_separated(records: Sequence[Record]) -> str:
    """All records as CSV with a line of names; what a record lacks is empty."""
    rows = [flat(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
