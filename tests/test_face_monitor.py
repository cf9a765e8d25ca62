"""When training stops, and what is written down of its epochs."""

import json
import math

import jax.numpy as jnp
import pytest
import toy

from jaxcomp import train
from jaxcomp.jobs.face_monitor import SmartEarlyStopping, StopRule, TrainingMonitor, anomalies


def first_stop(losses, start=1, **values):
    rule = SmartEarlyStopping(**values)
    for epoch, loss in enumerate(losses, start):
        if rule.should_stop(epoch, loss, 0.5):
            return epoch
    return None


def test_the_earliest_stop_is_half_the_patience_into_the_window():
    assert first_stop([1.0] * 300) == 110
    assert first_stop([1.0 - 0.001 * i for i in range(300)]) is None
    assert first_stop([1.0] * 300, patience=0) is None


def test_after_the_window_the_whole_patience_or_a_much_worse_loss():
    window = {"patience": 6, "min_epoch": 1, "optimal_window": (1, 4)}
    falling = [1.0, 0.9, 0.8, 0.7]
    assert first_stop(falling + [0.7] * 9, **window) == 10
    assert first_stop([*falling, 0.71, 0.78, 0.7], **window) == 6  # above 1.1 times the best
    assert first_stop([1.0, 1.0, 1.0, 1.0], **window) == 4


def test_improvement_must_exceed_the_least():
    values = {"patience": 2, "min_epoch": 1, "optimal_window": (90, 99), "min_delta": 0.1}
    assert first_stop([1.0, 0.95, 0.91], **values) == 3
    assert first_stop([1.0, 0.95, 0.85], **values) is None


def test_the_rule_is_a_function_of_the_history():
    rule = StopRule(2, 1, (90, 99), 0.1)
    history = [{"epoch": i, "val": {"loss": v}} for i, v in enumerate([1.0, 0.95, 0.91], 1)]
    assert [rule(history[:i]) for i in range(4)] == [False, False, False, True]
    assert [rule(history[:i]) for i in range(4)] == [False, False, False, True]


def test_the_documents_call(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "training_metrics.json"
    monitor = TrainingMonitor(log_interval=10, path=path)
    alarms = monitor.log_epoch_metrics(
        epoch=100, train_loss=0.8, val_loss=0.7, val_map=0.89, learning_rate=1e-4,
        grad_stats={"grad_norm_current": 0.5}, alpha=0.6, epoch_time=25.0,
    )  # fmt: skip
    assert alarms == [] and "gradient norm" in caplog.text and "0.890" in caplog.text
    again = TrainingMonitor(path=path)
    again.log_epoch_metrics(epoch=100, train_loss=0.9, val_loss=0.7)
    again.log_epoch_metrics(epoch=101, train_loss=math.nan, val_loss=0.7)
    found = json.loads(path.read_text())["epochs"]
    assert [one["epoch"] for one in found] == [100, 101]
    assert found[0]["train_loss"] == 0.9 and "nan" in found[1]["alarms"][0]
    path.write_text("{")
    assert TrainingMonitor(path=path).metrics == []


@pytest.mark.parametrize(
    ("losses", "gradients", "words"),
    [
        ({"train loss": 1.0}, {"grad_norm_current": 1.0}, []),
        ({"train loss": 200.0}, {}, ["above 100"]),
        ({"train loss": math.inf}, {}, ["inf"]),
        ({}, {"grad_norm_current": 20.0}, ["high gradient norm"]),
        ({}, {"grad_norm_current": 1e-9}, ["vanishes"]),
        ({}, {"neck": math.nan}, ["neck is nan"]),
    ],
)
def test_alarms(losses, gradients, words):
    found = anomalies(losses, gradients)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_the_trainer_obeys_the_rule_and_tells_norms_by_group(tmp_path):
    class Stuck(toy.Toy):
        gradient_group = staticmethod(lambda path: "all")

        def eval_loss(self, params, stats, frozen, batch):
            return {"count": jnp.sum(batch["mask"]), "loss": jnp.sum(batch["mask"])}

    config = toy.config(training__epochs=50, training__early_stopping__patience=0)
    rule = StopRule(4, 3, (4, 5), 1e-4)
    result = train.fit(Stuck(), config, toy.splits(), tmp_path, stop=rule)
    assert result.stopped == "early_stopping" and result.epochs == 5
    last = result.history[-1]["train"]
    assert last["grad_norm_by/all"] == pytest.approx(last["grad_norm"], rel=1e-5)
    again = train.fit(Stuck(), config, toy.splits(), tmp_path, stop=rule)
    assert again.epochs == 5 and again.stopped == "early_stopping"
