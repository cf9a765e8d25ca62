"""The command `evaluate`: a comparison of folders, with everything it leaves."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcomp.errors import ConfigError
from jaxcomp.jobs import rate_accuracy, token_comparison
from jaxcomp.report import comparison

NAME = "comparison"  # of the folder that --mode=eval makes in a folder of runs


def run(dirs: Sequence[Path], out: Path, *, anchors: str, frames: int, **options: Any) -> None:
    """Measures, writes tables, figures and page, and prints where they are.

    Args:
      dirs: run directories, folders of them, or `codec.npz` files.
      out: the folder of the comparison.
      anchors: kinds or names, separated by commas; "none" for none.
      frames: the first so many, 0 for all.
      **options: the other fields of `rate_accuracy.Options`.

    Raises:
      ConfigError: an option is out of range.
      JaxcompError: see `rate_accuracy.compare`.
    """
    words = tuple(w.strip() for w in anchors.split(",") if w.strip() not in ("", "none"))
    slowdown = options.get("edge_slowdown", 1.0)
    if frames < 0 or options.get("replicates", 1) < 1 or not slowdown > 0:
        raise ConfigError(
            f"--frames={frames}, --bootstrap={options.get('replicates')}, "
            f"--edge-slowdown={slowdown}: give 0 or more frames, and positive others"
        )
    chosen = rate_accuracy.Options(
        anchors=words, frames=frames, command=shlex.join(_words()), **options
    )
    if token_comparison.are_tokens(dirs):
        token_comparison.run(dirs, out, chosen)
        return
    results = rate_accuracy.compare(dirs, out, chosen)
    missing = comparison.write(out, results, lambda name: comparison.stored_arrays(out, name))
    for name, why in results["missing"].items():
        print(f"not measured: {name} ({why})")
    for why in missing:
        print(why)
    if results["bd"]:
        print((out / "bd.md").read_text(), end="")
    print(f"tables: {out / 'rate_accuracy.md'}\npage:   {out / comparison.PAGE}")


def holds_codecs(folder: Path) -> bool:
    """Whether a folder is no run itself, but there are trained codecs below it."""
    if not folder.is_dir() or (folder / "checkpoints").is_dir():
        return False
    return any(True for _ in folder.rglob("codec.npz"))


def run_folder(folder: Path, *, config: str | None, overrides: Sequence[str]) -> Path:
    """`--mode=eval` of a folder of runs: the comparison goes to FOLDER/comparison.

    Returns:
      Where it is.
    """
    out = folder / NAME
    run(
        [folder], out, anchors=",".join(rate_accuracy.KINDS), frames=0,
        config=config, overrides=tuple(overrides),
    )  # fmt: skip
    return out


def _words() -> list[str]:
    program = sys.argv[0]
    if program.endswith("__main__.py"):
        return ["python", "-m", "jaxcomp", *sys.argv[1:]]
    return ["python", "-m", "jaxcomp.main", *sys.argv[1:]]
