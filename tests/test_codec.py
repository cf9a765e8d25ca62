"""The factorised codec end to end: shapes, bytes, rates, errors."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import codecs, errors
from jaxcomp.codecs import bitstream, coding, rans
from jaxcomp.codecs.factorised import FactorisedCodec, latent_shape

CODEC = FactorisedCodec(4, 8, 6, stages=2)
SHAPE = (3, 13, 22, 4)


@pytest.fixture(scope="module")
def features():
    return (3 * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32) + 1


@pytest.fixture(scope="module")
def model():
    variables = jax.jit(CODEC.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
    variables = codecs.with_statistics(variables, np.full(4, 1.0), 3.0)
    # Sharper latents than the initial density expects, so that some symbols are not zero.
    variables["params"]["analysis"]["conv_1"]["kernel"] *= 20
    variables = codecs.refresh_quantiles(variables)
    return variables, codecs.build_tables(CODEC, variables)


@pytest.fixture(scope="module")
def outputs(model, features):
    return jax.jit(CODEC.apply)(model[0], features)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 9)])
def test_any_size_and_depth_keeps_its_shape(stages, size):
    codec = FactorisedCodec(2, 4, 3, stages=stages)
    x = jnp.ones((1, *size, 2))
    out, _ = jax.jit(codec.init_with_output, static_argnums=3)(
        jax.random.key(0), x, jax.random.key(1), True
    )
    assert out["x_hat"].shape == x.shape
    assert out["y"].shape == out["bits"].shape == (1, *latent_shape(size, stages), 3)


def test_bfloat16_computes_close_and_returns_float32(model, features, outputs):
    out = CODEC.clone(dtype="bfloat16").apply(model[0], features[:1], method="analyse")
    assert out.dtype == jnp.float32
    scale = float(jnp.abs(outputs["y"]).max())
    np.testing.assert_allclose(out, outputs["y"][:1], atol=0.03 * scale)


def test_training_rates_noise_and_can_decode_rounded_latents(model, features):
    variables, _ = model
    run = jax.jit(lambda c, k: c.apply(variables, features, k, True), static_argnums=0)
    noisy = run(CODEC, jax.random.key(0))
    other = run(CODEC, jax.random.key(1))
    straight = run(CODEC.clone(straight_through=True), jax.random.key(0))
    assert not np.array_equal(noisy["x_hat"], other["x_hat"])
    np.testing.assert_allclose(straight["bits"], noisy["bits"], rtol=1e-5)
    plain = jax.jit(CODEC.apply)(variables, features)
    np.testing.assert_allclose(straight["x_hat"], plain["x_hat"], atol=1e-3)


def test_features_beyond_the_limit_are_cut_before_anything_sees_them(model, features):
    variables, tables = model
    mean, scale, limit = 1.0, 3.0, 1.5
    cut = np.clip(features, mean - limit * scale, mean + limit * scale)
    assert (cut != features).mean() > 0.05
    wild = np.where(cut == features, features, 40 * (features - mean) + mean).astype("f4")
    limited = CODEC.clone(limit=limit)

    def coded(codec, x):
        return codecs.compress_batch(codec, variables, tables, x, "p3")

    assert coded(limited, wild) == coded(limited, features) == coded(CODEC, cut)
    assert coded(CODEC, wild) != coded(CODEC, cut)
    out = jax.jit(limited.apply)(variables, wild)
    assert np.isfinite(out["distortion"]).all()
    np.testing.assert_allclose(
        out["distortion"], jax.jit(CODEC.apply)(variables, cut)["distortion"], rtol=1e-4
    )


def test_bytes_decode_to_the_same_symbols_and_features(model, features, outputs):
    variables, tables = model
    blobs = codecs.compress_batch(CODEC, variables, tables, features, "p3")
    sent = coding.encode_symbols(CODEC, variables, tables, features)
    assert np.abs(sent).max() > 2
    for blob, row in zip(blobs, sent, strict=True):
        (stream,) = bitstream.read(blob).streams
        np.testing.assert_array_equal(coding.decode_symbols(CODEC, tables, stream), row)
    decoded = codecs.decompress_batch(CODEC, variables, tables, blobs)
    x_hat = np.concatenate([d["p3"] for d in decoded])
    np.testing.assert_allclose(x_hat, outputs["x_hat"], atol=1e-4)


def test_coded_size_is_the_estimated_rate(model, features, outputs):
    variables, tables = model
    symbols = coding.encode_symbols(CODEC, variables, tables, features)
    payload, _ = rans.encode(symbols, tables)
    estimated = float(outputs["bits"].sum()) / 8
    assert abs(len(payload) - estimated) < 0.01 * estimated + 5


def test_one_array_or_several_named(model, features):
    variables, tables = model
    one = codecs.compress(CODEC, variables, tables, features[:1])
    assert codecs.decompress(CODEC, variables, tables, one).shape == (1, *SHAPE[1:])
    named = {"p2": features[:1], "p3": features[1:2, :5, :6]}
    blob = codecs.compress(CODEC, variables, tables, named, {"image": [10, 20]})
    out = codecs.decompress(CODEC, variables, tables, blob)
    assert {k: v.shape for k, v in out.items()} == {k: v.shape for k, v in named.items()}
    assert bitstream.read(blob).meta == {"image": [10, 20]}


def test_wrong_features_are_named_in_the_error(model, features):
    variables, tables = model

    def compress(x):
        return codecs.compress(CODEC, variables, tables, {"p3": x})

    with pytest.raises(errors.ShapeError, match=r"'p3'.*4"):
        compress(features[:1, ..., :3])
    with pytest.raises(errors.ShapeError, match=r"'p3'.*int32"):
        compress(features[:1].astype(np.int32))
    with pytest.raises(errors.ShapeError, match="3 frames"):
        compress(features)
    broken = features[:1].copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(errors.NonFiniteError, match="'p3'"):
        compress(broken)


def test_streams_of_another_model_are_refused(model, features):
    variables, tables = model
    blob = codecs.compress(CODEC, variables, tables, features[:1])
    other = codecs.build_tables(CODEC, variables, precision=12)
    with pytest.raises(errors.TableMismatchError):
        codecs.decompress(CODEC, variables, other, blob)
    with pytest.raises(errors.StreamTooLargeError):
        codecs.decompress(CODEC, variables, tables, blob, max_symbols=10)
    with pytest.raises(errors.BitstreamError, match="stages"):
        codecs.decompress(CODEC.clone(stages=1), variables, tables, blob)


def test_documented_parameter_counts():
    for channels, count in ((256, 4_617_600), (1280, 11_172_224), (3, 2_998_147)):
        codec = FactorisedCodec(channels)
        shapes = jax.eval_shape(codec.init, jax.random.key(0), jnp.zeros((1, 16, 16, channels)))
        assert codecs.parameter_count(shapes) == count


def test_importing_the_package_does_not_import_jax():
    code = "import sys, jaxcomp.codecs; from jaxcomp.codecs import CdfTables, bitstream, rans; "
    code += "sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
