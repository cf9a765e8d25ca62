"""`detect` from images, features and streams, single or in folders."""

import json
from pathlib import Path

import coding_toy
import numpy as np
import pytest
from coding_toy import flip, run, times
from PIL import Image

import jaxcomp
from jaxcomp import loaders
from jaxcomp.jobs import feature_files

# The fixtures of this module.
features = coding_toy.features
one_detector = coding_toy.one_detector
photos = coding_toy.photos
weights = coding_toy.weights


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
        assert status == 1 and "model" in err and err.count("\n") == 1 and "p4.jxc" in err
    assert run(capsys, "detect", "p4.jxc", "--codec", weights / "codec3.npz")[0] == 1


def test_a_damaged_stream_is_named_beside_the_frame(photos, weights, capsys):
    codec = ("--codec", weights / "codec2.npz")
    assert run(capsys, "compress", "photos/a.png", *codec, "--out", "s/a.jxc")[0] == 0
    blob = Path("s/a.jxc").read_bytes()
    Path("s/a.jxc").write_bytes(flip(blob, len(blob) - 1))
    status, _, err = run(capsys, "detect", "photos/a.png", "--stream", "s", *codec)
    assert status == 1 and "photos/a.png" in err and "'s/a.jxc': the checksum" in err


def test_several_frames_need_a_place_for_boxes_and_folders_of_streams(photos, weights, capsys):
    codec = ("--codec", weights / "codec2.npz")
    assert "several frames need --out" in run(capsys, "detect", "photos")[2]
    argv = ("detect", "photos", "--out", "boxes", "--stream", "a.jxc", *codec)
    assert "several frames need folders" in run(capsys, *argv)[2]
    assert "detect needs" in run(capsys, "detect")[2]
    Path("photos/a_detections.png").write_bytes(b"")
    argv = ("detect", "photos/a.png", "photos/a_detections.png", "--out", "photos")
    assert "is an input" in run(capsys, *argv)[2]
