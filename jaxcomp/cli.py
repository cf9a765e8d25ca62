"""The command line beside training: `python -m jaxcomp <command> --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from jaxcomp import config as config_lib
from jaxcomp.commands import coding, detecting, evaluating, exporting, inspecting, weights
from jaxcomp.errors import ConfigError, JaxcompError

DESCRIPTION = """\
Split inference and learned feature compression. Training is `python -m jaxcomp.main --help`.
"""
TOPICS = (inspecting, coding, detecting, evaluating, weights, exporting)
INTERRUPTED, CLOSED_PIPE = 130, 141  # as shells tell SIGINT and SIGPIPE


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser("python -m jaxcomp", description=DESCRIPTION)
    top.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    commands = top.add_subparsers(dest="command", required=True)
    for topic in TOPICS:
        topic.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status. Bad input is one line on stderr and status 1."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv  # before or behind the command's name
    argv = [word for word in argv if word != "--debug"]
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader, as `| head`, has enough. Nothing may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        print("interrupted; files that are there are whole", file=sys.stderr)
        return INTERRUPTED
    except (JaxcompError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(argv: Sequence[str]) -> int:
    spec, overrides, rest = config_lib.split_argv(argv)
    args = parser().parse_args(rest)
    if (spec or overrides) and args.command not in ("inspect", "evaluate"):
        raise ConfigError(f"{args.command} takes no --config; only inspect and evaluate do")
    args.config, args.overrides = spec, overrides
    return args.run(args) or 0
