"""Task: learn nested codebooks for the pillars of a lidar detector, stage by stage.

    sweep ── head (frozen) ──► pillars x ── residual VQ ──► x' ── scatter ── tail (frozen) ──► loss

    L = vq (stop(r) - q)^2 + codebook (r - stop(q))^2 + det * detection loss of x'

Only vectors of occupied pillars are quantised: the rest of the canvas stays zero and enters neither
statistics nor losses. A codebook row is the sum of two parts,

    row = base + delta      base: set by k-means at the start of a stage and moved by averages
                            delta: moved by gradients, zero before

because averages are state and gradients move parameters. Rows of finished stages keep both to the
bit: updates, not gradients, are masked, so that neither momentum nor weight decay reaches them.
Weight decay pulls a row towards its average, not towards zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp.codecs import residual_vq as rq
from jaxcomp.codecs.residual_vq import Codebooks
from jaxcomp.models.pointpillars import PointPillars
from jaxcomp.models.pointpillars_layers import scatter
from jaxcomp.ops.voxelise import pillars_of
from jaxcomp.tasks.pointpillars_loss import PointPillarsLossConfig, pointpillars_losses
from jaxcomp.tasks.stages import Stage, StageSchedule
from jaxcomp.types import Array, Batch, LossAux, Metrics, PyTree, Task

USAGE_DECAY = 0.98


@dataclasses.dataclass(frozen=True)
class RqConfig:
    """What is learned and how.

    Attributes:
      vq_weight: of the term that moves the rows.
      codebook_weight: of the commitment, which moves the head if it is trained and nothing else.
      det_weight: of the detection loss.
      decay: of the moving averages.
      revive: a row is dead below this share of the mean count; 0 revives none.
      train_head: train the pillar encoder too, by straight-through gradients.
      candidates: residuals that new rows are chosen from.
    """

    vq_weight: float = 0.25
    codebook_weight: float = 0.1
    det_weight: float = 0.8
    decay: float = 0.99
    revive: float = 0.02
    train_head: bool = False
    candidates: int = rq.CANDIDATES


class ResidualVqTask(Task):
    """Progressive training of the codebooks of `codecs.residual_vq` on a frozen detector.

    Batches are those of `tasks.pointpillars.PointPillarsTask`.
    """

    def __init__(
        self,
        model: PointPillars,
        variables: Mapping[str, PyTree],
        schedule: StageSchedule,
        config: RqConfig,
        loss: PointPillarsLossConfig,
    ):
        """Describes the task.

        Args:
          model: the detector.
          variables: its parameters and statistics; they travel beside the state.
          schedule: of the stages.
          config: weights and options.
          loss: of the detector.
        """
        self.model, self.schedule, self.config, self.loss_config = model, schedule, config, loss
        self.frozen = dict(variables)

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """Empty codebooks; the first step of a stage draws its rows from residuals."""
        del rng, batch
        count, size = self.schedule.codebooks, self.schedule.sizes[-1]
        books = rq.make_codebooks(count, size, self.model.cfg.encoder_features)
        params = {"delta": jnp.zeros_like(books.rows)}
        if self.config.train_head:
            params["encoder"] = jax.tree.map(jnp.array, self.frozen["params"]["encoder"])
        stats = {k: jnp.array(v) for k, v in books._asdict().items() if k != "frozen"}
        active = self.schedule.active(self.schedule.at(jnp.int32(0)))
        return params, stats | {"active": active}, self.frozen

    def vectors(self, params: PyTree, frozen: PyTree, batch: Batch) -> tuple[Array, Array]:
        """Pillars [B P, C] of a batch, and which of them exist, bool [B P]."""
        variables = frozen
        if self.config.train_head:
            own = {**frozen["params"], "encoder": params["encoder"]}
            variables = {**frozen, "params": own}
        pillars = pillars_of(batch)
        x = self.model.apply(variables, pillars, method="encode")
        real = (pillars.counts > 0) & (jnp.asarray(batch["mask"])[:, None] > 0)
        if not self.config.train_head:
            x = lax.stop_gradient(x)
        return x.reshape(-1, x.shape[-1]), real.reshape(-1)

    def detection_loss(self, frozen: PyTree, batch: Batch, total: Array) -> Array:
        """What the frozen tail loses on decoded pillars [B P, C]."""
        pillars, cfg = pillars_of(batch), self.model.cfg
        rows = total.reshape(*pillars.cells.shape, -1)
        canvas = scatter(rows, pillars.cells, cfg.grid)
        maps = self.model.apply(frozen, canvas, method="tail")
        return pointpillars_losses(maps, batch, cfg, self.loss_config)["total"]

    def loss(
        self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch, rng: Array, step: Array
    ) -> tuple[Array, LossAux]:
        """The loss of the stage; statistics and new rows come back as state."""
        schedule, config = self.schedule, self.config
        stage = schedule.at(step)
        active, free = schedule.active(stage), schedule.trainable(stage)
        x, real = self.vectors(params, frozen, batch)
        still = lax.stop_gradient(x), real
        books = self._books(stats, ~free)
        delta = lax.stop_gradient(params["delta"])
        first, second = jax.random.split(rng)
        books = lax.cond(
            stage.start,
            lambda b: self._initialised(b, delta, stage, active, *still, first),
            lambda b: b,
            books,
        )
        rows = books.rows + jnp.where(free[..., None], params["delta"], delta)
        out = rq.quantise(rows, x, real, active)
        books, revived = lax.cond(
            stage.warmup,
            lambda b: self._averaged(b, delta, stage, active, *still, out.indices, second),
            lambda b: (b, jnp.int32(0)),
            books,
        )
        for k in self._learning(stage):
            counts = rq.histogram(out.indices[k], real, rows.shape[1])
            books = rq.update_usage(books, k, counts, USAGE_DECAY)
        total = rq.straight_through(x, out.total) if config.train_head else out.total
        # Averages do not need the tail, which is most of the work.
        det = lax.cond(
            stage.warmup,
            lambda t: jnp.float32(0),
            lambda t: self.detection_loss(frozen, batch, t),
            total,
        )
        terms = self._terms(out, free, det)
        metrics = {k: v for k, v in terms.items() if k != "loss"} | self._usage(books, stage)
        metrics |= {"revived": revived, "stage_idx": stage.index, "codebook_idx": stage.codebook}
        metrics |= {"embed_size": stage.high, "warmup": stage.warmup}
        metrics["lr_scale"] = self._scale(stage)
        metrics = {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}
        new = {k: v for k, v in books._asdict().items() if k != "frozen"}
        return terms["loss"], LossAux(metrics=metrics, stats={**stats, **new})

    def _learning(self, stage: Stage) -> list[Any]:
        """The codebooks that learn."""
        return list(range(self.schedule.codebooks)) if self.schedule.joint else [stage.codebook]

    def _usage(self, books: Codebooks, stage: Stage) -> dict[str, Array]:
        """Use of the codebook that learns; where all do, of each ("perplexity/0") and the means."""
        reports = [rq.usage_report(books.usage[k], stage.high) for k in self._learning(stage)]
        if not self.schedule.joint:
            return reports[0]
        mean = jax.tree.map(lambda *values: sum(values) / len(values), *reports)
        each = {f"{name}/{k}": v for k, one in enumerate(reports) for name, v in one.items()}
        return mean | each

    def _books(self, stats: PyTree, frozen: Array) -> Codebooks:
        return Codebooks(*(stats[k] for k in ("rows", "counts", "sums", "usage")), frozen)

    def _initialised(
        self, books: Codebooks, delta: Array, stage: Stage, active: Array, x: Array, real: Array,
        rng: Array,
    ) -> Codebooks:  # fmt: skip
        """New rows from the residuals that the rows before them leave."""
        for i, k in enumerate(self._learning(stage)):
            rows = books.rows + delta
            before = jnp.where(jnp.arange(len(rows)) < k, active, 0)
            indices = rq.quantise(rows, x, real, before).indices
            residual = rq.residual_before(rows, x, indices, before, k)
            new = rq.initialise(
                books._replace(rows=rows), k, stage.low, stage.high, residual, real,
                jax.random.fold_in(rng, i), self.config.candidates,
            )  # fmt: skip
            books = new._replace(rows=jnp.where(books.frozen[..., None], books.rows, new.rows))
        return books

    def _averaged(
        self, books: Codebooks, delta: Array, stage: Stage, active: Array, x: Array, real: Array,
        indices: Array, rng: Array,
    ) -> tuple[Codebooks, Array]:  # fmt: skip
        """One step of k-means by moving averages, and dead rows revived."""
        revived, rows = jnp.int32(0), books.rows + delta
        for i, k in enumerate(self._learning(stage)):
            residual = rq.residual_before(rows, x, indices, active, k)
            own = indices[k]
            books = rq.ema_update(books, k, residual, own, real, self.config.decay)
            new, count = rq.revive(
                books._replace(rows=books.rows + delta), k, stage.high, residual, own, real,
                jax.random.fold_in(rng, i), self.config.revive,
            )  # fmt: skip
            books = new._replace(rows=jnp.where(books.frozen[..., None], books.rows, new.rows))
            revived += count
        return books, revived

    def _terms(self, out: rq.Quantised, free: Array, det: Array) -> dict[str, Array]:
        """The parts of the loss, unweighted, and their sum; vq over the codebooks that learn."""
        learns = free.any(1).astype(jnp.float32)
        share = learns / jnp.maximum(learns.sum(), 1.0)
        vq, codebook = (out.codebook_loss * share).sum(), (out.commitment * share).sum()
        config = self.config
        loss = config.vq_weight * vq + config.codebook_weight * codebook + config.det_weight * det
        return {"loss": loss, "vq_loss": vq, "codebook_loss": codebook, "det_loss": det}

    def eval_loss(self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """The same terms for the rows that take part now, as sums over real rows."""
        x, real = self.vectors(params, frozen, batch)
        out = rq.quantise(stats["rows"] + params["delta"], x, real, stats["active"])
        number = jnp.arange(self.schedule.codebooks)
        last = jnp.max(jnp.where(stats["active"] > 0, number, 0))
        learns = (number[:, None] == last) if not self.schedule.joint else (number[:, None] >= 0)
        terms = self._terms(out, learns, self.detection_loss(frozen, batch, out.total))
        terms["active_rows"] = stats["active"].sum().astype(jnp.float32)
        count = jnp.asarray(batch["mask"]).sum()
        return {name: value * count for name, value in terms.items()} | {"count": count}

    def after_update(self, params: PyTree, stats: PyTree, step: Array) -> PyTree:
        """Notes which rows take part, for validation."""
        del params
        return {**stats, "active": self.schedule.active(self.schedule.at(step - 1))}

    def end_of_stage(self, step: int) -> int:
        """Where the trainer goes on if the stage of a step does not get better any more."""
        return self.schedule.end(step)

    def restart_optimiser(self, step: Array) -> Array:
        """Whether Adam forgets everything before this step: where gradients begin in a stage.

        Its averages of new rows start at zero, but its bias correction would be that of a long run:
        the first steps of a later stage would be several times as large as the learning rate says.
        """
        now, before = self.schedule.at(step), self.schedule.at(jnp.maximum(step - 1, 0))
        return now.start | (jnp.asarray(before.warmup) & ~jnp.asarray(now.warmup))

    def _scale(self, stage: Stage) -> Array:
        """What the learning rate is multiplied by: nothing moves by gradients in a warm-up."""
        return jnp.where(stage.warmup, 0.0, stage.scale)

    def update_mask(self, params: PyTree, step: Array) -> PyTree | None:
        """Only new rows move, and only behind the warm-up; the cosine of the stage is in it too."""
        stage = self.schedule.at(step)
        scale = self._scale(stage)
        mask = {"delta": self.schedule.trainable(stage)[..., None] * scale}
        return mask | ({"encoder": scale} if "encoder" in params else {})


def rows_of(params: PyTree, stats: PyTree) -> np.ndarray:
    """The codebooks float32 [K, N, C] of a state."""
    return np.asarray(stats["rows"] + params["delta"], np.float32)
