"""A comparison of token codecs with anchors: its table, figures and page.

token_accuracy.{json,csv,md}   every point
figures/*.svg                  k-NN and linear probe over bytes per picture
index.html                     all of it in one file
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxcomp.errors import CheckpointError
from jaxcomp.report import curves, html
from jaxcomp.report.curves import Chart, Curve, Look, Point, curve_chart
from jaxcomp.report.plain import number, significant
from jaxcomp.workdir import atomic_write, json_text

Record = Mapping[str, Any]
RESULTS, TABLE, PAGE = "token_accuracy.json", "token_accuracy.md", "index.html"
PROBES = {"knn": "k-NN", "linear": "linear probe", "attentive": "attentive probe"}
MEASURES = {
    **{name: f"{words}, fitted on uncoded features" for name, words in PROBES.items()},
    **{f"refit_{name}": f"{words}, fitted on decoded features" for name, words in PROBES.items()},
}
_COLUMNS = (
    *("system", "setting", "bytes/picture", "container", "payload", "estimated", "relative MSE"),
    *("k-NN", "linear", "attentive", "k-NN refitted", "linear refitted", "attentive refitted"),
)
_FIELDS = (
    *("system", "kind", "level", "setting_name", "setting", "bytes_per_picture"),
    *("container_bytes", "payload_bytes", "estimated_bytes", "relative_mse", *MEASURES),
    *("encode_ms", "decode_ms"),
)
_ORDER = ("learned", "local", "feature", "image")


def in_order(points: Sequence[Record]) -> list[Record]:
    """Points by kind and system, cheapest first."""
    systems = list(dict.fromkeys(point["system"] for point in points))

    def key(point: Record) -> tuple[int, int, float]:
        place = _ORDER.index(point["kind"]), systems.index(point["system"])
        return (*place, point["bytes_per_picture"])

    return sorted(points, key=key)


def cells(point: Record) -> list[str]:
    """A row of the table."""
    setting = point["setting"]
    parts = ("container_bytes", "payload_bytes", "estimated_bytes")
    return [
        point["system"],
        "" if setting is None else f"{point['setting_name']} {setting:g}",
        number(point["bytes_per_picture"], ",.1f"),
        *(number(point.get(name), ",.1f") for name in parts),
        significant(point.get("relative_mse")),
        *(number(point.get(name), ".3f") for name in MEASURES),
    ]


def uncoded_cells(results: Record) -> list[list[str]]:
    """Rows of the tokens as they are, as float32."""
    return [
        [f"uncoded tokens, level {level}", "float32", number(row["bytes"], ",.0f"), *[""] * 4,
         *(number(row.get(name), ".3f") for name in PROBES), *[""] * len(PROBES)]
        for level, row in results["uncoded"].items()
    ]  # fmt: skip


def rows(results: Record) -> list[list[str]]:
    """All rows of the table."""
    return [*uncoded_cells(results), *(cells(point) for point in in_order(results["points"]))]


def markdown(results: Record) -> str:
    """The table, ending in a newline."""
    lines = [list(_COLUMNS), ["---", "---", *["---:"] * (len(_COLUMNS) - 2)], *rows(results)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(results: Record) -> str:
    """All numbers, a line for each point."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(in_order(results["points"]))
    return out.getvalue()


def line(point: Record) -> str:
    """A point in a line, for a terminal."""
    name, setting, size, *_ = cells(point)
    scores = ", ".join(f"{words} {number(point.get(k), '.3f')}" for k, words in PROBES.items())
    return f"{' '.join(filter(None, (name, setting)))}: {size} bytes, {scores}"


def has(results: Record, measure: str) -> bool:
    """Whether every point was measured so."""
    return all(point.get(measure) is not None for point in results["points"])


def chart(results: Record, measure: str) -> Chart:
    """Accuracy over bytes of all systems; dotted: the uncoded tokens of the finest level."""
    systems: dict[str, list[Record]] = {}
    for point in in_order(results["points"]):
        systems.setdefault(point["system"], []).append(point)
    counts: dict[str, int] = {}
    drawn = []
    for name, points in systems.items():
        kind = points[0]["kind"]
        drawn.append(
            Curve(name, Look(kind, counts.get(kind, 0)), [_place(p, measure) for p in points])
        )
        counts[kind] = counts.get(kind, 0) + 1
    base = next(iter(results["uncoded"].values()))[measure.removeprefix("refit_")]
    words = MEASURES[measure]
    ends = "; ".join(
        f"{c.name} {c.points[0].y:.3f} at {c.points[0].x:,.0f} to {c.points[-1].y:.3f} at "
        f"{c.points[-1].x:,.0f} bytes"
        for c in drawn
    )
    return curve_chart(
        drawn,
        x_label="bytes per picture",
        y_label=f"accuracy: {words}",
        alt=f"accuracy of {words} over bytes per picture, {base:.3f} uncoded: {ends}",
        reference=base,
    )


def _place(point: Record, measure: str) -> Point:
    size, value = point["bytes_per_picture"], point[measure]
    setting = cells(point)[1]
    return Point(size, value, None, f"{setting} {size:,.1f} bytes, {value:.4f}")


def write(folder: Path, results: Record) -> None:
    """Writes tables, figures and page.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    results = json.loads(json_text(dict(results)))
    atomic_write(folder / RESULTS, json_text(results))
    atomic_write(folder / TABLE, markdown(results))
    atomic_write(folder / "token_accuracy.csv", comma_separated(results))
    charts = {name: chart(results, name) for name in MEASURES if has(results, name)}
    for name, one in charts.items():
        atomic_write(folder / "figures" / f"{name}.svg", one.file())
    atomic_write(folder / PAGE, page(results, charts))


def rebuild(folder: Path) -> Path:
    """Tables, figures and page again from what is in the folder; returns the page.

    Raises:
      CheckpointError: `token_accuracy.json` is missing or damaged.
    """
    try:
        write(folder, json.loads((folder / RESULTS).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(folder / RESULTS)!r} is missing or damaged ({error!r}); run the evaluation again"
        ) from error
    return folder / PAGE


def page(results: Record, charts: Mapping[str, Chart]) -> str:
    """The page as HTML."""
    shown = "".join(html.figure(one.svg(), MEASURES[name]) for name, one in charts.items())
    count = results["frames"]
    lead = (
        f"{count} held-out pictures ({results['data']}, {results['image_size'][0]} × "  # noqa: RUF001
        f"{results['image_size'][1]}), {len(results['classes'])} classes; probes learn from "
        f"{results['training_pictures']} training pictures. The standard error of an accuracy is "
        f"{0.5 / count**0.5:.3f} at most."
    )
    note = (
        "Bytes are those of whole files, mean over the held-out pictures; the dotted line is the "
        "uncoded tokens. Images: the whole encoder runs on the decoded picture. vector: the mean "
        "of the tokens alone, in ranges that the receiver knows; label: the class that the probe "
        "names at the edge. Neither can answer what needs the tokens."
    )
    sections = [
        html.section(
            "Probe accuracy over bytes",
            curves.legend(charts["knn"].legend) + f'<div class="curve-charts">{shown}</div>',
            note,
        ),
        html.section("All points", html.table(rows(results), _COLUMNS, numeric=len(_COLUMNS))),
        html.section("Provenance", _provenance(results)),
    ]
    return html.document(
        "Tokens through a codec", f"<p>{escape(lead)}</p>{''.join(sections)}", curves.CSS
    )


def _provenance(results: Record) -> str:
    facts = [[n.replace("_", " "), str(results[n])] for n in ("commit", "data", "hjepa_digest")]
    for name in ("hardware", "versions"):
        values = results.get(name) or {}
        facts.append([name, ", ".join(f"{k} {v}" for k, v in values.items())])
    again = f"<p>Again:</p><pre>{escape(results['command'])}</pre>" if results["command"] else ""
    return again + html.table(facts, numeric=0)
