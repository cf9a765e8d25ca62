"""The page over several runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from jaxcomp.report import html, plots, tables
from jaxcomp.report.page import PAGE, Record, alt_text, points
from jaxcomp.report.reading import read_summary
from jaxcomp.workdir import atomic_write


def build_index(dirs: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Writes a page with a table over several finished runs, which links to theirs.

    Args:
      dirs: run directories.
      out: the page to write.

    Returns:
      The path of the page.

    Raises:
      CheckpointError: a run is not finished, or the page cannot be written.
    """
    out = Path(out)
    runs = [(Path(d), read_summary(Path(d))) for d in dirs]
    atomic_write(out, index_page([(_link(run, out), s) for run, s in runs]))
    return out


def _link(run: Path, out: Path) -> str:
    """The way from a page to the page of a run."""
    return quote(Path(os.path.relpath(run / PAGE, out.parent)).as_posix())


def index_page(runs: Sequence[tuple[str, Record]]) -> str:
    """A page over runs given as (link, summary)."""
    ordered = sorted(runs, key=lambda pair: tables.order(pair[1]))
    columns = tables.columns_for([summary for _, summary in ordered])
    heading = "".join(f'<th class="n" scope="col">{escape(h)}</th>' for h, _ in columns)
    body = []
    for link, summary in ordered:
        cells = [f'<td class="n">{escape(content(summary))}</td>' for _, content in columns[1:]]
        name = f'<a href="{escape(link, quote=True)}">{escape(columns[0][1](summary))}</a>'
        body.append(f'<tr><th class="n" scope="row">{name}</th>{"".join(cells)}</tr>')
    table = (
        f'<div class="scroll"><table><thead><tr>{heading}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    data = sorted({str(s.get("data", "unnamed data")) for _, s in ordered})
    note = (
        f"Held-out frames of {', '.join(data)}. Bytes are the mean size of the files; raw is the "
        "level as float32. mAP is the 11-point mean at IoU 0.5, before and after this one level "
        "was replaced by what was read back. Times are medians a frame."
    )
    charts = html.section("Rate and accuracy", _comparison([summary for _, summary in ordered]))
    return html.document("Runs compared", f"<p>{escape(note)}</p>{table}{charts}")


def _comparison(summaries: Sequence[Record]) -> str:
    """Rate, error and accuracy by level, where the runs differ in nothing but the level."""
    summaries = [s for s in summaries if not tables.is_detector(s)]
    pairs = [(s.get("level"), s) for s in summaries]
    if len({x for x, _ in pairs}) < 2 or len({s.get("rate_weight") for s in summaries}) > 1:
        return ""
    figures = []
    for name, label in (
        ("bits_per_value", "bits per value"),
        ("relative_mse", "relative MSE"),
        ("map50_kept", "share of mAP kept"),
    ):
        series = [(label, *points(pairs, name))]
        chart = plots.line_chart(
            series, x_label="level", y_label=label, alt=alt_text(label, series, "level")
        )
        figures.append(html.figure(chart, label[:1].upper() + label[1:]))
    return html.charts(figures)
