"""The parts of a page. Texts are escaped here; arguments that are HTML already say so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from jaxcomp.report.style import CSS


def document(title: str, body: str, css: str = "") -> str:
    """A whole page that loads nothing and runs nothing, whatever its content.

    Args:
      title: in words.
      body: HTML.
      css: further rules.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str, note: str = "") -> str:
    """A section, or nothing where it would be empty; `content` is HTML."""
    if not content:
        return ""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{words}{content}\n</section>\n"


def figure(chart: str, caption: str) -> str:
    """A chart (SVG) above its caption, or nothing without a chart."""
    if not chart:
        return ""
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def charts(figures: Iterable[str]) -> str:
    """Figures (HTML) in a grid, or nothing without any."""
    content = "".join(figures)
    return f'<div class="charts">{content}</div>' if content else ""


def table(rows: Sequence[Sequence[str]], heading: Sequence[str] = (), numeric: int = 1) -> str:
    """A table of texts: the first column names a row, the next `numeric` ones align right."""

    def cell(i: int, text: str, tag: str) -> str:
        kind = ' class="n"' if 1 <= i <= numeric else ' class="wrap"'
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    lines = []
    if heading:
        cells = "".join(cell(i, text, "th") for i, text in enumerate(heading))
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    body = []
    for row in rows:
        cells = "".join(cell(i, text, "td") for i, text in enumerate(row) if i)
        body.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    lines.append(f"<tbody>{''.join(body)}</tbody>")
    kind = "" if heading else ' class="facts"'
    return f'<div class="scroll"><table{kind}>{"".join(lines)}</table></div>'
