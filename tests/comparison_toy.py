"""Run directories of untrained codecs for the shipped detector, on a few tiny frames."""

import functools

import jax
import numpy as np

from jaxcomp import config as config_lib
from jaxcomp import loaders, weights_file
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles, with_statistics
from jaxcomp.codecs.tables import build_tables
from jaxcomp.models.fpn import LEVELS

SIZE = {"height": 64, "width": 96}
CHANNELS = 64


def config(kind, **training):
    """A config of tiny scenes: 4 frames to train on, 3 held out."""
    words = [f"data.{k}={v}" for k, v in {**SIZE, "train_size": 4, "val_size": 3}.items()]
    words.append("training.batch_size=2")
    words += [f"training.{k}={v}" for k, v in training.items()]
    return config_lib.load_config(f"configs/fpn_{kind}.py", words)


def save_run(folder, kind, rate_weight, seed, level=None, **training):
    """An untrained codec as a finished training leaves it; "level" with `level`."""
    folder.mkdir(parents=True)
    own = config(kind, rate_weight=rate_weight, **training)
    with own.unlocked():
        own.level = own.level if level is None else level
    (folder / "config.json").write_text(config_lib.to_json(own))
    _, variables, network, tables = model(CHANNELS * (5 if kind == "joint" else 1))
    analysis = jax.tree.map(lambda x: x + 0.01 * seed, variables["params"]["analysis"])
    variables = {**variables, "params": {**variables["params"], "analysis": analysis}}
    if kind == "random":
        stats = dict(variables["stats"])
        stats |= {"mean": np.zeros((5, CHANNELS), "f4"), "scale": np.ones(5, "f4")}
        variables = {**variables, "stats": stats}
    rule = ("resize", "height", "width", "min_side", "max_side")
    record = {
        "model": network, "rate_weight": rate_weight, "input": {k: own.data[k] for k in rule},
        "detector_digest": detector_digest(),
    }  # fmt: skip
    place = {"level": level} if kind == "level" else {"treatment": kind, "levels": LEVELS}
    tree = loaders.codec_tree(variables, tables)
    meta = {"kind": "codec", **place, **record}
    weights_file.export_npz(folder / loaders.CODEC_FILE, tree, meta)


@functools.cache
def detector_digest():
    """Of the shipped detector."""
    return loaders.load_detector().digest


@functools.cache
def model(channels):
    """(codec, variables, meta of the network, tables)."""
    meta = {"in_channels": channels, "n_hidden": 4, "n_channels": 3, "stages": 1}
    codec = FactorisedCodec(**meta)
    shapes = jax.eval_shape(codec.init, jax.random.key(0), jax.numpy.zeros((1, 8, 8, channels)))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype("f4"), dict(shapes))
    variables = refresh_quantiles(with_statistics(drawn, np.zeros(channels), 1.0))
    return codec, variables, meta, build_tables(codec, variables)
