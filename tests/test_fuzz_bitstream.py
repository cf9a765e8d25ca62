"""Damaged and hostile bytes: a typed error or exact results, in bounded time and memory."""

import os
import pathlib
import struct
import subprocess
import sys
import time
import tracemalloc

import fuzz_bitstream
import numpy as np
import pytest

from jaxcomp import errors
from jaxcomp.codecs import bitstream, chunks, coding, rans
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.tables import CdfTables, tables_from_pmfs

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _check(rows):
    text = fuzz_bitstream.report(rows)
    assert all(row.allowed for row in rows), text
    assert all(row.tried and row.slowest < 5 for row in rows), text
    reached = {row.entry for row in rows}
    assert len(reached) == 19, text


def test_damage_is_refused_at_every_entry_point():
    _check(fuzz_bitstream.fuzz(flips=25, blobs=25))


@pytest.mark.slow
def test_much_damage_is_refused_at_every_entry_point():
    _check(fuzz_bitstream.fuzz(flips=10_000, blobs=10_000))


def test_the_report_would_show_a_wrong_result():
    row = fuzz_bitstream.Row("bitstream.read", "flipped")
    row.count(["refused", "same"], 0.1)
    assert row.allowed
    row.count(["other"], 0.1)
    assert not row.allowed


def _peak(run):
    tracemalloc.start()
    try:
        with pytest.raises(errors.BitstreamError):
            run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


TABLES = tables_from_pmfs([[0.999999, 1e-6]] * 4, escape=1e-7)


def test_a_file_of_a_few_bytes_cannot_ask_for_memory():
    huge = bitstream.Stream("p2", ((1 << 35) - 1, (1 << 35) - 1), 0, 0, b"\x01")
    blob = bitstream.write("factorised", TABLES.digest, [huge], max_symbols=1 << 99)
    for read in (bitstream.read, lambda b, **k: _raise(*bitstream.salvage(b, **k)[1])):
        assert _peak(lambda read=read: read(blob, channels=192)) < 1 << 20


def _raise(error):
    raise error


_HOSTILE = """
import itertools, resource
import jax
import numpy as np
from jaxcomp import codecs, errors
from jaxcomp.codecs import bitstream, coding, rans
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles

codec = FactorisedCodec(3, 4, 4, stages=1)
x = np.zeros((1, 8, 8, 3), np.float32)
variables = refresh_quantiles(jax.jit(codec.init)(jax.random.key(0), x))
tables = codecs.build_tables(codec, variables)
model = coding.Model(codec, variables, tables)
for backend in rans.BACKENDS:  # all that is compiled and loaded once
    good = codecs.compress(*model, {"p2": x}, backend=backend)
    codecs.decompress(*model, good, backend=backend)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

(stream,) = bitstream.read(good).streams
before = peak()
cases = itertools.product(((1 << 35) - 1, 1 << 12, 3000), (0, 1, 64), rans.BACKENDS)
for size, lanes, backend in cases:  # the last size is below the limit of symbols
    payload = b"\\x01\\x02" * 300
    hostile = [bitstream.Stream("p2", (size, size), 1, lanes, payload)]
    blob = bitstream.write("factorised", coding.identity_of(model), hostile, max_symbols=1 << 99)
    for read in (codecs.decompress, codecs.decompress_partial):
        try:
            out, wrong = read(*model, blob, backend=backend)
            assert not out and wrong, "nothing was refused"
        except errors.BitstreamError:
            pass
print(peak() - before)
"""


def test_the_memory_of_a_process_stays_bounded_whatever_headers_announce(record_property):
    """Measured on the process itself, not on what Python allocates."""
    start = time.perf_counter()
    run = [sys.executable, "-c", _HOSTILE]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record_property("bytes", int(done.stdout))
    assert int(done.stdout) < 600 << 20
    assert time.perf_counter() - start < 100


def test_steps_are_limited_before_a_slow_backend_takes_them():
    """A payload of one byte that would keep plain numpy busy for minutes."""
    count, start = 1 << 24, time.process_time()
    with pytest.raises(errors.StreamTooLargeError, match="backend numba"):
        rans.decode(b"\x05", count, TABLES, 0, backend="numpy")
    with pytest.raises(errors.StreamTooLargeError, match="limit of 16777216"):
        rans.decode(b"\x05", count + 4, TABLES, 1)
    for lanes, steps in ((0, 4096), (1, 4096), (64, 64)):  # lanes take their steps together
        payload = b"\5" if lanes == 0 else b"\0" + b"\xff" * 4 * lanes
        job = (payload, 4096, TABLES, lanes)
        with pytest.raises(errors.StreamTooLargeError):
            rans.decode(*job, backend="numpy", max_steps=steps - 1)
        with pytest.raises((errors.CorruptStreamError, errors.TruncatedStreamError)):
            rans.decode(*job, backend="numpy", max_steps=steps)
    assert time.process_time() - start < 5


def test_the_streams_of_a_file_share_the_limit_of_steps():
    codec = FactorisedCodec(3, 4, 4, stages=0)
    model = coding.Model(codec, {"params": {}}, TABLES)
    streams = [bitstream.Stream(f"p{i}", (256, 256), 0, 0, b"\x05") for i in range(3)]
    blob = bitstream.write("factorised", coding.identity_of(model), streams)
    start = time.process_time()
    with pytest.raises(errors.StreamTooLargeError, match="786432 symbols after one another"):
        coding.decompress_batch_with(model, [blob], backend="numpy")
    assert time.process_time() - start < 2
    with pytest.raises(errors.CorruptStreamError, match="final states"):
        coding.decompress_batch_with(model, [blob])


def test_memory_follows_the_limit_of_symbols():
    """Symbols that cost nothing: a payload of one byte may announce the limit, and no more."""
    limit = 1 << 20
    for backend in ("numba", "jax"):
        rans.decode(b"\x01", 4, TABLES, rans.SHORT, backend=backend)  # its own start-up
        peak = _peak(
            lambda backend=backend: rans.decode(b"\x05", limit, TABLES, 0, backend=backend)
        )
        assert peak < 16 * limit


def test_hostile_tables_cannot_ask_for_memory():
    for channels, columns in ((1 << 14, 1 << 16), (1 << 31, 3), ((1 << 14) + 1, 3), (0, 3)):
        blob = struct.pack("<3sBBII", b"JXT", 1, 15, channels, columns) + bytes(1 << 10)
        assert _peak(lambda blob=blob: CdfTables.from_bytes(blob)) < 1 << 20


def test_hostile_metadata_is_limited():
    with pytest.raises(errors.StreamTooLargeError, match="metadata"):
        bitstream.write("factorised", 0, [bitstream.Stream("", (1, 1), 0, 0, b"\1")], ["x" * 2**20])
    body = b"[" + b"[],[]," * (1 << 18) + b"[]]"
    assert _peak(lambda: chunks.parse_meta(body)) < 1 << 20


def test_symbols_of_the_tables_must_fit_32_bits():
    blob = bytearray(tables_from_pmfs([[0.5, 0.5]], offset=5).to_bytes())
    blob[17:21] = struct.pack("<i", 2**31 - 2)
    with pytest.raises(errors.CorruptStreamError, match="32 bits"):
        CdfTables.from_bytes(bytes(blob))
    blob[17:21] = struct.pack("<i", -(2**31))
    tables = CdfTables.from_bytes(bytes(blob))
    symbols = np.asarray([[-(2**31)], [2**31 - 1]])
    payload, lanes = rans.encode(symbols, tables)
    for backend in rans.BACKENDS:
        assert rans.encode(symbols, tables, backend=backend) == (payload, lanes)
        out = rans.decode(payload, 2, tables, lanes, backend=backend)
        np.testing.assert_array_equal(out, symbols.ravel())
