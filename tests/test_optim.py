import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxcomp import config as config_lib
from jaxcomp import optim


def run_plateau(values, **kwargs):
    settings = {"factor": 0.5, "patience": 2, "min_lr": 0.1} | kwargs
    state, rates = optim.Plateau(1.0), []
    for value in values:
        state = state.update(value, **settings)
        rates.append(state.lr)
    return rates


def test_plateau_reduces_on_the_bad_epoch_after_patience():
    assert run_plateau([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_plateau_needs_a_relative_improvement_and_stops_at_the_floor():
    barely = [1.0, 0.99995, 0.99995, 0.99995]  # better than the best by less than 1e-4 of it
    assert run_plateau(barely)[-1] == 0.5
    assert run_plateau([1.0, 0.9998, 0.9998, 0.9998])[-1] == 1.0
    assert run_plateau([1.0] * 30)[-1] == 0.1
    assert run_plateau([float("nan")] * 3)[-1] == 0.5


def test_plateau_agrees_with_torch():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).choice([1.0, 0.9999, 0.5, 0.49996, 0.3, 2.0], 80).tolist()
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.8, patience=3, min_lr=0.05)
    wanted = []
    for value in values:
        scheduler.step(value)
        wanted.append(sgd.param_groups[0]["lr"])
    assert run_plateau(values, factor=0.8, patience=3, min_lr=0.05) == wanted


def test_early_stopping_follows_the_documented_rule():
    state, epoch = optim.EarlyStopping(), 0
    for epoch in range(1, 300):
        state = state.update(1.0 / min(epoch, 100), min_delta=1e-6)
        if state.stop(10):
            break
    assert epoch == 110
    state = optim.EarlyStopping(best=1.0).update(1.0 - 1e-6, min_delta=1e-6)
    assert state.counter == 0  # an improvement of exactly min_delta counts
    state = state.update(state.best, 1e-6).update(float("nan"), 1e-6)
    assert state.counter == 2 and not state.stop(0)


def test_clip_scales_as_torch_does():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    clipped, _ = optim.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    np.testing.assert_allclose(clipped["a"], [3 / (5 + 1e-6), 0], rtol=1e-6)
    same, _ = optim.clip_by_global_norm(10.0).update(grads, optax.EmptyState())
    np.testing.assert_array_equal(same["b"], grads["b"])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimisers_follow_torch(name):
    torch = pytest.importorskip("torch")
    config = toy.config(training__optimiser=name, training__weight_decay=0.1)
    start = np.array([0.5, -2.0, 3.0], np.float32)
    weight = torch.nn.Parameter(torch.tensor(start))
    lr, decay = config.training.learning_rate, 0.1
    rule = {
        "adam": lambda p: torch.optim.Adam(p, lr=lr, weight_decay=decay),
        "adamw": lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=decay),
        "sgd": lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay, momentum=0.9, nesterov=True),
    }[name]([weight])
    tx = optim.make_optimiser(config.training, 5)
    params, state = jnp.asarray(start), tx.init(jnp.asarray(start))
    for i in range(20):
        grad = np.sin(np.arange(3) + i).astype(np.float32) * 3
        weight.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        rule.step()
        updates, state = tx.update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, weight.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_the_learning_rate_can_be_set_between_steps():
    tx = optim.make_optimiser(toy.config().training, 5)
    params = {"w": jnp.ones(2)}
    for accumulation in (1, 3):
        opt = optim.init_optimiser(tx, params, accumulation)
        opt = optim.set_learning_rate(opt, 0.25)
        assert float(optim.get_learning_rate(opt)) == 0.25
    assert jax.tree.structure(opt) == jax.tree.structure(optim.init_optimiser(tx, params, 3))


def test_schedules_are_functions_of_the_step():
    config = toy.config(
        training__lr_schedule__name="warmup_cosine", training__lr_schedule__warmup_epochs=1
    )
    rate = optim.learning_rate(config.training, 10)
    assert float(rate(0)) == 0.0 and float(rate(10)) == pytest.approx(0.05)
    assert float(rate(60)) == pytest.approx(1e-6)


def test_the_prior_may_learn_faster():
    params = {"prior": {"a": jnp.zeros(3)}, "analysis": {"prior": jnp.zeros(3)}}
    grads = jax.tree.map(jnp.ones_like, params)

    def update(**extra):
        config = config_lib.base_config(training=extra) if extra else config_lib.base_config()
        tx = optim.make_optimiser(config.training, 10)
        return tx.update(grads, tx.init(params), params)[0]

    plain, faster = update(), update(prior_lr_factor=10.0)
    np.testing.assert_allclose(faster["prior"]["a"], 10 * plain["prior"]["a"], rtol=1e-6)
    np.testing.assert_array_equal(faster["analysis"]["prior"], plain["analysis"]["prior"])
