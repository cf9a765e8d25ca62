"""Reading image files of all kinds and fitting them to the model's size."""

import numpy as np
import pytest
from PIL import Image

from jaxcomp.data.images import fit_image, read_image
from jaxcomp.errors import DataError


def test_grey_palette_alpha_and_16_bit_become_rgb(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    for mode in ("L", "P", "RGBA", "LA", "1"):
        path = tmp_path / f"{mode}.png"
        Image.fromarray(grey).convert(mode).save(path)
        image = read_image(path)
        assert image.shape == (6, 8, 3) and image.dtype == np.uint8
        if mode != "1":
            np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 1], grey)


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (4, 8, 3)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut"])
def test_files_that_do_not_decode_are_named(tmp_path, damage):
    path = tmp_path / f"{damage}.png"
    if damage != "missing":
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(path)
        data = path.read_bytes()
        path.write_bytes(
            {"empty": b"", "text": b"not an image", "cut": data[: len(data) // 2]}[damage]
        )
    with pytest.raises(DataError, match=f"{damage}.png"):
        read_image(path)


def test_fit_keeps_the_aspect_pads_with_zeros_and_maps_boxes_back():
    image = np.full((100, 50, 3), 200, np.uint8)
    fitted, meta = fit_image(image, 50, 80)
    assert fitted.shape == (50, 80, 3) and meta.scale == 0.5
    assert (fitted[:, :25] == 200).all() and (fitted[:, 25:] == 0).all()
    back = meta.boxes_to_original(np.array([[5.0, 10.0, 25.0, 50.0], [0.0, 0.0, 80.0, 50.0]]))
    np.testing.assert_allclose(back, [[10, 20, 50, 100], [0, 0, 50, 100]])


def test_fit_of_the_right_size_changes_nothing_and_thin_images_survive():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    fitted, meta = fit_image(image, 16, 24)
    np.testing.assert_array_equal(fitted, image)
    assert meta.scale == 1.0
    assert fit_image(np.ones((1, 1000, 3), np.uint8), 32, 32)[0].shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_fit_refuses_other_arrays(shape):
    with pytest.raises(DataError, match="uint8"):
        fit_image(np.zeros(shape, np.uint8), 8, 8)
