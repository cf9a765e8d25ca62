"""Coded in one process, decoded in others that differ in everything but the format."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxcomp.codecs import bitstream, rans
from jaxcomp.codecs.tables import tables_from_pmfs

ROOT = pathlib.Path(__file__).resolve().parent.parent

DECODER = """
import hashlib, json, pathlib, sys
folder, backend = pathlib.Path(sys.argv[1]), sys.argv[2]
from jaxcomp.codecs import bitstream, rans
from jaxcomp.codecs.tables import CdfTables
tables = CdfTables.from_bytes((folder / "tables.jxt").read_bytes())
blob = (folder / "file.jxc").read_bytes()
streams = bitstream.read(blob, digest=tables.digest, channels=tables.channels).streams
sizes = [[*s.latent_shape, tables.channels] for s in streams]
out = rans.decode_each([s.payload for s in streams], [a * b * c for a, b, c in sizes], tables,
                       [s.lanes for s in streams], backend=backend)
again = rans.encode_batch([x.reshape(s) for x, s in zip(out, sizes)], tables, backend=backend)
jax = sys.modules.get("jax")
print(json.dumps({
    "symbols": [hashlib.sha256(x.astype("<i4").tobytes()).hexdigest() for x in out],
    "payloads": [[hashlib.sha256(p).hexdigest(), k] for p, k in again],
    "modules": sorted({"jax", "numba"} & set(sys.modules)),
    "devices": jax.device_count() if jax and backend == "jax" else 0,
    "x64": bool(jax and jax.config.jax_enable_x64),
}))
"""

DEVICES = "--xla_force_host_platform_device_count"
PROCESSES = {
    "numpy alone": ("numpy", {}, {"modules": []}),
    "numba": ("numba", {}, {"modules": ["numba"]}),
    "numba, one thread, not compiled before": (
        "numba",
        {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "NUMBA_CPU_NAME": "generic"},
        {},
    ),
    "jax": ("jax", {"XLA_FLAGS": ""}, {"devices": 1, "x64": False}),
    "jax, 8 devices, x64": (
        "jax",
        {"XLA_FLAGS": f"{DEVICES}=8", "JAX_ENABLE_X64": "1"},
        {"devices": 8, "x64": True},
    ),
    "jax, other flags, one thread": (
        "jax",
        {
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_cpu_enable_fast_math=true "
            "--xla_backend_optimization_level=0 intra_op_parallelism_threads=1",
            "OMP_NUM_THREADS": "1",
        },
        {"devices": 1},
    ),
}


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """Files coded here, in the test's process, and what every other one must find in them."""
    folder, rng = tmp_path_factory.mktemp("coded"), np.random.default_rng(0)
    spread = np.exp(rng.normal(0, 1, 24))
    rows = [np.exp(-np.abs(np.arange(-9, 10)) / s) for s in spread]
    tables = tables_from_pmfs(rows, offset=-9, escape=1e-3)
    sizes = {"p2": (64, 48), "p3": (13, 42), "p4": (7, 21), "p5": (1, 1)}
    maps = [np.round(rng.laplace(size=(*s, 24)) * spread).astype(np.int32) for s in sizes.values()]
    maps[2] = maps[2].clip(-9, 9)  # no escapes: the short form
    coded = rans.encode_batch(maps, tables)
    streams = [
        bitstream.Stream(name, size, 0, lanes, payload)
        for (name, size), (payload, lanes) in zip(sizes.items(), coded, strict=True)
    ]
    assert {s.lanes for s in streams} >= {0, 1}
    assert max(s.lanes for s in streams) > 1
    (folder / "tables.jxt").write_bytes(tables.to_bytes())
    (folder / "file.jxc").write_bytes(bitstream.write("factorised", tables.digest, streams))
    return folder, maps, coded


def _hex(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("process", PROCESSES)
def test_decodes_bit_for_bit_elsewhere(sent, process):
    folder, maps, coded = sent
    backend, changes, expected = PROCESSES[process]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    if "not compiled before" in process:
        env["NUMBA_CACHE_DIR"] = str(folder / "numba")
    run = [sys.executable, "-c", DECODER, str(folder), backend]
    done = subprocess.run(run, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["symbols"] == [_hex(m.astype("<i4").tobytes()) for m in maps]
    assert found["payloads"] == [[_hex(p), k] for p, k in coded]
    for key, value in expected.items():
        assert found[key] == value
