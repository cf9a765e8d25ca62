"""Runs that learn features without labels: their list, their page."""

import json

import numpy as np

from jaxcomp.report import page, tables


def summary():
    probes = {"trained": {"level0_mean": {}, "level0_max": {}, "encoder_mean": {}}}
    probes["trained"]["encoder_mean"] = {"low_shot": {"0.01": 0.22, "0.1": 0.33}}
    probes["initial"] = {"encoder_mean": {"low_shot": {"0.01": 0.16, "0.1": 0.18}}}
    probes["pixels"] = {"knn": 0.1, "linear": 0.125, "low_shot": {"0.01": 0.14}}
    return {
        "task": "jepa", "profile": "embedded", "probes": probes, "frames": 40,
        "level0_mean_knn": 0.31, "initial_level0_mean_knn": 0.19, "level0_mean_linear": 0.5,
        "initial_level0_mean_linear": 0.25, "encoder_mean_linear": 0.4, "pixels_linear": 0.125,
        "level0_mean_attentive": 0.61, "collapse": {"target_std": 0.7, "target_rankme": 14.0},
        "weights_bytes": 1234, "rate_weight": 0.0, "data": "textures (synthetic)",
    }  # fmt: skip


def test_the_list_has_probes_and_no_detections():
    text = tables.text_table(summary())
    assert "level 0, k-NN" in text and "0.310  untrained 0.190, raw pixels 0.100" in text
    assert (
        "encoder, 1 % of the labels" in text and "0.220  linear probe; untrained 0.160, raw" in text
    )
    assert (
        "encoder, 10 % of the labels" in text and "0.330  linear probe; untrained 0.180\n" in text
    )
    assert "mAP" not in text and "rate weight" not in text and "1,234 bytes" in text
    assert "0.610  untrained -" in text.replace("–", "-")  # noqa: RUF001


def test_the_lead_names_the_best_level_beside_its_start():
    words = tables.lead(summary())
    assert "0.500" in words and "level 0" in words and "untrained for 0.250" in words
    unlabelled = {"task": "jepa", "collapse": {}}
    assert tables.is_finished(unlabelled) and "no labels" in tables.lead(unlabelled)


def test_the_page_shows_the_pictures(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    (tmp_path / "config.json").write_text("{}")
    np.savez(tmp_path / "evaluation.npz", masks=np.zeros((8, 8, 3), np.uint8))
    text = page.build_page(tmp_path).read_text()
    assert "not finished" not in text and "data:image/png" in text and "green frames" not in text
    assert "0.310" in text
