"""The defaults of a config, and what its values must be: types, ranges, choices, combinations.

`check` looks at a whole config and raises `ConfigError` with the key, the value and the fix. It is
the second half of `jaxcomp.config`; no JAX here. What one workload
adds is in `jaxcomp.rules`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxcomp.errors import ConfigError
from jaxcomp.rules import WORKLOADS
from jaxcomp.rules.workload import Range, Workload

SCHEDULES = ("plateau", "constant", "cosine", "warmup_cosine", "one_cycle")


OPTIMISERS = ("adam", "adamw", "sgd")


DTYPES = ("float32", "bfloat16", "float16")


def nearest(word: str, valid: Iterable[str], most: int = 20) -> str:
    """Words an error message: the nearest valid name, if any, and the valid ones (if not many)."""
    names = sorted(map(str, valid))
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > most:
        names = sorted({f"{n.partition('.')[0]}.*" if "." in n else n for n in names})
    return f"{hint}Valid: {', '.join(names)}."


DEFAULTS: Mapping[str, Any] = {
    "task": "",
    "profile": "embedded",
    "level": 2,
    "seed": 0,
    "data": {
        "name": "scenes",
        "dir": "",  # empty: the default place for prepared data
        "train_size": 600,  # frames at most; with kitti 0 means all
        "val_size": 150,
        "val_share": 0.2,  # of frames that validates where the data bring no split
        "height": 128,
        "width": 416,
        "resize": "none",  # "stretch" to height x width, or "shortest" side to min_side
        "min_side": 800,
        "max_side": 1333,
        "seed": 0,
        "workers": 2,
        "max_boxes": 32,
        "augment": False,
        "cache": True,  # decoded images stay in memory if they are few enough
        "num_threads": 2,  # that prepare batches ahead; 0: none
        "on_junk": "report",  # broken objects and files are left out; "fatal" stops
    },
    "detector": {"path": ""},  # empty: the weights that ship with the package
    "model": {
        "name": "",
        "in_channels": 64,
        "n_hidden": 64,
        "n_channels": 96,
        "stages": 4,
        "dtype": "float32",
    },
    "training": {
        "optimiser": "adam",
        "batch_size": 8,
        "epochs": 100,
        "learning_rate": 1e-4,
        "rate_weight": 1e-3,
        "weight_decay": 0.0,
        "clip_norm": 1.0,  # 0: off
        "accumulation": 1,
        "loss_scale": 1.0,
        "on_nonfinite": "stop",
        "lr_schedule": {
            "name": "plateau",
            "factor": 0.8,
            "patience": 5,
            "min_lr": 1e-6,
            "warmup_epochs": 0,
        },
        "early_stopping": {"patience": 15, "min_delta": 1e-6},  # patience 0: off
    },
    "mesh": {"fsdp": 1},  # devices that share out one copy of the train state
    "checkpoint": {"keep": 2, "every_steps": 0},  # every_steps 0: after each epoch only
    "log": {"every_steps": 10, "tensorboard": False, "wandb": False, "progress": True},
    "alerts": {
        "grad_norm": 10.0,
        "rate_ratio_high": 10.0,
        "rate_ratio_low": 0.1,
        "feature_max": 100.0,
    },
}


# key: (least, most, is the least value itself allowed)
_RANGES: Mapping[str, tuple[float, float, bool]] = {
    "level": (0, 4, True),
    "seed": (0, 2**32 - 1, True),
    "data.train_size": (0, math.inf, True),
    "data.val_size": (0, math.inf, True),
    "data.val_share": (0, 0.9, False),
    "data.height": (1, math.inf, True),
    "data.width": (1, math.inf, True),
    "data.min_side": (1, math.inf, True),
    "data.max_side": (1, math.inf, True),
    "data.seed": (0, 2**32 - 1, True),
    "data.workers": (0, math.inf, True),
    "data.max_boxes": (1, math.inf, True),
    "data.num_threads": (0, math.inf, True),
    "model.in_channels": (1, math.inf, True),
    "model.n_hidden": (1, math.inf, True),
    "model.n_channels": (1, math.inf, True),
    "model.stages": (1, 8, True),
    "training.batch_size": (1, math.inf, True),
    "training.epochs": (1, math.inf, True),
    "training.learning_rate": (0, math.inf, False),
    "training.rate_weight": (0, math.inf, True),
    "training.weight_decay": (0, math.inf, True),
    "training.clip_norm": (0, math.inf, True),
    "training.accumulation": (1, math.inf, True),
    "training.loss_scale": (0, math.inf, False),
    "training.lr_schedule.factor": (0, 1, False),
    "training.lr_schedule.patience": (0, math.inf, True),
    "training.lr_schedule.min_lr": (0, math.inf, True),
    "training.lr_schedule.warmup_epochs": (0, math.inf, True),
    "training.early_stopping.patience": (0, math.inf, True),
    "training.early_stopping.min_delta": (0, math.inf, True),
    "mesh.fsdp": (1, math.inf, True),
    "checkpoint.keep": (1, math.inf, True),
    "checkpoint.every_steps": (0, math.inf, True),
    "log.every_steps": (1, math.inf, True),
    "alerts.grad_norm": (0, math.inf, False),
    "alerts.rate_ratio_high": (0, math.inf, False),
    "alerts.rate_ratio_low": (0, math.inf, True),
    "alerts.feature_max": (0, math.inf, False),
}


# The same, with their type, for keys that several workloads add; `jaxcomp.rules` holds what a
# single one adds. Keys that are nowhere are only checked to be finite.
_SHARED: Mapping[str, Range] = {
    "evaluation.pictures": (int, 0, math.inf, True),
    "evaluation.pictures_every": (int, 0, math.inf, True),
}


_CHOICES: Mapping[str, Sequence[str]] = {
    "data.on_junk": ("report", "fatal"),
    "data.resize": ("none", "stretch", "shortest"),
    "model.dtype": DTYPES,
    "training.optimiser": OPTIMISERS,
    "training.on_nonfinite": ("stop", "skip"),
    "training.lr_schedule.name": SCHEDULES,
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_type(key: str, value: Any, like: Any) -> None:
    """Raises unless `value` has the type of `like`; an int is fine where a float is meant."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(like, float) and number:
        return
    if isinstance(like, tuple | list) and isinstance(value, tuple | list):
        return
    if type(value) is not type(like):
        raise ConfigError(
            f"config.{key} is {value!r} of type {type(value).__name__}, "
            f"but {type(like).__name__} is needed, as in {like!r}."
        )


def _check_keys(leaves: Mapping[str, Any], known: Mapping[str, Any], extra: set[str]) -> None:
    """Raises for unknown, missing and wrongly typed keys."""
    for key, value in leaves.items():
        if key in known:
            _check_type(key, value, known[key])
        elif not any(key == name or key.startswith(name + ".") for name in extra):
            raise ConfigError(f"Unknown key config.{key}; {nearest(key, near(key, known))}")
    for key in known:
        if key not in leaves:
            raise ConfigError(f"config.{key} is missing; start from jaxcomp.config.base_config().")


def near(key: str, known: Iterable[str]) -> list[str]:
    """The known keys of the same section, or, if there is no such section, all of them."""
    section = key.rpartition(".")[0]
    names = [k for k in known if k != "extra_keys"]
    siblings = [k for k in names if section and k.rpartition(".")[0] == section]
    return siblings or names


def _check_ranges(leaves: Mapping[str, Any]) -> None:
    """Raises for numbers out of range and for names that are not a choice."""
    for key, limits in _RANGES.items():
        _check_range(key, leaves[key], leaves[key], *limits)
    for key, choices in _CHOICES.items():
        if leaves[key] not in choices:
            raise ConfigError(f"config.{key}={leaves[key]!r}; {nearest(leaves[key], choices)}")


def _check_range(
    key: str, number: float, value: Any, least: float, most: float, closed: bool
) -> None:
    """Raises unless `number`, which is `value` or a part of it, is finite and in range."""
    above = number >= least if closed else number > least
    if not (math.isfinite(number) and above and number <= most):
        lower = f"{'at least' if closed else 'more than'} {least:g}"
        upper = f" and at most {most:g}" if most < math.inf else ""
        raise ConfigError(f"config.{key}={value!r} is out of range: it must be {lower}{upper}.")


def _check_extras(leaves: Mapping[str, Any], rules: Workload) -> None:
    """Raises for keys of a workload whose value is of a wrong type, out of range or not finite."""
    for key, value in leaves.items():
        items = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(item, float) and not math.isfinite(item) for item in items):
            raise ConfigError(f"config.{key}={value!r} is not finite; give finite numbers.")
        if key in rules.choices and value not in rules.choices[key]:
            raise ConfigError(f"config.{key}={value!r}; {nearest(value, rules.choices[key])}")
        if key not in rules.ranges and key not in _SHARED:
            continue
        kind, *limits = rules.ranges.get(key) or _SHARED[key]
        for item in items:
            _check_type(key, item, kind(1))
            _check_range(key, item, value, *limits)  # type: ignore[arg-type]
        if key in rules.lengths and len(items) != rules.lengths[key]:
            raise ConfigError(
                f"config.{key}={value!r} has length {len(items)}; {rules.lengths[key]} are needed."
            )


def _check_workload(leaves: Mapping[str, Any], rules: Workload) -> None:
    """Raises for values that do not fit the task."""
    name = leaves["model.name"]
    if rules.models and name not in rules.models:
        raise ConfigError(f"config.model.name={name!r}; {nearest(name, rules.models)}")
    for key in ("data.height", "data.width"):
        near = max(rules.stride, round(leaves[key] / rules.stride) * rules.stride)
        if leaves[key] != near:
            raise ConfigError(
                f"config.{key}={leaves[key]} is not a multiple of {rules.stride}; "
                f"the nearest is {near}."
            )
    for message in rules.contradictions(leaves):
        raise ConfigError(message)


def _check_combinations(config: ConfigDict) -> None:
    """Raises for values that contradict each other."""
    training, schedule, alerts = config.training, config.training.lr_schedule, config.alerts
    for wrong, message in (
        (
            0 < config.data.train_size < training.batch_size,
            f"config.training.batch_size={training.batch_size} is more than "
            f"config.data.train_size={config.data.train_size}: an epoch would have no batch.",
        ),
        (
            config.data.name == "scenes" and 0 in (config.data.train_size, config.data.val_size),
            f"config.data.train_size={config.data.train_size}, "
            f"config.data.val_size={config.data.val_size}: 0 means all, but 'scenes' are made to "
            "order; give the number of frames.",
        ),
        (
            schedule.name != "constant" and schedule.min_lr > training.learning_rate,
            f"config.training.lr_schedule.min_lr={schedule.min_lr:g} is more than "
            f"config.training.learning_rate={training.learning_rate:g}; lower it.",
        ),
        (
            schedule.warmup_epochs > 0 and schedule.name != "warmup_cosine",
            f"config.training.lr_schedule.warmup_epochs={schedule.warmup_epochs} has no effect "
            f"with lr_schedule.name={schedule.name!r}; use 'warmup_cosine' or 0.",
        ),
        (
            schedule.name == "warmup_cosine" and schedule.warmup_epochs >= training.epochs,
            f"config.training.lr_schedule.warmup_epochs={schedule.warmup_epochs} must be less "
            f"than config.training.epochs={training.epochs}.",
        ),
        (
            config.model.dtype == "float16" and training.loss_scale == 1,
            "config.model.dtype='float16' loses small gradients with "
            "config.training.loss_scale=1; set loss_scale to 1024 or so, or use 'bfloat16'.",
        ),
        (
            config.data.min_side > config.data.max_side,
            f"config.data.min_side={config.data.min_side} must not be more than "
            f"config.data.max_side={config.data.max_side}.",
        ),
        (
            alerts.rate_ratio_low >= alerts.rate_ratio_high,
            f"config.alerts.rate_ratio_low={alerts.rate_ratio_low:g} must be less than "
            f"config.alerts.rate_ratio_high={alerts.rate_ratio_high:g}.",
        ),
    ):
        if wrong:
            raise ConfigError(message)


def check(config: ConfigDict) -> None:
    """Raises `ConfigError` for unknown or missing keys, wrong types, ranges and combinations."""
    leaves = dict(flatten(config))
    extra = set(leaves.pop("extra_keys", ()))
    _check_keys(leaves, dict(flatten(DEFAULTS)), extra)
    _check_ranges(leaves)
    rules = WORKLOADS.get(leaves["task"], Workload())
    _check_extras({k: v for k, v in leaves.items() if k not in _RANGES}, rules)
    _check_workload(leaves, rules)
    _check_combinations(config)
