"""Train a hierarchical JEPA, export it, and probe its features level by level."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import complexity, trees
from jaxcomp.data.images import read_image
from jaxcomp.data.pictures import Pictures, fitted, load_pictures, mask_sampler, picture_splits
from jaxcomp.evaluate.mask_pictures import mask_picture
from jaxcomp.evaluate.probe import flat_scores, probe_features
from jaxcomp.interop.hjepa_weights import abstract_variables
from jaxcomp.jobs import jepa_figures
from jaxcomp.jobs.job import Job, export_weights, variables_of, write_arrays
from jaxcomp.loaders.files import find_file
from jaxcomp.loaders.hjepa import HJEPA_FILE, KIND, load_hjepa
from jaxcomp.log import LOG
from jaxcomp.models.hjepa import HJEPA, HJEPAConfig, init_variables
from jaxcomp.tasks.jepa import EMASchedule, JEPATask, hjepa_config, loss_config
from jaxcomp.train import INIT_STREAM, EpochSummary, FitResult
from jaxcomp.types import DataSplits, PyTree
from jaxcomp.workdir import atomic_write

MASKS_FILE = "masks.png"


def build(config: Any) -> Job:
    """The job of a `configs/hjepa.py` config."""
    cfg = hjepa_config(config)
    if config.model.pretrained:
        find_file(config.model.pretrained, HJEPA_FILE)  # before the data are read
    sampler = mask_sampler(config)
    sets = load_pictures(config)
    splits = picture_splits(config, config.training.batch_size, sets)
    task = JEPATask(
        HJEPA(cfg),
        loss_config(config.loss),
        ema_schedule(config, splits),
        max_masked=sampler.max_masked,
        max_context=sampler.max_context,
        initial=functools.partial(initial_variables, config.model.pretrained, cfg),
    )
    return Job(
        task=task,
        splits=splits,
        callbacks=(
            functools.partial(warn_of_collapse, config.alerts),
            functools.partial(_export_epoch, config),
        ),
        evaluate=functools.partial(_evaluate, config, sets),
        fingerprint=splits.fingerprint,
    )


def ema_schedule(config: Any, splits: DataSplits) -> EMASchedule:
    """The momentum over the optimiser steps of a run."""
    each = -(-splits.steps_per_epoch // config.training.accumulation)
    return EMASchedule(total_steps=config.training.epochs * each, **dict(config.ema))


def initial_variables(path: str, cfg: HJEPAConfig) -> PyTree | None:
    """Variables to start from, None for a random start.

    Raises:
      CheckpointError: the file is missing, broken or of another model.
    """
    if not path:
        return None
    variables = load_hjepa(path, cfg).variables
    trees.check_same(trees.leaves_by_path(variables), abstract_variables(cfg), path)
    LOG.info("Starting from %s.", path)
    return variables


def collapse_words(alerts: Any, val: Mapping[str, float]) -> tuple[str, ...]:
    """What is wrong with targets that hardly differ, or fill few directions; mostly nothing."""
    return tuple(
        f"collapse: {name}={val[name]:.3g} is below config.alerts.{name}={alerts[name]:g}; "
        "lower the learning rate or raise config.ema.start"
        for name in ("target_std", "target_rankme")
        if name in val and val[name] < alerts[name]
    )


def warn_of_collapse(alerts: Any, summary: EpochSummary) -> None:
    """Tells about a collapse after an epoch."""
    for line in collapse_words(alerts, summary.val):
        LOG.warning(line)


def extractor(cfg: HJEPAConfig) -> Callable[..., dict[str, Any]]:
    """A compiled function: (variables, images) -> features of the target encoder by name.

    "level{l}_mean" and "level{l}_max" [B, D] are pooled projected tokens, "encoder_mean" [B, D]
    those of the encoder before them.
    """

    def features(model: HJEPA, images: Any) -> dict[str, Any]:
        encoded = model._target(images)[:, 1:]
        out = {"encoder_mean": encoded.mean(1)}
        for level, tokens in enumerate(model.extract(images)):
            out |= {f"level{level}_mean": tokens.mean(1), f"level{level}_max": tokens.max(1)}
        return {k: v.astype(jnp.float32) for k, v in out.items()}

    return jax.jit(functools.partial(HJEPA(cfg).apply, method=features))


def extract_set(
    run: Callable[..., Mapping[str, Any]],
    variables: PyTree,
    pictures: Pictures,
    config: Any,
    limit: int,
) -> dict[str, np.ndarray]:
    """Features of the first `limit` pictures by name, [N, D]; also their "pixels"."""
    size, batch = (config.data.height, config.data.width), config.training.batch_size
    out: dict[str, list[np.ndarray]] = {}
    count = min(limit, len(pictures))
    for start in range(0, count, batch):
        images = [fitted(pictures.load(i), *size) for i in range(start, min(start + batch, count))]
        padded = np.stack(images + images[:1] * (batch - len(images)))
        found = {"pixels": padded.reshape(batch, -1) / np.float32(255), **run(variables, padded)}
        for name, value in found.items():
            out.setdefault(name, []).append(np.asarray(value)[: len(images)])
    return {name: np.concatenate(parts) for name, parts in out.items()}


def probe_network(
    cfg: HJEPAConfig, variables: PyTree, sets: Mapping[str, Pictures], config: Any, limit: int
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """(results by feature name, the features of both splits by that name)."""
    run = extractor(cfg)
    parts = {
        split: extract_set(run, variables, pictures, config, limit)
        for split, pictures in sets.items()
    }
    labels = {split: p.labels[:limit] for split, p in sets.items()}
    found = {}
    for name, test in parts["validation"].items():
        train = (parts["train"][name], labels["train"])
        found[name] = probe_features(train, (test, labels["validation"]))
    for level, accuracy in jepa_figures.attentive_scores(cfg, variables, sets, config).items():
        found[f"{level}_mean"]["attentive"] = accuracy
    return found, parts


def _evaluate(
    config: Any,
    sets: Mapping[str, Pictures],
    result: FitResult,
    workdir: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Probes of the *exported* weights, of the same network untrained, and of pixels."""
    path, cfg = workdir / HJEPA_FILE, hjepa_config(config)
    if not path.exists():
        variables = variables_of(result.state.params, result.state.stats)
        export_weights(path, variables, config, {"kind": KIND}, {})
    model = load_hjepa(path)
    _draw_masks(config, sets["validation"], workdir / MASKS_FILE)
    seen = (model.variables, sets["validation"], config, workdir / jepa_figures.ATTENTION_FILE)
    jepa_figures.draw_attention(cfg, *seen)
    metrics: dict[str, Any] = {"levels": cfg.num_hierarchies}
    if sets["validation"].classes:
        limit = config.evaluation.probe_rows
        sets = {**sets, "train": sets.get("probe", sets["train"])}
        sets = {name: sets[name] for name in ("train", "validation")}
        trained, features = probe_network(cfg, model.variables, sets, config, limit)
        nearby = {split: found["level0_mean"] for split, found in features.items()}
        jepa_figures.draw_neighbours(nearby, sets, config, workdir / jepa_figures.NEIGHBOURS_FILE)
        progress(1)
        rng = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
        untrained, _ = probe_network(cfg, init_variables(HJEPA(cfg), rng), sets, config, limit)
        progress(2)
        pixels = trained.pop("pixels")
        untrained.pop("pixels")
        metrics["probes"] = {"trained": trained, "initial": untrained, "pixels": pixels}
        metrics |= flat_scores(trained)
        metrics |= {f"initial_{k}": v for k, v in flat_scores(untrained).items()}
        metrics |= flat_scores({"pixels": pixels})
        held = features["validation"] | {"labels": sets["validation"].labels[:limit]}
        write_arrays(workdir / "features.npz", held)
        export_weights(path, model.variables, config, {"kind": KIND}, flat_scores(trained))
    else:
        LOG.info("The pictures have no labels: no probes.")
    files = (MASKS_FILE, jepa_figures.ATTENTION_FILE, jepa_figures.NEIGHBOURS_FILE)
    drawn = {
        Path(name).stem: read_image(workdir / name) for name in files if (workdir / name).exists()
    }
    write_arrays(workdir / "evaluation.npz", drawn)
    last = result.history[-1]["val"] if result.history else {}
    return {
        **metrics,
        "collapse": {k: last[k] for k in ("target_std", "target_rankme") if k in last},
        "frames": len(sets["validation"]),
        "params": model.parameters()["trainable"],
        "params_digest": trees.tree_digest(model.variables["params"]),
        "weights_bytes": path.stat().st_size,
    }


def _export_epoch(config: Any, summary: EpochSummary) -> None:
    """Writes the weights of an epoch; those of the last one stay.

    A loss against targets that move with the network does not say which epoch has the best
    features, so the file holds the last state and not the one of the lowest loss.
    """
    variables = variables_of(summary.state.params, summary.state.stats)
    path = summary.workdir / HJEPA_FILE
    export_weights(path, variables, config, {"kind": KIND}, {"epoch": summary.epoch})


def _draw_masks(config: Any, pictures: Pictures, path: Path) -> None:
    """A picture of held-out images and their masks."""
    sampler, count = mask_sampler(config), min(config.evaluation.pictures, len(pictures))
    if not count:
        return
    size = (config.data.height, config.data.width)
    images = np.stack([fitted(pictures.load(i), *size) for i in range(count)])
    masks = sampler.of_rows(config.data.seed, np.arange(count))
    atomic_write(path, mask_picture(images, masks["hidden"], masks["context"], sampler.grid))


def describe(config: Any) -> dict[str, Any]:
    """Parameters and MACs by module of a training forward pass on one image.

    The target encoder counts as parameters, though no gradient reaches it.
    """
    cfg, sampler = hjepa_config(config), mask_sampler(config)
    model = HJEPA(cfg)
    variables = jax.eval_shape(functools.partial(init_variables, model), jax.random.key(0))
    height, width = cfg.encoder.image_size
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    mask = jax.ShapeDtypeStruct((1, cfg.encoder.tokens), jnp.bool_)
    apply = functools.partial(
        model.apply, max_masked=sampler.max_masked, max_context=sampler.max_context
    )
    parameters = complexity.parameters_by_module(variables["params"], depth=1)
    target = sum(x.size for x in jax.tree.leaves(variables["target"]))
    trained = sum(parameters.values())
    counted = complexity.macs_by_module(apply, variables, image, mask, depth=1)
    # The target encoder is a network of its own, so that its parts appear at the top.
    macs = {name: counted.pop(name) for name in parameters if name in counted}
    macs["target_encoder"] = sum(counted.values())
    tokens = [math.prod(cfg.map_shape(level)) for level in range(cfg.num_hierarchies)]
    return complexity.description(
        f"{config.model.name} on {height}x{width}, one training forward pass",
        {**parameters, "target_encoder": target},
        macs,
        features={f"tokens{i}": [n, cfg.width] for i, n in enumerate(tokens)},
        trainable_parameters=trained,
        tokens={"hidden": sampler.max_masked, "context": sampler.max_context},
    )
