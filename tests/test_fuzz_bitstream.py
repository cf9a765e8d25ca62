"""Damaged and hostile bytes: a typed error or exact results, in bounded time and memory."""

import struct
import tracemalloc

import fuzz_bitstream
import numpy as np
import pytest

from jaxcomp import errors
from jaxcomp.codecs import bitstream, chunks, rans
from jaxcomp.codecs.tables import CdfTables, tables_from_pmfs


def _check(rows):
    text = fuzz_bitstream.report(rows)
    assert all(row.allowed for row in rows), text
    assert all(row.tried and row.slowest < 2 for row in rows), text
    reached = {row.entry for row in rows}
    assert len(reached) == 12, text


def test_damage_is_refused_at_every_entry_point():
    _check(fuzz_bitstream.fuzz(flips=100, blobs=100))


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
