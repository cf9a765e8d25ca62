"""Random codecs, small folders and a way to run commands, for the tests of the command line."""

import functools
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcomp import codecs, loaders, weights_file
from jaxcomp.cli import main as cli
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles

MODEL = {"in_channels": 64, "n_hidden": 4, "n_channels": 4, "stages": 1, "dtype": "float32"}


def make_codec(path, level, seed):
    """A codec of random weights; another seed has other tables."""
    codec = FactorisedCodec(**MODEL)
    x = jax.ShapeDtypeStruct((1, 8, 8, 64), np.float32)
    shapes = jax.eval_shape(codec.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    variables["stats"] = jax.tree.map(np.ones_like, variables["stats"])
    variables = refresh_quantiles(variables)
    tables = np.frombuffer(codecs.build_tables(codec, variables).to_bytes(), np.uint8)
    meta = {"kind": "codec", "level": level, "model": MODEL}
    meta["detector_digest"] = loaders.load_detector().digest
    weights_file.export_npz(path, {**variables, "tables": tables}, meta)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, one_detector):
    """codec0.npz … codec4.npz of the levels, and other.npz of P4 with other tables."""
    folder = tmp_path_factory.mktemp("weights")
    for level in range(5):
        make_codec(folder / f"codec{level}.npz", level, level)
    make_codec(folder / "other.npz", 2, 7)
    return folder


@pytest.fixture(scope="module")
def one_detector():
    """The commands load the same weights again and again: compile them once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders, "load_detector", functools.cache(loaders.load_detector))
        yield


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/{a,b}.png, photos/sub/c.png and junk, in the current directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        pixels = rng.integers(0, 255, (100, 150, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "notes.txt").write_text("junk")
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def features(tmp_path, monkeypatch):
    """p4.npy in the current directory; returns its array."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).normal(size=(6, 10, 64)).astype(np.float32)
    np.save("p4.npy", x)
    return x


def run(capsys, *argv):
    """(exit status, stdout, stderr) of a command."""
    status = cli([str(word) for word in argv])
    return (status, *capsys.readouterr())


def times(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def older(path):
    """Makes a file older than whatever is written now."""
    os.utime(path, (1e9, 1e9))


def flip(blob, position):
    return blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :]


def two_levels(codec, path):
    """A file of P4 and, coded alike, a second map under the name that codecs of P4 do not know."""
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 64)).astype(np.float32)
    model = (codec.codec, codec.variables, codec.tables)
    Path(path).write_bytes(codecs.compress(*model, {"p4": x, "p5": x}, {"k": 1}))
