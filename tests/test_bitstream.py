"""The container: round trip, size of the header, and a typed error for every kind of damage."""

import dataclasses
import json
import math
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxcomp import errors
from jaxcomp.codecs import bitstream, chunks
from jaxcomp.codecs.bitstream import Stream

DIGEST = 0x0123456789ABCDEF
STREAM = Stream("p3", (48, 160), 4, 2, bytes(range(50)))


def _blob(streams=(STREAM,), meta=None, **limits):
    return bitstream.write("factorised", DIGEST, streams, meta, **limits)


ANY = {"max_symbols": 1 << 99}  # what only a hostile writer would write


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
    blob = _blob((Stream("", (2**31, 2**31), 0, 1, b""),), **ANY)
    with pytest.raises(errors.StreamTooLargeError, match="limit"):
        bitstream.read(blob, channels=192)
    bitstream.read(_blob(), channels=192, max_symbols=3 * 10 * 192)
    with pytest.raises(errors.StreamTooLargeError):
        bitstream.read(_blob(), channels=192, max_symbols=3 * 10 * 192 - 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (0, 1)}, "out of range"),
        ({"shape": (1, 2, 3)}, "two integers"),
        ({"shape": (1.5, 2)}, "two integers"),
        ({"shape": (1 << 35, 1)}, "2\\^35"),
        ({"shape": (1 << 24, 1 << 24)}, "limit"),
        ({"stages": 16}, "out of range"),
        ({"stages": -1}, "out of range"),
        ({"lanes": 3}, "lanes"),
        ({"lanes": 128}, "lanes"),
        ({"lanes": -1}, "lanes"),
        ({"name": "p" * 256}, "out of range"),
        ({"name": "\udc80"}, "UTF-8"),
    ],
)
def test_fields_that_the_format_cannot_hold_are_refused(changes, words):
    with pytest.raises(errors.BitstreamError, match=words):
        _blob([dataclasses.replace(STREAM, **changes)])


def test_unwritable_files_are_refused():
    with pytest.raises(errors.BitstreamError, match="0 streams"):
        _blob(())
    with pytest.raises(errors.BitstreamError, match="16 streams"):
        _blob([dataclasses.replace(STREAM, name=str(i)) for i in range(16)])
    with pytest.raises(errors.BitstreamError, match="two streams"):
        _blob([STREAM, STREAM])
    with pytest.raises(errors.BitstreamError, match="kind 'vq'"):
        bitstream.write("vq", DIGEST, [STREAM])
    for digest in (-1, 1 << 64, "ab"):
        with pytest.raises(errors.BitstreamError, match="64 bits"):
            bitstream.write("factorised", digest, [STREAM])


@pytest.mark.parametrize(
    "meta",
    [
        math.nan,
        {"scale": math.inf},
        {"scale": np.float32(1)},
        {1: "a"},
        {"a": {2: 3}},
        {"a": {1, 2}},
        {"a": b"x"},
        {"digits": 10**5000},
    ],
)
def test_metadata_that_json_would_change_are_refused(meta):
    with pytest.raises(errors.BitstreamError, match="metadata"):
        _blob(meta=meta)
    nested = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(errors.BitstreamError, match="metadata"):
        _blob(meta=nested)


_NUMBERS = st.one_of(
    st.integers(1, 300), st.integers(-1, 1 << 36), st.sampled_from([0, (1 << 35) - 1, 1 << 35])
)
_STREAMS = st.builds(
    Stream,
    name=st.one_of(
        st.sampled_from(["", "p2", "é", "\ud800"]),
        st.text(st.characters(exclude_categories=()), max_size=90),
    ),
    shape=st.tuples(_NUMBERS, _NUMBERS),
    stages=st.integers(-1, 17),
    lanes=st.one_of(st.sampled_from([0, 1, 2, 4, 64]), st.integers(-2, 130)),
    payload=st.binary(max_size=30),
)
_META = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
        st.just(np.float32(1.5)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)
# Mostly good values: else nearly every file would be refused.
_GOOD = st.builds(
    Stream,
    name=st.sampled_from(["", "p2", "p3", "é"]),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 3000)),
    stages=st.integers(0, 15),
    lanes=st.sampled_from([0, 1, 2, 64]),
    payload=st.binary(max_size=30),
)


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
@hypothesis.given(
    kind=st.sampled_from(["factorised", "factorised", "residual_vq", "other"]),
    digest=st.integers(0, 1 << 64),
    streams=st.lists(st.one_of(_GOOD, _GOOD, _GOOD, _STREAMS), max_size=4),
    meta=st.one_of(st.none(), _META),
    channels=st.sampled_from([1, 192]),
    limit=st.sampled_from([1000, bitstream.MAX_SYMBOLS]),
)
def test_what_is_written_is_read_and_what_is_not_read_is_not_written(
    kind, digest, streams, meta, channels, limit
):
    limits = {"channels": channels, "max_symbols": limit}
    try:
        blob = bitstream.write(kind, digest, streams, meta, **limits)
    except errors.BitstreamError:
        hypothesis.event("refused")
        return
    hypothesis.event("written")
    box = bitstream.read(blob, digest=digest, **limits)
    found = (box.kind, box.digest, box.streams, box.meta)
    assert found == (kind, digest, tuple(streams), meta)
    assert bitstream.salvage(blob, digest=digest, **limits) == (box, [])


def test_a_file_of_another_kind_is_refused_by_kind():
    blob = bitstream.write("residual_vq", DIGEST, [STREAM])
    assert bitstream.read(blob, kind="residual_vq").kind == "residual_vq"
    for read in (bitstream.read, bitstream.salvage):
        with pytest.raises(errors.TableMismatchError, match=r"'residual_vq', .* decodes 'fact"):
            read(blob, kind="factorised", digest=DIGEST)


def test_a_reader_from_before_a_kind_refuses_it_by_kind(monkeypatch):
    blob = bitstream.write("residual_vq", DIGEST, [STREAM])
    monkeypatch.setattr(chunks, "KINDS", {"factorised": 0})
    with pytest.raises(errors.VersionError, match="codec kind 1; this reader knows"):
        bitstream.read(blob)


def test_another_model_is_told_before_what_else_is_wrong():
    large = _blob((Stream("p2", (4096, 4096), 0, 0, b"\x01"),), channels=1)
    cut = _blob()[:-3]
    for blob in (large, cut, _blob(meta={"a": 1}) + b"tail"):
        with pytest.raises(errors.TableMismatchError):
            bitstream.read(blob, digest=1, channels=192)
    header = bytearray(_blob())  # not another model: damage to the digest itself
    header[5] ^= 1
    with pytest.raises(errors.CorruptStreamError, match="checksum"):
        bitstream.read(bytes(header), digest=DIGEST)


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
        bitstream.read(_blob((huge,), **ANY), channels=64)
    many = [Stream(str(i), (512, 512), 0, 0, b"\x01") for i in range(5)]
    with pytest.raises(errors.StreamTooLargeError):
        bitstream.read(_blob(many), channels=16)
    bitstream.read(_blob(many[:4]), channels=16)
    twice = _blob((STREAM,))[:12] + b"\x20"  # two streams
    twice += 2 * chunks.write_stream(twice, STREAM)
    with pytest.raises(errors.CorruptStreamError, match="name"):
        bitstream.read(twice)


def test_deeply_nested_metadata_is_a_typed_error():
    body = b"[" * 100_000
    start = _blob(meta=[])
    assert bitstream.read(start).meta == []
    with pytest.raises(errors.CorruptStreamError, match="JSON"):
        chunks.parse_meta(body)


def _nested(depth, kind):
    value = 1
    for _ in range(depth):
        value = {"a": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize("kind", [list, dict])
def test_metadata_are_nested_to_a_fixed_depth_alike_for_reader_and_writer(kind):
    deepest = _nested(chunks.MAX_DEPTH, kind)
    assert bitstream.read(_blob(meta=deepest)).meta == deepest
    for depth in (chunks.MAX_DEPTH + 1, 500, 900):
        with pytest.raises(errors.BitstreamError, match="metadata are nested more than 32 deep"):
            _blob(meta=_nested(depth, kind))
        body = json.dumps(_nested(depth, kind)).encode()
        with pytest.raises(errors.CorruptStreamError, match="nested more than 32 deep"):
            chunks.parse_meta(body)
    assert chunks.parse_meta(b'"' + b"[" * 100 + b'"') == "[" * 100  # text is no nesting


@pytest.mark.parametrize(
    "body",
    [
        b"NaN",
        b'{"a":-Infinity}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32"),
        b'\xef\xbb\xbf{"a":1}',
        b'"\xff"',
        b"",
    ],
)
def test_metadata_are_json_in_utf_8_and_nothing_else(body):
    with pytest.raises(errors.CorruptStreamError, match="not JSON in UTF-8"):
        chunks.parse_meta(body)
    assert chunks.parse_meta('{"a":"é"}'.encode()) == {"a": "é"}


LEVELS = (
    STREAM,
    Stream("p4", (24, 80), 4, 0, bytes(range(90, 130))),
    Stream("p5", (12, 40), 4, 1, b"\x07" * 200),
)


def test_nothing_is_lost_without_a_word_behind_a_large_damaged_chunk():
    """The header of the chunk is damaged: the others must be searched for, or missed aloud."""
    body = np.random.default_rng(0).bytes(1_200_000)
    blob = bytearray(_blob((Stream("p2", (416, 1344), 4, 8, body), *LEVELS)))
    blob[13] = 200  # the length of its name
    box, found = bitstream.salvage(bytes(blob))
    assert box.streams == LEVELS
    assert len(found) == 1 and "byte 13" in str(found[0])
    box, found = bitstream.salvage(bytes(blob), max_search=1 << 20)
    assert not box.streams
    assert "4 of 4 streams are lost" in str(found[-1]) and "max_search" in str(found[-1])


def test_every_missing_stream_is_accounted_for():
    blob = _blob(LEVELS)
    both = bytearray(blob)
    both[blob.index(LEVELS[0].payload)] ^= 1
    both[blob.index(b"p4") - 1] = 255  # the name's length: nothing says where the chunk ends
    box, found = bitstream.salvage(bytes(both))
    assert box.streams == LEVELS[2:]
    assert "'p3'" in str(found[0]) and "2 of 3 streams are lost; found: 'p5'" in str(found[-1])
    for size in range(13, len(blob)):
        box, found = bitstream.salvage(blob[:size])
        missing = len(LEVELS) - len(box.streams)
        assert len(found) >= missing or f"{missing} of 3 streams are lost" in str(found[-1])


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
    start = time.process_time()
    box, found = bitstream.salvage(blob, max_search=1 << 31)
    assert not box.streams
    assert "1 of 1 streams are lost" in str(found[-1])
    assert time.process_time() - start < 5
