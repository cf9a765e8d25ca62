"""Estimated bits against the bytes of files, of a codec trained for a few seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcomp import codecs
from jaxcomp.codecs import bitstream, coding
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles, with_statistics

CODEC = FactorisedCodec(4, 8, 8, stages=1)
STEPS = 120
_apply = jax.jit(CODEC.apply)


def _maps(key, count, size):
    """Smooth random maps with edges, [count, size, size, 4], of one distribution."""
    noise = jax.random.normal(key, (count, size // 4, size // 4, 4))
    smooth = jax.image.resize(noise, (count, size, size, 4), "bicubic")
    return jax.nn.relu(smooth + 0.2 * jnp.roll(smooth, 1, -1))


@jax.jit
def _train(variables, data):
    """`STEPS` steps of rate plus distortion, in one program."""
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))

    def loss(params, x, key):
        out = CODEC.apply({**variables, "params": params}, x, key, train=True)
        return out["bits"].sum() / x.size + 300 * out["distortion"].mean()

    def step(state, key):
        params, moments = state
        x = data[jax.random.randint(key, (8,), 0, len(data))]
        updates, moments = optimiser.update(jax.grad(loss)(params, x, key), moments)
        return (optax.apply_updates(params, updates), moments), None

    params = variables["params"]
    keys = jax.random.split(jax.random.key(2), STEPS)
    (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), keys)
    return {**variables, "params": params}


@pytest.fixture(scope="module")
def model():
    """A training of thousands of steps in small."""
    data = _maps(jax.random.key(0), 64, 32)
    variables = jax.jit(CODEC.init)(jax.random.key(1), data[:1])
    variables = with_statistics(variables, data.mean((0, 1, 2)), data.std())
    variables = refresh_quantiles(_train(variables, data))
    return coding.Model(CODEC, variables, codecs.build_tables(CODEC, variables))


@pytest.fixture(scope="module")
def held_out():
    return _maps(jax.random.key(99), 3, 160)


def _estimated(model, x):
    """Bits of one frame under the density, as training and evaluation count them."""
    return float(_apply(model.variables, x)["bits"].sum())


def _ratio(model, x):
    """(bytes of the file, actual bits of its payload over estimated bits, of the whole file)."""
    blob = codecs.compress(*model, x)
    payload = sum(len(s.payload) for s in bitstream.read(blob).streams)
    return len(blob), 8 * payload / _estimated(model, x), 8 * len(blob) / _estimated(model, x)


def test_the_codec_was_trained(model, held_out):
    """Else the comparison below would say nothing about trained codecs."""
    out = _apply(model.variables, held_out[:1])
    assert float(out["distortion"].mean()) < 0.1  # of a variance of one
    used = np.ptp(np.asarray(coding.encode_symbols(*model, held_out[:1])), (0, 1, 2))
    assert (used > 2).sum() >= 4


def test_estimated_bits_are_the_bytes_of_the_file(model, held_out, record_property):
    """The goal is 0.3 % over a held-out set; above 1 % something is broken."""
    sizes, payloads, files = zip(*(_ratio(model, x[None]) for x in held_out), strict=True)
    record_property("bytes", sizes)
    record_property("payload over estimate", payloads)
    record_property("file over estimate", files)
    assert min(sizes) > 4096
    assert max(abs(r - 1) for r in (*payloads, *files)) < 0.01
    assert abs(np.mean(payloads) - 1) < 0.003, "within 1 %, and worse than the goal of 0.3 %"


def test_tables_of_another_density_would_be_noticed(model, held_out):
    """The comparison above fails where the tables do not follow the density."""
    wider = jax.tree.map(lambda x: x, dict(model.variables))
    wider["params"] = {
        **wider["params"],
        "prior": jax.tree.map(lambda x: 0.9 * x, wider["params"]["prior"]),
    }
    off = model._replace(tables=codecs.build_tables(CODEC, wider))
    assert abs(_ratio(off, held_out[:1])[1] - 1) > 0.01
