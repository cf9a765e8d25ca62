"""`inspect` of streams, `--help`, and readers that stop reading."""

import json
import os
import subprocess
import sys
from pathlib import Path

import coding_toy
import pytest
from coding_toy import flip, run, two_levels

import jaxcomp
from jaxcomp import codecs, weights_file
from jaxcomp.codecs import bitstream
from jaxcomp.commands import coding

# The fixtures of this module.
features = coding_toy.features
one_detector = coding_toy.one_detector
weights = coding_toy.weights
ROOT = Path(__file__).parents[1]


def test_inspect_tells_shapes_bits_and_whether_the_codec_fits(features, weights, capsys):
    codec = weights / "codec2.npz"
    assert run(capsys, "compress", "p4.npy", "--codec", codec)[0] == 0
    status, out, err = run(capsys, "inspect", "p4.jxc", "--codec", codec)
    got = json.loads(out)
    stream = got["streams"][0]
    assert (status, err) == (0, "") and got["codec"]["matches"] is True and got["version"] == 1
    assert got["codec"]["digest"] == weights_file.load_npz(codec)[1]["digest"]
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
        (flip(blob, len(blob) - 1), "CorruptStreamError", ["p4"]),
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
        assert got.get("codec", {}).get("matches") is not True
    # A stream that the codec's level does not cover: undamaged, but not for this model.
    path.write_bytes(blob)
    assert run(capsys, "inspect", path, "--codec", weights / "codec2.npz")[0] == 1


def test_inspect_says_that_a_codec_matches_only_if_something_was_decoded(features, weights, capsys):
    codec = weights / "codec2.npz"
    assert run(capsys, "compress", "p4.npy", "--codec", codec)[0] == 0
    blob = Path("p4.jxc").read_bytes()
    for damaged, matches, decoded in (
        (blob, True, ["p4"]),
        (flip(blob, len(blob) - 1), None, []),
        (blob[:-5], None, []),
        (flip(blob, 6), False, []),  # the digest
        (blob + b"x", True, ["p4"]),
    ):
        Path("p4.jxc").write_bytes(damaged)
        status, out, err = run(capsys, "inspect", "p4.jxc", "--codec", codec)
        got = json.loads(out)["codec"]
        assert (got["matches"], got["decoded"]) == (matches, decoded), damaged
        assert status == (damaged != blob) and bool(err) == bool(status)


def test_another_model_is_told_before_the_size_of_its_maps(tmp_path, weights, capsys):
    stream = bitstream.Stream("p4", (4000, 4000), 1, 1, b"x" * 9)
    path = tmp_path / "x.jxc"
    path.write_bytes(bitstream.write("factorised", 1, [stream]))
    for command in ("inspect", "decompress"):
        status, _, err = run(capsys, command, path, "--codec", weights / "codec2.npz")
        assert status == 1 and "model" in err and "limit" not in err and err.count("\n") == 1


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
