"""Where arrays live: a mesh of axes "data" and "fsdp", batches split over both.

With `config.mesh.fsdp` = 1, the default, every device holds the whole state. With N it is fully
sharded data parallel (Rajbhandari et al., "ZeRO", 2020, stage 3): each group of N neighbouring
devices shares out one copy of the train state (parameters, moments of the optimiser, averages),
every array along its largest axis that N divides. A step gathers the parameters for the loss and
brings the gradients back to the shards; the update is computed on them. Frozen parameters and what
has no such axis or is small stay whole on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcomp import processes
from jaxcomp.errors import ConfigError, ShapeError
from jaxcomp.types import Batch, PyTree

ROWS = PartitionSpec(("data", "fsdp"))  # of a batch
SMALLEST = 1024  # elements; to gather fewer costs more than to keep them


def make_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """A mesh [devices / fsdp, fsdp] of axes "data" and "fsdp".

    Args:
      devices: all (of all processes) by default. Neighbours share a copy of the state, so those of
        one process do if `fsdp` is not more than it has.
      fsdp: devices of such a group.

    Raises:
      ConfigError: `fsdp` does not divide the number of devices.
    """
    chosen = np.asarray(jax.devices() if devices is None else list(devices))
    if chosen.size % fsdp:
        valid = [n for n in range(1, chosen.size + 1) if chosen.size % n == 0]
        raise ConfigError(
            f"config.mesh.fsdp={fsdp} does not divide the number of devices, {chosen.size}; "
            f"give one of {', '.join(map(str, valid))}"
        )
    return Mesh(chosen.reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def is_sharded(mesh: Mesh) -> bool:
    """Whether the state is shared out on this mesh."""
    return mesh.shape["fsdp"] > 1


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device: frozen parameters, metrics, small arrays."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Where an array of the train state lives; depends on its shape alone.

    So moments and averages of a parameter lie where the parameter does.
    """
    parts = mesh.shape["fsdp"]
    axes = [i for i, n in enumerate(shape) if n and n % parts == 0]
    if parts == 1 or not axes or math.prod(shape) < SMALLEST:
        return replicated(mesh)
    axis = max(axes, key=lambda i: (shape[i], i))
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))


def state_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """`state_sharding` of every leaf."""
    return jax.tree.map(lambda x: state_sharding(mesh, np.shape(x)), tree)


def spread(mesh: Mesh, tree: PyTree) -> PyTree:
    """Inside jit: the arrays of a train state, or gradients, in their shards."""
    if not is_sharded(mesh):
        return tree
    return jax.lax.with_sharding_constraint(tree, state_shardings(mesh, tree))


def gather(mesh: Mesh, tree: PyTree) -> PyTree:
    """Inside jit: the arrays of a train state whole on every device, for computing with them."""
    if not is_sharded(mesh):
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def whole(tree: PyTree) -> PyTree:
    """A state as arrays of this process alone; call it in all processes.

    What is replicated stays on the devices; what is shared out comes to the host as numpy arrays,
    one at a time.
    """

    def one(x: object) -> object:
        if not isinstance(x, jax.Array) or x.is_fully_replicated:
            return processes.local(x)
        if x.is_fully_addressable:
            return np.asarray(x)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Rows split over all devices of the mesh if they divide it, else replicated.

    Args:
      mesh: from `make_mesh`.
      rows: rows of the global batch.
    """
    split = rows % mesh.devices.size == 0
    return NamedSharding(mesh, ROWS if split else PartitionSpec())


def put_batch(mesh: Mesh, batch: Batch) -> Batch:
    """A host batch as global arrays.

    Args:
      mesh: from `make_mesh`.
      batch: numpy arrays [B, ...]; with several processes, each gives its own B rows.

    Returns:
      The same keys with jax arrays, sharded along the first axis where it divides.

    Raises:
      ShapeError: with several processes it must divide, and does not.
    """
    count = processes.count()
    rows = {np.shape(x)[0] * count for x in jax.tree.leaves(dict(batch)) if np.ndim(x)}
    if count > 1 and any(n % mesh.devices.size for n in rows):
        raise ShapeError(
            f"batches of {sorted(rows)} rows cannot be shared out among {mesh.devices.size} "
            "devices; set config.training.batch_size to a multiple of their number"
        )

    def put(x: np.ndarray) -> jax.Array:
        x = np.asarray(x)
        if x.ndim == 0:
            return jax.device_put(x, replicated(mesh))
        sharding = batch_sharding(mesh, x.shape[0] * count)
        if count == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, dict(batch))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copies a tree to every device of the mesh; the result shares no buffer with `tree`."""
    return jax.tree.map(lambda x: jax.device_put(np.array(x), replicated(mesh)), tree)


def place(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copies a part of a train state to where it lives; the result shares no buffer with `tree`."""
    return jax.tree.map(
        lambda x: jax.device_put(np.array(x), state_sharding(mesh, np.shape(x))), tree
    )
