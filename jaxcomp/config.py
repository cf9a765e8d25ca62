"""Configuration as data: typed arguments, defaults, overrides and validation, without JAX.

A file in `configs/` reads its argument string, starts from the defaults and changes what differs:

    def get_config(arg_string: str = ""):
        args = parse_args(arg_string, profile=("embedded", "kitti"), level=2)
        config = base_config(model={"filters": 5})   # adds a field of its own
        config.level = args.level
        return config

`base_config` is locked, so a misspelt key fails where it is written. Commands call `validate` on
the result; everything that is wrong raises `ConfigError` with the key, the value and the fix.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import json
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcomp.errors import ConfigError

SCHEDULES = ("plateau", "constant", "cosine", "warmup_cosine")
OPTIMISERS = ("adam", "adamw", "sgd")
DTYPES = ("float32", "bfloat16", "float16")

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def nearest(word: str, valid: Iterable[str], most: int = 20) -> str:
    """Words an error message: the nearest valid name, if any, and the valid ones (if not many)."""
    names = sorted(map(str, valid))
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > most:
        names = sorted({f"{n.partition('.')[0]}.*" if "." in n else n for n in names})
    return f"{hint}Valid: {', '.join(names)}."


def parse_value(text: str, like: Any, name: str) -> Any:
    """Reads `text` as a value of the type of `like`.

    Args:
      text: what the user typed.
      like: the present value; its type is the type of the result.
      name: how to call the value in an error.

    Returns:
      A bool, int, float, str or tuple.

    Raises:
      ConfigError: `text` is not of that type.
    """
    try:
        if isinstance(like, bool):
            if text.lower() not in _TRUE + _FALSE:
                raise ValueError(text)
            return text.lower() in _TRUE
        if isinstance(like, int):
            return int(text)
        if isinstance(like, float):
            return float(text)
        if isinstance(like, tuple | list):
            value = ast.literal_eval(text if text.strip()[:1] in ("(", "[") else f"({text},)")
            return tuple(_element(v, like) for v in value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ConfigError(
            f"{name}={text!r} is not of type {type(like).__name__}; "
            f"give a value like {name}={like!r}."
        ) from None
    return text


def _element(value: Any, like: Sequence[Any]) -> Any:
    """`value` as an element of `like`, whose elements are of one type; raises `TypeError`."""
    if not like:
        return value
    if type(like[0]) is float and type(value) is int:
        return float(value)
    if type(value) is not type(like[0]):
        raise TypeError(value)
    return value


def parse_args(arg_string: str, **parameters: Any) -> ConfigDict:
    """Reads the argument string of a config file, as in `configs/fpn_level.py:kitti,level=2`.

    Args:
      arg_string: words separated by commas. `key=value` sets a parameter; a bare word chooses a
        value of a choice parameter or switches a boolean parameter on.
      **parameters: name to default. A tuple of strings is a choice whose first value is the
        default; any other default gives the type.

    Returns:
      A locked ConfigDict, name to value.

    Raises:
      ConfigError: a word is unknown, given twice or not of the parameter's type.
    """
    values = {k: v[0] if isinstance(v, tuple) else v for k, v in parameters.items()}
    words = {w: k for k, v in parameters.items() if isinstance(v, tuple) for w in v}
    words |= {k: k for k, v in parameters.items() if isinstance(v, bool)}
    seen: set[str] = set()
    for word in filter(None, (w.strip() for w in (arg_string or "").split(","))):
        key, equals, text = (part.strip() for part in word.partition("="))
        if not equals:
            key, text = words.get(word, ""), "true" if word in parameters else word
        if key not in parameters:
            valid = [*words, *(f"{k}=" for k in parameters)]
            raise ConfigError(f"Unknown config argument {word!r}; {nearest(word, valid)}")
        if key in seen:
            raise ConfigError(
                f"Config argument {key!r} is given twice in {arg_string!r}; keep one."
            )
        seen.add(key)
        choices = parameters[key]
        if isinstance(choices, tuple) and text not in choices:
            raise ConfigError(f"{key}={text!r} is not a choice; {nearest(text, choices)}")
        values[key] = parse_value(text, values[key], key)
    return ConfigDict(values).lock()


def base_config(**extra: Any) -> ConfigDict:
    """The defaults of every section, locked.

    Args:
      **extra: fields of one workload, by section (`model={"filters": 5}`) or at the top
        (`anchors=("png",)`); they become valid keys of this config.

    Returns:
      A locked ConfigDict. `batch_size` counts the rows of one step over all devices; times are in
      epochs or steps as named; `rate_weight` multiplies the rate (bits per feature position).
    """
    config = ConfigDict(_DEFAULTS)
    added: list[str] = []
    for section, fields in extra.items():
        if isinstance(fields, Mapping):
            if section not in config:
                config[section] = ConfigDict()
            items = [(f"{section}.{k}", config[section], k, v) for k, v in fields.items()]
        else:
            items = [(section, config, section, fields)]
        for name, holder, key, value in items:
            if key not in holder:
                added.append(name)
            holder[key] = ConfigDict(value) if isinstance(value, Mapping) else value
    config.extra_keys = tuple(added)
    return config.lock()


_DEFAULTS: Mapping[str, Any] = {
    "task": "",
    "profile": "embedded",
    "level": 2,
    "seed": 0,
    "data": {
        "name": "scenes",
        "dir": "",  # empty: the default place for prepared data
        "train_size": 600,
        "val_size": 150,
        "height": 128,
        "width": 416,
        "seed": 0,
        "workers": 2,
        "max_boxes": 32,
        "augment": False,
        "cache": True,  # decoded images stay in memory if they are few enough
        "num_threads": 2,  # that prepare batches ahead; 0: none
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
    "data.train_size": (1, math.inf, True),
    "data.val_size": (1, math.inf, True),
    "data.height": (1, math.inf, True),
    "data.width": (1, math.inf, True),
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
    "checkpoint.keep": (1, math.inf, True),
    "checkpoint.every_steps": (0, math.inf, True),
    "log.every_steps": (1, math.inf, True),
    "alerts.grad_norm": (0, math.inf, False),
    "alerts.rate_ratio_high": (0, math.inf, False),
    "alerts.rate_ratio_low": (0, math.inf, True),
    "alerts.feature_max": (0, math.inf, False),
}

# The same for the keys that workloads add, with their type; for tuples it is that of the elements.
# Keys that are not here are only checked to be finite.
_EXTRAS: Mapping[str, tuple[type, float, float, bool]] = {
    **{
        f"model.{name}": (int, 1, math.inf, True)
        for name in (
            *("stem_features", "stage_blocks", "stage_features", "fpn_features", "rpn_pre_nms"),
            *("rpn_post_nms", "rpn_post_nms_train", "pool_size", "box_conv_features", "box_fc"),
            *("max_detections", "detection_pre_nms"),
        )
    },
    "model.num_classes": (int, 2, math.inf, True),
    "model.rpn_convs": (int, 0, math.inf, True),
    "model.box_convs": (int, 0, math.inf, True),
    "model.anchor_sizes": (float, 1, math.inf, True),
    "model.anchor_ratios": (float, 0, math.inf, False),
    "model.canonical_size": (float, 1, math.inf, True),
    "model.rpn_iou": (float, 0, 1, True),
    "model.detection_iou": (float, 0, 1, True),
    "model.score_threshold": (float, 0, 1, True),
    "sampling.anchors": (int, 1, math.inf, True),
    "sampling.regions": (int, 1, math.inf, True),
    "sampling.anchor_positive_iou": (float, 0, 1, True),
    "sampling.anchor_negative_iou": (float, 0, 1, True),
    "sampling.region_iou": (float, 0, 1, True),
    "sampling.region_positive_share": (float, 0, 1, True),
    "evaluation.pictures": (int, 0, math.inf, True),
}
_LENGTHS: Mapping[str, int] = {
    "model.stage_blocks": 4,
    "model.stage_features": 4,
    "model.anchor_sizes": 5,  # one for each level
}
_MODELS: Mapping[str, Sequence[str]] = {  # task: values of model.name
    "detect": ("faster_rcnn_small_fpn_v2", "faster_rcnn_resnet50_fpn_v2"),
    "feature_codec": ("factorized_prior_specific_level",),
}
_STRIDE = 32  # of the network down to P5: images of other sizes would be padded

# What changes where and how a run works, shows and saves, but not what it computes.
_NO_RESULT = (
    *("log.", "checkpoint.", "alerts.", "extra_keys", "evaluation.pictures"),
    *("data.dir", "data.workers", "data.cache", "data.num_threads"),
)

_CHOICES: Mapping[str, Sequence[str]] = {
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
            raise ConfigError(f"Unknown key config.{key}; {nearest(key, _near(key, known))}")
    for key in known:
        if key not in leaves:
            raise ConfigError(f"config.{key} is missing; start from jaxcomp.config.base_config().")


def _near(key: str, known: Iterable[str]) -> list[str]:
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


def _check_extras(leaves: Mapping[str, Any]) -> None:
    """Raises for keys of a workload whose value is of a wrong type, out of range or not finite."""
    for key, value in leaves.items():
        items = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(item, float) and not math.isfinite(item) for item in items):
            raise ConfigError(f"config.{key}={value!r} is not finite; give finite numbers.")
        if key not in _EXTRAS:
            continue
        kind, *limits = _EXTRAS[key]
        for item in items:
            _check_type(key, item, kind(1))
            _check_range(key, item, value, *limits)  # type: ignore[arg-type]
        if key in _LENGTHS and len(items) != _LENGTHS[key]:
            raise ConfigError(
                f"config.{key}={value!r} has length {len(items)}; {_LENGTHS[key]} are needed."
            )


def _check_workload(leaves: Mapping[str, Any]) -> None:
    """Raises for values that do not fit the task."""
    task = leaves["task"]
    if task not in _MODELS:
        return
    name = leaves["model.name"]
    if name not in _MODELS[task]:
        raise ConfigError(f"config.model.name={name!r}; {nearest(name, _MODELS[task])}")
    for key in ("data.height", "data.width"):
        near = max(_STRIDE, round(leaves[key] / _STRIDE) * _STRIDE)
        if leaves[key] != near:
            raise ConfigError(
                f"config.{key}={leaves[key]} is not a multiple of {_STRIDE}; the nearest is {near}."
            )
    count, classes = leaves.get("model.num_classes"), leaves.get("classes")
    if count is not None and classes is not None and count != len(classes) + 1:
        raise ConfigError(
            f"config.model.num_classes={count}, but config.classes={tuple(classes)!r} and the "
            f"background make {len(classes) + 1}; set it to that."
        )


def _check_combinations(config: ConfigDict) -> None:
    """Raises for values that contradict each other."""
    training, schedule, alerts = config.training, config.training.lr_schedule, config.alerts
    for wrong, message in (
        (
            training.batch_size > config.data.train_size,
            f"config.training.batch_size={training.batch_size} is more than "
            f"config.data.train_size={config.data.train_size}: an epoch would have no batch.",
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
            alerts.rate_ratio_low >= alerts.rate_ratio_high,
            f"config.alerts.rate_ratio_low={alerts.rate_ratio_low:g} must be less than "
            f"config.alerts.rate_ratio_high={alerts.rate_ratio_high:g}.",
        ),
    ):
        if wrong:
            raise ConfigError(message)


def validate(config: ConfigDict) -> ConfigDict:
    """Checks keys, types, ranges and combinations.

    Args:
      config: a config made from `base_config`.

    Returns:
      The same config, locked.

    Raises:
      ConfigError: with the key, its value and the fix.
    """
    leaves = dict(flatten(config))
    extra = set(leaves.pop("extra_keys", ()))
    _check_keys(leaves, dict(flatten(_DEFAULTS)), extra)
    _check_ranges(leaves)
    _check_extras({k: v for k, v in leaves.items() if k not in _RANGES})
    _check_workload(leaves)
    _check_combinations(config)
    return config.lock()


def apply_overrides(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """Sets values given as `training.rate_weight=5e-4` (a leading `--config.` is fine).

    Args:
      config: what to change; left as it is.
      overrides: `key=value`, the value read with the type of the present one.

    Returns:
      A changed, locked copy.

    Raises:
      ConfigError: the key is unknown or the value is not of its type.
    """
    config = config.copy_and_resolve_references()
    leaves = {k: v for k, v in flatten(config) if k != "extra_keys"}
    for override in overrides:
        key, equals, text = override.removeprefix("--").removeprefix("config.").partition("=")
        if not equals:
            raise ConfigError(f"Override {override!r} has no value; write --config.{key}=VALUE.")
        if key not in leaves:
            raise ConfigError(f"Unknown key config.{key}; {nearest(key, _near(key, leaves))}")
        *sections, name = key.split(".")
        holder = config
        for section in sections:
            holder = holder[section]
        value = parse_value(text, leaves[key], f"config.{key}")
        holder[name] = value
    return config.lock()


def _run_file(path: str, args: str) -> ConfigDict:
    """Calls `get_config(args)` of a config file; what goes wrong inside names its line."""
    module_spec = importlib.util.spec_from_file_location("jaxcomp_config_file", path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(
            f"--config={path!r}: configs are Python files (.py) that define get_config(arg_string)."
        )
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(
                f"{path!r} defines no get_config(arg_string); it is not a config file."
            )
        config = module.get_config(args)
    except ConfigError:
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = path if line is None else f"{path}:{line}"
        what = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{where}: {type(error).__name__}: {what}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{path!r}: get_config returns a {type(config).__name__}; return a base_config()."
        )
    return config


def load_config(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """Reads `FILE.py` or `FILE.py:ARGS`, applies overrides and validates.

    Args:
      spec: path of a file with `get_config(arg_string)`, optionally with its arguments.
      overrides: as in `apply_overrides`.

    Returns:
      A valid, locked config.

    Raises:
      ConfigError: the file is missing, fails or has no `get_config`, or the config is not valid.
    """
    path, _, args = spec.partition(":")
    if not Path(path).is_file():
        folder = Path(path).parent
        valid = [str(p) for p in sorted(folder.glob("*.py"))] if folder.is_dir() else []
        raise ConfigError(f"--config={path!r} is not a file; {nearest(path, valid)}")
    return validate(apply_overrides(_run_file(path, args), overrides))


def split_argv(argv: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """Takes the config flags out of a command line.

    Args:
      argv: words such as `--config=F:ARGS`, `--config F`, `--config.a.b=V`, `--config.a.b V`.

    Returns:
      (the config file with arguments or None, the overrides as `a.b=V`, all other words).

    Raises:
      ConfigError: a config flag has no value.
    """
    spec, overrides, rest = None, [], []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-")
        if not flag.startswith("-") or not (name == "config" or name.startswith("config.")):
            rest.append(word)
            continue
        if not equals:
            following = next(words, None)
            if following is None:
                raise ConfigError(f"{flag} has no value; write {flag}=VALUE.")
            value = following
        if name == "config":
            spec = value
        else:
            overrides.append(f"{name.removeprefix('config.')}={value}")
    return spec, overrides, rest


def check_flags(argv: Sequence[str]) -> ConfigDict | None:
    """Checks the config flags of a command line before absl sees them.

    `ml_collections.config_flags` reports an unknown key or a wrong type as a trace or without the
    flag's name. Calling this first gives the same line of help for every mistake:
    `app.run(main, flags_parser=lambda argv: (check_flags(argv), flags.FLAGS(argv))[1])`.

    Args:
      argv: the whole command line.

    Returns:
      The valid config, or None if no `--config` is given.

    Raises:
      ConfigError: as `load_config`.
    """
    spec, overrides, _ = split_argv(argv)
    if spec is None:
        return None
    return load_config(spec, overrides)


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON with sorted keys (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def changes_result(key: str) -> bool:
    """Whether the value of a dotted key can change what a run computes."""
    return not any(key == n or (n[-1] == "." and key.startswith(n)) for n in _NO_RESULT)


def digest(config: ConfigDict | Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all keys that can change the result (`changes_result`).

    A run resumes when only other keys differ.

    Args:
      config: a config, or the content of its JSON.
    """
    tree = json.loads(to_json(config)) if isinstance(config, ConfigDict) else config
    content = sorted((k, v) for k, v in flatten(tree) if changes_result(k))
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
