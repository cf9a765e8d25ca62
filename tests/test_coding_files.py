"""Images and features to streams and back through the command line: files, folders, damage."""

import os
import subprocess
import sys
from pathlib import Path

import coding_toy
import numpy as np
import pytest
from coding_toy import flip, make_codec, older, run, times, two_levels

import jaxcomp
from jaxcomp import codecs, errors, loaders, weights_file
from jaxcomp.cli import main as cli
from jaxcomp.codecs import bitstream
from jaxcomp.jobs import feature_files, file_runs, file_sets

# The fixtures of this module.
features = coding_toy.features
one_detector = coding_toy.one_detector
photos = coding_toy.photos
weights = coding_toy.weights
ROOT = Path(__file__).parents[1]


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


def test_resuming_notices_that_metadata_are_wanted(photos, weights, capsys):
    (photos / "photos" / "bad.jpg").unlink()
    argv = ["compress", "photos", "--codec", weights / "codec2.npz", "--out", "out"]
    run(capsys, *argv, "--no-metadata")
    assert bitstream.read(Path("out/a.jxc").read_bytes()).meta is None
    assert "up to date" not in run(capsys, *argv)[1]
    assert bitstream.read(Path("out/a.jxc").read_bytes()).meta["original_size"] == [100, 150]


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
    bad |= {"cut.npz": archive[:-30], "text.npz": b"hello", "flip.npz": flip(archive, 400)}
    for name, content in bad.items():
        Path(name).write_bytes(content)
        with pytest.raises(errors.DataError, match=name):
            feature_files.read_features(name)
    np.savez("two.npz", a=features, b=features)
    np.savez("p3.npz", p3=features)
    for name in ("two.npz", "p3.npz"):
        with pytest.raises(errors.ShapeError, match="'p4' needed"):
            feature_files.read_features(name, ["p4"])


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
    for damage in (lambda b: b[:-20], lambda b: flip(b, 500)):
        whole = Path("f/x.npz").read_bytes()
        Path("f/x.npz").write_bytes(damage(whole))
        assert "1 file," in run(capsys, *argv)[1]
        assert Path("f/x.npz").read_bytes() == whole
    make_codec("twin.npz", 2, 2)
    tree, meta = weights_file.load_npz("twin.npz")
    tree["stats"]["scale"] = tree["stats"]["scale"] * 2  # the same tables, another network
    weights_file.export_npz("twin.npz", tree, meta)
    argv[3] = "twin.npz"
    assert "up to date" not in run(capsys, *argv)[1]


def test_without_out_features_never_replace_the_file_that_was_compressed(features, weights, capsys):
    np.savez("x.npz", p4=features)
    codec = weights / "codec2.npz"
    assert run(capsys, "compress", "x.npz", "--codec", codec)[0] == 0
    before = Path("x.npz").read_bytes()
    assert run(capsys, "decompress", "x.jxc", "--codec", codec)[0] == 0
    assert Path("x.npz").read_bytes() == before and Path("x.features.npz").exists()


def test_partial_writes_what_is_undamaged_and_says_what_is_not(
    tmp_path, weights, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    codec = jaxcomp.load_codec(weights / "codec2.npz")
    two_levels(codec, "x.jxc")
    blob = Path("x.jxc").read_bytes()
    Path("x.jxc").write_bytes(flip(blob, len(blob) - 1))  # damages p5
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
    Path("x.jxc").write_bytes(flip(flip(blob, len(blob) - 1), first + 12))
    Path("x.npz").unlink()
    assert run(capsys, *argv, "--partial")[0] == 1 and not Path("x.npz").exists()


def test_the_limit_of_symbols_is_an_option_that_its_error_names(features, weights, capsys):
    codec = ("--codec", weights / "codec2.npz")
    assert run(capsys, "compress", "p4.npy", *codec)[0] == 0
    for argv in (["decompress", "p4.jxc"], ["detect", "--stream", "p4.jxc"]):
        status, _, err = run(capsys, *argv, *codec, "--max-symbols", 59)
        assert status == 1 and "--max-symbols" in err and "limit of 59" in err
    for partial in ([], ["--partial"]):
        argv = ("decompress", "p4.jxc", *codec, *partial, "--overwrite", "--backend", "numpy")
        assert run(capsys, *argv, "--max-symbols", 60)[0] == 0
    with pytest.raises(SystemExit):
        run(capsys, *argv, "--max-symbols", 0)
    assert "not a positive number" in capsys.readouterr().err


def test_commands_keep_what_they_compile(features, weights, tmp_path):
    """In processes of their own: the second finds the programs of the first."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # the toy compiles fast
    argv = [sys.executable, "-m", "jaxcomp", "compress", "p4.npy", "--overwrite"]
    argv += ["--codec", str(weights / "codec2.npz"), "--out", "x.jxc"]
    kept = []
    for _ in range(2):
        subprocess.run(argv, env=env, check=True, capture_output=True)
        folder = tmp_path / "home" / ".cache" / "jaxcomp" / "xla"
        kept.append({p.name for p in folder.rglob("*") if p.name.endswith("-cache")})
    assert any("_analyse" in name for name in kept[0]) and kept[1] == kept[0]


def test_a_slow_run_has_a_speed():
    tally = file_runs.Tally([file_runs.Done("", raw=5000, coded=10)], seconds=60)
    assert "8.33e-05 MB/s" in tally.summary()


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


def test_the_digest_of_a_codec_is_that_of_its_file(weights):
    codec = jaxcomp.load_codec(weights / "codec2.npz")
    meta = {name: value for name, value in codec.meta.items() if name != "digest"}
    fresh = loaders.LevelCodec(codec.codec, codec.variables, codec.tables, meta)
    assert fresh.digest == codec.digest == codec.meta["digest"]
    assert loaders.load_codec(weights / "other.npz").digest != codec.digest


def test_damage_anywhere_in_feature_files_is_a_typed_error_or_harmless(features):
    """Flips in headers and directories, where numpy and zipfile raise all kinds of errors."""
    np.savez("a.npz", p4=features, __meta__=np.frombuffer(b'{"meta": 1}', np.uint8))
    rng = np.random.default_rng(0)
    refused = 0
    for name in ("a.npz", "p4.npy"):
        blob = Path(name).read_bytes()
        for trial in range(200):
            damaged = bytearray(blob)
            place = rng.integers(0, 200) if trial % 2 else len(blob) - rng.integers(1, 300)
            damaged[place] ^= 1 << rng.integers(0, 8)
            Path(f"x{name}").write_bytes(damaged)
            try:
                feature_files.read_features(f"x{name}", ["p4"])
            except errors.JaxcompError as error:
                refused += 1
                assert f"x{name}" in str(error)
    assert refused > 100
