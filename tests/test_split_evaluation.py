"""Rates are counted from files, padding is left out, a lossless codec costs no accuracy."""

import numpy as np
import pytest

from jaxcomp.evaluate.split import LevelCoder, evaluate_level

H, W, C = 4, 6, 3


def batches():
    rng = np.random.default_rng(0)
    for start, real in ((0, 2), (2, 1)):
        boxes = np.zeros((2, 2, 4), "f4")
        boxes[:, 0] = [2, 2, 12, 12]
        yield {
            "image": rng.integers(0, 255, (2, 16, 24, 3)).astype(np.uint8),
            "image_id": np.arange(start, start + 2),
            "boxes": boxes,
            "labels": np.tile([1, 0], (2, 1)),
            "valid": np.tile([True, False], (2, 1)),
            "ignore": np.zeros((2, 2), bool),
            "mask": np.array([1.0] * real + [0.0] * (2 - real)),
        }


def head(batch):
    image = batch["image"]
    return {"p2": image[:, ::4, ::4].astype("f4"), "p3": image[:, ::8, ::8].astype("f4")}


def tail_that_needs(level, expected_error):
    """A tail that finds the object only where the level is as it was."""

    def tail(features, sizes):
        count = len(sizes)
        good = np.array(
            [np.mod(features[level][i], 1).max() <= expected_error for i in range(count)]
        )
        boxes = np.tile(np.array([[2, 2, 12, 12.0]], "f4"), (count, 1, 1))
        return {
            "boxes": boxes,
            "scores": np.full((count, 1), 0.9),
            "labels": good[:, None].astype(int),
            "valid": good[:, None],
        }

    return tail


def coder(shift=0.0):
    def compress(x):
        return b"head" + x.astype("<f4").tobytes()

    def decompress(blob):
        return np.frombuffer(blob[4:], "<f4").reshape(1, H, W, C) + np.float32(shift)

    return LevelCoder(
        level="p2",
        compress=compress,
        decompress=decompress,
        ideal_bits=lambda x: np.full((len(x), 5), 100.0),
        payload_bits=lambda blob: 8 * (len(blob) - 4),
        scale=2.0,
        mean=np.full(C, 0.5),
    )


def run(tmp_path, shift=0.0):
    return evaluate_level(
        head=head,
        tail=tail_that_needs("p2", 0.1),
        coder=coder(shift),
        batches=batches(),
        classes=("Car",),
        streams=tmp_path / "streams",
        pictures=2,
    )


def test_rates_are_the_sizes_of_the_files(tmp_path):
    (tmp_path / "streams").mkdir()
    (tmp_path / "streams" / "000099.jxc").write_bytes(b"left over from another run")
    metrics, arrays = run(tmp_path)
    files = sorted((tmp_path / "streams").glob("*.jxc"))
    assert [f.name for f in files] == ["000000.jxc", "000001.jxc", "000002.jxc"]
    total = sum(f.stat().st_size for f in files)
    assert metrics["frames"] == 3
    assert metrics["bytes_per_frame"] == total / 3
    assert metrics["file_bits"] == 8 * total
    assert metrics["actual_bits"] == 8 * (total - 12)
    assert metrics["container_bytes_per_frame"] == 4
    assert metrics["estimated_bits"] == 1500
    assert metrics["bpp_image"] == pytest.approx(8 * total / (3 * 16 * 24))
    assert metrics["bits_per_value"] == pytest.approx(8 * total / (3 * H * W * C))
    assert metrics["compression_ratio"] == pytest.approx(4 * 3 * H * W * C / total)
    np.testing.assert_array_equal(arrays["channel_bits"], np.full(5, 100.0))
    assert arrays["original"].shape == (2, H, W, C)


def test_a_lossless_codec_keeps_everything(tmp_path):
    metrics, _ = run(tmp_path)
    assert metrics["mse"] == metrics["relative_mse"] == 0
    assert metrics["map50"] == metrics["map50_uncompressed"] == 1.0


def test_the_floor_is_the_accuracy_without_the_level(tmp_path):
    metrics, _ = run(tmp_path)
    assert metrics["map50_without_level"] == 0.0


def test_errors_are_measured_and_cost_accuracy(tmp_path):
    metrics, _ = run(tmp_path, shift=0.5)
    assert metrics["mse"] == pytest.approx(0.25)
    assert metrics["relative_mse"] == pytest.approx(0.25 / 4)
    assert metrics["map50_uncompressed"] == 1.0
    assert metrics["map50"] == metrics["map50_kept"] == 0.0
