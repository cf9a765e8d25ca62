"""Weights as one file: round trips, damage, and what does not fit."""

import io
import os
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import checkpoint, trees, weights_file
from jaxcomp.errors import CheckpointError


def test_npz_round_trip_keeps_bits_and_meta(tmp_path):
    tree = {
        "params": {"w": jnp.linspace(0, 1, 7, dtype=jnp.bfloat16), "s": np.float16(3.0)},
        "table": np.arange(5, dtype=np.uint32),
    }
    digest = weights_file.export_npz(tmp_path / "w.npz", tree, {"level": 2})
    loaded, meta, again = checkpoint.load_frozen(tmp_path / "w.npz")
    assert meta == {"level": 2, "digest": digest} and again == digest
    assert loaded["params"]["w"].dtype == jnp.bfloat16
    assert trees.tree_digest(loaded) == digest == trees.tree_digest(tree)
    assert os.listdir(tmp_path) == ["w.npz"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_broken_npz_is_a_clear_error(tmp_path, keep):
    path = tmp_path / "w.npz"
    weights_file.export_npz(path, {"w": np.arange(1000.0)}, {})
    size = path.stat().st_size
    os.truncate(path, int(size * keep) if isinstance(keep, float) else (keep + size) % size)
    with pytest.raises(CheckpointError, match=r"w\.npz"):
        weights_file.load_npz(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "w.npz"
    weights_file.export_npz(path, {"w": np.random.default_rng(0).random(1000)}, {})
    blob = bytearray(path.read_bytes())
    blob[3000] ^= 4
    path.write_bytes(blob)
    with pytest.raises(CheckpointError):
        weights_file.load_npz(path)


def test_a_full_disk_is_a_checkpoint_error(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        weights_file.export_npz(tmp_path / "w.npz", {"w": np.zeros(3)}, {})
    assert os.listdir(tmp_path) == []


def test_an_array_larger_than_its_file_is_refused(tmp_path):
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"1234")
    with pytest.raises(CheckpointError, match="ValueError"):
        weights_file.load_npz(tmp_path / "evil.npz")
