"""Folders of images, features and streams through the command line, with the shipped detector."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxcomp
from jaxcomp import checkpoint, codecs, errors, loaders
from jaxcomp.cli import main as cli
from jaxcomp.codecs import bitstream
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles
from jaxcomp.commands import coding
from jaxcomp.jobs import feature_files, file_sets

ROOT = Path(__file__).parents[1]
MODEL = {"in_channels": 64, "n_hidden": 4, "n_channels": 4, "stages": 1, "dtype": "float32"}


def make_codec(path, level, seed):
    """A codec of random weights; another seed has other tables."""
    codec = FactorisedCodec(**MODEL)
    x = jax.ShapeDtypeStruct((1, 8, 8, 64), np.float32)
    shapes = jax.eval_shape(codec.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    variables["stats"] = jax.tree.map(np.ones_like, variables["stats"])
    variables = refresh_quantiles(variables)
    tables = np.frombuffer(codecs.build_tables(codec, variables).to_bytes(), np.uint8)
    meta = {"kind": "codec", "level": level, "model": MODEL}
    meta["detector_digest"] = loaders.load_detector().digest
    checkpoint.export_npz(path, {**variables, "tables": tables}, meta)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """codec0.npz … codec4.npz of the levels, and other.npz of P4 with other tables."""
    folder = tmp_path_factory.mktemp("weights")
    for level in range(5):
        make_codec(folder / f"codec{level}.npz", level, level)
    make_codec(folder / "other.npz", 2, 7)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_detector():
    """The commands load the same weights again and again: compile them once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders, "load_detector", functools.cache(loaders.load_detector))
        yield


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/{a,b}.png, photos/sub/c.png and junk, in the current directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        pixels = rng.integers(0, 255, (100, 150, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "notes.txt").write_text("junk")
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def features(tmp_path, monkeypatch):
    """p4.npy in the current directory; returns its array."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).normal(size=(6, 10, 64)).astype(np.float32)
    np.save("p4.npy", x)
    return x


def run(capsys, *argv):
    """(exit status, stdout, stderr) of a command."""
    status = cli([str(word) for word in argv])
    return (status, *capsys.readouterr())


def times(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def older(path):
    """Makes a file older than whatever is written now."""
    os.utime(path, (1e9, 1e9))


def test_a_folder_of_images_with_junk(photos, weights, capsys):
    argv = ("compress", "photos", "--recursive", "--codec", weights / "codec2.npz", "--out", "out")
    status, out, err = run(capsys, *argv)
    assert status == 1
    assert "skipped: photos/notes.txt" in err and "hidden" not in err
    assert "error: photos/bad.jpg" in err and err.count("error:") == 1
    files = [p.relative_to("out").as_posix() for p in times(Path("out"))]
    assert files == ["a.jxc", "b.jxc", "sub/c.jxc"]
    size = sum(p.stat().st_size for p in times(Path("out")))
    assert out.startswith("3 files") and f"streams {size} bytes" in out
    assert f"features {3 * 8 * 26 * 64 * 4} bytes" in out and "1 failed" in out
    meta = bitstream.read(Path("out/a.jxc").read_bytes()).meta
    assert meta["original_size"] == [100, 150] and meta["classes"][0] == "Car"


def test_resuming_makes_only_what_is_missing_broken_old_or_of_another_codec(
    photos, weights, capsys
):
    (photos / "photos" / "bad.jpg").unlink()
    argv = ["compress", "photos", "--codec", weights / "codec2.npz", "--out", "out"]
    assert run(capsys, *argv)[0] == 0
    a, b = Path("out/a.jxc"), Path("out/b.jxc")
    whole, before = a.read_bytes(), times(Path("out"))
    status, out, _ = run(capsys, *argv)
    assert status == 0 and "2 up to date" in out and times(Path("out")) == before
    a.write_bytes(whole[:-3])  # as a writer without atomic files would leave it
    assert "1 up to date" in run(capsys, *argv)[1]
    assert a.read_bytes() == whole and b.stat().st_mtime_ns == before[b]
    older(b)
    assert "1 up to date" in run(capsys, *argv)[1]
    assert "1 up to date" not in run(capsys, *argv, "--overwrite")[1]
    argv[3] = weights / "other.npz"
    assert "up to date" not in run(capsys, *argv)[1]
    assert a.read_bytes()[4:12] != whole[4:12]


def test_a_killed_run_leaves_whole_files_and_goes_on(features, weights):
    Path("in").mkdir()
    for i in range(40):
        np.save(f"in/{i:02d}.npy", features)
    argv = [sys.executable, "-m", "jaxcomp", "compress", "in", "--out", "out"]
    argv += ["--codec", str(weights / "codec2.npz"), "--backend", "numpy"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(Path().glob("out/*.jxc"))) < 3:
        pass
    process.kill()
    process.wait()
    made = times(Path("out"))
    streams = [p for p in made if not p.name.startswith(".")]
    assert len(streams) >= 3
    for path in streams:
        bitstream.read(path.read_bytes())
    assert cli(argv[3:]) == 0
    assert len(list(Path().glob("out/*.jxc"))) == 40
    assert {p: t for p, t in times(Path("out")).items() if p in streams} == {
        p: made[p] for p in streams
    }


def test_features_in_every_form_give_the_same_stream(features, weights, capsys):
    codec = weights / "codec2.npz"
    np.save("one.npy", features[None].astype(np.float64))
    np.savez("named.npz", p3=np.zeros((2, 2, 64)), p4=features)
    np.savez_compressed("single.npz", anything=features.astype(">f4"))
    blobs = set()
    for name in ("p4.npy", "one.npy", "named.npz", "single.npz"):
        status, out, err = run(capsys, "compress", name, "--codec", codec, "--out", "x.jxc")
        assert (status, err) == (0, "") and f"{features.nbytes} bytes raw" in out
        blobs.add(Path("x.jxc").read_bytes())
        Path("x.jxc").unlink()
    assert len(blobs) == 1
    assert blobs == {jaxcomp.load_codec(codec).compress(features[None])}


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 5), np.float32), "64"),
        (np.zeros((2, 4, 4, 64), np.float32), "one frame"),
        (np.zeros((4, 64), np.float32), "one frame"),
        (np.zeros((0, 4, 64), np.float32), "one frame"),
        (np.zeros((4, 4, 64), np.int32), "floating"),
        (np.full((4, 4, 64), np.nan, np.float32), "NaN"),
        (np.full((4, 4, 64), 1e300), "NaN or inf"),
        (np.array([{}], object), "cannot be read"),
    ],
)
def test_bad_features_are_one_line(array, words, tmp_path, weights, capsys):
    path = tmp_path / "x.npy"
    np.save(path, array)
    status, out, err = run(capsys, "compress", path, "--codec", weights / "codec2.npz")
    assert status == 1 and out == "" and not path.with_suffix(".jxc").exists()
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert str(path) in err


def test_damaged_and_hostile_feature_files_are_refused(features, tmp_path):
    blob = Path("p4.npy").read_bytes()
    np.savez("ok.npz", p4=features)
    archive = Path("ok.npz").read_bytes()
    huge = blob.replace(b"(6, 10, 64)", b"(6, 1 << 9)")[:200]
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 64), }"
    big = b"\x93NUMPY\x01\x00" + len(header + b"\n").to_bytes(2, "little") + header + b"\n"
    bad = {"cut.npy": blob[:-9], "empty.npy": b"", "expr.npy": huge, "big.npy": big}
    bad |= {"cut.npz": archive[:-30], "text.npz": b"hello", "flip.npz": _flip(archive, 400)}
    for name, content in bad.items():
        Path(name).write_bytes(content)
        with pytest.raises(errors.DataError, match=name):
            feature_files.read_features(name)
    np.savez("two.npz", a=features, b=features)
    np.savez("p3.npz", p3=features)
    for name in ("two.npz", "p3.npz"):
        with pytest.raises(errors.ShapeError, match="'p4' needed"):
            feature_files.read_features(name, ["p4"])


def _flip(blob, position):
    return blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :]


def test_back_to_features_with_the_record_and_again(features, weights, capsys):
    codec = weights / "codec2.npz"
    np.savez("in.npz", p4=features, __meta__=np.frombuffer(b'{"meta": {"k": [1]}}', np.uint8))
    assert run(capsys, "compress", "in.npz", "--codec", codec, "--out", "s/x.jxc")[0] == 0
    argv = ["decompress", "s", "--codec", codec, "--out", "f"]
    outputs = []
    for backend in codecs.rans.BACKENDS:
        assert run(capsys, *argv, "--overwrite", "--backend", backend)[0] == 0
        outputs.append(np.load("f/x.npz")["p4"])
    model = jaxcomp.load_codec(codec)
    wanted = model.decompress(Path("s/x.jxc").read_bytes())["p4"]
    for got in outputs:
        np.testing.assert_array_equal(got, wanted)
    record = feature_files.read_record("f/x.npz")
    assert record == {"codec": model.digest, "meta": {"k": [1]}}
    before = times(Path("f"))
    assert "1 up to date" in run(capsys, *argv)[1] and times(Path("f")) == before
    for damage in (lambda b: b[:-20], lambda b: _flip(b, 500)):
        whole = Path("f/x.npz").read_bytes()
        Path("f/x.npz").write_bytes(damage(whole))
        assert "1 file," in run(capsys, *argv)[1]
        assert Path("f/x.npz").read_bytes() == whole
    make_codec("twin.npz", 2, 2)
    tree, meta = checkpoint.load_npz("twin.npz")
    tree["stats"]["scale"] = tree["stats"]["scale"] * 2  # the same tables, another network
    checkpoint.export_npz("twin.npz", tree, meta)
    argv[3] = "twin.npz"
    assert "up to date" not in run(capsys, *argv)[1]


def test_without_out_features_never_replace_the_file_that_was_compressed(features, weights, capsys):
    np.savez("x.npz", p4=features)
    codec = weights / "codec2.npz"
    assert run(capsys, "compress", "x.npz", "--codec", codec)[0] == 0
    before = Path("x.npz").read_bytes()
    assert run(capsys, "decompress", "x.jxc", "--codec", codec)[0] == 0
    assert Path("x.npz").read_bytes() == before and Path("x.features.npz").exists()


def two_levels(codec, path):
    """A file of P4 and, coded alike, a second map under the name that codecs of P4 do not know."""
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 64)).astype(np.float32)
    model = (codec.codec, codec.variables, codec.tables)
    Path(path).write_bytes(codecs.compress(*model, {"p4": x, "p5": x}, {"k": 1}))


def test_partial_writes_what_is_undamaged_and_says_what_is_not(
    tmp_path, weights, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    codec = jaxcomp.load_codec(weights / "codec2.npz")
    two_levels(codec, "x.jxc")
    blob = Path("x.jxc").read_bytes()
    Path("x.jxc").write_bytes(_flip(blob, len(blob) - 1))  # damages p5
    argv = ("decompress", "x.jxc", "--codec", weights / "codec2.npz", "--out", "x.npz")
    status, _, err = run(capsys, *argv)
    assert status == 1 and "checksum" in err and not Path("x.npz").exists()
    status, out, err = run(capsys, *argv, "--partial")
    assert status == 1 and "p4 (1, 8, 8, 64)" in out
    assert err.startswith("error: x.jxc: CorruptStreamError") and err.count("\n") == 1
    record = feature_files.read_record("x.npz")
    assert record["meta"] == {"k": 1} and "checksum" in record["missing"][0]
    assert run(capsys, *argv, "--partial")[1] == out  # never up to date
    whole, _ = codec.decompress_partial(Path("x.jxc").read_bytes())
    np.testing.assert_array_equal(np.load("x.npz")["p4"], whole["p4"])
    first = blob.index(b"p4")
    Path("x.jxc").write_bytes(_flip(_flip(blob, len(blob) - 1), first + 12))
    Path("x.npz").unlink()
    assert run(capsys, *argv, "--partial")[0] == 1 and not Path("x.npz").exists()


def test_inspect_tells_shapes_bits_and_whether_the_codec_fits(features, weights, capsys):
    codec = weights / "codec2.npz"
    assert run(capsys, "compress", "p4.npy", "--codec", codec)[0] == 0
    status, out, err = run(capsys, "inspect", "p4.jxc", "--codec", codec)
    got = json.loads(out)
    stream = got["streams"][0]
    assert (status, err) == (0, "") and got["codec"]["matches"] is True and got["version"] == 1
    assert got["codec"]["digest"] == checkpoint.load_npz(codec)[1]["digest"]
    assert stream["shape"] == [6, 10, 64] and stream["bits"] == 8 * stream["bytes"]
    assert stream["bits_per_value"] == pytest.approx(8 * stream["bytes"] / features.size)
    assert got["bytes"] == got["header_bytes"] + stream["bytes"] == Path("p4.jxc").stat().st_size
    assert "bits_per_value" not in json.loads(run(capsys, "inspect", "p4.jxc")[1])["streams"][0]
    status, out, err = run(capsys, "inspect", "p4.jxc", "--codec", weights / "other.npz")
    assert status == 1 and json.loads(out)["codec"]["matches"] is False
    assert "TableMismatchError" in err and err.count("\n") == 1


def test_inspect_prints_what_is_left_of_damaged_streams(tmp_path, weights, capsys):
    path = tmp_path / "x.jxc"
    two_levels(jaxcomp.load_codec(weights / "codec2.npz"), path)
    blob = path.read_bytes()
    cases = (
        (_flip(blob, len(blob) - 1), "CorruptStreamError", ["p4"]),
        (blob[:-5], "TruncatedStreamError", ["p4"]),
        (blob + b"x", "CorruptStreamError", ["p4", "p5"]),
        (blob[:9], "TruncatedStreamError", None),
        (blob[:3] + b"\x07" + blob[4:], "VersionError", None),
        (b"", "", None),
    )
    for damaged, kind, names in cases:
        path.write_bytes(damaged)
        status, out, err = run(capsys, "inspect", path)
        got = json.loads(out)
        assert status == 1 and kind in err and kind in got["errors"][0]
        assert got["bytes"] == len(damaged)
        if names is None:
            assert "streams" not in got
        else:
            assert [s["name"] for s in got["streams"]] == names and got["meta"] == {"k": 1}
    # A stream that the codec's level does not cover: undamaged, but not for this model.
    path.write_bytes(blob)
    assert run(capsys, "inspect", path, "--codec", weights / "codec2.npz")[0] == 1


def test_detection_from_streams_alone_is_that_of_their_features_with_the_image(
    photos, weights, capsys
):
    streams = []
    for level in range(5):
        codec = ("--codec", weights / f"codec{level}.npz")
        argv = ("compress", "photos/a.png", *codec, "--out", f"s{level}/a.jxc")
        assert run(capsys, *argv)[0] == 0
        streams += ["--stream", f"s{level}/a.jxc", *codec]
    low = ("--score", "0.001", "--out")
    assert run(capsys, "detect", *streams, *low, "alone.json")[0] == 0
    assert run(capsys, "detect", "photos/a.png", *streams, *low, "with.json")[0] == 0
    alone, both = (json.loads(Path(f"{n}.json").read_text()) for n in ("alone", "with"))
    assert alone["boxes"] == "pixels of the image" and alone["image_size"] == [100, 150]
    assert alone["detections"] == both["detections"]
    assert Path("with_detections.png").exists() and not Path("alone_detections.png").exists()
    folders = [word.replace("/a.jxc", "") if "/a." in str(word) else word for word in streams]
    assert run(capsys, "detect", *folders, *low, "boxes")[0] == 0
    assert json.loads(Path("boxes/a.json").read_text())["detections"] == alone["detections"]
    status, _, err = run(capsys, "detect", "s2/a.jxc", *streams[8:12])
    assert status == 1 and "p2 p3 p5 p6 missing" in err.replace("p4 ", "")


def test_detection_from_features_and_their_record(photos, weights, capsys):
    detector = loaders.load_detector()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 208, 3), np.uint8)
    Image.fromarray(pixels).save("photos/a.png")  # fills the network's canvas
    image, meta = detector.prepare("photos/a.png")
    pyramid = detector.get_fpn_features(image)
    record = {"meta": {name: value[0].tolist() for name, value in meta.items()}}
    feature_files.write_features("all.npz", pyramid, record)
    feature_files.write_features("bare.npz", pyramid, {})
    low = ("--score", "0.0", "--out")
    for name in ("photos/a.png", "all.npz", "bare.npz"):
        assert run(capsys, "detect", name, *low, f"{Path(name).stem}.json")[0] == 0
    direct, stored, bare = (json.loads(Path(f"{n}.json").read_text()) for n in ("a", "all", "bare"))
    assert direct["detections"] and stored["detections"] == direct["detections"]
    assert bare["boxes"] == "pixels of the network" and bare["image_size"] is None
    scale = float(meta["scale"][0, 0])
    one, two = (np.array([row["box"] for row in d["detections"]]) for d in (bare, direct))
    np.testing.assert_allclose(one, two * scale, rtol=1e-5, atol=1e-4)
    # What decompress made of a stream stands for the stream.
    codec = ("--codec", weights / "codec2.npz")
    assert run(capsys, "compress", "photos/a.png", *codec, "--out", "a.jxc")[0] == 0
    assert run(capsys, "decompress", "a.jxc", *codec, "--out", "p4.npz")[0] == 0
    stream = ("detect", "photos/a.png", "--stream", "a.jxc", *codec, *low, "one.json")
    assert run(capsys, *stream)[0] == 0
    assert run(capsys, "detect", "photos/a.png", "--stream", "p4.npz", *low, "two.json")[0] == 0
    one, two = (json.loads(Path(f"{n}.json").read_text()) for n in ("one", "two"))
    assert one["detections"] == two["detections"] != direct["detections"]


def test_detection_in_folders_resumes(photos, weights, capsys):
    (photos / "photos" / "bad.jpg").unlink()
    codec = ("--codec", weights / "codec2.npz")
    assert run(capsys, "compress", "photos", *codec, "--out", "s")[0] == 0
    argv = ["detect", "photos", "--stream", "s", *codec, "--out", "boxes", "--score", "0.1"]
    status, out, err = run(capsys, *argv)
    assert status == 0 and out.startswith("2 files") and "notes.txt" in err
    assert sorted(p.name for p in Path("boxes").iterdir()) == [
        *("a.json", "a_detections.png", "b.json", "b_detections.png")
    ]
    before = times(Path("boxes"))
    assert "2 up to date" in run(capsys, *argv)[1] and times(Path("boxes")) == before
    Path("boxes/a.json").write_text('{"source": ')
    Path("boxes/b_detections.png").unlink()
    assert run(capsys, *argv)[1].startswith("2 files")
    argv[-1] = "0.2"
    assert run(capsys, *argv)[1].startswith("2 files")
    Path("s/b.jxc").unlink()
    status, out, err = run(capsys, *argv)
    assert status == 1 and "b.jxc" in err and "1 up to date" in out


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"image_size": "x", "scale": [1, 1], "original_size": [1, 1]}, "positive"),
        ({"image_size": [1], "scale": [1, 1], "original_size": [1, 1]}, "positive"),
        ({"image_size": [1, 1], "scale": [0, 1], "original_size": [1, 1]}, "positive"),
        ({"image_size": [128, 192], "scale": [1, 1], "original_size": [7, 9]}, "different sizes"),
    ],
)
def test_metadata_of_other_frames_or_without_sense_are_refused(
    meta, words, photos, weights, capsys
):
    codec = jaxcomp.load_codec(weights / "codec2.npz")
    blob = codec.compress(np.zeros((1, 8, 26, 64), np.float32), meta)
    Path("x.jxc").write_bytes(blob)
    argv = ("--stream", "x.jxc", "--codec", weights / "codec2.npz")
    status, _, err = run(capsys, "detect", "photos/a.png", *argv)
    assert status == 1 and words in err and "x.jxc" in err and err.count("\n") == 1


def test_streams_of_an_unknown_codec_are_refused_by_every_command(features, weights, capsys):
    other = ("--codec", weights / "other.npz")
    assert run(capsys, "compress", "p4.npy", *other)[0] == 0
    codec = ("--codec", weights / "codec2.npz")
    for argv in (("decompress", "p4.jxc"), ("decompress", "p4.jxc", "--partial"),
                 ("inspect", "p4.jxc"), ("detect", "p4.jxc")):  # fmt: skip
        status, _, err = run(capsys, *argv, *codec)
        assert status == 1 and "tables" in err and err.count("\n") == 1 and "p4.jxc" in err
    assert run(capsys, "detect", "p4.jxc", "--codec", weights / "codec3.npz")[0] == 1


def test_a_full_or_forbidden_place_stops_all(features, weights, capsys):
    Path("in").mkdir()
    for i in range(3):
        np.save(f"in/{i}.npy", features)
    Path("out").mkdir()
    Path("out/0.jxc").mkdir()
    argv = ("compress", "in", "--codec", weights / "codec2.npz", "--out", "out")
    status, _, err = run(capsys, *argv)
    assert status == 1 and err.count("error:") == 1 and "0.jxc" in err


def test_choice_of_inputs_and_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/a.png", "d/b.PNG", "d/c.txt", "d/s/e.png", "d/.x.png", "f/a.png", "d/a.npy"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    find, place = file_sets.find_inputs, file_sets.place_outputs
    flat = find(["d"], [".png"])
    assert [str(p) for p, _ in flat.files] == ["d/a.png", "d/b.PNG"]
    assert [str(p) for p in flat.junk] == ["d/a.npy", "d/c.txt"]
    deep = find(["d"], [".png"], recursive=True)
    assert str(place(deep, "o", ".jxc")[-1].out) == "o/s/e.jxc"
    assert len(find(["d", "d/a.png"], [".png"]).files) == 2
    assert len(find(["d"], [".png"], recursive=True, leave_out="d/s").files) == 2
    (item,) = place(find(["d/a.png"], [".png"]), None, ".jxc")
    assert str(item.out) == "d/a.jxc"
    (item,) = place(find(["d/a.png"], [".png"]), "new/", ".jxc")
    assert str(item.out) == "new/a.jxc"
    for selection, out, words in (
        (flat, None, "needs --out"),
        (flat, "f/a.png", "is a file"),
        (find(["d/a.png", "f/a.png"], [".png"]), "o", "both become"),
        (find(["d"], [".png", ".npy"]), "o", "both become"),
    ):
        with pytest.raises(errors.DataError, match=words):
            place(selection, out, ".jxc")
    with pytest.raises(errors.DataError, match="is an input"):
        place(flat, "d", ".png")
    for inputs in (["nothing"], ["d/s/none"]):
        with pytest.raises(errors.DataError, match="does not exist"):
            find(inputs, [".png"])
    with pytest.raises(errors.DataError, match="--recursive"):
        find(["d"], [".bmp"])


def test_a_reader_that_has_enough_ends_the_command_quietly(tmp_path):
    streams = [bitstream.Stream("p4", (6, 10), 1, 1, b"x" * 9)]
    (tmp_path / "x.jxc").write_bytes(bitstream.write("factorised", 1, streams))
    argv = [sys.executable, "-m", "jaxcomp", "inspect", str(tmp_path / "x.jxc")]
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does, only sooner
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_teaches_and_needs_no_heavy_library():
    code = (
        "import sys\nfrom jaxcomp import cli\n"
        "for words in ([], ['compress'], ['decompress'], ['detect'], ['inspect']):\n"
        "    try: cli.main([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print([n for n in ('jax', 'numpy', 'flax', 'PIL', 'tqdm', 'numba') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n") and done.stdout.count("examples:") == 4


def test_the_backends_offered_are_those_there_are():
    assert coding.BACKENDS == codecs.rans.BACKENDS
