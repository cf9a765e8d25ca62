"""What a run leaves for a human: tables for the terminal and the README, and a page.

    python -m jaxcomp.report RUN                    # rebuilds RUN/index.html, prints its table
    python -m jaxcomp.report RUN RUN ... --out F    # a table over several runs, and as a page

Pages are one file each: pictures are inside, nothing is fetched, no script runs.
"""

from jaxcomp.report.index import build_index
from jaxcomp.report.page import build_page
from jaxcomp.report.tables import markdown_table, text_table

__all__ = ["build_index", "build_page", "markdown_table", "text_table"]
