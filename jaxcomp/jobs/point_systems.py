"""Trained codecs below folders, put into systems: runs that differ in nothing but the rate weight.

A system is a curve of the comparison. What a run was trained with stands in its `config.json`;
a lone `codec.npz` is told by its own record. Codecs of single levels become one pyramid where those
of one rate weight are complete: alone they leave the other levels for free, which no sender has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcomp.config import changes_result, codec_config, flatten
from jaxcomp.errors import CheckpointError
from jaxcomp.jobs.point_store import file_name
from jaxcomp.loaders import CODEC_FILE, LevelCodec, PyramidCodec, assemble_pyramid, load_codec
from jaxcomp.models.fpn import LEVELS

# What may differ between the points of a curve, or says nothing about the codec.
_POINT_KEYS = (
    *("training.rate_weight", "level", "profile", "evaluation.", "detector."),
    *("data.cache_features", "data.feature_store", "model.initial"),
)
_LEVEL_KEYS = ("training.epochs",)  # of single levels: finer ones need fewer passes


@dataclasses.dataclass(frozen=True, eq=False)
class CodecPoint:
    """A codec as one point of a curve.

    Attributes:
      name: of its files.
      system: the curve it is on, in words.
      rate_weight: of its loss; None where the record does not say.
      codec: the loaded codec.
      path: its file.
      config: content of the run's `config.json`, or empty.
    """

    name: str
    system: str
    rate_weight: float | None
    codec: PyramidCodec
    path: Path
    config: Mapping[str, Any]

    @property
    def whole(self) -> bool:
        """Whether it codes all levels; otherwise its bytes are a part of what a sender needs."""
        return set(self.codec.levels) == set(detector_levels(self.codec))


def detector_levels(codec: PyramidCodec) -> tuple[str, ...]:
    """All levels of the detector that a codec was trained for."""
    return tuple(codec.meta.get("detector_levels", LEVELS))


def codec_files(paths: Sequence[Path]) -> list[Path]:
    """Every `codec.npz` at or below the paths, each once, without hidden folders.

    Raises:
      CheckpointError: a path does not exist, or there is no codec at all.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise CheckpointError(f"{str(path)!r} does not exist; give folders of trained codecs")
        below = [path] if path.is_file() else sorted(path.rglob(CODEC_FILE))
        kept = [p for p in below if not any(s[:1] == "." for s in p.relative_to(path).parts[:-1])]
        found |= {p.resolve(): None for p in kept}
    if not found:
        names = ", ".join(repr(str(p)) for p in paths)
        raise CheckpointError(
            f"no {CODEC_FILE} in or below {names}; train one first: "
            "python -m jaxcomp.main --config=configs/fpn_random.py"
        )
    return list(found)


def run_config(path: Path) -> dict[str, Any]:
    """`config.json` beside a codec; empty where there is none.

    Raises:
      CheckpointError: it is there and cannot be read.
    """
    file = path.parent / "config.json"
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} is damaged; copy the run again") from error
    return content if isinstance(content, dict) else {}


def find_points(paths: Sequence[Path], assembled: Path | None) -> list[CodecPoint]:
    """The codecs below folders as points, those of a system together, cheapest last.

    Args:
      paths: run directories, folders of them, or files.
      assembled: where pyramids put together of single levels are written; what is there already
        is no point by itself. None: every codec stays a point of its own.

    Raises:
      CheckpointError: no codec is there, or one is damaged.
    """
    own = assembled and assembled.resolve()
    files = [path for path in codec_files(paths) if own not in path.parents]
    loaded = [(path, load_codec(path), _of_chain(path, run_config(path))) for path in files]
    levels = [row for row in loaded if assembled and isinstance(row[1], LevelCodec)]
    rest = [row for row in loaded if row not in levels]
    for group in _grouped(levels).values():
        wanted = detector_levels(group[0][1])
        if {row[1].level for row in group} == set(wanted) and len(group) == len(wanted):
            rest.append(_assemble(group, assembled))
        else:
            rest += group
    return sorted(_named(rest), key=lambda p: (p.system, p.rate_weight or 0.0, p.name))


Row = tuple[Path, Any, dict[str, Any]]


def _of_chain(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A run that started from another one's codec belongs to the curve of the chain's first run.

    It trained for a share of the epochs of that run, whose number of epochs tells the system. One
    that started from a codec of its own rate weight is no further point but one trained further:
    "7+3" epochs.
    """
    runs, seen = [config], {path}
    while initial := runs[-1].get("model", {}).get("initial"):
        path = _initial_file(path, Path(initial))
        if path in seen or not (path.parent / "config.json").exists():
            break
        seen.add(path)
        runs.append(run_config(path))
    if len(runs) == 1:
        return config
    of = [run.get("training", {}) for run in runs]
    further = of[0].get("rate_weight") == of[1].get("rate_weight")
    epochs = f"{of[-1].get('epochs')}+{of[0].get('epochs')}" if further else of[-1].get("epochs")
    return {**config, "training": {**of[0], "epochs": epochs}}


def _initial_file(path: Path, initial: Path) -> Path:
    """Where the codec is that a run started from: as written, or beside a folder that was moved."""
    moved = [path.parents[n].joinpath(*initial.parts[-n - 1 :]) for n in (3, 2, 1)]
    return next((p.resolve() for p in (*moved, initial) if p.exists() and p != path), initial)


def _grouped(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    """Level codecs by what they share: everything but the level and its epochs."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = (_rate_weight(row[1], row[2]), _settings(row[1], row[2], _LEVEL_KEYS))
        groups.setdefault(key, []).append(row)
    return groups


def _assemble(group: Sequence[Row], folder: Path) -> Row:
    digests = "".join(sorted(row[1].digest for row in group))
    name = hashlib.sha256(digests.encode()).hexdigest()[:12]
    path = folder / name / CODEC_FILE
    codec = load_codec(path) if path.exists() else assemble_pyramid([r[1] for r in group], path)
    return path, codec, group[0][2]


def _settings(codec: PyramidCodec, config: Mapping[str, Any], skip: Sequence[str] = ()) -> tuple:
    """What makes a system, as sorted (key, value as JSON)."""
    if not config:
        model = codec.codec
        content = {
            "treatment": _treatment(codec),
            "model": f"{model.in_channels}-{model.n_hidden}-{model.n_channels}/{model.stages}"
            + (f" within {model.limit:g}" if model.limit else ""),
        }
        return tuple(sorted((k, json.dumps(v)) for k, v in content.items()))
    # Runs of earlier versions lack newer keys: they were trained as by today's defaults.
    defaults = codec_config(config.get("profile", "embedded"))
    leaves = {k: v for k, v in (*flatten(defaults), *flatten(config)) if changes_result(k)}
    ignored = (*_POINT_KEYS, *skip)
    kept = {
        k: json.dumps(v)
        for k, v in leaves.items()
        if not any(k == n or (n[-1] == "." and k.startswith(n)) for n in ignored)
    }
    return tuple(sorted(kept.items()))


def _treatment(codec: PyramidCodec) -> str:
    if isinstance(codec, LevelCodec):
        return f"{codec.level} alone"
    return str(codec.meta.get("treatment", "pyramid"))


def _rate_weight(codec: PyramidCodec, config: Mapping[str, Any]) -> float | None:
    parts = codec.meta.get("parts")
    record = next(iter(parts.values())) if isinstance(parts, Mapping) and parts else codec.meta
    value = record.get("rate_weight", config.get("training", {}).get("rate_weight"))
    return float(value) if isinstance(value, int | float) else None


def system_words(codec: PyramidCodec, config: Mapping[str, Any]) -> str:
    """A system in a few words: treatment of the levels and what the loss was."""
    if "feature" in codec.meta:
        return f"codec of tokens, level {codec.meta['level']}"
    words = [_treatment(codec)]
    training = config.get("training", {})
    if training.get("task_weight"):
        feature = training.get("feature_weight", 1.0)
        words.append("task loss" if not feature else "task + feature loss")
    elif config:
        words.append("feature loss")
    if config.get("model", {}).get("straight_through"):
        words.append("straight-through")
    if training.get("level_weights", "elements") != "elements":
        words.append(f"{training['level_weights']} levels")
    return ", ".join(words)


def _named(rows: Sequence[Row]) -> list[CodecPoint]:
    """Points with the names of their systems; what else differs is told where names are alike."""
    keys = [_settings(c, f, _LEVEL_KEYS if "parts" in c.meta else ()) for _, c, f in rows]
    words = [system_words(codec, config) for _, codec, config in rows]
    points = []
    for (path, codec, config), key, name in zip(rows, keys, words, strict=True):
        alike = {k for k, w in zip(keys, words, strict=True) if w == name}
        more = _differing(key, alike)
        system = f"{name} ({more})" if more else name
        weight = _rate_weight(codec, config)
        points.append(
            CodecPoint(
                file_name(system, weight, codec.digest[:8]), system, weight, codec, path, config
            )
        )
    return points


def _differing(own: tuple, alike: set[tuple]) -> str:
    """The settings by which a system differs from others of its name."""
    shared = set.intersection(*(set(k) for k in alike))
    found = [(k, v) for k, v in own if (k, v) not in shared]
    return ", ".join(f"{k.rpartition('.')[2]} {json.loads(v)}" for k, v in found)
