"""`inspect`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jaxcomp import config as config_lib
from jaxcomp.commands import add_parser
from jaxcomp.errors import DataError
from jaxcomp.workdir import json_text

_DESCRIPTION = """\
What a config would build (parameters and multiply-accumulates per module, without training), or
what a file holds: weights (.npz), a stream (.jxc) or a run directory, as JSON.

Of a stream: version, codec kind, digest of the tables, metadata, and for each level shape, lanes (0
is the short form), bytes, bits, and bits per position (per value with --codec, which knows the
channels); of residual codes the rows of every codebook. --codec also decodes the integers and says
whether the model matches; if it does not, or if the file is damaged, what is readable is printed
and the exit status is 1.
"""
_EXAMPLES = """\
examples:
  python -m jaxcomp inspect --config=configs/detector.py:kitti
  python -m jaxcomp inspect street.jxc --codec RUN_DIRECTORY
  python -m jaxcomp inspect RUN_DIRECTORY
"""


def add(commands: Any) -> None:
    """Adds the parser."""
    inspect = add_parser(
        commands,
        "inspect",
        help="parameters and MACs of a config; contents of a .npz, .jxc or run directory",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    inspect.add_argument("file", nargs="?", help="a .npz, a .jxc, or a run directory")
    inspect.add_argument("--json", action="store_true", help="print JSON (files: always)")
    inspect.add_argument("--codec", help="codec.npz or a run directory, to try on a .jxc")
    inspect.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> int:
    """Runs `inspect`."""
    if (args.config is None) == (args.file is None):
        raise DataError("inspect needs either --config=FILE[:ARGS] or a file to look at")
    if args.codec and not (args.file and Path(args.file).suffix == ".jxc"):
        raise DataError("--codec is tried on a .jxc file; give one")
    if args.file and Path(args.file).suffix == ".jxc" and not Path(args.file).is_dir():
        return _inspect_stream(Path(args.file), args.codec)
    from jaxcomp import complexity, inspecting

    if args.file:
        print(json.dumps(inspecting.describe_file(Path(args.file)), indent=2))
        return 0
    description = inspecting.describe_config(config_lib.load_config(args.config, args.overrides))
    print(json.dumps(description, indent=2) if args.json else complexity.text_table(description))
    return 0


def _described(path: Path, codec: str | None) -> tuple[dict[str, Any], list[Any]]:
    from jaxcomp.jobs.stream_report import describe_stream

    if not codec:
        return describe_stream(path)
    from jaxcomp.jobs.rq_files import residual_file

    if residual_file(codec):
        from jaxcomp.jobs import rq_codec, rq_coding

        return rq_coding.describe(path, rq_codec.load_residual_codec(codec))
    from jaxcomp import loaders

    return describe_stream(path, loaders.load_codec(codec))


def _inspect_stream(path: Path, codec: str | None) -> int:
    description, errors = _described(path, codec)
    print(json_text(description), end="")
    for error in errors:
        print(f"error: {path}: {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if errors else 0
