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
import hashlib
import importlib.util
import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcomp import config_rules
from jaxcomp.config_rules import DEFAULTS, flatten, nearest
from jaxcomp.errors import ConfigError

__all__ = [
    "apply_overrides",
    "base_config",
    "changes_result",
    "codec_config",
    "description",
    "digest",
    "flatten",
    "load_config",
    "nearest",
    "parse_args",
    "parse_value",
    "result_keys",
    "split_argv",
    "to_json",
    "validate",
]

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


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
    config = ConfigDict(DEFAULTS)
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


# What changes where and how a run works, shows and saves, but not what it computes.
_NO_RESULT = (
    *("log.", "checkpoint.", "mesh.", "alerts.", "extra_keys", "evaluation.pictures"),
    "evaluation.pictures_every",
    *("data.dir", "data.workers", "data.cache", "data.num_threads", "data.on_junk"),
)

# Keys that came after runs were made, with the value that computes what those did.
_LATER = {"model.limit": 0.0}


def codec_config(profile: str, **extra: Any) -> ConfigDict:
    """What the configs of all pyramid codecs share: data, detector and the sizes of the network.

    Args:
      profile: "embedded", or "kitti" for the documents' sizes.
      **extra: as of `base_config`.
    """
    kitti = profile == "kitti"
    added: dict[str, Any] = {
        # initial: a codec.npz or a run whose weights the training starts from; limit: features
        # further than so many scales from their mean are cut there, 0 cuts none
        "model": {"straight_through": False, "initial": "", "limit": 0.0},
        # feature_store: a folder that keeps the features of the frozen detector for later runs
        "data": {"cache_features": not kitti, "feature_store": ""},
        "evaluation": {"pictures": 4},
        "training": {
            "feature_weight": 1.0,
            "task_weight": 0.0,
            "task_regions": 16,
            "prior_lr_factor": 1.0,
        },
    }
    for section, fields in extra.items():
        added[section] = {**added.get(section, {}), **fields}
    config = base_config(**added)
    config.task = "feature_codec"
    config.profile = profile
    if kitti:
        config.data.update(name="kitti", train_size=0, val_size=0, max_boxes=64)
        config.data.update(resize="stretch", height=384, width=1280)
        config.detector.path = "checkpoints/detection/run_0.002000_16"  # of detector.py:kitti
        config.model.update(in_channels=256, n_hidden=128, n_channels=192, stages=4)
        config.training.weight_decay = 1e-4
    return config


def validate(config: ConfigDict) -> ConfigDict:
    """Checks keys, types, ranges and combinations.

    Args:
      config: a config made from `base_config`.

    Returns:
      The same config, locked.

    Raises:
      ConfigError: with the key, its value and the fix.
    """
    config_rules.check(config)
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
            raise ConfigError(
                f"Unknown key config.{key}; {nearest(key, config_rules.near(key, leaves))}"
            )
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
    path, args = _config_file(spec)
    return validate(apply_overrides(_run_file(path, args), overrides))


def description(spec: str) -> str:
    """What a config file says of itself: its docstring, "" if it has none.

    Args:
      spec: as of `load_config`; the arguments do not matter.

    Raises:
      ConfigError: the file is missing or no Python.
    """
    path, _ = _config_file(spec)
    try:
        return ast.get_docstring(ast.parse(Path(path).read_text())) or ""
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _config_file(spec: str) -> tuple[str, str]:
    """(path, arguments) of `FILE.py:ARGS`; raises `ConfigError` if there is no such file."""
    path, _, args = spec.partition(":")
    if not Path(path).is_file():
        folder = Path(path).parent
        valid = [str(p) for p in sorted(folder.glob("*.py"))] if folder.is_dir() else []
        raise ConfigError(f"--config={path!r} is not a file; {nearest(path, valid)}")
    return path, args


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


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON with sorted keys (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def changes_result(key: str) -> bool:
    """Whether the value of a dotted key can change what a run computes."""
    return not any(key == n or (n[-1] == "." and key.startswith(n)) for n in _NO_RESULT)


def result_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of a config that can change a result, so that a run resumes where they agree.

    Left out is a key that an older run does not have while its value computes what that run did.
    """
    found = {key: value for key, value in flatten(tree) if changes_result(key)}
    return {k: v for k, v in found.items() if k not in _LATER or v != _LATER[k]}


def digest(config: ConfigDict | Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all keys that can change the result (`result_keys`).

    A run resumes when only other keys differ.

    Args:
      config: a config, or the content of its JSON.
    """
    tree = json.loads(to_json(config)) if isinstance(config, ConfigDict) else config
    content = sorted(result_keys(tree).items())
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
