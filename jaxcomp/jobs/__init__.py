"""The workloads as the main command runs them: data, task, evaluation and files, wired together.

A new workload is one file here and one line in `JOBS`. This room may import every other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxcomp.config import nearest
from jaxcomp.data import DATASETS
from jaxcomp.errors import ConfigError


def _detect(config: Any) -> Any:
    from jaxcomp.jobs import detect

    return detect.build(config)


def _face(config: Any) -> Any:
    from jaxcomp.jobs import face

    return face.build(config)


def _feature_codec(config: Any) -> Any:
    from jaxcomp.jobs import feature_codec, pyramid_codec

    whole = config.model.name in pyramid_codec.TREATMENTS
    return (pyramid_codec if whole else feature_codec).build(config)


def _pointpillars(config: Any) -> Any:
    from jaxcomp.jobs import pointpillars

    return pointpillars.build(config)


def _residual_vq(config: Any) -> Any:
    from jaxcomp.jobs import residual_vq

    return residual_vq.build(config)


def _jepa(config: Any) -> Any:
    from jaxcomp.jobs import jepa

    return jepa.build(config)


def _token_codec(config: Any) -> Any:
    from jaxcomp.jobs import token_codec

    return token_codec.build(config)


# Builders import their workload when called, so that asking for help stays fast.
JOBS: Mapping[str, Callable[[Any], Any]] = {
    "jepa": _jepa,
    "detect": _detect,
    "face": _face,
    "feature_codec": _feature_codec,
    "pointpillars": _pointpillars,
    "residual_vq": _residual_vq,
    "token_codec": _token_codec,
}


def check_job(config: Any) -> None:
    """Refuses a config that names no workload or no data set, before anything is written.

    Raises:
      ConfigError: `config.task` or `config.data.name` is unknown.
    """
    if config.task == "sweep":
        raise ConfigError("a sweep is many runs: python launch/sweep.py --config=FILE")
    if config.task == "seeds":
        raise ConfigError("a table over seeds is many runs: python launch/seeds.py --config=FILE")
    if config.task not in JOBS:
        raise ConfigError(f"config.task={config.task!r}; {nearest(config.task, JOBS)}")
    name = config.data.name
    if name not in DATASETS:
        raise ConfigError(f"config.data.name={name!r}; {nearest(name, DATASETS)}")


def build_job(config: Any) -> Any:
    """The `Job` of a config.

    Raises:
      ConfigError: the config names no workload or no data set.
    """
    check_job(config)
    return JOBS[config.task](config)


def evaluate_saved(config: Any, workdir: str) -> bool:
    """Measures the weights that `config.evaluation` names; False if it names none.

    A point asked of a run (`--workdir=RUN --eval_num_codebooks=2`) is measured and printed; the
    run's own table stays what it is.

    Raises:
      ConfigError: residual codes without weights and without a run directory.
    """
    path = config.get("evaluation", {}).get("rq_ckpt", "")
    if not path and not workdir and config.task == "residual_vq":
        raise ConfigError(
            "--mode=eval of residual codes needs --rq_ckpt=FILE, the codebooks to measure (rq.npz, "
            "the file of a stage, or a run directory), or --workdir=RUN"
        )
    point = config.task == "residual_vq" and config.evaluation.use_num_codebook
    if not path and point:
        path, workdir = workdir, ""
    if path:
        from jaxcomp.jobs import rq_evaluate

        rq_evaluate.evaluate_checkpoint(config, path, workdir)
    return bool(path)


def check_training(config: Any) -> None:
    """Raises `ConfigError` for what only makes sense with --mode=eval."""
    path = config.get("evaluation", {}).get("rq_ckpt", "")
    if path:
        raise ConfigError(
            f"--rq_ckpt={path!r} names codebooks to measure: add --mode=eval, or drop it to train"
        )


# Folders of runs, as the documents name them, by model name or task.
FOLDERS: Mapping[str, str] = {
    "detect": "detection",
    "face": "face_detection",
    "jepa": "hjepa",
    "pointpillars": "lidar_detection",
    "residual_vq": "lidar_residual_codes",
    "token_codec": "hjepa_token_codec_level_{level}",
    "factorized_prior_joint": "fpn_joint_compression",
    "factorized_prior_random_level": "fpn_random_level_compression",
    "factorized_prior_specific_level": "fpn_specific_level_compression_level_{level}",
}


def run_location(config: Any) -> tuple[str, str]:
    """(root, name) of the folder that collects the runs of a config."""
    name = FOLDERS.get(config.model.name) or FOLDERS.get(config.task, config.task)
    return "checkpoints", name.format(level=config.level)
