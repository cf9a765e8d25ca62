"""The text files are worded as the guides read them."""

import itertools
import shutil
import subprocess

import numpy as np
import pytest

from jaxcomp import documents

SUMMARY = {
    "level": 2,
    "config_name": "factorized_prior_specific_level",
    "detection_checkpoint": "detector.npz",
    "rate_weight": 0.001,
    "learning_rate": 5e-5,
    "batch_size": 8,
    "epochs": 100,
    "best_validation_loss": 0.12345,
    "in_channels": 256,
    "hidden_channels": 128,
    "latent_channels": 192,
    "parameters": 4_345_678,
}
DIAGNOSTICS = {
    "epoch": 3,
    "train": {"loss": 0.5, "mse": 0.25, "bpp": 2.0},
    "val": {"loss": 0.6, "mse": 0.001, "bpp": 1.0},
    "grad_norm": 1.5,
    "learning_rate": 5e-5,
    "rate_weight": 1e-3,
    "parameters": 1_234_567,
    "trainable": 1_234,
}


def test_training_summary_has_the_documented_lines_in_order():
    lines = documents.training_summary(**SUMMARY).splitlines()
    assert lines[:2] == ["FPN Level 2 Compression Training Summary", "=" * 50]
    assert lines[2].startswith("Approach: ")
    assert lines[3:11] == [
        "Config: factorized_prior_specific_level",
        "Detection Checkpoint: detector.npz",
        "FPN Level: 2",
        "Lambda: 0.001",
        "Learning Rate: 5.00e-05",
        "Batch Size: 8",
        "Total Epochs: 100",
        "Best Validation Loss: 0.1235",
    ]
    names = [line.strip().partition(":")[0] for line in lines[12:18]]
    assert names == [
        "Model Architecture",
        "Input Channels",
        "Output Channels",
        "Hidden Channels",
        "Latent Channels",
        "Total Parameters",
    ]
    assert lines[17].strip() == "Total Parameters: 4,345,678"
    assert lines[19] == "Training Strategy:"
    assert [line[:2] for line in lines[20:]] == ["- "] * 4


@pytest.mark.skipif(shutil.which("grep") is None, reason="needs grep and cut")
def test_the_guides_extractor_finds_the_best_loss(tmp_path):
    path = tmp_path / "training_summary.txt"
    path.write_text(documents.training_summary(**SUMMARY))
    command = f"grep \"Best Validation Loss:\" '{path}' | cut -d' ' -f4"
    out = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert out.stdout == "0.1235\n"


def test_diagnostics_have_the_documented_fields():
    text = documents.training_diagnostics(**DIAGNOSTICS)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[1] == "=" * 50 and "Epoch 3" in lines[0]
    fields = [
        "Loss Metrics:",
        "Training Loss: 0.500000",
        "Validation Loss: 0.600000",
        "Training MSE: 0.250000",
        "Validation MSE: 0.001000",
        "Training BPP: 2.000000",
        "Validation BPP: 1.000000",
        "Optimization Health:",
        "Gradient Norm: 1.500000",
        "Learning Rate: 5.00e-05",
        "Lambda: 1.00e-03",
        "Rate-Distortion Ratio: 1.000000",
        "Model Parameters:",
        "Total: 1,234,567",
        "Trainable: 1,234",
    ]
    assert [line for line in lines[2:] if line] == fields
    assert "WARNING" not in text


def test_diagnostics_name_absent_metrics():
    text = documents.training_diagnostics(**DIAGNOSTICS | {"train": {}, "val": {"loss": 1.0}})
    assert "Training Loss: n/a" in text and "Rate-Distortion Ratio: n/a" in text


@pytest.mark.parametrize(
    ("grad_norm", "ratio", "words"),
    [
        (5.0, 1.0, []),
        (5.1, 1.0, ["gradient norm"]),
        (float("nan"), 1.0, ["gradient norm"]),
        (1.0, 5.0, []),
        (1.0, 5.1, ["Rate dominates"]),
        (1.0, 0.2, []),
        (1.0, 0.19, ["Distortion dominates"]),
        (6.0, 9.0, ["gradient norm", "Rate dominates"]),
        (1.0, None, []),
    ],
)
def test_warnings_begin_beyond_the_thresholds(grad_norm, ratio, words):
    found = documents.diagnostic_warnings(grad_norm, ratio)
    assert len(found) == len(words)
    for line, word in zip(found, words, strict=True):
        assert line.startswith("WARNING: ") and word in line


def test_diagnostics_end_with_their_warnings():
    text = documents.training_diagnostics(**DIAGNOSTICS | {"grad_norm": 7.0, "rate_weight": 0.1})
    assert [line[:8] for line in text.splitlines()[-2:]] == ["WARNING:"] * 2


@pytest.mark.parametrize(
    ("rate_weight", "label"),
    [
        (0.001, "0.001"),
        (0.02, "0.020"),
        (1.0, "1.000"),
        (2.5e-4, "0.00025"),
        (1e-5, "0.00001"),
        (1e-15, "1e-15"),
    ],
)
def test_folder_is_the_documented_one_where_three_decimals_are_exact(rate_weight, label):
    folder = documents.level_analysis_folder(2, rate_weight)
    assert folder == f"level_analysis/level_2/lambda_{label}"


def test_folders_of_different_weights_never_collide():
    weights = [0.0, *(m * 10.0**-e for m, e in itertools.product((1, 1.5, 2, 2.5, 5), range(20)))]
    weights += [np.nextafter(1e-3, 1), 1 / 3]
    folders = {documents.level_analysis_folder(0, float(w)) for w in weights}
    assert len(folders) == len(set(weights))


def _sample(scale=1.0):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 10
    return {"original": x, "restored": x * scale, "bits": 30.0}


def test_level_analysis_tells_rate_error_and_statistics():
    text = documents.level_analysis(
        level=0, rate_weight=1e-3, epoch=5, samples=[_sample(), _sample(0.5)]
    )
    first, second = text.partition("Sample 1:")[::2]
    for line in ("Shape: [2, 3, 4]", "MSE: 0.000000", "BPP: 5.0000", "Norm Ratio: 1.0000"):
        assert line in first
    error = np.square(_sample()["original"] * 0.5).mean()
    assert f"MSE: {error:.6f}" in second and "Norm Ratio: 0.5000" in second
    assert "Relative MSE: 0.250000" in second
    assert f"Overall MSE: {error / 2:.6f}" in text and "Overall BPP: 5.0000" in text
    assert "Stride: 4 (1/4 of the input)" in text and "small objects" in text
    assert "PSNR: inf dB" in first


def test_level_analysis_survives_zero_features_and_no_samples():
    zero = {"original": np.zeros((1, 1, 2)), "restored": np.zeros((1, 1, 2)), "bits": 0.0}
    assert "Norm Ratio: nan" in documents.level_analysis(
        level=4, rate_weight=1e-3, epoch=1, samples=[zero]
    )
    text = documents.level_analysis(level=4, rate_weight=1e-3, epoch=1, samples=[])
    assert "No frame was analysed." in text


@pytest.mark.parametrize(
    ("rate_weight", "path"),
    [
        (2.5e-4, "fpn_analysis/lambda_0.00025/lambda_2.5e-4_epoch_10_analysis.txt"),
        (0.012, "fpn_analysis/lambda_0.012/lambda_1.2e-2_epoch_10_analysis.txt"),
        (1.0, "fpn_analysis/lambda_1.000/lambda_1e0_epoch_10_analysis.txt"),
        (40.0, "fpn_analysis/lambda_40.000/lambda_4e1_epoch_10_analysis.txt"),
        (0.0, "fpn_analysis/lambda_0.000/lambda_0_epoch_10_analysis.txt"),
    ],
)
def test_pyramid_analyses_have_the_documented_names(rate_weight, path):
    assert documents.pyramid_analysis_path(rate_weight, 10) == path


def test_the_exponent_names_the_weight_exactly():
    weights = [m * 10.0**-e for m, e in itertools.product((1, 1.5, 2.5, 1 / 3), range(20))]
    assert [float(documents.lambda_exponent(w)) for w in weights] == weights


def test_pyramid_analysis_weighs_levels_by_their_values():
    fine = {"original": np.full((4, 3, 2), 2.0), "restored": np.full((4, 3, 2), 1.0), "bits": 24.0}
    coarse = {"original": np.ones((2, 2, 2)), "restored": np.ones((2, 2, 2)), "bits": 8.0}
    words = {"treatment": "random", "rate_weight": 1e-3, "epoch": 2}
    text = documents.pyramid_analysis(**words, levels=[[fine] * 2, [coarse] * 2], bits=[32.0] * 2)
    first, second = text.partition("Level 1:")[::2]
    assert "Pyramid Key: P2" in first and "MSE: 1.000000" in first and "BPP: 2.0000" in first
    assert "Pyramid Key: P3" in second and "MSE: 0.000000" in second and "BPP: 2.0000" in second
    # 24 values of which each is wrong by 1, 8 that are right; energy 24 x 4 + 8 x 1.
    assert "Overall MSE: 0.750000" in text and "Overall BPP: 2.0000" in text
    assert f"Overall Relative MSE: {24 / 104:.6f}" in text
    assert "Overall Bytes per Frame, Estimated: 4" in text
    shared = [[sample | {"bits": None}] for sample in (fine, coarse)]
    joint = documents.pyramid_analysis(**words | {"treatment": "joint"}, levels=shared, bits=[32.0])
    assert joint.count("BPP: n/a, one stream for all") == 2 and "Overall BPP: 2.0000" in joint
    none = documents.pyramid_analysis(**words, levels=[[], []], bits=[])
    assert "No frame was analysed." in none


@pytest.mark.parametrize("treatment", ["joint", "random"])
def test_the_summary_of_a_pyramid_names_no_single_level(treatment):
    words = SUMMARY | {"level": None, "treatment": treatment}
    text = documents.training_summary(**words, distortion="what the tail sees")
    level = documents.training_summary(**SUMMARY).splitlines()
    assert len(text.splitlines()) == len(level) and "FPN Levels: 0-4 (P2-P6)" in text
    assert treatment in text.splitlines()[0].lower() and "None" not in text
    assert "Best Validation Loss: 0.1235" in text and "what the tail sees + Lambda" in text


def test_diagnostics_list_the_levels_of_a_pyramid():
    levels = {f"fpn_mse/L{i}": 0.1 * i for i in range(5)}
    text = documents.training_diagnostics(**DIAGNOSTICS | {"val": DIAGNOSTICS["val"] | levels})
    assert "Validation MSE by Level:" in text and "L4: 0.400000" in text
    one = documents.training_diagnostics(**DIAGNOSTICS | {"val": {"fpn_mse/L2": 1.0}})
    assert "by Level" not in one
