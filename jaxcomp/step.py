"""The train state and the pure training step; the loop around them is `jaxcomp.train`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcomp import optim, processes, sharding
from jaxcomp.types import Array, Batch, LossAux, PyTree, Task, TrainState

StepFn = Callable[[TrainState, PyTree, Batch, Array], tuple[TrainState, Mapping[str, Any]]]
_Gradients = Callable[[TrainState, PyTree, Batch, Array], tuple[PyTree, tuple[Array, LossAux]]]
_Apply = Callable[[TrainState, PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]
_Advance = Callable[[Array], tuple[Array, Array]]


def create_state(
    task: Task,
    tx: optax.GradientTransformation,
    rng: Array,
    batch: Batch,
    *,
    accumulation: int = 1,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[TrainState, PyTree]:
    """Makes the state of step 0.

    Args:
      task: the workload.
      tx: the optimiser.
      rng: key for `task.init`.
      batch: one batch of the training data (numpy).
      accumulation: micro-batches of one optimiser step.
      mesh: where to place the state; all devices by default.

    Returns:
      (state, frozen): the state as `sharding.state_sharding` says, the frozen parameters replicated
      over the mesh. They share no buffer with each other, so that the state may be donated.
    """
    mesh = mesh or sharding.make_mesh()
    params, stats, frozen = task.init(rng, batch)
    # The first thing that all devices do together waits for nobody longer than half a minute.
    processes.wait_for_all("the state")
    params = sharding.place(mesh, params)
    make = functools.partial(optim.init_optimiser, tx, accumulation=accumulation)
    where = sharding.state_shardings(mesh, jax.eval_shape(make, params))
    opt = jax.jit(make, out_shardings=where)(params)  # no device ever holds all of it
    step, stats = sharding.place(mesh, (jnp.int32(0), stats))
    state = TrainState(step=step, params=params, stats=stats, opt=opt)
    return state, sharding.replicate(mesh, frozen)


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    steps_per_epoch: int = 0,
    loss_scale: float = 1.0,
    skip_nonfinite: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> StepFn:
    """Compiles (lazily) one training step.

    Args:
      task: the workload.
      tx: the optimiser; it sees the mean gradient of the micro-batches of a step.
      accumulation: micro-batches of one optimiser step; clipping follows the accumulation.
      steps_per_epoch: batches of an epoch; a last, smaller group of micro-batches is applied too,
        as the mean of what it has. 0 if epochs do not matter.
      loss_scale: multiplies the loss before and divides the gradient after the backward pass, so
        that small float16 gradients survive.
      skip_nonfinite: leave the state unchanged where the loss or a gradient is not finite.
      mesh: where the state lives; all devices by default.

    Returns:
      `step(state, frozen, batch, seed) -> (state, metrics)`. The state is donated. Randomness
      depends on the seed and `state.step` (and the micro-batch) alone. `metrics` has the task's
      metrics and "loss", "grad_norm" (before clipping), "finite", "bad_leaf" (index of the first
      non-finite gradient leaf, -1 without), "lr" and "updated" (0 between optimiser steps). If the
      task has a function `gradient_group` (path of a parameter to the name of its group), they have
      "grad_norm_by", the norm of each group's gradient.
    """
    mesh = mesh or sharding.make_mesh()
    gradients = functools.partial(_gradients, task, loss_scale, mesh)
    apply = functools.partial(_apply, task, tx)
    if accumulation == 1:
        body = _simple(gradients, apply, skip_nonfinite)
    else:
        advance = functools.partial(_advance, accumulation, steps_per_epoch)
        body = _accumulating(gradients, apply, advance, skip_nonfinite)
    everywhere = sharding.replicated(mesh)
    if not sharding.is_sharded(mesh):
        return jax.jit(body, donate_argnums=0, out_shardings=everywhere)

    def sharded(state: TrainState, frozen: PyTree, batch: Batch, seed: Array) -> Any:
        new, metrics = body(state, frozen, batch, seed)
        return sharding.spread(mesh, new), metrics

    return jax.jit(sharded, donate_argnums=0, out_shardings=(None, everywhere))


def _simple(gradients: _Gradients, apply: _Apply, skip_nonfinite: bool) -> StepFn:
    """A step whose batch is that of an optimiser step."""

    def simple(state: TrainState, frozen: PyTree, batch: Batch, seed: Array) -> Any:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, (loss, aux) = gradients(state, frozen, batch, rng)
        checks = _checks(grads, loss)
        moved = state.replace(stats=aux.stats)
        params, stats, opt = apply(moved, state.opt, grads)
        new = TrainState(step=state.step + 1, params=params, stats=stats, opt=opt)
        if skip_nonfinite:
            new = _choose(checks["finite"], new, state)
        updated = checks["finite"].astype(jnp.float32) if skip_nonfinite else jnp.float32(1)
        return new, _report(aux, loss, checks, updated, new)

    return simple


def _accumulating(
    gradients: _Gradients, apply: _Apply, advance: _Advance, skip_nonfinite: bool
) -> StepFn:
    """A step that adds a micro-batch; the last one of its group makes the optimiser step."""

    def accumulating(state: TrainState, frozen: PyTree, batch: Batch, seed: Array) -> Any:
        old: optim.Accumulated = state.opt
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        rng = jax.random.fold_in(rng, old.position)
        grads, (loss, aux) = gradients(state, frozen, batch, rng)
        checks = _checks(grads, loss)
        good = checks["finite"] if skip_nonfinite else jnp.bool_(True)
        total = _choose(good, jax.tree.map(jnp.add, old.grads, grads), old.grads)
        batches = old.batches + good
        moved = state.replace(stats=_choose(good, aux.stats, state.stats))
        position, ends = advance(old.position)
        mean = jax.tree.map(lambda g: g / jnp.maximum(batches, 1).astype(g.dtype), total)
        norm = jnp.sqrt(jnp.sum(optim.leaf_sums_of_squares(mean)))

        def update() -> TrainState:
            params, stats, inner = apply(moved, old.inner, mean)
            zeros = jax.tree.map(jnp.zeros_like, total)
            opt = optim.Accumulated(inner, zeros, jnp.zeros_like(batches), position)
            return TrainState(step=state.step + 1, params=params, stats=stats, opt=opt)

        def wait() -> TrainState:
            return moved.replace(opt=optim.Accumulated(old.inner, total, batches, position))

        updated = ends & (batches > 0)
        new = jax.lax.cond(updated, update, wait)
        checks["grad_norm"] = jnp.where(checks["finite"], norm, checks["grad_norm"])
        return new, _report(aux, loss, checks, updated.astype(jnp.float32), new)

    return accumulating


def _gradients(
    task: Task,
    loss_scale: float,
    mesh: jax.sharding.Mesh,
    state: TrainState,
    frozen: PyTree,
    batch: Batch,
    rng: Array,
) -> tuple[PyTree, tuple[Array, LossAux]]:
    """(gradients, (loss, aux)) of a batch, neither of them scaled."""
    stats = sharding.gather(mesh, state.stats)

    def scaled(params: PyTree) -> tuple[Array, tuple[Array, LossAux]]:
        params = sharding.gather(mesh, params)
        loss, aux = task.loss(params, stats, frozen, batch, rng, state.step)
        return loss * loss_scale, (loss, aux)

    grads, (loss, aux) = jax.grad(scaled, has_aux=True)(state.params)
    grads = sharding.spread(mesh, grads)
    if loss_scale != 1.0:
        grads = jax.tree.map(lambda g: g / loss_scale, grads)
    group = getattr(task, "gradient_group", None)
    if group is not None:
        norms = {"grad_norm_by": group_norms(grads, group)}
        aux = aux.replace(metrics={**aux.metrics, **norms})
    return grads, (loss, aux)


def _apply(
    task: Task, tx: optax.GradientTransformation, state: TrainState, inner: PyTree, grads: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """(params, stats, optimiser's state) behind an optimiser step; `inner` is the one before it."""
    restart = getattr(task, "restart_optimiser", None)
    if restart is not None:
        inner = _choose(restart(state.step), tx.init(state.params), inner)
    updates, inner = tx.update(grads, inner, state.params)
    mask = task.update_mask(state.params, state.step)
    if mask is not None:
        updates = _masked(mask, updates)
    params = optax.apply_updates(state.params, updates)
    return params, task.after_update(params, state.stats, state.step + 1), inner


def _advance(accumulation: int, steps_per_epoch: int, position: Array) -> tuple[Array, Array]:
    """(position behind one more micro-batch, whether it ends a group); 0 behind an epoch."""
    position = position + 1
    ends = position % accumulation == 0
    if steps_per_epoch:
        ends |= position == steps_per_epoch
        position = jnp.where(position == steps_per_epoch, 0, position)
    return position, ends


def _report(
    aux: LossAux, loss: Array, checks: Mapping[str, Array], updated: Array, new: TrainState
) -> dict[str, Any]:
    """All metrics of a step."""
    lr = optim.get_learning_rate(new.opt)
    own = {"loss": loss, **checks, "updated": updated}
    return {**aux.metrics, **own, **({} if lr is None else {"lr": lr})}


def _masked(mask: PyTree, updates: PyTree) -> PyTree:
    """Updates times a mask whose leaves may stand for whole subtrees."""
    return jax.tree.map(
        lambda m, sub: jax.tree.map(lambda u: u * jnp.asarray(m, u.dtype), sub), mask, updates
    )


def _choose(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """One of two trees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def group_norms(grads: PyTree, group: Callable[[str], str]) -> dict[str, Array]:
    """Norm of the gradient of each group of parameters; `group` names that of a path."""
    squares: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = group("/".join(str(getattr(key, "key", key)) for key in path))
        squares[name] = squares.get(name, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    return {name: jnp.sqrt(total) for name, total in squares.items()}


def _checks(grads: PyTree, loss: Array) -> dict[str, Array]:
    """Gradient norm and where the first non-finite value is; one pass over the gradients."""
    squares = optim.leaf_sums_of_squares(grads)
    bad = ~jnp.isfinite(squares)
    first = jnp.where(jnp.any(bad), jnp.argmax(bad), -1)
    finite = jnp.isfinite(loss) & ~jnp.any(bad)
    return {"grad_norm": jnp.sqrt(jnp.sum(squares)), "bad_leaf": first, "finite": finite}
