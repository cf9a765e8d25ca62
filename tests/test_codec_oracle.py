"""The codec against numbers of the PyTorch reference with the same weights."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest
from oracle_files import close, nchw

from jaxcomp.codecs import entropy, gdn
from jaxcomp.codecs.factorised import FactorisedCodec, parameter_count
from jaxcomp.codecs.pyramid import join_levels, pyramid_sizes, split_levels
from jaxcomp.codecs.quantise import quantise_round, symbols
from jaxcomp.interop.codec_weights import codec_params_from_torch

CODEC = FactorisedCodec()


def _input(oracle, name):
    entry = next(t for t in oracle.meta["input"]["tensors"] if t["name"] == name)
    rng = np.random.default_rng([oracle.meta["seed"], zlib.crc32(name.encode())])
    x = rng.standard_normal(entry["shape"]) * entry["scale"]
    return x.astype(np.float32).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def oracle(shared):
    return oracle_files.read(shared / "oracles", "fpn_codec_entropy")


@pytest.fixture(scope="module")
def variables(oracle):
    manifest = oracle.meta["manifest"]["codec_256"]
    return codec_params_from_torch(oracle.recipe.state_dict(manifest, oracle.meta["seed"]))


@pytest.fixture(scope="module")
def x(oracle):
    return _input(oracle, "fpn_codec_input")


def test_parameter_count(variables, oracle):
    assert parameter_count(variables) == oracle.meta["parameter_count"] == 4_617_600
    shapes = jax.eval_shape(CODEC.init, jax.random.key(0), jnp.zeros((1, 16, 16, 256)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda s: s.shape, dict(shapes))


@pytest.mark.parametrize("pad", [16, 8])
def test_forward(oracle, variables, x, pad):
    codec = CODEC.clone(pad_multiple=pad)
    out = codec.apply(variables, x)
    key = f"pad{pad}_"
    close(oracle, key + "y", nchw(out["y"]))
    median = variables["stats"]["prior"]["quantiles"][:, 0, 1]
    np.testing.assert_array_equal(median, oracle.arrays["medians"])
    integers = nchw(symbols(out["y"], median))
    np.testing.assert_array_equal(integers, oracle.arrays[key + "y_symbols"])
    close(oracle, key + "y_hat", nchw(quantise_round(out["y"], median)))
    close(oracle, key + "x_hat", nchw(out["x_hat"]))
    p = nchw(2.0 ** -np.asarray(out["bits"], np.float64))
    np.testing.assert_allclose(p, oracle.arrays[key + "likelihoods"], atol=2e-6, rtol=1e-3)
    total = np.asarray(out["bits"], np.float64).sum()
    bpp = total / (24 * 80)
    mse = np.mean((np.asarray(out["x_hat"], np.float64) - x) ** 2)
    np.testing.assert_allclose(total, oracle.arrays[key + "total_bits"], rtol=1e-4)
    np.testing.assert_allclose(bpp, oracle.arrays[key + "bpp_feat"], rtol=1e-4)
    np.testing.assert_allclose(mse, oracle.arrays[key + "mse"], rtol=1e-4)
    loss = mse + 1e-3 * bpp
    np.testing.assert_allclose(loss, oracle.arrays[key + "loss_lambda_1e-3"], rtol=1e-4)


def test_layer_outputs(oracle, variables, x):
    _, seen = CODEC.apply(variables, x, capture_intermediates=True)
    checked = 0
    for ours, theirs in (("analysis", "g_a"), ("synthesis", "g_s")):
        for i in range(6):
            key = f"pad16_{theirs}_{i}"
            if key in oracle.arrays:
                layer = ("conv", "gdn")[i % 2] + f"_{i // 2}"
                close(oracle, key, nchw(seen["intermediates"][ours][layer]["__call__"][0]))
                checked += 1
    assert checked == 12


def test_cumulative_logits(oracle, variables):
    grid = jnp.tile(jnp.linspace(-40, 40, 33)[:, None], (1, 192))
    ours = entropy.cumulative_logits(variables["params"]["prior"], grid)
    expected = oracle.arrays["logits_cumulative_linspace"]
    np.testing.assert_allclose(ours.T, expected, atol=2e-4 * np.abs(expected).max())


def test_likelihood_of_continuous_latents(oracle, variables):
    y = oracle.arrays["pad16_y"].reshape(192, -1).T
    ours = entropy.likelihood(variables["params"]["prior"], jnp.asarray(y))
    expected = oracle.arrays["likelihood_at_continuous_y"]
    np.testing.assert_allclose(ours.T, expected, atol=2e-6, rtol=1e-3)


def test_extreme_likelihoods_keep_their_accuracy_in_both_tails(oracle, variables):
    v = oracle.arrays["likelihood_extreme_inputs"]
    grid = jnp.tile(jnp.asarray(v)[:, None], (1, 192))
    ours = np.asarray(entropy.likelihood(variables["params"]["prior"], grid)).T
    exact = np.maximum(oracle.arrays["likelihood_extreme_f64"], 1e-9)
    np.testing.assert_allclose(ours, exact, rtol=1e-3)
    np.testing.assert_allclose(ours, oracle.arrays["likelihood_extreme"], atol=2e-6, rtol=1e-3)


def _upstream(function, x, sign):
    return jax.vjp(function, x)[1](jnp.full_like(x, sign))[0]


@pytest.mark.parametrize(
    ("key", "function"),
    [
        ("gamma", lambda s: gdn.from_stored(s, 0.0)),
        ("beta", lambda s: gdn.from_stored(s, gdn.BETA_MIN)),
        ("lower_bound_0p5", lambda s: gdn.lower_bound(s, 0.5)),
    ],
)
def test_bounded_parameters_and_their_gradients(oracle, key, function):
    stored = jnp.asarray(oracle.arrays["param_test_in"])
    expected = [oracle.arrays[f"param_test_{key}_out"]] + [
        oracle.arrays[f"param_test_{key}_grad_upstream_{s}1"] for s in ("plus", "minus")
    ]
    ours = [function(stored), _upstream(function, stored, 1.0), _upstream(function, stored, -1.0)]
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)


GRADIENTS = {
    "entropy_bottleneck.matrices.0": ("prior", "matrix_0"),
    "entropy_bottleneck.matrices.4": ("prior", "matrix_4"),
    "entropy_bottleneck.biases.2": ("prior", "bias_2"),
    "entropy_bottleneck.factors.3": ("prior", "factor_3"),
    "g_a.0.bias": ("analysis", "conv_0", "bias"),
    "g_a.1.beta": ("analysis", "gdn_0", "beta"),
    "g_a.1.gamma": ("analysis", "gdn_0", "gamma"),
    "g_a.6.bias": ("analysis", "conv_3", "bias"),
    "g_s.1.gamma": ("synthesis", "gdn_0", "gamma"),
    "g_s.5.beta": ("synthesis", "gdn_2", "beta"),
    "g_s.6.bias": ("synthesis", "conv_3", "bias"),
}


def test_gradients(oracle, variables, x):
    def loss(params):
        def run(codec):
            y = codec.analyse(x)
            distortion = jnp.mean((codec.synthesise(y, x.shape[1:3]) - x) ** 2)
            return distortion, codec.bits(y).sum() / (24 * 80)

        bound = {**variables, "params": params}
        distortion, rate = CODEC.apply(bound, method=run)
        return distortion + 1e-3 * rate, (distortion, rate)

    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    np.testing.assert_allclose([value, *parts], oracle.arrays["grad_case_values"], rtol=1e-4)
    for theirs, path in GRADIENTS.items():
        ours = grads
        for key in path:
            ours = ours[key]
        key = f"grad_{theirs}"
        expected, info = oracle.arrays[key], oracle.meta["arrays"][key]
        ours = np.asarray(ours)
        if "slice" in info:
            ours = oracle.recipe.take(ours, info["slice"])
        limit = 1e-3 * np.abs(expected).max()
        assert np.abs(ours.reshape(expected.shape) - expected).max() <= limit, theirs
    norm = np.sqrt(
        sum(
            float((g.astype(np.float64) ** 2).sum())
            for g in jax.tree.leaves(jax.tree.map(np.asarray, grads))
        )
    )
    np.testing.assert_allclose(norm, oracle.arrays["grad_l2_all"][0], rtol=1e-4)


def _compressai_cdf(density, quantiles):
    """CompressAI's tables (SPEC: 16 bits, tails at the longest row), as the oracle has them."""
    low, median, high = (np.asarray(quantiles)[:, 0, i] for i in range(3))
    below = np.maximum(0, np.ceil(median - low)).astype(int)
    above = np.maximum(0, np.ceil(high - median)).astype(int)
    length = below + above + 1
    grid = (median - below)[None] + np.arange(length.max())[:, None]
    grid = jnp.asarray(grid, jnp.float32)
    pmf = np.asarray(entropy.probability(density, grid)).T
    first = entropy.cumulative_logits(density, grid[:1] - 0.5)[0]
    last = entropy.cumulative_logits(density, grid[-1:] + 0.5)[0]
    tail = np.asarray(jax.nn.sigmoid(first) + jax.nn.sigmoid(-last))
    rows = [_compressai_row(np.append(p[:n], t)) for p, n, t in zip(pmf, length, tail, strict=True)]
    return -below, length + 2, rows


def _compressai_row(p):
    total = 1 << 16
    f = np.floor(p.astype(np.float32) * total + 0.5).astype(np.int64)
    f = f * total // f.sum()
    cdf = np.concatenate([[0], np.cumsum(f)])
    cdf[-1] = total
    for i in range(len(p)):
        if cdf[i] == cdf[i + 1]:
            width = np.diff(cdf)
            candidates = np.where(width > 1, width, total + 1)
            best = int(np.argmin(candidates))
            if best < i:
                cdf[best + 1 : i + 1] -= 1
            else:
                cdf[i + 1 : best + 1] += 1
    return cdf


def test_quantized_cdf_under_the_reference_rule(oracle, variables):
    density = variables["params"]["prior"]
    offset, length, rows = _compressai_cdf(density, oracle.arrays["quantiles"])
    np.testing.assert_array_equal(offset, oracle.arrays["cdf_offset"])
    np.testing.assert_array_equal(length, oracle.arrays["cdf_length"])
    table = oracle.arrays["quantized_cdf"]
    difference = np.concatenate([r - table[m, : len(r)] for m, r in enumerate(rows)])
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() <= 0.01


def test_joint_codec(oracle):
    manifest = oracle.meta["manifest"]["codec_1280_joint"]
    weights = oracle.recipe.state_dict(manifest, oracle.meta["seed"])
    variables = codec_params_from_torch(weights)
    codec = FactorisedCodec(in_channels=1280)
    levels = [_input(oracle, f"joint_level_{i}") for i in range(5)]
    sizes = [level.shape[1:3] for level in levels]
    assert sizes == pyramid_sizes(sizes[0], 5)
    joint = join_levels([jnp.asarray(level) for level in levels])
    close(oracle, "joint_concat", nchw(joint), share=2e-6)
    out = codec.apply(variables, joint)
    close(oracle, "joint_y", nchw(out["y"]))
    integers = symbols(out["y"], codec.apply(variables, method="median"))
    np.testing.assert_array_equal(nchw(integers), oracle.arrays["joint_symbols"])
    close(oracle, "joint_x_hat", nchw(out["x_hat"]))
    total = np.asarray(out["bits"], np.float64).sum()
    np.testing.assert_allclose(total, oracle.arrays["joint_total_bits"], rtol=1e-4)
    for i, level in enumerate(split_levels(joint, sizes)):
        close(oracle, f"joint_roundtrip_level_{i}", nchw(level), share=2e-6)
    decoded = split_levels(out["x_hat"], sizes)
    for i, level in enumerate(decoded):
        close(oracle, f"joint_out_level_{i}", nchw(level))
    error = sum(float(((a - b) ** 2).sum()) for a, b in zip(decoded, levels, strict=True))
    mse = error / sum(level.size for level in levels)
    np.testing.assert_allclose(mse, oracle.arrays["joint_mse"], rtol=1e-4)
