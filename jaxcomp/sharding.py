"""Where arrays live: one mesh axis "data", batches split along it, everything else replicated."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcomp.errors import ShapeError
from jaxcomp.types import Batch, PyTree


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (of all processes), axis "data"."""
    chosen = np.asarray(jax.devices() if devices is None else list(devices))
    return Mesh(chosen, ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of state and frozen parameters: a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Rows split over the mesh if they divide it, else replicated.

    Args:
      mesh: from `make_mesh`.
      rows: rows of the global batch.
    """
    split = rows % mesh.devices.size == 0
    return NamedSharding(mesh, PartitionSpec("data") if split else PartitionSpec())


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
    processes = jax.process_count()
    rows = {np.shape(x)[0] * processes for x in jax.tree.leaves(dict(batch)) if np.ndim(x)}
    if processes > 1 and any(n % mesh.devices.size for n in rows):
        raise ShapeError(
            f"batches of {sorted(rows)} rows cannot be shared out among {mesh.devices.size} "
            "devices; set config.training.batch_size to a multiple of their number"
        )

    def put(x: np.ndarray) -> jax.Array:
        x = np.asarray(x)
        if x.ndim == 0:
            return jax.device_put(x, replicated(mesh))
        sharding = batch_sharding(mesh, x.shape[0] * processes)
        if processes == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, dict(batch))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copies a tree to every device of the mesh; the result shares no buffer with `tree`."""
    return jax.tree.map(lambda x: jax.device_put(np.array(x), replicated(mesh)), tree)
