"""Residual codes as an object and from the command line: sweeps to bytes, features, boxes."""

import json
import shutil
from pathlib import Path

import jax
import lidar_toy as toy
import numpy as np
import pytest

import jaxcomp
from jaxcomp import cli, weights_file
from jaxcomp.codecs import bitstream, rq_stream
from jaxcomp.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    ShapeError,
    TableMismatchError,
    TruncatedStreamError,
)
from jaxcomp.jobs import rq_codec, rq_files
from jaxcomp.loaders_lidar import KIND, LidarDetector, load_lidar_detector
from jaxcomp.models.pointpillars import PointPillars
from jaxcomp.tasks.pointpillars import init_variables

CLASSES = ("Pedestrian", "Cyclist", "Car")


def learn(detector, path, seed, where):
    """Codebooks drawn from residuals, and tables of a few sweeps."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 0.3, (2, 4, 8)).astype(np.float32)
    quantiser = rq_codec.Quantiser(detector, rows)
    vectors = [quantiser.vectors(toy.sweep(seed=i)) for i in range(3)]
    classes, tables = rq_stream.row_classes(rows), {}
    for n in (2, 4):
        frames = [quantiser.frame(v, (n, n)) for v in vectors]
        tables |= rq_stream.fit_indices(frames, classes)
    model = rq_stream.RqModel(rows, classes, rq_stream.fit_occupancy(frames), tables)
    record = rq_files.detector_record(str(where), detector, path)
    rq_files.save_model(path, model, {"sizes": [2, 4]} | record)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A detector, two runs with codebooks for it, and sweeps."""
    root = tmp_path_factory.mktemp("codes")
    variables = init_variables(PointPillars(toy.CFG), jax.random.key(0))
    # As it starts, the network finds nothing; this one finds something in every sweep.
    outputs = variables["params"]["outputs"]
    outputs["classes_bias"] = 0 * outputs["classes_bias"]
    outputs["classes_kernel"] = 30 * outputs["classes_kernel"]
    meta = {"kind": KIND, "model": toy.SIZES, "classes": CLASSES}
    weights_file.export_npz(root / "detector.npz", variables, meta)
    detector = load_lidar_detector(root / "detector.npz")
    for seed, name in enumerate(("run", "other")):
        (root / name).mkdir()
        learn(detector, root / name / "rq.npz", seed, root / "detector.npz")
    (root / "sweeps").mkdir()
    for i in range(2):
        toy.sweep(seed=10 + i).tofile(root / "sweeps" / f"{i}.bin")
    (root / "sweeps" / "2.bin").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def codec(place):
    return jaxcomp.load_residual_codec(place / "run")


def test_a_sweep_becomes_the_features_that_its_indices_stand_for(codec):
    sweep = toy.sweep(seed=20)
    blob = codec.compress(sweep, codebooks=2, embeddings=4)
    features = codec.decompress(blob)
    quantiser = codec.quantiser
    frame = quantiser.frame(quantiser.vectors(sweep), (4, 4))
    np.testing.assert_array_equal(features["bev"][0], rq_stream.features(frame, codec.model.rows))
    np.testing.assert_array_equal(features["occupancy"], codec.detector.head(sweep)["occupancy"])
    assert set(codec.detector.tail(features)) == {"boxes", "scores", "labels", "valid"}


def test_features_give_the_bytes_of_their_sweep(codec):
    sweep = toy.sweep(seed=21)
    head = codec.detector.head(sweep)
    for point in ((1, 2), (2, 4), (2, (4, 2)), (None, None)):
        assert codec.compress(head, *point) == codec.compress(sweep, *point)
    # A canvas alone: cells of zeros hold no pillar.
    frame = rq_stream.decompress(codec.compress(np.asarray(head["bev"])), codec.model)
    np.testing.assert_array_equal(frame.occupied, (np.asarray(head["bev"]) != 0).any(-1)[0])


def test_a_prefix_is_the_file_of_fewer_codebooks(codec):
    sweep, meta = toy.sweep(seed=22), {"frame": "22"}
    blob = codec.compress(sweep, 2, 4, meta)
    assert codec.prefix(blob, 1) == codec.compress(sweep, 1, 4, meta)
    assert codec.prefix(blob, codebooks=2) == blob
    for name, x in codec.decompress(blob, codebooks=1).items():
        np.testing.assert_array_equal(x, codec.decompress(codec.prefix(blob, 1))[name])
    for count in (0, 3):
        with pytest.raises(TruncatedStreamError, match=f"holds 2 codebooks, {count} are asked"):
            codec.prefix(blob, count)
    cut, count, errors = codec.decompress_partial(blob[:-1])
    assert count == 1 and errors
    np.testing.assert_array_equal(cut["bev"], codec.decompress(blob, 1)["bev"])


def test_an_empty_sweep_is_an_empty_result(codec, place):
    for source in (np.zeros((0, 4), np.float32), place / "sweeps" / "2.bin"):
        features = codec.decompress(codec.compress(source))
        assert not features["occupancy"].any() and not features["bev"].any()


def test_other_codebooks_and_other_codecs_are_refused(codec, place):
    other = jaxcomp.load_residual_codec(place / "other")
    blob = codec.compress(toy.sweep(seed=23))
    level = bitstream.write("factorised", 1, [bitstream.Stream("p4", (4, 4), 0, 0, b"")])
    for decode in (other.decompress, lambda b: other.prefix(b, 1), other.decompress_partial):
        with pytest.raises(TableMismatchError, match=f"{codec.model.digest:016x}.*use the check"):
            decode(blob)
        with pytest.raises(TableMismatchError, match="decodes 'residual_vq'"):
            decode(level)


def test_points_and_sources_that_do_not_fit_are_typed_errors(codec, place, tmp_path):
    sweep = toy.sweep(seed=24)
    for point, error, words in (
        ((3, 4), CheckpointError, "3 codebooks are asked for"),
        ((1, 8), CheckpointError, "8 embeddings are asked for"),
        ((1, 3), CheckpointError, "no tables for 3 embeddings"),
        ((1, (4, 4)), ShapeError, "one for each"),
    ):
        with pytest.raises(error, match=words):
            codec.compress(sweep, *point)
    broken = tmp_path / "cut.bin"
    broken.write_bytes(sweep.tobytes()[:-3])
    bad = np.asarray(codec.detector.head(sweep)["bev"]).copy()
    bad[0, 0, 0] = np.nan
    for source, error, words in (
        (broken, DataError, "truncated"),
        (bad, NonFiniteError, "NaN"),
        (bad[:, :-1], ShapeError, "needs"),
        ({"p4": bad}, ShapeError, "'bev' is needed"),
        ([sweep, sweep], ShapeError, "2 sweeps"),
    ):
        with pytest.raises(error, match=words):
            codec.compress(source)


def test_a_detector_that_is_not_the_codebooks_own_is_refused(codec, place, tmp_path):
    other = LidarDetector(
        PointPillars(toy.CFG), init_variables(PointPillars(toy.CFG), jax.random.key(1)), {}
    )
    with pytest.raises(CheckpointError, match="was trained with the detector"):
        jaxcomp.load_residual_codec(place / "run", other).compress(toy.sweep())
    with pytest.raises(CheckpointError, match="--detector"):
        jaxcomp.load_residual_codec(place / "run", tmp_path / "none.npz").compress(toy.sweep())
    rq_files.save_rows(tmp_path / "stage.npz", codec.model.rows, {"sizes": [2, 4]})
    with pytest.raises(CheckpointError, match="without tables"):
        jaxcomp.load_residual_codec(tmp_path / "stage.npz")


def test_the_detector_is_found_again_from_anywhere(place, codec, tmp_path, monkeypatch):
    """As it was typed it may be relative; the whole folder may be moved; one of two may be gone."""
    monkeypatch.chdir(place)
    detector = codec.detector
    model = codec.model

    def store(root, typed):
        (root / "run").mkdir(parents=True)
        record = rq_files.detector_record(str(typed), detector, root / "run" / "rq.npz")
        rq_files.save_model(root / "run" / "rq.npz", model, {"sizes": [2, 4]} | record)

    store(tmp_path / "typed", "detector.npz")
    shutil.copy(place / "detector.npz", tmp_path / "one.npz")
    (tmp_path / "a").mkdir()
    shutil.move(tmp_path / "one.npz", tmp_path / "a" / "one.npz")
    store(tmp_path / "a" / "runs", tmp_path / "a" / "one.npz")
    monkeypatch.chdir(tmp_path)
    for folder in ("typed", "a/runs"):
        assert jaxcomp.load_residual_codec(f"{folder}/run").detector.digest == detector.digest
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = jaxcomp.load_residual_codec("b/runs/run")
    assert moved.detector.digest == detector.digest
    # Without any, and with another in its place, the error names file, digest and option.
    for make in (Path.unlink, lambda file: other_detector(file)):
        make(tmp_path / "b" / "one.npz")
        with pytest.raises(CheckpointError) as error:
            _ = jaxcomp.load_residual_codec("b/runs/run").detector
        for word in ("b/runs/run", detector.digest[:12], "a/one.npz", "--detector"):
            assert word in str(error.value)
    assert "is another, " in str(error.value)
    assert moved.decompress(codec.compress(toy.sweep()))  # no detector is needed for that


def other_detector(file):
    """Writes a detector that no codebooks were made for."""
    variables = init_variables(PointPillars(toy.CFG), jax.random.key(7))
    weights_file.export_npz(file, variables, {"kind": KIND, "model": toy.SIZES, "classes": CLASSES})


def test_the_detector_that_ships_is_known_by_its_digest(tmp_path):
    shipped = load_lidar_detector()
    assert rq_files.detector_record("", shipped, tmp_path / "rq.npz")["detector"] == "shipped"
    gone = rq_files.detector_record(str(tmp_path / "copy.npz"), shipped, tmp_path / "rq.npz")
    assert rq_files.recorded_detector(gone).digest == shipped.digest


# --- command line ---------------------------------------------------------------------------------


def command(capsys, *argv):
    """(exit status, output, errors)."""
    status = cli.main([str(word) for word in argv])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def streams(place):
    """A folder of sweeps, compressed."""
    out = place / "streams"
    flags = ["--codec", place / "run", "--out", out, "--codebooks", 2, "--embeddings", "4,2"]
    assert cli.main([str(w) for w in ["compress", place / "sweeps", *flags]]) == 0
    return out


def test_a_folder_goes_to_streams_features_and_boxes_and_is_kept(place, streams, codec, capsys):
    names = ["0.jxc", "1.jxc", "2.jxc"]
    assert sorted(path.name for path in streams.iterdir()) == names
    sweep = place / "sweeps" / "0.bin"
    assert (streams / "0.jxc").read_bytes() == codec.compress(str(sweep), embeddings=(4, 2))
    run = ("--codec", place / "run", "--out")
    again = ("compress", place / "sweeps", *run, streams, "--codebooks", 2, "--embeddings", "4,2")
    status, out, _ = command(capsys, *again)
    assert status == 0 and "3 up to date" in out
    status, out, _ = command(capsys, "decompress", streams, *run, place / "features")
    assert status == 0 and "3 files" in out
    with np.load(place / "features" / "0.npz") as file:
        np.testing.assert_array_equal(
            file["bev"], codec.decompress((streams / "0.jxc").read_bytes())["bev"]
        )
    for source, folder in ((streams, "boxes"), (place / "features", "boxes2")):
        status, _, _ = command(capsys, "detect", source, *run, place / folder, "--score", 0.001)
        assert status == 0
    records = [
        json.loads((place / folder / "0.json").read_text()) for folder in ("boxes", "boxes2")
    ]
    assert records[0]["detections"] == records[1]["detections"]
    found = codec.detector.tail(codec.decompress((streams / "0.jxc").read_bytes()))
    kept = found["valid"][0] & (found["scores"][0] >= 0.001)
    assert len(records[0]["detections"]) == kept.sum() > 0
    assert all(len(row["box"]) == 7 for row in records[0]["detections"])


def test_inspect_tells_codebooks_sizes_and_bytes(place, streams, capsys):
    path = streams / "0.jxc"
    status, out, _ = command(capsys, "inspect", path, "--codec", place / "run")
    told = json.loads(out)
    assert status == 0 and told["kind"] == "residual_vq" and told["codec"]["matches"] is True
    assert (told["codebooks"], told["embeddings"]) == (2, [4, 2])
    assert [row["name"] for row in told["streams"]] == ["occupancy", "0.4", "1.2"]
    assert sum(r["bytes"] for r in told["streams"]) + told["header_bytes"] == path.stat().st_size
    assert json.loads(command(capsys, "inspect", path)[1])["streams"] == told["streams"]
    status, out, errors = command(capsys, "inspect", path, "--codec", place / "other")
    assert status == 1 and "TableMismatchError" in errors
    assert json.loads(out)["codec"]["matches"] is False


def test_errors_of_the_commands_are_one_line(place, streams, tmp_path, capsys):
    cut = tmp_path / "cut.bin"
    cut.write_bytes(b"12345")
    (tmp_path / "photo.png").write_bytes(b"png")
    run, stream = ("--codec", place / "run"), streams / "0.jxc"
    for argv, words in (
        (("compress", cut, *run), "truncated"),
        (("compress", tmp_path / "photo.png", *run), "is no sweep"),
        (("compress", cut, *run, "--codebooks", 3), "3 codebooks are asked for"),
        (("compress", cut, *run, "--embeddings", 8), "8 embeddings are asked for"),
        (("compress", cut, *run, "--backend", "jax"), "not for residual codes"),
        (("compress", cut, "--codec", place / "detector.npz", "--codebooks", 1), "another codec"),
        (("decompress", stream, "--codec", place / "other"), "use the checkpoint"),
        (("decompress", stream, *run, "--codebooks", 3), "holds 2 codebooks"),
        (("decompress", stream, *run, "--codebooks", 1, "--partial"), "not both"),
        (("detect", stream, *run, "--stream", stream), "give it alone"),
        (("detect", stream, "--codec", place / "other"), "use the checkpoint"),
    ):
        status, _, errors = command(capsys, *argv)
        assert status == 1 and words in errors and errors.count("\n") == 1, (argv, errors)


def test_a_cut_stream_gives_what_it_holds(place, streams, codec, tmp_path, capsys):
    cut, out = tmp_path / "cut.jxc", tmp_path / "cut.npz"
    whole = (streams / "1.jxc").read_bytes()
    cut.write_bytes(whole[:-2])
    argv = ("decompress", cut, "--codec", place / "run", "--out", out)
    assert command(capsys, *argv)[0] == 1 and not out.exists()
    status, _, errors = command(capsys, *argv, "--partial")
    assert status == 1 and "1 of 2 codebooks could be read" in errors
    with np.load(out) as file:
        np.testing.assert_array_equal(file["bev"], codec.decompress(whole, 1)["bev"])


def test_boxes_of_a_cut_stream_are_those_of_the_codebooks_before_the_cut(
    place, streams, codec, tmp_path, capsys
):
    """Cut behind codebook 0, inside codebook 1 and inside codebook 0; then whole again."""
    cut, out, small = tmp_path / "cut.jxc", tmp_path / "cut.json", tmp_path / "small.jxc"
    whole = (streams / "0.jxc").read_bytes()
    small.write_bytes(codec.prefix(whole, 1))
    behind = small.stat().st_size  # the heads of both files have one size
    flags = ("--codec", place / "run", "--score", 0.001)
    assert command(capsys, "detect", small, *flags, "--out", tmp_path / "small.json")[0] == 0
    wanted = json.loads((tmp_path / "small.json").read_text())["detections"]
    command(capsys, "detect", streams / "0.jxc", *flags, "--out", tmp_path / "whole.json")
    assert wanted != json.loads((tmp_path / "whole.json").read_text())["detections"]
    argv = ("detect", cut, *flags, "--out", out)
    for size in (behind, behind + 3):
        cut.write_bytes(whole[:size])
        assert command(capsys, *argv)[0] == 1 and not out.exists()
        status, _, errors = command(capsys, *argv, "--partial")
        assert status == 1 and errors.count("\n") == 1
        assert "1 of 2 codebooks could be read" in errors
        record = json.loads(out.read_text())
        assert record["detections"] == wanted and record["missing"]
        out.unlink()
    cut.write_bytes(whole[: behind - 3])
    status, _, errors = command(capsys, *argv, "--partial")
    assert status == 1 and "0 of 2 codebooks could be read" in errors and not out.exists()
    cut.write_bytes(whole[: len(whole) - 1])
    for _ in range(2):  # what is incomplete is made again
        assert command(capsys, *argv, "--partial")[0] == 1
    cut.write_bytes(whole)
    status, _, errors = command(capsys, *argv, "--partial")
    assert status == 0 and not errors and "missing" not in json.loads(out.read_text())


def test_detecting_partially_is_for_residual_codes_alone(streams, capsys):
    status, _, errors = command(capsys, "detect", streams / "0.jxc", "--partial")
    assert status == 1 and "for residual codes" in errors and errors.count("\n") == 1
