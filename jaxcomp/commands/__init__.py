"""The commands of `python -m jaxcomp`, by topic.

A module has `add(commands)`, which adds its parsers and names the function that runs each
(`set_defaults(run=…)`, called with the parsed arguments; it returns the exit status or None).
Nothing heavy is imported until one runs, so that `--help` stays fast.
"""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any, name: str, **texts: str) -> argparse.ArgumentParser:
    """A subparser whose description and examples keep their lines."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    return parser
