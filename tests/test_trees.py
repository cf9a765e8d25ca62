"""Digests of trees."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import trees

PINNED = "a8ad55b7e935d5d40bb96bd960d828008d0159d20b1707589def02cc06cd70d9"


def test_digest_is_stable_and_sensitive():
    tree = {"b": np.arange(3, dtype=np.float32), "a": {"c": np.zeros((2, 2), np.int32)}}
    # Pinned: stored digests of shipped weights must stay valid.
    assert trees.tree_digest(tree) == PINNED
    assert trees.tree_digest(jax.tree.map(jnp.asarray, tree)) == PINNED
    assert trees.tree_digest(tree | {"b": tree["b"].astype(">f4")}) == PINNED
    for other in (
        tree | {"b": np.nextafter(tree["b"], 9)},
        tree | {"b": tree["b"].astype(np.float64)},
        tree | {"b": tree["b"][None]},
        {"x": tree["b"], "a": tree["a"]},
    ):
        assert trees.tree_digest(other) != PINNED
