"""Faces found in real photos by the published weights, and images of every kind."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxcomp import cli
from jaxcomp.data.images import read_image
from jaxcomp.errors import CheckpointError, ConfigError, DataError, ShapeError
from jaxcomp.evaluate.face_pictures import draw_faces
from jaxcomp.evaluate.widerface_protocols import (
    PROTOCOLS,
    detect_image,
    rescale,
    to_predictions,
)
from jaxcomp.interop.torch_weights import read_weights
from jaxcomp.loaders_face import load_face_detector

WEIGHTS = ("featherface_v1_489015.pth", "retinaface_mobilenet0.25.pth")
PEOPLE = 23  # counted in the photo
GROUP = "12_Group_Group_12_Group_Group_12_24.jpg"


@pytest.fixture(scope="module")
def detectors(shared):
    """Padded to 1,024 on both sides, so that both photos take one program."""
    return [load_face_detector(shared / "weights" / name, bucket=1024) for name in WEIGHTS]


@pytest.fixture(scope="module")
def group(shared):
    return read_image(shared / "data" / "widerface" / GROUP)


@pytest.fixture(scope="module")
def found(detectors, group):
    return [detector.detect(group, least=0.5) for detector in detectors]


@pytest.fixture(scope="module")
def astronaut(shared):
    arrays = np.load(shared / "oracles" / "featherface_v1_489015.npz", allow_pickle=False)
    return arrays["a_input_bgr_uint8"][..., ::-1], arrays["a_detections"][0]


def iou(a, b):
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    inside = np.prod(np.maximum(size, 0), -1)
    areas = [np.prod(x[:, 2:] - x[:, :2], -1) for x in (a, b)]
    return inside / (areas[0][:, None] + areas[1][None] - inside)


def test_every_face_of_a_group(found):
    """Two networks that were trained apart find the same 23 faces and no other."""
    assert [len(one["boxes"]) for one in found] == [PEOPLE, PEOPLE]
    overlap = iou(found[0]["boxes"], found[1]["boxes"])
    assert (overlap.max(1) > 0.6).all()
    assert sorted(overlap.argmax(1)) == list(range(PEOPLE))


def test_landmarks_lie_where_faces_have_them(found):
    for one in found:
        corners, points = one["boxes"], one["landmarks"]
        size = corners[:, None, 2:] - corners[:, None, :2]
        assert (points > corners[:, None, :2] - 0.1 * size).all()
        assert (points < corners[:, None, 2:] + 0.1 * size).all()
        left, right, nose, mouth_left, mouth_right = points.swapaxes(0, 1)
        assert (left[:, 0] < right[:, 0]).all() and (mouth_left[:, 0] < mouth_right[:, 0]).all()
        assert (np.maximum(left, right)[:, 1] < nose[:, 1]).all()
        assert (nose[:, 1] < np.minimum(mouth_left, mouth_right)[:, 1]).all()


def test_the_one_face_of_an_astronaut(detectors, astronaut):
    image, wanted = astronaut
    for detector in detectors:
        faces = detector.detect(image, least=0.5)
        assert len(faces["boxes"]) == 1
        assert iou(faces["boxes"], wanted[None, :4])[0, 0] > 0.8


def test_the_tail_needs_no_pixels(detectors, astronaut):
    image, _ = astronaut
    detector = detectors[1]
    features = detector.get_features(image)
    again = detector.detect_from_features(features, image.shape[:2])
    for name, value in detector.detect(image).items():
        np.testing.assert_array_equal(again[name], value)
    with pytest.raises(ShapeError, match="p4"):
        detector.detect_from_features({**features, "p4": features["p3"]}, image.shape[:2])
    with pytest.raises(ShapeError, match="p3"):
        detector.detect_from_features({}, image.shape[:2])


def test_picture(found, group):
    picture = Image.open(io.BytesIO(draw_faces(group, found[0])))
    assert picture.size == group.shape[1::-1]
    changed = (np.asarray(picture) != group).any(-1)
    assert 0.001 < changed.mean() < 0.1


@pytest.fixture(scope="module")
def small(shared):
    return load_face_detector(shared / "weights" / WEIGHTS[1], bucket=32)


def test_images_of_every_kind(small, tmp_path):
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    rgba = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    kinds = [np.zeros((1, 1, 3), np.uint8), gray, gray[..., None], rgba, rgba[..., :3]]
    path = tmp_path / "gray.png"
    Image.fromarray(gray).save(path)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no image")
    wrong = [broken, tmp_path / "none.png", np.zeros((4, 4, 2), np.uint8),
             np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), "", None]  # fmt: skip
    results = small.detect_all([*kinds, path, *wrong])
    for result in results[: len(kinds) + 1]:
        assert result["boxes"].shape[1:] == (4,) and result["landmarks"].shape[1:] == (5, 2)
    for result in results[len(kinds) + 1 :]:
        assert isinstance(result, DataError)
    np.testing.assert_array_equal(results[1]["boxes"], results[2]["boxes"])
    np.testing.assert_array_equal(results[1]["boxes"], results[5]["boxes"])
    np.testing.assert_array_equal(results[3]["boxes"], results[4]["boxes"])


def test_import_and_export_commands(shared, tmp_path, capsys):
    source = str(shared / "weights" / WEIGHTS[1])
    out, back = tmp_path / "face.npz", tmp_path / "back.pth"
    assert cli.main(["import-weights", source, "--model", "face", "--out", str(out)]) in (0, None)
    assert "retinaface, 426608 parameters" in capsys.readouterr().out
    detector = load_face_detector(out)
    assert detector.meta["source"]["variant"] == "retinaface"
    assert cli.main(["export-weights", str(out), str(back)]) in (0, None)
    wanted, ours = read_weights(source), read_weights(back)
    assert list(ours) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(ours[name], value)
    bad = ["import-weights", source, "--out", str(tmp_path / "x.npz"), "--model"]
    for words, message in (
        (["face", "--variant", "v2"], "names are missing"),
        (["face", "--variant", "v9"], "v1_original"),
        (["mobilenet"], "names are missing"),
        (["face", "--classes", "a"], "--classes does not go with"),
    ):
        assert cli.main([*bad, *words]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_files_that_hold_no_face_detector(tmp_path, shared):
    with pytest.raises(CheckpointError, match="no weights"):
        load_face_detector(tmp_path / "none.npz")
    with pytest.raises(CheckpointError, match="no face detector"):
        load_face_detector(shared / "weights" / "mobilenetv2_imagenet.pth")
    with pytest.raises(ConfigError, match="bucket"):
        load_face_detector(tmp_path, bucket=0)
    (tmp_path / "face_detector.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError):
        load_face_detector(tmp_path)


class Spots:
    """Finds the one bright spot; its five points are its corners and middle, sides told apart."""

    def __init__(self):
        self.sizes = []

    def scan(self, image):
        self.sizes.append(image.shape[:2])
        bright = image[..., 0] > 0.5 * np.float32(255 if image.dtype == np.uint8 else 1)
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        points = [(x1, y1), (x2, y1), ((x1 + x2) / 2, y1 + 2), (x1, y2), (x2, y2)]
        box = np.array([[x1, y1, x2, y2], [x1, y1, x2, y2]], np.float32)
        return {
            "boxes": box, "scores": np.array([0.9, 0.01]),
            "landmarks": np.array([points, points], np.float32),
        }  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_bring_faces_back(name):
    """However an image is scaled and mirrored, the face stays and so do the sides of its points."""
    image = np.zeros((150, 200, 3), np.uint8)
    image[40:80, 20:60] = 255
    spots = Spots()
    found = detect_image(spots, image, name)
    assert len(found["boxes"]) == 1  # the weak one is below the threshold
    np.testing.assert_allclose(found["boxes"], [[20, 40, 60, 80]], atol=0.5)
    points = [[20, 40], [60, 40], [40, 41], [20, 80], [60, 80]]
    np.testing.assert_allclose(found["landmarks"][0], points, atol=1.5)
    np.testing.assert_allclose(to_predictions(found)[0], [20, 40, 40, 40, 0.9], atol=0.6)
    sizes = {
        "vga640": [(480, 640)],
        "original": [(150, 200)],
        "resize1600": [(1600, 2133)],
        "multiscale_flip": [s for s in ((500, 667), (800, 1067), (1100, 1467), (1400, 1867),
                                        (1700, 2267)) for _ in range(2)],
    }  # fmt: skip
    assert spots.sizes == sizes[name]


def test_unknown_protocol():
    with pytest.raises(ConfigError, match="vga640"):
        detect_image(Spots(), np.zeros((4, 4, 3), np.uint8), "vga")


def test_rescaling_is_bilinear_without_smoothing():
    image = np.arange(4, dtype=np.uint8)[None, :, None].repeat(3, 2) * 60
    ours = rescale(image, 2.0)[0, :, 0] * 255
    np.testing.assert_allclose(ours, [0, 15, 45, 75, 105, 135, 165, 180], atol=1e-3)
    np.testing.assert_allclose(rescale(image, 0.5)[0, :, 0] * 255, [30, 150], atol=1e-3)
    assert rescale(image, 0.01).shape == (1, 1, 3)
