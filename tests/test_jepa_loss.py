import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.errors import ConfigError, ShapeError
from jaxcomp.tasks.jepa import EMASchedule
from jaxcomp.tasks.jepa_loss import LOSSES, JEPALossConfig, jepa_losses, level_loss, unit


def pair(seed=0, shape=(2, 5, 4)):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_those_of_torch(kind):
    torch = pytest.importorskip("torch")
    p, t = (2 * x for x in pair())
    module = {
        "mse": torch.nn.MSELoss(),
        "smoothl1": torch.nn.SmoothL1Loss(),
        "huber": torch.nn.HuberLoss(delta=0.5),
    }[kind]
    wanted = module(torch.tensor(np.asarray(p)), torch.tensor(np.asarray(t))).item()
    assert float(level_loss(p, t, None, JEPALossConfig(kind, 0.5))) == pytest.approx(wanted)


def test_padding_changes_nothing_even_if_it_is_not_finite():
    p, t = pair()
    valid = jnp.asarray([[True, True, False, False, False], [True, False, False, True, False]])
    cfg = JEPALossConfig(normalise=True)
    bad = jnp.where(valid[..., None], p, jnp.nan)
    value, grad = jax.value_and_grad(level_loss)(p, t, valid, cfg)
    assert float(value) == pytest.approx(float(level_loss(bad, t, valid, cfg)))
    assert not np.asarray(grad)[~np.asarray(valid)].any()
    rows = np.asarray(valid).nonzero()
    alone = level_loss(p[rows][None], t[rows][None], None, cfg)
    assert float(value) == pytest.approx(float(alone), rel=1e-5)


def test_no_valid_token_gives_zero_and_the_original_scale_is_an_option():
    p, t = pair()
    none, every = jnp.zeros((2, 5), bool), jnp.ones((2, 5), bool)
    assert float(level_loss(p, t, none, JEPALossConfig())) == 0
    mean = float(level_loss(p, t, None, JEPALossConfig()))
    assert float(level_loss(p, t, every, JEPALossConfig())) == pytest.approx(mean)
    original = JEPALossConfig(per_token=True)
    assert float(level_loss(p, t, every, original)) == pytest.approx(4 * mean)


def test_levels_are_weighted_and_the_last_weight_repeats():
    p, t = pair()
    cfg = JEPALossConfig(weights=(1.0, 0.5))
    found = {k: float(v) for k, v in jepa_losses([p] * 3, [t] * 3, None, cfg).items()}
    assert found["loss"] == pytest.approx(2 * found["loss_h0"])
    assert found["loss_unweighted"] == pytest.approx(found["loss_h2"])


def test_zeros_normalise_to_zeros_with_a_finite_gradient():
    assert not np.asarray(unit(jnp.zeros((1, 3)))).any()
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 3)))).all()


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.integers(1, 100),
    st.sampled_from(["linear", "cosine"]),
)  # fmt: skip
def test_momentum_goes_from_start_to_end(start, end, warmup, total, shape):
    ema = EMASchedule(start, end, warmup, total, shape)
    values = np.array([float(ema(s)) for s in range(0, max(total, warmup) + 5)])
    steps = np.diff(values) * (1 if end >= start else -1)
    assert (steps >= -1e-6).all()
    assert values[: warmup + 1] == pytest.approx(start, abs=1e-6)
    assert values[max(total, warmup + 1) :] == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: JEPALossConfig("l2"), "mse, smoothl1, huber"),
        (lambda: JEPALossConfig(delta=0.0), "delta"),
        (lambda: JEPALossConfig(weights=()), "weights"),
        (lambda: JEPALossConfig(weights=(1.0, -1.0)), "weights"),
        (lambda: EMASchedule(1.1), "from 0 to 1"),
        (lambda: EMASchedule(shape="step"), "linear, cosine"),
        (lambda: EMASchedule(total_steps=0), "total_steps"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_shapes_must_agree():
    p, t = pair()
    with pytest.raises(ShapeError, match="differ"):
        level_loss(p, t[:, :3], None, JEPALossConfig())
