"""The same configs with several seeds, and one table of means and standard deviations.

    ROOT/VARIANT/seed_0/    a run of the main command
    ROOT/seeds.json, seeds.md

Runs are started as those of a sweep are: side by side, finished ones skipped, interrupted ones
going on. A variant with `after` starts when the run of that variant with the same seed is finished;
`{after}` in its overrides stands for that run's directory.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcomp.jobs import sweep
from jaxcomp.workdir import atomic_write, json_text


@dataclasses.dataclass(frozen=True)
class SeedRun(sweep.Run):
    """A run of one variant with one seed.

    Attributes:
      variant: its name.
      seed: of initial weights, order and masks; the data stay those of `data.seed`.
    """

    variant: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.variant} seed {self.seed}"


def plan(config: Any) -> list[SeedRun]:
    """The runs of a `seeds` section: seed by seed, those that others start from first.

    Args:
      config: `root`, `seeds`, `overrides` of all runs, `variants`: {name: {config, overrides,
        after}}; see `configs/hjepa_seeds.py`.
    """
    root = Path(config.root)
    ordered = sorted(config.variants.items(), key=lambda item: bool(item[1].after))
    return [_run(root, config, n, v, seed) for seed in config.seeds for n, v in ordered]


def _run(root: Path, config: Any, name: str, variant: Any, seed: int) -> SeedRun:
    folder = root / name / f"seed_{seed}"
    after = root / variant.after / folder.name if variant.after else None
    words = [f"--config={variant.config}", f"--workdir={folder}"]
    for override in (*config.overrides, *variant.overrides, f"seed={seed}"):
        words.append("--config." + override.replace("{after}", str(after)))
    return SeedRun(
        member=f"{name}/{folder.name}", rate_weight=0.0, level=None, folder=folder,
        arguments=tuple(words), after=after, variant=name, seed=seed,
        chain=(f"{variant.after or name}/{folder.name}", None),
    )  # fmt: skip


def result(run: sweep.Run) -> str:
    """How messages tell that a run has ended."""
    return f"{sweep.summary(run).get('seconds', math.nan):.0f} s"


def collect(config: Any, runs: Sequence[SeedRun]) -> list[dict[str, Any]]:
    """A record for each variant, row and column: {"variant", "row", "column", "key", "values"}.

    `values` are of the finished runs in the order of their seeds; a run without the key is left
    out.
    """
    records = []
    for variant in dict.fromkeys(run.variant for run in runs):
        stored = [sweep.summary(run) for run in runs if run.variant == variant]
        for row, columns in config.rows.items():
            for column, key in columns.items():
                values = [float(s[key]) for s in stored if s.get(key) is not None]
                record = {"variant": variant, "row": row, "column": column, "key": key}
                records.append(record | {"values": values})
    return records


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """As "0.412 ± 0.010": mean and sample standard deviation, which one value alone has not."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def markdown(config: Any, records: Sequence[Mapping[str, Any]], runs: Sequence[SeedRun]) -> str:
    """The table, and how many seeds are behind each variant."""
    columns = list(dict.fromkeys(r["column"] for r in records))
    lines = [
        f"| variant | | {' | '.join(columns)} |",
        "| --- " * 2 + "| ---: " * len(columns) + "|",
    ]
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for r in records:
        cells = groups.setdefault((r["variant"], r["row"]), {})
        cells[r["column"]] = mean_and_spread(r["values"], config.digits)
    for (variant, row), cells in groups.items():
        lines.append(f"| {variant} | {row} | {' | '.join(cells.get(c, '') for c in columns)} |")
    counts = {v: sum(bool(sweep.summary(r)) for r in runs if r.variant == v)
              for v in dict.fromkeys(r.variant for r in runs)}  # fmt: skip
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    seconds = [float(sweep.summary(r)["seconds"]) for r in runs if sweep.summary(r).get("seconds")]
    time = f" A run took {min(seconds):.0f} to {max(seconds):.0f} s." if seconds else ""
    return "\n".join([*lines, "", f"Mean ± standard deviation over seeds; runs: {told}.{time}", ""])


def write_table(config: Any, runs: Sequence[SeedRun]) -> Path:
    """Writes `seeds.json` and `seeds.md`; returns the latter."""
    root, records = Path(config.root), collect(config, runs)
    root.mkdir(parents=True, exist_ok=True)
    atomic_write(root / "seeds.json", json_text(records))
    atomic_write(root / "seeds.md", markdown(config, records, runs))
    return root / "seeds.md"
