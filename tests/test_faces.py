"""The embedded faces: labels belong to what is drawn, every image is its seed's."""

import dataclasses

import numpy as np
import pytest

from jaxcomp.data import faces_draw
from jaxcomp.data.faces import FaceSettings, contact_sheet, face_image
from jaxcomp.errors import ConfigError

SMALL = FaceSettings(96, 128, largest=70)
PLAIN = faces_draw.Face(
    skin=(230, 190, 160), hair=(20, 20, 20), shirt=(0, 0, 255), yaw=0.0, roll=0.0, smile=0.2,
    style=0, beard=False, glasses=False, mask=False, light=0.0,
)  # fmt: skip


def test_images_are_functions_of_settings_and_index():
    image, labels = face_image(SMALL, 3)
    again, same = face_image(SMALL, 3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels.boxes, same.boxes)
    assert image.shape == (96, 128, 3) and image.dtype == np.uint8
    assert (image != face_image(SMALL, 4)[0]).any()
    assert (image != face_image(dataclasses.replace(SMALL, seed=1), 3)[0]).any()


def test_labels_of_many_images():
    counts, marked = [], 0
    settings = dataclasses.replace(SMALL, empty=0.2)
    for index in range(30):
        _, labels = face_image(settings, index)
        x, y, width, height = labels.boxes.T
        assert (np.stack([x, y]) >= 0).all()
        assert (x + width <= 128 + 1e-3).all() and (y + height <= 96 + 1e-3).all()
        assert (labels.landmarks[~labels.has_landmarks] == -1).all()
        left, right, nose, mouth, _ = labels.landmarks[labels.has_landmarks].swapaxes(0, 1)
        assert (left[:, 0] < right[:, 0]).all() and (left[:, 1] < mouth[:, 1]).all()
        assert (nose[:, 1] < mouth[:, 1] + 1).all()
        counts.append(len(labels))
        marked += labels.has_landmarks.sum()
    assert 0 in counts and max(counts) > 10  # an empty one and a crowd
    assert 0 < marked < sum(counts)  # small faces have none


@pytest.mark.parametrize("roll", [0.0, 0.6, -0.6])
@pytest.mark.parametrize("yaw", [0.0, 0.8])
def test_landmarks_are_where_the_features_are_drawn(roll, yaw):
    face = dataclasses.replace(PLAIN, roll=roll, yaw=yaw)
    side = 340
    colour, opacity = faces_draw.render(face, side)
    unit = side / (2 * faces_draw.REACH)
    places = faces_draw.landmarks(face) @ faces_draw.rotation(face) * unit + side / 2
    skin = np.array(face.skin)
    for name, (x, y) in zip(("left", "right"), places, strict=False):
        near = colour[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5].mean()
        assert near < 0.6 * skin.mean(), name  # the pupil
    for x, y in places[3:]:
        near = colour[int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6].reshape(-1, 3)
        assert (near[:, 1] < 0.75 * skin[1]).any()  # the lips
    # Beard, hair and shirt leave the cheeks alone: a place beside the nose is skin.
    cheek = np.array([(0.34 * yaw + 0.22, 0.22)]) @ faces_draw.rotation(face) * unit + side / 2
    x, y = cheek[0].astype(int)
    assert np.abs(colour[y, x] / colour[y, x].sum() - skin / skin.sum()).max() < 0.05
    assert opacity[side // 2, side // 2] == 1


@pytest.mark.parametrize("roll", [0.0, 0.7])
def test_boxes_hold_the_oval(roll):
    """Against the pixels of a face whose oval alone has its colour."""
    face = dataclasses.replace(PLAIN, roll=roll, skin=(255, 0, 255))
    side = 400
    colour, _ = faces_draw.render(face, side)
    skin = (colour[..., 0] > 190) & (colour[..., 1] < 30) & (colour[..., 2] > 190)
    unit = side / (2 * faces_draw.REACH)
    half = faces_draw.half_box(face) * unit
    rows, columns = np.flatnonzero(skin.sum(1) > 2), np.flatnonzero(skin.sum(0) > 2)
    found = [columns[0], columns[-1] + 1, rows[0]]
    wanted = [side / 2 - half[0], side / 2 + half[0], side / 2 - half[1]]
    np.testing.assert_allclose(found, wanted, atol=0.05 * side)


def test_hidden_faces_have_no_label():
    strict = dataclasses.replace(SMALL, occluders=1.0, visible=1.0)
    open_ = dataclasses.replace(SMALL, occluders=1.0, visible=0.0)
    count = [sum(len(face_image(s, i)[1]) for i in range(8)) for s in (strict, open_)]
    assert count[0] < count[1]


def test_contact_sheet():
    assert contact_sheet(SMALL, 1, 2).size == (256, 96)


@pytest.mark.parametrize(
    "bad",
    [{"height": 8}, {"smallest": 2}, {"largest": 400}, {"blur": 1.5}, {"most": 0},
     {"smallest": 100, "largest": 50}],
)  # fmt: skip
def test_bad_settings(bad):
    with pytest.raises(ConfigError):
        FaceSettings(**{"height": 96, "width": 128, "largest": 70, **bad})
