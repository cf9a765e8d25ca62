"""`python -m jaxcomp inspect`: what a config builds, or what a file holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp import complexity, trees, weights_file
from jaxcomp.errors import CheckpointError, ConfigError, DataError
from jaxcomp.jobs.stream_report import describe_stream
from jaxcomp.models.faster_rcnn import SIZE_MULTIPLE, FasterRCNN
from jaxcomp.report.reading import read_json, read_summary
from jaxcomp.tasks.detect import detector_config
from jaxcomp.tasks.feature_codec import codec_from_config


def _padded(config: Any) -> tuple[int, int]:
    height, width = (
        -(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE for n in (config.data.height, config.data.width)
    )
    return height, width


def _describe_detector(config: Any) -> dict[str, Any]:
    model = FasterRCNN(detector_config(config.model))
    height, width = _padded(config)
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(functools.partial(model.init, train=True), key, image, size)
    head = functools.partial(model.apply, method="features")
    features = jax.eval_shape(head, variables, image)
    tail = functools.partial(model.apply, method="detect")
    macs = complexity.macs_by_module(head, variables, image, depth=1)
    macs |= complexity.macs_by_module(tail, variables, features, size, depth=1)
    return complexity.description(
        f"{config.model.name} on {height}x{width}",
        complexity.parameters_by_module(variables["params"], depth=1),
        macs,
        features={name: list(x.shape[1:]) for name, x in features.items()},
    )


def _describe_codec(config: Any) -> dict[str, Any]:
    height, width = _padded(config)
    stride = 4 * 2**config.level
    # P6 is every other pixel of P5, hence the rounding up.
    return _describe_codec_of(config, (-(-height // stride), -(-width // stride)))


def _describe_token_codec(config: Any) -> dict[str, Any]:
    from jaxcomp.jobs import token_features

    head = token_features.frozen_head(config.hjepa.path)
    token_features.check_config(config, head)
    return _describe_codec_of(config, head.model.cfg.map_shape(config.level))


def _describe_codec_of(config: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The codec of a config on maps of `size`."""
    codec = codec_from_config(config.model)
    shape = (1, *size, codec.in_channels)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(codec.init, jax.random.key(0), x)
    parameters = complexity.parameters_by_module(variables["params"], depth=1)
    # The documented counts hold the prior's three quantiles per channel as parameters.
    parameters["prior"] += variables["stats"]["prior"]["quantiles"].size
    return complexity.description(
        f"{config.model.name}, level {config.level}, on features {shape[1:]}",
        parameters,
        complexity.macs_by_module(codec.apply, variables, x, depth=1),
        feature_shape=list(shape[1:]),
    )


def _describe_face_detector(config: Any) -> dict[str, Any]:
    from jaxcomp.jobs import face

    return face.describe(config)


def _describe_lidar_detector(config: Any) -> dict[str, Any]:
    from jaxcomp.jobs import pointpillars

    return pointpillars.describe(config)


def _describe_codebooks(config: Any) -> dict[str, Any]:
    from jaxcomp.jobs import residual_vq

    return residual_vq.describe(config)


def _describe_jepa(config: Any) -> dict[str, Any]:
    from jaxcomp.jobs import jepa

    return jepa.describe(config)


# task -> what describes its config; those of other rooms import their workload when called.
DESCRIBERS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "detect": _describe_detector,
    "face": _describe_face_detector,
    "feature_codec": _describe_codec,
    "pointpillars": _describe_lidar_detector,
    "jepa": _describe_jepa,
    "residual_vq": _describe_codebooks,
    "token_codec": _describe_token_codec,
}


def describe_config(config: Any) -> dict[str, Any]:
    """Parameters and MACs per module of the network that a config trains, for one frame.

    Raises:
      ConfigError: the task has no description.
    """
    if config.task not in DESCRIBERS:
        raise ConfigError(f"config.task={config.task!r} cannot be inspected")
    return DESCRIBERS[config.task](config)


def _describe_unfinished(run: Path) -> dict[str, Any]:
    """The config of a run without a summary, and how far its checkpoints reach."""
    folder = run / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    steps = sorted(int(name) for name in names if name.isdigit())
    config = read_json(run / "config.json")
    if not config:
        raise CheckpointError(f"{str(run / 'config.json')!r} is damaged; copy the run again.")
    return {
        "state": "not finished; run its command again to go on",
        "checkpoint_steps": steps,
        "last_step": steps[-1] if steps else None,
        "config": config,
    }


def describe_file(path: Path) -> dict[str, Any]:
    """What a weights file (`.npz`), a stream (`.jxc`) or a run directory holds.

    Raises:
      CheckpointError: damaged weights or a damaged summary.
      BitstreamError: a damaged stream.
      DataError: the file is of no known kind.
    """
    if path.is_dir() and (path / "summary.json").exists():
        return read_summary(path)
    if path.is_dir() and (path / "config.json").exists():
        return _describe_unfinished(path)
    if path.suffix == ".jxc":
        description, errors = describe_stream(path)
        if errors:
            raise errors[0]
        return description
    if path.suffix == ".npz":
        tree, meta = weights_file.load_npz(path)
        leaves = trees.leaves_by_path(tree)
        return meta | {"leaves": {k: list(v.shape) for k, v in leaves.items()}}
    raise DataError(f"{str(path)!r} is neither a run directory nor a .npz nor a .jxc file")
