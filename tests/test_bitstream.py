"""The container: round trip, size of the header, and a typed error for every kind of damage."""

import time

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


LEVELS = (
    STREAM,
    Stream("p4", (24, 80), 4, 0, bytes(range(90, 130))),
    Stream("p5", (12, 40), 4, 1, b"\x07" * 200),
)


@pytest.mark.parametrize("meta", [None, {"a": 1}])
def test_damage_in_one_chunk_leaves_the_others(meta):
    """Any changed byte behind the file's header costs the chunk it is in and nothing else."""
    blob = _blob(LEVELS, meta)
    whole, errors_found = bitstream.salvage(blob, digest=DIGEST)
    assert (whole, errors_found) == (bitstream.read(blob), [])
    ends = [13, *(blob.index(s.payload) + len(s.payload) for s in LEVELS)]
    for position in range(13, len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 0x41
        box, found = bitstream.salvage(bytes(damaged), digest=DIGEST)
        assert found
        hit = sum(position >= end for end in ends[1:])
        in_meta = meta is not None and position < blob.index(b"\x02p3")
        assert box.meta == (None if in_meta else meta)
        expected = LEVELS if in_meta else LEVELS[:hit] + LEVELS[hit + 1 :]
        assert box.streams == expected, position


def test_a_truncated_file_keeps_its_whole_chunks():
    blob = _blob(LEVELS)
    ends = [blob.index(s.payload) + len(s.payload) for s in LEVELS]
    for size in range(13, len(blob)):
        box, found = bitstream.salvage(blob[:size])
        assert box.streams == LEVELS[: sum(size >= end for end in ends)]
        assert found


def test_salvage_tells_of_bytes_after_the_end():
    blob = _blob(LEVELS)
    box, found = bitstream.salvage(blob + b"junk", digest=DIGEST)
    assert box.streams == LEVELS
    assert [type(e) for e in found] == [errors.CorruptStreamError]
    assert "4 bytes" in str(found[0])


def test_salvage_refuses_what_it_cannot_trust():
    blob = _blob(LEVELS)
    with pytest.raises(errors.TableMismatchError):
        bitstream.salvage(blob, digest=1)
    with pytest.raises(errors.TruncatedStreamError):
        bitstream.salvage(blob[:12])
    box, found = bitstream.salvage(blob, channels=192, max_symbols=3 * 10 * 192)
    assert box.streams == LEVELS[:1]
    assert [type(e) for e in found] == [errors.StreamTooLargeError] * 2
    # A changed digest makes every checksum wrong: no stream of other tables gets through.
    other = blob[:5] + b"?" + blob[6:]
    assert not bitstream.salvage(other)[0].streams


def test_searching_a_large_hostile_file_is_bounded():
    """Everywhere a plausible chunk that spans the rest: each one would cost a checksum over it."""
    body = b"\x00\x01\x01\x00\xff\xff\x01" * 40_000
    blob = _blob((STREAM,))[:13] + body
    start = time.perf_counter()
    box, found = bitstream.salvage(blob)
    assert not box.streams
    assert found
    assert time.perf_counter() - start < 5
