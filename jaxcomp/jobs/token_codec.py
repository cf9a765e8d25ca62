"""Train a codec for the tokens of an H-JEPA, code every held-out picture, probe what comes back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import trees
from jaxcomp.codecs import factorised
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.tables import build_tables
from jaxcomp.data.pictures import Pictures, load_pictures
from jaxcomp.data.pipeline import array_splits, make_data_splits
from jaxcomp.evaluate.attentive_probe import AttentiveProbe
from jaxcomp.evaluate.probe import headline_scores, pool_tokens
from jaxcomp.evaluate.split import code_maps
from jaxcomp.jobs import token_features
from jaxcomp.jobs.feature_codec import initial_params, level_coder, network_record
from jaxcomp.jobs.frozen_features import digest_only
from jaxcomp.jobs.jepa_figures import stacked
from jaxcomp.jobs.job import Job, canvas_of, variables_of, write_arrays
from jaxcomp.loaders import CODEC_FILE, PyramidCodec, codec_tree, save_codec
from jaxcomp.loaders.token_head import KIND, TokenHead, feature_name
from jaxcomp.log import LOG
from jaxcomp.tasks.feature_codec import (
    LOSS_CONVENTION,
    FeatureCodecTask,
    codec_from_config,
    level_statistics,
)
from jaxcomp.tasks.token_distortion import TokenDistortion
from jaxcomp.train import FitResult
from jaxcomp.types import DataSplits

STATISTICS_BATCHES = 64  # enough pictures for means and covariances where features are not cached
Sets = Mapping[str, Pictures]


def build(config: Any) -> Job:
    """The job of a `configs/hjepa_codec.py` config."""
    head = token_features.frozen_head(config.hjepa.path)
    token_features.check_config(config, head)
    sets = load_pictures(config)
    cached = config.data.cache_features
    splits, sample = (_cached if cached else _streamed)(config, head, sets)
    task = FeatureCodecTask(
        codec_from_config(config.model),
        config.training.rate_weight,
        level_statistics([sample]),
        level=config.level,
        head=token_features.traced_head(head.model.cfg, config.level),
        frozen=digest_only(head) if cached else head.model.variables,
        tail=distortion_of(config, sample),
        initial=initial_params(config),
    )
    return Job(
        task=task,
        splits=splits,
        callbacks=(),
        evaluate=functools.partial(_evaluate, config, task, head, sets),
        fingerprint="-".join(sets[name].fingerprint[:16] for name in sets),
    )


def distortion_of(config: Any, sample: np.ndarray) -> TokenDistortion | None:
    """What judges the decoded tokens beside their squared error; None for that error alone."""
    names = ("feature_weight", "whitened_weight", "pooled_weight")
    weights = {name: float(config.training[name]) for name in names}
    if weights == {"feature_weight": 1.0, "whitened_weight": 0.0, "pooled_weight": 0.0}:
        return None
    return TokenDistortion.of(sample, **weights)


def _cached(config: Any, head: TokenHead, sets: Sets) -> tuple[DataSplits, np.ndarray]:
    """Batches of tokens that are made once, and those of the training pictures."""
    maps = {
        name: token_features.token_maps(
            head, sets[name], config, config.level, np.arange(len(sets[name]))
        )
        for name in ("train", "validation")
    }
    LOG.info(
        "Tokens of level %d of %d + %d pictures: %s each, %.0f MB.",
        *(config.level, len(maps["train"]), len(maps["validation"]), maps["train"].shape[1:]),
        sum(x.nbytes for x in maps.values()) / 1e6,
    )
    held, size = {"features": maps["validation"]}, config.training.batch_size
    return array_splits({"features": maps["train"]}, held, size, config.seed), maps["train"]


def _streamed(config: Any, head: TokenHead, sets: Sets) -> tuple[DataSplits, np.ndarray]:
    """Batches of pictures, and the tokens of some training ones."""

    def gather(pictures: Pictures, rows: np.ndarray, rng: Any) -> dict[str, np.ndarray]:
        del rng
        return {"image": stacked(pictures, config, rows)}

    pairs = [
        (functools.partial(gather, sets[name]), len(sets[name])) for name in ("train", "validation")
    ]
    size = config.training.batch_size
    rows = token_features.spread_rows(len(sets["train"]), STATISTICS_BATCHES * size)
    sample = token_features.token_maps(head, sets["train"], config, config.level, rows)
    splits = make_data_splits(*pairs, size, config.seed, config.data.num_threads)
    return splits, sample


def export(
    config: Any, codec: FactorisedCodec, variables: Any, head: TokenHead, path: Path
) -> PyramidCodec:
    """Builds the integer tables and writes `codec.npz`; returns the codec it holds."""
    record = {
        **network_record(config, codec),
        "level": config.level,
        "feature": feature_name(config.level),
        "detector": config.hjepa.path,
        "detector_kind": KIND,
        "detector_digest": head.digest,
        "input": {name: config.data[name] for name in ("height", "width")},
    }
    return save_codec(path, codec_tree(variables, build_tables(codec, variables)), record)


def recoded(codec: PyramidCodec, maps: np.ndarray, batch: int) -> np.ndarray:
    """What comes back from the bytes of maps [N, h, w, D]."""
    (level,), parts = codec.levels, []
    for start in range(0, len(maps), batch):
        blobs = codec.coder.compress_batch({level: maps[start : start + batch]})
        parts += [np.asarray(row[level]) for row in codec.coder.decompress_batch(blobs)]
    return np.concatenate(parts)


def token_list(maps: np.ndarray) -> np.ndarray:
    """Maps [N, h, w, D] as tokens [N, h w, D]."""
    return maps.reshape(len(maps), -1, maps.shape[-1])


Judge = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # held-out maps, labels -> accuracies


def fitted(maps: np.ndarray, labels: np.ndarray, attentive: int) -> Judge:
    """Probes that have learned from maps.

    Args:
      maps: [N, h, w, D].
      labels: [N].
      attentive: training rows of the attentive probe, 0 for none.

    Returns:
      A function of held-out maps [M, h, w, D] and their labels [M]: {"knn", "linear"} on the mean
      of the tokens, {"attentive"} on the tokens themselves.
    """
    tokens = token_list(maps)
    known = (pool_tokens(tokens), labels)
    probe = AttentiveProbe.fit(tokens[:attentive], labels[:attentive]) if attentive else None

    def judge(held: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
        tokens = token_list(held)
        scores = headline_scores(known, (pool_tokens(tokens), wanted))
        return scores | ({"attentive": probe.accuracy(tokens, wanted)} if probe else {})

    return judge


def probe_scores(
    uncoded: Judge, after: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], few: int
) -> dict[str, float]:
    """Accuracies on decoded held-out maps, by what the probes were fitted on.

    Args:
      uncoded: probes that have learned from uncoded maps.
      after: decoded maps, {"train": [N, h, w, D], "validation": [M, h, w, D]}.
      labels: {"train": [N], "validation": [M]}.
      few: training rows of the attentive probe.

    Returns:
      {"knn", ...} of those probes, {"refit_knn", ...} of such fitted on decoded maps.
    """
    test = (after["validation"], labels["validation"])
    anew = fitted(after["train"], labels["train"], few)(*test)
    return uncoded(*test) | {f"refit_{name}": value for name, value in anew.items()}


def probe_rows(config: Any, sets: Sets) -> tuple[Pictures, np.ndarray]:
    """The labelled training pictures of the probes, and which of them."""
    pictures = sets.get("probe", sets["train"])
    return pictures, np.arange(min(config.evaluation.probe_rows, len(pictures)))


def _evaluate(
    config: Any,
    task: FeatureCodecTask,
    head: TokenHead,
    sets: Sets,
    result: FitResult,
    workdir: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Real bytes of every held-out picture, and probes of what the files hold."""
    variables = variables_of(result.state.params, result.state.stats)
    variables = jax.tree.map(jnp.asarray, factorised.refresh_quantiles(variables))
    codec = export(config, task.codec, variables, head, workdir / CODEC_FILE)
    held = sets["validation"]
    maps = token_features.token_maps(head, held, config, config.level, np.arange(len(held)))
    decoded, metrics, arrays = code_maps(
        level_coder(codec), maps, workdir / "streams", size=canvas_of(config),
        pictures=config.evaluation.pictures, progress=progress,
    )  # fmt: skip
    write_arrays(workdir / "evaluation.npz", arrays)
    if held.classes:
        metrics |= _probed(config, head, codec, sets, maps, decoded)
    else:
        LOG.info("The pictures have no labels: no probes.")
    return {
        "classes": list(held.classes),
        "feature_shape": list(maps.shape[1:]),
        "params": factorised.parameter_count(variables),
        "params_digest": trees.tree_digest(result.state.params),
        "detector_digest": head.digest,
        "loss_convention": LOSS_CONVENTION,
        **metrics,
    }


def _probed(
    config: Any,
    head: TokenHead,
    codec: PyramidCodec,
    sets: Sets,
    maps: np.ndarray,
    decoded: np.ndarray,
) -> dict[str, float]:
    """Probes of uncoded and decoded features."""
    pictures, rows = probe_rows(config, sets)
    train = token_features.token_maps(head, pictures, config, config.level, rows)
    after = {"train": recoded(codec, train, config.training.batch_size), "validation": decoded}
    labels = {"train": pictures.labels[: len(rows)], "validation": sets["validation"].labels[:]}
    few = config.evaluation.attentive_rows
    uncoded = fitted(train, labels["train"], few)
    plain = {f"uncoded_{k}": v for k, v in uncoded(maps, labels["validation"]).items()}
    return plain | probe_scores(uncoded, after, labels, few)
