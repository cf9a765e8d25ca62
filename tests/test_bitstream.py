"""The container: round trip, size of the header, and a typed error for every kind of damage."""

import pytest

from jaxcomp import errors
from jaxcomp.codecs import bitstream
from jaxcomp.codecs.bitstream import Stream

DIGEST = 0x0123456789ABCDEF
STREAM = Stream("p3", (48, 160), 4, 2, bytes(range(50)))


def _blob(streams=(STREAM,), meta=None):
    return bitstream.write("factorised", DIGEST, streams, meta)


def test_round_trip_with_metadata_and_several_streams():
    streams = (STREAM, Stream("", (1, 3000), 0, 64, b""), Stream("bev", (7, 21), 2, 1, b"abc"))
    meta = {"size": [375, 1242], "classes": ["Car"], "scale": 1.5}
    box = bitstream.read(_blob(streams, meta), digest=DIGEST, channels=192)
    assert (box.kind, box.digest, box.streams, box.meta) == ("factorised", DIGEST, streams, meta)
    assert [s.latent_shape for s in box.streams] == [(3, 10), (1, 3000), (2, 6)]


def test_one_stream_costs_little():
    assert len(_blob()) - len(STREAM.payload) == 25  # 24 for maps below 128 x 128
    assert bitstream.read(_blob()).header_bytes == 25


def test_golden_file():
    expected = "4a584301efcdab896745230110" + "027033" + "30" + "a001" + "41" + "02" + GOLDEN_CRC
    blob = _blob((Stream("p3", (48, 160), 4, 2, b"hi"),))
    assert blob.hex() == expected + "6869"


GOLDEN_CRC = "06e0e4b2"


def test_every_truncation_is_noticed():
    blob = _blob(meta={"a": 1})
    for size in range(len(blob)):
        with pytest.raises((errors.TruncatedStreamError, errors.CorruptStreamError)):
            bitstream.read(blob[:size])


def test_every_changed_byte_is_noticed():
    blob = _blob(meta={"a": 1})
    for position in range(len(blob)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(blob)
            damaged[position] ^= flip
            with pytest.raises(errors.BitstreamError):
                bitstream.read(bytes(damaged), digest=DIGEST)


def test_other_files_versions_tables_and_tails():
    blob = _blob()
    with pytest.raises(errors.VersionError, match=r"not \.jxc"):
        bitstream.read(b"\x89PNG" + blob[4:])
    with pytest.raises(errors.VersionError, match="version 2"):
        bitstream.read(blob[:3] + b"\x02" + blob[4:])
    with pytest.raises(errors.TableMismatchError, match="0123456789abcdef"):
        bitstream.read(blob, digest=1)
    with pytest.raises(errors.CorruptStreamError, match="follow"):
        bitstream.read(blob + b"\0")


def test_announced_size_is_limited_before_anything_is_allocated():
    blob = _blob((Stream("", (2**31, 2**31), 0, 1, b""),))
    with pytest.raises(errors.StreamTooLargeError, match="limit"):
        bitstream.read(blob, channels=192)
    bitstream.read(_blob(), channels=192, max_symbols=3 * 10 * 192)
    with pytest.raises(errors.StreamTooLargeError):
        bitstream.read(_blob(), channels=192, max_symbols=3 * 10 * 192 - 1)


def test_unwritable_streams_are_refused():
    with pytest.raises(errors.BitstreamError):
        _blob(())
    with pytest.raises(errors.BitstreamError):
        _blob([STREAM] * 16)
    with pytest.raises(errors.BitstreamError):
        _blob([Stream("", (0, 1), 0, 1, b"")])


def test_golden_file_of_the_short_form():
    blob = _blob((Stream("p4", (8, 26), 2, 0, b"abc"),))
    assert blob.hex().startswith(
        "4a584301efcdab896745230110" + "027034" + "08" + "1a" + "2f" + "03"
    )
    assert bitstream.read(blob).streams[0].lanes == 0
    assert len(blob) - 3 == 24


def test_hostile_streams_are_refused_before_anything_is_allocated():
    huge = Stream("", (1 << 20, 1 << 20), 0, 0, b"\x01")
    with pytest.raises(errors.StreamTooLargeError, match="limit"):
        bitstream.read(_blob((huge,)), channels=64)
    many = [Stream(str(i), (512, 512), 0, 0, b"\x01") for i in range(5)]
    with pytest.raises(errors.StreamTooLargeError):
        bitstream.read(_blob(many), channels=16)
    bitstream.read(_blob(many[:4]), channels=16)
    with pytest.raises(errors.CorruptStreamError, match="name"):
        bitstream.read(_blob((STREAM, STREAM)))


def test_deeply_nested_metadata_is_a_typed_error():
    body = b"[" * 100_000
    start = _blob(meta=[])
    assert bitstream.read(start).meta == []
    with pytest.raises(errors.CorruptStreamError, match="JSON"):
        bitstream._parse_meta(body)
