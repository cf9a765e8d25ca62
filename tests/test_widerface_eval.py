"""`widerface-eval`: files against the ground truth, a detector that makes them, bad input."""

import numpy as np
import pytest
from PIL import Image

from jaxcomp import cli
from jaxcomp.data.widerface import WiderTruth
from jaxcomp.errors import DataError
from jaxcomp.evaluate.widerface_files import read_predictions, write_predictions
from jaxcomp.jobs import widerface_eval

NAMES = ("0--A/one", "1--B/two")


@pytest.fixture
def truth(monkeypatch):
    boxes = {name: np.array([[10.0, 10, 20, 20], [50, 50, 12, 12]]) for name in NAMES}
    all_of = {name: np.ones(2, bool) for name in NAMES}
    known = WiderTruth(boxes, {k: all_of for k in ("easy", "medium", "hard")})
    monkeypatch.setattr(widerface_eval, "read_widerface_truth", lambda folder: known)
    return known


def test_files_of_the_truth_itself_are_perfect(truth, tmp_path, capsys):
    found = {n: np.concatenate([b, [[0.9], [0.5]]], 1) for n, b in truth.boxes.items()}
    write_predictions(tmp_path, found)
    words = ["widerface-eval", "--truth=x", f"--results={tmp_path}", "--protocol=vga640"]
    assert cli.main([*words, f"--json={tmp_path / 'out.json'}"]) == 0
    text = capsys.readouterr().out
    assert text.count("100.00") == 4 and text.count("vga640") == 4
    (tmp_path / "0--A" / "one.txt").unlink()
    assert cli.main(words) == 1
    assert cli.main([*words, "--weights=w.npz"]) == 1
    assert cli.main([*words[:-1], "--protocol=huge"]) == 1
    assert capsys.readouterr().err.count("\n") == 3


def test_a_detector_makes_what_is_missing(truth, tmp_path, monkeypatch):
    class Fake:
        seen = 0

        def detect(self, image, *, protocol):
            self.seen += 1
            return {"boxes": np.array([[10.0, 10, 30, 30]]), "scores": np.array([0.9])}

    fake = Fake()
    monkeypatch.setattr(widerface_eval, "load_face_detector", lambda path, bucket: fake)
    images, results = tmp_path / "images", tmp_path / "results"
    with pytest.raises(DataError, match="no such image"):
        widerface_eval.detect_folder("x", images, "w", results, "original")
    for name in NAMES:
        (images / name).parent.mkdir(parents=True)
        Image.new("RGB", (80, 80)).save(images / f"{name}.jpg")
    write_predictions(results, {NAMES[0]: np.zeros((0, 5))})
    assert widerface_eval.detect_folder("x", images, "w", results, "original") == fake.seen == 1
    assert {n: len(v) for n, v in read_predictions(results).items()} == {NAMES[0]: 0, NAMES[1]: 1}
