"""Trees of arrays by path: names of leaves, digests, and what differs between two trees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcomp.errors import CheckpointError
from jaxcomp.types import PyTree


def leaf_paths(tree: PyTree) -> list[str]:
    """The path of each leaf, as in `params/conv0/kernel`, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path, sorted by path."""
    return dict(sorted(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)))


def tree_digest(tree: PyTree) -> str:
    """SHA-256 (hex) over the sorted leaf paths, shapes, dtypes and little-endian bytes.

    Equal for equal arrays wherever they live (numpy, any device) and whichever mapping type holds
    them; different as soon as one bit differs.
    """
    sha = hashlib.sha256()
    for path, leaf in leaves_by_path(tree).items():
        array = np.asarray(leaf)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        sha.update(json.dumps([path, list(array.shape), array.dtype.name]).encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names, shapes and dtypes in which two flat trees differ, in words."""
    words = [f"{k} is missing" for k in wanted if k not in found]
    words += [f"{k} is unknown here" for k in found if k not in wanted]
    for key in found.keys() & wanted.keys():
        old, new = ((tuple(x.shape), np.dtype(x.dtype).name) for x in (found[key], wanted[key]))
        if old != new:
            words.append(f"{key} is {old[1]}{list(old[0])}, the model needs {new[1]}{list(new[0])}")
    return sorted(words)


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str | Path) -> None:
    """Raises `CheckpointError` naming the first differences of two trees given as leaves by path.

    Args:
      found: what the file holds.
      wanted: what the model needs.
      path: the file, for the message.
    """
    words = _differences(found, wanted)
    if words:
        more = f" and {len(words) - 3} more" if len(words) > 3 else ""
        raise CheckpointError(
            f"{str(path)!r} is of another model: {'; '.join(words[:3])}{more}. "
            "Give the config it was made with, or another path."
        )


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path as nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
