import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import toy

from jaxcomp import log
from jaxcomp.errors import CheckpointError


def settings(**changes):
    return SimpleNamespace(**{"progress": False, "tensorboard": False, "wandb": False} | changes)


def test_the_batch_line_has_the_documented_form():
    averages = {"loss": 1.23456, "mse": 0.1234567, "bpp": 2.5, "grad_norm": 3.14159}
    averages |= {"fpn_mse/L0": 0.5, "fpn_mse/L4": 0.25}
    assert log.batch_line(10, 75, averages, 5e-5) == (
        "Train Batch: [10/75] Loss: 1.2346 MSE: 0.123457 BPP: 2.5000 GradNorm: 3.142 "
        "LR: 5.00e-05 FPN_MSE: [L0:0.50000 L4:0.25000]"
    )
    assert log.batch_line(1, 2, {"loss": 1}, 1) == "Train Batch: [1/2] Loss: 1.0000 LR: 1.00e+00"
    line = log.magnitude_line({"feature_max/L2": 7.0})
    assert line == "Feature Magnitudes: [L2:max=7.000]" and log.magnitude_line({}) is None


def test_alerts_follow_the_thresholds():
    alerts = toy.config().alerts
    well = {"grad_norm": 10.0, "feature_max/L2": 100.0, "mse": 1.0, "bpp": 1000.0}
    assert log.health_alerts(well, {}, 1e-3, alerts) == []
    assert "Gradient" in log.health_alerts({"grad_norm": 10.1}, {}, 1e-3, alerts)[0]
    assert "RATE DOMINATES" in log.health_alerts({}, {"mse": 1.0, "bpp": 10.1}, 1.0, alerts)[0]
    found = log.health_alerts({}, {"mse": 1.0, "bpp": 0.0}, 1.0, alerts)
    assert "DISTORTION DOMINATES" in found[0] and "increase rate_weight" in found[0]
    assert "feature_max/L2" in log.health_alerts({"feature_max/L2": 101.0}, {}, 1.0, alerts)[0]
    assert log.health_alerts({}, {"loss": 1.0}, 1.0, alerts) == []


def test_jsonl_is_cut_at_the_resumed_step(tmp_path):
    with log.RunLog(tmp_path, settings(), total_steps=10) as out:
        for step in range(1, 6):
            out.record("batch", step, {"loss": float(step), "bad": float("nan")})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "batch", "st')  # killed while writing
    with log.RunLog(tmp_path, settings(), total_steps=10, step=3) as out:
        out.record("batch", 4, {"loss": 9.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 9.0)]
    assert records[0]["bad"] is None


def test_the_logger_is_given_back(tmp_path, capsys):
    logger = logging.getLogger("jaxcomp")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with log.RunLog(tmp_path, settings(), total_steps=1):
        logger.info("hello")
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert "hello" in (tmp_path / "train.log").read_text() and "hello" in capsys.readouterr().out


def test_the_console_gets_less_than_the_log(tmp_path, capsys):
    with log.open_handlers(tmp_path), log.RunLog(tmp_path, settings(), total_steps=1):
        log.LOG.info("Parameters:\n| name |\n| a/b |\nTotal: 6")
        log.LOG.info(log.batch_line(1, 2, {"loss": 1.0}, 1.0))
        log.LOG.warning("look")
    assert capsys.readouterr().out == "Parameters: Total: 6\nlook\n"
    text = (tmp_path / "train.log").read_text()
    assert "a/b" in text and text.count("Train Batch: [1/2]") == text.count("look") == 1


def test_the_balance_shows_what_the_ratio_is_of():
    config = toy.config(training__rate_weight="0.5")
    val = {"loss": 1.0, "mse": 8.0, "bpp": 2.0}
    record = {"epoch": 1, "lr": 0.1, "train": {}, "val": val}
    lines = "\n".join(log.epoch_lines(record, config, False, None, 0.0))
    assert "rate 1.000e+00 | mse 8.000e+00 | Ratio: 0.125" in lines
    record["val"] = val | {"distortion": 4.0}
    lines = "\n".join(log.epoch_lines(record, config, False, None, 0.0))
    assert "rate 1.000e+00 | distortion 4.000e+00 | Ratio: 0.250" in lines


def test_an_epoch_names_the_stage_where_there_is_one():
    train = {"loss": 1.0, "codebook_idx": 1.0, "embed_size": 64.0, "warmup": 1.0}
    record = {"epoch": 3, "lr": 0.0, "train": train, "val": {"loss": 0.5, "det_loss": 0.25}}
    lines = log.epoch_lines(record, toy.config(training__rate_weight="0"), True, 7.0, 0.0)
    assert lines[0].endswith("train: codebook 1, 64 rows, averages: loss 1")
    assert lines[1].endswith("val: loss 0.5 det_loss 0.25 (best)")
    assert lines[2] == "LR: 0.00e+00 step 7.0 ms, waiting for data 0.0%"


def test_other_processes_write_nothing(tmp_path):
    with log.RunLog(tmp_path, settings(), total_steps=1, primary=False) as out:
        out.record("batch", 1, {"loss": 1.0})
        out.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="part of the path"):
        log.RunLog(tmp_path / "file" / "run", settings(), total_steps=1)


def test_tensorboard_events_are_written(tmp_path):
    pytest.importorskip("tensorboardX")
    with log.RunLog(tmp_path, settings(tensorboard=True), total_steps=1) as out:
        out.record("epoch", 1, {"val": {"loss": 1.0}})
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_overview_counts_parameters():
    text = log.parameter_overview({"dense": {"kernel": np.zeros((3, 2), np.float32)}})
    assert "dense/kernel" in text and "Total: 6" in text
