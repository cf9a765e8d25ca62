"""Residual codes of bad sweeps: a clear error or a correct empty result, and never NaN."""

import json

import jax
import lidar_toy as toy
import numpy as np
import pytest
from test_residual_vq_job import argv, evaluate
from test_residual_vq_task import SCHEDULE, batch, make_task, run

from jaxcomp import main, weights_file
from jaxcomp.codecs import rq_stream
from jaxcomp.errors import DataError
from jaxcomp.jobs import rq_codec, rq_files, rq_grid
from jaxcomp.loaders_lidar import KIND, LidarDetector
from jaxcomp.models.pointpillars import PointPillars
from jaxcomp.tasks.pointpillars import init_variables

CLASSES = ("Pedestrian", "Cyclist", "Car")
GOOD = toy.sweep(seed=3)


def with_bad_points(sweep):
    """The sweep with NaN and infinity among its points."""
    bad = np.full((6, 4), np.nan, np.float32)
    bad[1], bad[2, 0], bad[3, 2], bad[4, 3] = np.inf, -np.inf, np.inf, np.inf
    bad[2:5] = np.where(np.isfinite(sweep[2:5]) & np.isnan(bad[2:5]), sweep[2:5], bad[2:5])
    return np.concatenate([sweep[:100], bad, sweep[100:]])


def far_away(count=50):
    return toy.sweep(count) + np.float32([500, 0, 0, 0])


@pytest.fixture(scope="module")
def codec():
    """Codebooks that nothing was learned for, and tables of a few sweeps."""
    model = PointPillars(toy.CFG)
    detector = LidarDetector(model, init_variables(model, jax.random.key(0)), {})
    rows = np.random.default_rng(0).normal(0, 0.3, (2, 4, 8)).astype(np.float32)
    quantiser = rq_codec.Quantiser(detector, rows)
    frames = [quantiser.frame(quantiser.vectors(toy.sweep(seed=i)), (4, 4)) for i in range(3)]
    classes = rq_stream.row_classes(rows)
    tables = rq_stream.fit_indices(frames, classes)
    coder = rq_stream.RqModel(rows, classes, rq_stream.fit_occupancy(frames), tables)
    return rq_codec.ResidualCodec(coder, {"detector_digest": detector.digest}, detector)


@pytest.mark.parametrize(
    "sweep",
    [
        np.zeros((0, 4), np.float32),
        np.full((9, 4), np.nan, np.float32),
        np.full((9, 4), np.inf, np.float32),
        far_away(),
    ],
    ids=["empty", "nan", "infinite", "out of range"],
)
def test_a_sweep_without_a_usable_point_is_a_small_file_without_boxes(codec, sweep):
    blob = codec.compress(sweep)
    features = codec.decompress(blob)
    assert len(blob) < 100 and not features["occupancy"].any() and not features["bev"].any()
    found = codec.detector.tail(features)
    assert np.isfinite(found["boxes"]).all()
    assert codec.decompress(codec.prefix(blob, 1))["bev"].shape == features["bev"].shape


def test_points_that_are_not_finite_change_no_byte(codec):
    assert codec.compress(with_bad_points(GOOD)) == codec.compress(GOOD)


def test_200_000_points_are_coded_and_what_overflows_is_counted(codec):
    sweep = np.concatenate([toy.sweep(200_000, seed=5), far_away(10)])
    before = codec.detector.voxelise.counts()
    frame = rq_stream.decompress(codec.compress(sweep), codec.model)
    after = codec.detector.voxelise.counts()
    dropped = after["dropped_pillars"] - before["dropped_pillars"]
    cells = {tuple(c) for c in np.floor((sweep[:200_000, :2] - toy.CFG.low[:2]) / 0.8).astype(int)}
    assert frame.occupied.sum() == toy.CFG.max_pillars_eval
    assert dropped == len(cells) - toy.CFG.max_pillars_eval > 0
    assert after["overflowing_sweeps"] == before["overflowing_sweeps"] + 1


def test_a_truncated_file_is_named_with_its_size(codec, tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(GOOD.tobytes()[:-3])
    with pytest.raises(DataError, match=rf"cut.bin: {len(GOOD) * 16 - 3} bytes.*truncated"):
        codec.compress(path)


# --- training -------------------------------------------------------------------------------------


def without_objects(i):
    return batch(i) | toy.objects([], [], rows=4)


def without_matches(i):
    """A pedestrian of the size of a ball and one outside the grid: no anchor overlaps enough."""
    boxes = [[4.0, 0.4, -1.7, 0.05, 0.05, 0.05, 0.1], [300.0, 0, -1.7, 0.6, 0.8, 1.7, 0.0]]
    return batch(i) | toy.objects(boxes, [0, 0], rows=4)


def nowhere(i):
    """Two sweeps without a point in range, one with points that are not finite."""
    from jaxcomp.tasks.lidar_input import Voxeliser

    prepare = Voxeliser(toy.CFG, train=True, pad_points=1024, pad_pillars=64)
    sweeps = [far_away(), np.zeros((0, 4), np.float32), with_bad_points(GOOD), toy.sweep(seed=i)]
    return prepare(sweeps) | toy.objects([], [], rows=4)


@pytest.mark.parametrize("batches", [without_objects, without_matches, nowhere])
@pytest.mark.parametrize("head", [False, True])
def test_training_stays_finite(batches, head):
    """Two stages, warm-up and gradients; the codebooks learn what there is."""
    states, metrics, _ = run(make_task(train_head=head), SCHEDULE.stage_epochs * 2 + 2, batches)
    assert all(np.isfinite(list(m.values())).all() for m in metrics)
    for leaf in jax.tree.leaves((states[-1].params, states[-1].stats)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
    assert metrics[-3]["vq_loss"] > 0 and metrics[5]["det_loss"] > 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A KITTI folder of bad sweeps, in both of its lists, and a detector."""
    root = tmp_path_factory.mktemp("bad")
    toy.kitti_folder(root / "kitti", frames=8)
    training = root / "kitti" / "training"
    sweeps = {
        0: np.zeros((0, 4)), 1: with_bad_points(GOOD), 2: far_away(), 6: np.zeros((0, 4)),
        7: with_bad_points(GOOD),
    }  # fmt: skip
    for i, points in sweeps.items():
        points.astype(np.float32).tofile(training / "velodyne_reduced" / f"{i:06d}.bin")
    for i in (1, 3):  # nothing to find
        (training / "label_2" / f"{i:06d}.txt").write_text("")
    (training / "velodyne_reduced" / "000005.bin").write_bytes(GOOD.tobytes()[:-5])
    variables = init_variables(PointPillars(toy.CFG), jax.random.key(0))
    meta = {"kind": KIND, "model": toy.SIZES, "classes": CLASSES}
    weights_file.export_npz(root / "detector.npz", variables, meta)
    return root


@pytest.fixture(scope="module")
def trained(place):
    """A run on them, with anchors."""
    assert main.main(argv(place, place / "run")) == 0
    return place / "run"


def test_a_run_on_bad_sweeps_ends_with_a_whole_table(trained):
    """The truncated one of the training list is left out, the others take part."""
    assert np.isfinite(rq_files.load_rq(trained)[0]).all()
    table = json.loads((trained / "grid.json").read_text())["rows"]
    names = {row["name"] for row in table}
    assert {"1x2", "2x4", "points-lzma-1cm", "bev-8bit", rq_grid.UNCOMPRESSED} <= names
    for row in table:
        assert all(np.isfinite(v) for v in row.values() if isinstance(v, float)), row
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["voxelised"]["validation"]["empty_sweeps"] > 0
    assert (
        summary["frames"] == 2 and "000005.bin: 4795 bytes" in (trained / "train.log").read_text()
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config.progressive_learning.embedding_schedule=(2,8)",), "another --workdir"),
        (("--config.progressive_learning.embedding_stage_epochs=1", "--config.training.epochs=4"),
         "another --workdir"),
    ],
)  # fmt: skip
def test_a_run_of_another_schedule_is_not_resumed(place, trained, capsys, flags, words):
    before = (trained / "rq.npz").read_bytes()
    assert main.main(argv(place, trained, *flags)) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert (trained / "rq.npz").read_bytes() == before


def test_codebooks_of_another_schedule_are_measured_at_their_own_sizes(place, trained, tmp_path):
    """The config's schedule is that of training; the file tells its own."""
    flags = ["--config.progressive_learning.embedding_schedule=(3,16)"]
    assert evaluate(place, tmp_path, f"--rq_ckpt={trained}", *flags) == 0
    rows = json.loads((tmp_path / "grid.json").read_text())["rows"]
    assert [r["name"] for r in rows] == ["1x2", "1x4", "2x2", "2x4", rq_grid.UNCOMPRESSED]


def test_a_point_of_another_schedule_is_refused_with_what_there_is(place, trained, capsys):
    flags = (f"--rq_ckpt={trained}", "--eval_num_codebooks=2", "--eval_num_embeddings=16")
    assert evaluate(place, "", *flags) == 1
    error = capsys.readouterr().err
    assert "16 embeddings are asked for" in error and "of 4 embeddings" in error
