"""Commands: documented parameter counts, files described, bad input in one line."""

import itertools
import json

import numpy as np
import pytest

from jaxcomp import weights_file
from jaxcomp.cli import main as cli
from jaxcomp.codecs import bitstream
from jaxcomp.errors import CheckpointError
from jaxcomp.main import main as train_main

ROOT = __file__.rsplit("/tests/", 1)[0]


def inspect_json(spec, capsys):
    assert cli(["inspect", f"--config={ROOT}/configs/{spec}", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_full_size_detector_has_the_documented_parameters(capsys):
    got = inspect_json("detector.py:kitti", capsys)
    assert got["total_parameters"] == 43_261_278
    assert got["parameters"]["body"] == 23_508_032
    assert got["parameters"]["fpn"] == 3_346_432
    assert got["parameters"]["rpn"] == 1_184_015
    assert got["features"]["p6"] == [7, 21, 256]


def test_full_size_codec_has_the_documented_parameters(capsys):
    got = inspect_json("fpn_level.py:kitti,level=2", capsys)
    assert got["total_parameters"] == 4_617_600
    assert got["parameters"]["prior"] == 11_712


def test_codec_macs_equal_the_formula(capsys):
    got = inspect_json("fpn_level.py:kitti,level=1", capsys)
    height, width = got["feature_shape"][:2]
    channels = [256, 128, 128, 128, 192]
    expected = 0
    for stage, (a, b) in enumerate(itertools.pairwise(channels)):
        positions = height * width // 4 ** (stage + 1)
        expected += positions * 25 * a * b
        expected += positions * b * b if stage < 3 else 0  # GDN's 1x1
    assert got["macs"]["analysis"] == expected


def test_table_for_people(capsys):
    assert cli(["inspect", f"--config={ROOT}/configs/fpn_level.py"]) == 0
    out = capsys.readouterr().out
    assert "analysis" in out and "total" in out


def test_files_are_described(tmp_path, capsys):
    stream = bitstream.Stream("p4", (8, 26), 2, 1, b"12345")
    (tmp_path / "a.jxc").write_bytes(bitstream.write("factorised", 7, [stream], {"k": 1}))
    weights_file.export_npz(tmp_path / "a.npz", {"w": np.zeros((2, 3))}, {"kind": "test"})
    assert cli(["inspect", str(tmp_path / "a.jxc")]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["streams"][0]["shape"] == [8, 26] and got["meta"] == {"k": 1}
    assert cli(["inspect", str(tmp_path / "a.npz")]) == 0
    assert json.loads(capsys.readouterr().out)["leaves"] == {"w": [2, 3]}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["inspect"], "needs either"),
        (["inspect", "nothing.npz"], "does not exist"),
        (["inspect", "--config=configs/fpn_level.py:level=7"], "level"),
        (["decompress", "a.jxc", "--codec", "nowhere"], "nowhere"),
        (["compress", "a.png", "--codec", "nowhere"], "nowhere"),
        (["compress", "a.png", "--codec", "README.md"], "'a.png' does not exist"),
        (["compress", "README.md", "--codec", "README.md"], "README.md"),
        (["compress", "a.png", "--codec", "b", "--config=configs/fpn_level.py"], "only inspect"),
        (["inspect", "nothing.jxc"], "nothing.jxc"),
        (["inspect", "a.npz", "--codec", "b"], ".jxc"),
        (["detect", "a.png", "--stream", "a.jxc"], "--codec"),
        (["report", "nowhere"], "summary.json"),
    ],
)
def test_bad_input_is_one_line_and_status_one(argv, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli(argv) == 1
    err = capsys.readouterr().err
    assert words in err and err.startswith("error:") and err.count("\n") == 1


def test_an_interruption_is_told_in_one_line(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxcomp.inspecting.describe_file", interrupt)
    assert cli(["inspect", "a.npz"]) == 130
    err = capsys.readouterr().err
    assert err.startswith("interrupted") and err.count("\n") == 1


def test_debug_shows_the_trace():
    with pytest.raises(CheckpointError):
        cli(["inspect", "nothing.npz", "--debug"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--config=configs/fpn_level.py:level=5"], "level"),
        (["--config=configs/fpn_level.py:levl=2"], "level="),
        (["--config=configs/fpn_level.py", "--config.training.rate_wieght=1"], "rate_weight"),
        (["--config=configs/fpn_level.py", "--config.training.epochs=many"], "epochs"),
        (["--config=configs/nothing.py"], "configs"),
        (["--config=configs/fpn_level.py", "--mode=eval"], "--workdir"),
    ],
)
def test_bad_training_command_is_one_line(argv, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert train_main(argv) == 1
    err = capsys.readouterr().err
    assert words in err and err.startswith("error:") and err.count("\n") == 1


def test_help_teaches(capsys):
    assert train_main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "--workdir" in out and "examples:" in out
    assert train_main([]) == 2


def test_help_of_a_config_is_what_the_file_says(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert train_main(["--config=configs/fpn_level.py:level=2", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--workdir" in out and "level=0" in out.split("configs/fpn_level.py:level=2:")[1]
    assert train_main(["--config=configs/nowhere.py", "--help"]) == 1
    (tmp_path / "bad.py").write_text("def (")
    assert train_main([f"--config={tmp_path / 'bad.py'}", "--help"]) == 1
    assert capsys.readouterr().err.count("error:") == 2
