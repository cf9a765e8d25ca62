"""Untrained pyramid codecs of every kind, written to files, and features for them."""

import functools

import jax
import numpy as np

from jaxcomp import codecs, loaders
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles, with_statistics
from jaxcomp.codecs.pyramid import pyramid_sizes
from jaxcomp.models.fpn import LEVELS

CHANNELS = 6
KINDS = ("level", "joint", "random", "assembled")
ODD = [(13, 21), (7, 11), (4, 6), (2, 3), (1, 2)]  # halves, rounded up
KITTI = pyramid_sizes((94, 311), 5)  # of 375 x 1242 pixels, a quarter of them and halves
LAWLESS = [(13, 21), (6, 10), (3, 5), (2, 2), (1, 1)]  # halves, rounded down


def features(sizes, frames=1, seed=0):
    """A pyramid {level: [B, H, W, C]}, smooth enough for an untrained codec to be exact on it."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(3 * i, 4.0, (frames, *size, CHANNELS)).astype(np.float32)
        for i, (name, size) in enumerate(zip(LEVELS, sizes, strict=True))
    }


def model(seed, channels=CHANNELS):
    """(codec, variables, meta of the network)."""
    meta = {"in_channels": channels, "n_hidden": 5, "n_channels": 4, "stages": 1}
    codec = FactorisedCodec(**meta)
    x = jax.numpy.zeros((1, 8, 8, channels))
    shapes = jax.eval_shape(codec.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)
    draw = functools.partial(rng.normal, 0, 0.3)
    variables = jax.tree.map(lambda s: draw(s.shape).astype(np.float32), dict(shapes))
    mean, scale = rng.normal(0, 1, channels), 1 + rng.random()
    return codec, refresh_quantiles(with_statistics(variables, mean, scale)), meta


def save(kind, path):
    """A codec of the kind, written and read back."""
    if kind == "assembled":
        parts = [save_level(level, path.with_suffix(f".{level}.npz")) for level in range(5)]
        return loaders.assemble_pyramid(parts, path)
    if kind == "level":
        return save_level(2, path)
    codec, variables, meta = model(3, CHANNELS * (5 if kind == "joint" else 1))
    tables = codecs.build_tables(codec, variables)
    if kind == "random":
        stats = dict(variables["stats"])
        stats["mean"] = np.stack([np.full(CHANNELS, 3.0 * i, "f4") for i in range(5)])
        stats["scale"] = np.linspace(1, 5, 5, dtype="f4")
        variables = {**variables, "stats": stats}
    record = {"treatment": kind, "levels": LEVELS, "model": meta}
    return loaders.save_codec(path, loaders.codec_tree(variables, tables), record)


def save_level(level, path):
    """A codec of one level, with tables of its own."""
    codec, variables, meta = model(10 + level)
    tree = loaders.codec_tree(variables, codecs.build_tables(codec, variables))
    return loaders.save_codec(path, tree, {"level": level, "model": meta})
