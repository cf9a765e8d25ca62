"""Train the codebooks of a lidar detector's features; measure bytes and accuracy of every point."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcomp import complexity, trees
from jaxcomp.codecs.residual_vq import checked_point
from jaxcomp.codecs.rq_stream import Point
from jaxcomp.data.lidar_records import LidarRecords
from jaxcomp.errors import CheckpointError, ConfigError
from jaxcomp.jobs import rq_grid
from jaxcomp.jobs.job import Job
from jaxcomp.jobs.pointpillars import lidar_data
from jaxcomp.jobs.rq_codec import with_encoder
from jaxcomp.jobs.rq_files import RQ_FILE, detector_record, load_rq, save_model, save_rows
from jaxcomp.jobs.rq_page import Pictures, write_page
from jaxcomp.jobs.rq_stages import StageAccuracy
from jaxcomp.loaders_lidar import LidarDetector, load_lidar_detector
from jaxcomp.log import LOG
from jaxcomp.tasks.pointpillars import loss_config
from jaxcomp.tasks.residual_vq import ResidualVqTask, RqConfig, rows_of
from jaxcomp.tasks.stages import StageSchedule
from jaxcomp.train import EpochSummary, FitResult

STAGES = "codebooks"  # the folder of the stages' files
HEADLINE = "map_3d_moderate_r40"


def build(config: Any) -> Job:
    """The job of a `configs/pointpillars_rq.py` config."""
    _check_asked(config)
    detector = frozen_detector(config)
    splits, records, voxelisers = lidar_data(config, detector.cfg)
    plan = schedule(config, splits.steps_per_epoch)
    weights, options = config.loss_weights, config.rq_model
    task = ResidualVqTask(
        detector.model,
        detector.variables,
        plan,
        RqConfig(
            **weights.to_dict(),
            decay=options.decay,
            revive=options.revive,
            train_head=options.train_head,
            candidates=options.candidates,
        ),
        loss_config(config.loss),
    )
    return Job(
        task=task,
        splits=splits,
        callbacks=(
            functools.partial(_write_epoch, config, plan, detector),
            StageAccuracy(plan, detector, records["validation"], config.evaluation.stage_frames),
        ),
        evaluate=functools.partial(_evaluate, config, plan, detector, records, voxelisers),
        fingerprint=splits.fingerprint,
    )


def _check_asked(config: Any) -> None:
    """Refuses a point that the codebooks to be trained will not hold, before they are."""
    shape = (config.model.n_codebook, schedule(config, 1).sizes[-1], 0)
    try:
        for point in asked_points(config, shape, shape[1:2]):
            checked_point(shape, point, "the run")
    except CheckpointError as error:
        raise ConfigError(f"config.evaluation: {error}") from error


def frozen_detector(config: Any) -> LidarDetector:
    """The detector whose features are quantised; an error names the ways to one."""
    try:
        detector = load_lidar_detector(config.detector.path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (config.detector.path; `python -m jaxcomp.main --config="
            "configs/pointpillars.py[:kitti]` trains one)"
        ) from error
    if tuple(config.classes) != detector.classes:
        raise CheckpointError(
            f"the detector {config.detector.path or '(shipped)'!r} finds {detector.classes}, the "
            f"config names {tuple(config.classes)}; give the classes of the file, in its order"
        )
    return detector


def schedule(config: Any, steps_per_epoch: int) -> StageSchedule:
    """The stages of a config; one stage of all codebooks in the legacy mode."""
    stages = config.progressive_learning
    steps = -(-steps_per_epoch // config.training.accumulation)
    if not stages.enabled:
        return StageSchedule(
            config.model.n_codebook, (config.rq_model.codebook_size,), config.training.epochs,
            stages.warmup_epochs, steps, joint=True,
        )  # fmt: skip
    return StageSchedule(
        config.model.n_codebook, tuple(stages.embedding_schedule), stages.embedding_stage_epochs,
        stages.warmup_epochs, steps, stages.previous,
    )  # fmt: skip


def _write_epoch(
    config: Any, plan: StageSchedule, detector: LidarDetector, summary: EpochSummary
) -> None:
    """The documented files of an epoch: `codebook_I_stage_S_{epoch_N,best,final}`, `global_best`.

    Told again after a kill, it writes the same files.
    """
    index, within = divmod(summary.epoch - 1, plan.stage_epochs)
    name, folder = plan.name(index), summary.workdir / STAGES
    rows = rows_of(summary.state.params, summary.state.stats)
    meta = {
        "stage": index,
        "stage_epoch": within + 1,
        "epoch": summary.epoch,
        "trained": plan.trained(index),
        "sizes": list(plan.sizes),
        "val": dict(summary.val),
        **detector_record(config.detector.path, detector, folder / name),
    }
    encoder = summary.state.params.get("encoder")
    save = functools.partial(save_rows, rows=rows, meta=meta, encoder=encoder)
    logging = config.logging
    if logging.save_stage_weights and (within + 1) % logging.ckpt_freq_epoch == 0:
        save(folder / f"{name}_epoch_{within + 1}.npz")
    if _is_best(folder / f"{name}_best.npz", summary):
        save(folder / f"{name}_best.npz")
    if summary.stage_over or summary.epoch == summary.epochs:
        save(folder / f"{name}_final.npz")
    if summary.best:
        save(folder / "global_best.npz")
    save(folder / "last.npz")


def _is_best(path: Path, summary: EpochSummary) -> bool:
    """Whether no earlier epoch of the stage, as far as the file tells, was better."""
    try:
        meta = load_rq(path)[2]
    except CheckpointError:
        return True
    return meta["epoch"] >= summary.epoch or summary.val["loss"] < meta["val"]["loss"]


def _evaluate(
    config: Any,
    plan: StageSchedule,
    detector: LidarDetector,
    records: Mapping[str, LidarRecords],
    voxelisers: Mapping[str, Any],
    result: FitResult,
    workdir: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Tables from training sweeps, then every point on the held-out ones.

    The codebooks are those of the last epoch: it alone has all rows, and earlier rows are the same
    as in every file before.
    """
    rows, _, last = load_rq(workdir / STAGES / "last.npz")
    original, detector = detector, with_encoder(detector, last["encoder"])
    quantiser = rq_grid.Quantiser(detector, rows)
    points = asked_points(config, rows.shape, plan.sizes)
    sizes = sorted({*plan.sizes, *(n for point in points for n in point)})
    LOG.info("Learning the tables of %d codebooks x %s.", len(rows), sizes)
    model, counts = rq_grid.learn_model(
        quantiser, records["train"], sizes, config.evaluation.table_frames
    )
    meta = {"sizes": list(plan.sizes), "seed": config.seed}
    meta |= detector_record(config.detector.path, original, workdir / RQ_FILE)
    save_model(workdir / RQ_FILE, model, meta, last["encoder"], counts)
    held_out = records["validation"]
    pictures = Pictures(detector.cfg, held_out, config.evaluation.pictures)
    table, kitti = rq_grid.measure(
        quantiser, model, held_out, points, counts=counts, anchors=config.evaluation.anchors,
        folder=workdir / "streams", keep=pictures.keep, progress=progress,
    )  # fmt: skip
    rq_grid.write_table(workdir, table)
    print(rq_grid.markdown(table), end="")
    write_page(workdir, table, counts, pictures, plan)
    best = max((r for r in table if r["system"] == "residual codes"), key=lambda r: r["bytes"])
    raw = next(r for r in table if r["system"] == rq_grid.UNCOMPRESSED)
    keys = [k for k in best if k.startswith("map_")]
    return {
        "frames": len(held_out),
        "classes": list(detector.classes),
        "grid": table,
        "kitti": {name: kitti[name] for name in (rq_grid.UNCOMPRESSED, best["name"])},
        "bytes_per_frame": best["bytes"],
        "raw_bytes_per_frame": raw["bytes"],
        "compression_ratio": raw["bytes"] / best["bytes"],
        "encode_ms": best["encode_ms"],
        "decode_ms": best["decode_ms"],
        "feature_shape": [*detector.cfg.grid.shape, int(rows.shape[2])],
        **{k: best[k] for k in keys},
        **{f"{k}_uncompressed": raw.get(k) for k in keys},
        "voxelised": {name: one.counts() for name, one in voxelisers.items()},
        "params": int(rows.size),
        "params_digest": trees.tree_digest({"rows": rows}),
        "detector_digest": original.digest,
        "weights_bytes": (workdir / RQ_FILE).stat().st_size,
    }


def asked_points(config: Any, shape: tuple[int, ...], sizes: Sequence[int]) -> list[Point]:
    """What `config.evaluation` asks for: one point, mixed or not, or the whole grid.

    Raises:
      ConfigError: as many numbers of embeddings as codebooks are needed, or one.
    """
    count, wanted = config.evaluation.use_num_codebook, config.evaluation.use_num_embedding
    if not count and not any(wanted):
        return rq_grid.grid_points(shape[0], sizes)
    if len(wanted) == 1:
        return [(wanted[0] or max(sizes),) * (count or shape[0])]
    if count not in (0, len(wanted)):
        raise ConfigError(
            f"config.evaluation.use_num_embedding={tuple(wanted)} for use_num_codebook={count}; "
            "give one number, or one for each codebook"
        )
    return [tuple(wanted)]


def describe(config: Any) -> dict[str, Any]:
    """Size of the codebooks and the cost of the search for a sweep of as many pillars as fit."""
    detector = frozen_detector(config)
    plan = schedule(config, 1)
    count, size, features = config.model.n_codebook, plan.sizes[-1], detector.cfg.encoder_features
    pillars = detector.cfg.max_pillars_eval
    return complexity.description(
        f"{count} codebooks of {size} x {features}, at most {pillars} pillars a sweep",
        {f"codebook{k}": size * features for k in range(count)},
        {f"codebook{k}": pillars * size * features for k in range(count)},
        stages=plan.stages,
        stage_names=[plan.name(i) for i in range(plan.stages)],
    )
