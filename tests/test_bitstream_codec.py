"""Features through the whole path: any backend, damaged files, estimated against real bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import codecs, errors
from jaxcomp.codecs import bitstream, coding, rans
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles

CODEC = FactorisedCodec(4, 8, 16, stages=1)


@pytest.fixture(scope="module")
def model():
    x = jnp.zeros((1, 8, 8, 4))
    variables = refresh_quantiles(jax.jit(CODEC.init)(jax.random.key(0), x))
    return variables, codecs.build_tables(CODEC, variables)


@pytest.fixture(scope="module")
def features():
    x = 20 * jax.random.normal(jax.random.key(1), (3, 80, 80, 4))
    return {"p2": x[:1], "p3": x[1:2, :24, :30], "p4": x[2:, :9, :7]}


def test_real_bytes_are_the_estimated_bits(model, features):
    """Within 1 % above 4 kB: tables, coder and container together."""
    variables, tables = model
    blob = codecs.compress(CODEC, variables, tables, features["p2"])
    y = CODEC.apply(variables, features["p2"], method="analyse")
    y = jnp.round(y - tables.median.reshape(1, 1, 1, -1)) + tables.median.reshape(1, 1, 1, -1)
    estimated = float(CODEC.apply(variables, y, method="bits").sum()) / 8
    assert len(blob) > 4000
    assert abs(len(blob) / estimated - 1) < 0.01


def test_backends_make_the_same_file_and_read_it(model, features):
    blobs = {b: codecs.compress(CODEC, *model, features, backend=b) for b in rans.BACKENDS}
    assert len(set(blobs.values())) == 1
    expected = codecs.decompress(CODEC, *model, blobs["numpy"])
    for backend in rans.BACKENDS:
        out = codecs.decompress(CODEC, *model, blobs[backend], backend=backend)
        assert out.keys() == features.keys()
        for name in out:
            np.testing.assert_array_equal(out[name], expected[name])


def test_a_batch_is_its_frames_one_by_one(model, features):
    rows = jnp.concatenate([features["p3"], features["p3"] / 3, 0 * features["p3"]])
    single = [codecs.compress(CODEC, *model, {"p3": row[None]}) for row in rows]
    for backend in rans.BACKENDS:
        blobs = codecs.compress_batch(CODEC, *model, rows, "p3", backend=backend)
        assert [len(b) for b in blobs] == [len(b) for b in single]
        decoded = codecs.decompress_batch(CODEC, *model, blobs, backend=backend)
        for out, blob in zip(decoded, single, strict=True):
            wanted = codecs.decompress(CODEC, *model, blob)["p3"]
            np.testing.assert_allclose(out["p3"], wanted, atol=1e-4)


@pytest.mark.parametrize("backend", rans.BACKENDS)
def test_damage_in_one_level_leaves_the_others(model, features, backend):
    variables, tables = model
    blob = codecs.compress(CODEC, variables, tables, features, {"image": [80, 80]})
    whole = codecs.decompress(CODEC, variables, tables, blob)
    middle = bitstream.read(blob).streams[1].payload
    damaged = blob.replace(middle, middle[:7] + bytes([middle[7] ^ 1]) + middle[8:])
    with pytest.raises(errors.CorruptStreamError, match="checksum"):
        codecs.decompress(CODEC, variables, tables, damaged, backend=backend)
    out, found = codecs.decompress_partial(CODEC, variables, tables, damaged, backend=backend)
    assert [type(e) for e in found] == [errors.CorruptStreamError]
    assert out.keys() == {"p2", "p4"}
    for name in out:
        np.testing.assert_array_equal(out[name], whole[name])
    assert codecs.decompress_partial(CODEC, variables, tables, blob)[1] == []


def test_streams_that_pass_their_checksum_and_not_the_coder_are_named(model, features):
    """A writer with a bug, or an attacker: the checksums are right."""
    variables, tables = model
    streams = list(bitstream.read(codecs.compress(CODEC, variables, tables, features)).streams)
    s = streams[1]
    streams[1] = bitstream.Stream(s.name, s.shape, s.stages, s.lanes, s.payload[:-4])
    blob = bitstream.write("factorised", tables.digest, streams)
    for backend in rans.BACKENDS:
        with pytest.raises(errors.BitstreamError, match="'p3'"):
            codecs.decompress(CODEC, variables, tables, blob, backend=backend)
        out, (error,) = codecs.decompress_partial(CODEC, variables, tables, blob, backend=backend)
        assert out.keys() == {"p2", "p4"}
        assert "'p3'" in str(error)
    streams[1] = bitstream.Stream(s.name, s.shape, 3, s.lanes, s.payload)
    blob = bitstream.write("factorised", tables.digest, streams)
    with pytest.raises(errors.StreamShapeError, match="3 stages"):
        codecs.decompress(CODEC, variables, tables, blob)
    with pytest.raises(errors.ShapeError, match="rows"):
        rans.decode_each([b""], [tables.channels + 1], tables, [1])


def test_maps_that_cost_nothing_to_code_are_limited_before_the_network_makes_them(model):
    """A valid stream of few bytes whose features would take gigabytes."""
    variables, tables = model
    named = {name: jnp.zeros((1, 16, 8, 4)) for name in ("p2", "p3")}
    blob = codecs.compress(CODEC, variables, tables, named)
    with pytest.raises(errors.StreamTooLargeError, match="16x8x4"):
        codecs.decompress(CODEC, variables, tables, blob, max_values=1023)
    out, found = codecs.decompress_partial(CODEC, variables, tables, blob, max_values=1023)
    assert out.keys() == {"p2"}
    assert [type(e) for e in found] == [errors.StreamTooLargeError]
    assert len(codecs.decompress(CODEC, variables, tables, blob, max_values=1024)) == 2


def test_unknown_backends_are_named(model, features):
    with pytest.raises(ValueError, match="cuda"):
        codecs.compress(CODEC, *model, features, backend="cuda")
    assert coding.decode_streams(CODEC, model[1], []) == []


def test_another_network_with_the_same_tables_is_refused(model, features):
    """The tables come from the prior alone; the files name the whole decoder."""
    codec, (variables, tables), x = CODEC, model, features["p3"]
    blob = codecs.compress(codec, variables, tables, x)
    other = jax.tree.map(lambda leaf: leaf, dict(variables))
    params = dict(other["params"])
    params["synthesis"] = jax.tree.map(lambda leaf: leaf * 1.5, params["synthesis"])
    other["params"] = params
    with pytest.raises(errors.TableMismatchError, match="model"):
        codecs.decompress(codec, other, tables, blob)
    with pytest.raises(errors.TableMismatchError):
        codecs.decompress_partial(codec, other, tables, blob)
    np.testing.assert_array_equal(
        codecs.decompress(codec, variables, tables, blob),
        codecs.decompress(codec, jax.tree.map(np.asarray, variables), tables, blob),
    )


def test_files_that_carry_the_digest_of_the_tables_alone_are_decoded(model, features):
    """As files of earlier versions do."""
    codec, (variables, tables), x = CODEC, model, features["p3"]
    blob = codecs.compress(codec, variables, tables, x)
    streams = bitstream.read(blob).streams
    old = bitstream.write("factorised", tables.digest, streams)
    assert old != blob and len(old) == len(blob)
    np.testing.assert_array_equal(
        codecs.decompress(codec, variables, tables, old),
        codecs.decompress(codec, variables, tables, blob),
    )
