"""Quantised sweeps as files: lossless, cut anywhere between codebooks, sound on damage."""

import hashlib
import json
import pathlib
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import rq_toy

from jaxcomp.codecs import bitstream
from jaxcomp.codecs import rq_stream as rs
from jaxcomp.errors import (
    BitstreamError,
    CheckpointError,
    ShapeError,
    StreamTooLargeError,
    TableMismatchError,
)
from jaxcomp.jobs import rq_files

settings = hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
MODEL = rq_toy.model()
points = st.lists(st.sampled_from(rq_toy.SIZES), min_size=1, max_size=3)


def same(a, b):
    assert a.point == b.point
    np.testing.assert_array_equal(a.dense(), b.dense())


@settings
@hypothesis.given(
    seed=st.integers(0, 2**16), point=points,
    shape=st.sampled_from([rq_toy.SHAPE, (1, 1), (3, 50), (40, 2)]),
)  # fmt: skip
def test_every_point_of_every_map_comes_back(seed, point, shape):
    frame = rq_toy.frame(np.random.default_rng(seed), point, shape)
    same(rs.decompress(rs.compress(frame, MODEL), MODEL), frame)


def test_an_empty_and_a_full_map_come_back():
    for share in (0, 1):
        occupied = np.full(rq_toy.SHAPE, bool(share))
        frame = rs.Frame(occupied, np.ones((2, occupied.sum()), np.int32), (4, 4))
        same(rs.decompress(rs.compress(frame, MODEL), MODEL), frame)


@settings
@hypothesis.given(seed=st.integers(0, 2**16), data=st.data())
def test_a_file_cut_after_k_codebooks_is_the_point_of_k_codebooks(seed, data):
    frame = rq_toy.frame(np.random.default_rng(seed), (8, 4, 8))
    blob = rs.compress(frame, MODEL)
    ends, position = [], 13
    for stream in bitstream.read(blob).streams:
        position = blob.index(stream.payload, position) + len(stream.payload)
        ends.append(position)
    assert ends[-1] == len(blob)
    at = data.draw(st.integers(ends[0], len(blob)))
    whole = sum(end <= at for end in ends) - 1
    found, errors = rs.decode_prefix(blob[:at], MODEL)
    same(found, frame.prefix(whole))
    assert bool(errors) == (at < len(blob))
    # The features of the cut file are, to the bit, those of the k-codebook point.
    small = rs.decompress(rs.compress(frame.prefix(whole), MODEL), MODEL) if whole else found
    np.testing.assert_array_equal(rs.features(found, MODEL.rows), rs.features(small, MODEL.rows))


@settings
@hypothesis.given(data=st.data())
def test_damage_gives_typed_errors_and_never_wrong_features(data):
    frame = rq_toy.frame(np.random.default_rng(1), (8, 8, 4))
    blob = bytearray(rs.compress(frame, MODEL))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blob) - 1))
        if data.draw(st.booleans()):
            blob[at] ^= data.draw(st.integers(1, 255))
        else:
            del blob[at : at + data.draw(st.integers(1, 9))]
    if bytes(blob) != rs.compress(frame, MODEL):
        with pytest.raises(BitstreamError):
            rs.decompress(bytes(blob), MODEL)
    try:
        found, _ = rs.decode_prefix(bytes(blob), MODEL)
    except BitstreamError:
        return
    same(found, frame.prefix(len(found.point)))


@settings
@hypothesis.given(data=st.data())
def test_repaired_checksums_do_not_help_an_attacker(data):
    """Valid containers with hostile payloads, names and shapes: typed errors, bounded work."""
    streams = [bitstream.Stream(
        data.draw(st.sampled_from(["occupancy", "0.8", "1.4", "0.9", "x", "0.88888888888888"])),
        data.draw(st.sampled_from([(24, 40), (1, 1), (1 << 20, 1 << 20), (7, 3)])), 0,
        data.draw(st.sampled_from([0, 1])), data.draw(st.binary(max_size=40)),
    ) for _ in range(data.draw(st.integers(1, 4)))]  # fmt: skip
    unique = list({s.name: s for s in streams}.values())
    blob = bitstream.write(rs.KIND, MODEL.digest, unique, max_symbols=1 << 60)
    for decode in (rs.decompress, rs.decode_prefix):
        try:
            decode(blob, MODEL)
        except (BitstreamError, StreamTooLargeError):
            continue


def test_a_grid_beyond_the_limit_is_refused_before_it_is_decoded():
    blob = rs.compress(rq_toy.frame(np.random.default_rng(0), (4,)), MODEL)
    for decode in (rs.decompress, rs.decode_prefix):
        with pytest.raises(StreamTooLargeError, match="at most 900 cells"):
            decode(blob, MODEL, max_cells=900)


def test_values_are_limited_before_anything_is_allocated():
    """Wide codebooks: a grid within the limit of cells may stand for too many values."""
    wide = rq_toy.model(codebooks=1, sizes=(4,))
    wide = rs.RqModel(np.repeat(wide.rows, 26, 2), wide.classes, wide.occupancy, wide.tables)
    shape = (2048, 1024)  # half the limit of cells; 130 channels
    assert shape[0] * shape[1] < rs.MAX_CELLS
    streams = [bitstream.Stream(name, shape, 0, 0, b"\1") for name in ("occupancy", "0.4")]
    blob = bitstream.write(rs.KIND, wide.digest, streams)
    decoders = [rs.decompress, rs.decode_prefix, lambda *a, **k: rs.prefix(*a, 1, **k)]
    for decode in decoders:
        tracemalloc.start()
        with pytest.raises(StreamTooLargeError, match="130 channels; at most 268435456 values"):
            decode(blob, wide)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
    small = rs.compress(rq_toy.frame(np.random.default_rng(0), (4,)), wide)
    values = rq_toy.SHAPE[0] * rq_toy.SHAPE[1] * 130
    for decode in decoders:
        decode(small, wide, max_values=values)
        with pytest.raises(StreamTooLargeError, match="raise max_values"):
            decode(small, wide, max_values=values - 1)
    empty = rs.Frame(np.zeros(shape, bool), np.zeros((1, 0), np.int32), (4,))
    with pytest.raises(StreamTooLargeError, match="130 channels"):
        rs.compress(empty, wide)


def test_features_need_next_to_nothing_beside_the_canvas():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 8, (3, 300 * 300)).astype(np.int32)
    frame = rs.Frame(np.ones((300, 300), bool), indices, (8, 8, 8))
    rows = rng.normal(size=(3, 8, 64)).astype(np.float32)
    model = rs.RqModel(rows, MODEL.classes, MODEL.occupancy, MODEL.tables)
    tracemalloc.start()
    canvas = rs.features(frame, model.rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * canvas.nbytes  # the canvas has 23 MB, two blocks of rows 8
    expected = np.zeros((300 * 300, 64), np.float32)
    for k, index in enumerate(indices):
        expected = expected + rows[k][index]
    np.testing.assert_array_equal(canvas.reshape(-1, 64), expected)


def test_another_model_is_refused_and_named():
    frame = rq_toy.frame(np.random.default_rng(0), (4,))
    other = rq_toy.model(seed=1)
    with pytest.raises(TableMismatchError, match="use the checkpoint"):
        rs.decompress(rs.compress(frame, MODEL), other)


def test_a_point_without_tables_is_refused_by_name():
    frame = rq_toy.frame(np.random.default_rng(0), (4,))
    with pytest.raises(CheckpointError, match=r"no tables for 5 embeddings .* 4, 8"):
        rs.compress(rs.Frame(frame.occupied, frame.indices, (5,)), MODEL)
    with pytest.raises(CheckpointError, match="4 codebooks are asked for"):
        MODEL.point((4, 4, 4, 4))
    with pytest.raises(CheckpointError, match="16 embeddings are asked for"):
        MODEL.point((16,))


def test_pillars_in_any_order_with_padding_make_the_same_frame():
    frame = rq_toy.frame(np.random.default_rng(3), (8, 8))
    cells = np.flatnonzero(frame.occupied)
    order = np.random.default_rng(0).permutation(len(cells))
    beyond = rq_toy.SHAPE[0] * rq_toy.SHAPE[1]
    padded = np.concatenate([cells[order], [beyond, beyond]])
    indices = np.concatenate([frame.indices[:, order], np.zeros((2, 2), int)], 1)
    same(rs.frame_of(padded, indices, rq_toy.SHAPE, (8, 8)), frame)
    with pytest.raises(ShapeError, match="each cell once"):
        rs.frame_of(np.array([3, 3]), np.zeros((1, 2)), rq_toy.SHAPE, (8,))


def test_contexts_save_bytes_over_order_0():
    rng = np.random.default_rng(5)
    training, held_out = ([rq_toy.frame(rng, (8, 8, 8)) for _ in range(n)] for n in (24, 6))
    tables = rs.fit_indices(training, MODEL.classes)
    model = rs.RqModel(MODEL.rows, MODEL.classes, MODEL.occupancy, tables)
    bits = 0
    for frame in held_out:
        _, *streams = bitstream.read(rs.compress(frame, model)).streams
        bits += sum(8 * len(s.payload) for s in streams)
    assert bits < 0.85 * rs.order_0_bits(training, held_out)


def test_the_golden_file_decodes_and_is_coded_to_the_bit():
    folder = pathlib.Path(__file__).parent / "golden"
    expected = json.loads((folder / "residual_v1.json").read_text(encoding="utf-8"))
    blob = (folder / "residual_v1.jxc").read_bytes()
    _, model, _ = rq_files.load_rq(folder / "residual_v1.npz")
    box = bitstream.read(blob)
    assert (box.kind, blob[12] & 7, box.digest) == ("residual_vq", 1, model.digest)
    assert box.meta == expected["meta"]
    frame = rs.decompress(blob, model)
    assert list(frame.point) == expected["point"]
    assert list(frame.occupied.shape) == expected["shape"]
    assert np.flatnonzero(frame.occupied).tolist() == expected["cells"]
    assert frame.indices.tolist() == expected["indices"]
    seen = hashlib.sha256(rs.features(frame, model.rows).tobytes()).hexdigest()
    assert seen == expected["features"]
    assert rs.compress(frame, model, box.meta) == blob
