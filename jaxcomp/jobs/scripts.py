"""What the scripts of `launch/` that start many runs have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxcomp import config as config_lib
from jaxcomp.errors import ConfigError, JaxcompError
from jaxcomp.jobs.sweep import SweepInterrupted


def run_script(
    argv: Sequence[str],
    task: str,
    example: str,
    parser: argparse.ArgumentParser,
    run: Callable[[Any, argparse.Namespace], int],
) -> int:
    """Reads the config and the words of a script, and runs it.

    Args:
      argv: the words after the script's name.
      task: what `config.task` must be; the section of that name is handed on.
      example: a config of this kind.
      parser: of all words but those of the config.
      run: (section, words) to the exit status.

    Returns:
      The exit status: 1 for an error, which is printed, 128 and more after a signal.
    """
    try:
        spec, overrides, rest = config_lib.split_argv(argv)
        args = parser.parse_args(rest)
        if spec is None:
            raise ConfigError(f"give --config={example}, or another one of this kind")
        config = config_lib.load_config(spec, overrides)
        if config.task != task:
            raise ConfigError(f"--config={spec} is a {config.task!r} config, not a {task} config")
        return run(config[task], args)
    except SweepInterrupted as interrupt:
        print(interrupt, file=sys.stderr)
        return 128 + interrupt.signum
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except JaxcompError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def chosen(only: str, known: Sequence[str]) -> list[str]:
    """The names in "a,b", all known ones for "".

    Raises:
      ConfigError: one of them is unknown.
    """
    names = [name for name in only.split(",") if name]
    for name in names:
        if name not in known:
            raise ConfigError(f"--only={only}: {config_lib.nearest(name, known)}")
    return names or list(known)
