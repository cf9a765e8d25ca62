import numpy as np

from jaxcomp.data.textures import CLASSES, texture_picture, texture_set
from jaxcomp.evaluate import probe


def test_a_picture_is_a_function_of_seed_and_row():
    image, label = texture_picture(3, 7)
    again, same = texture_picture(3, 7)
    np.testing.assert_array_equal(image, again)
    assert label == same and image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert (texture_picture(3, 8)[0] != image).any() and (texture_picture(4, 7)[0] != image).any()
    part = texture_set(3, 5, 4, 32)
    np.testing.assert_array_equal(part["image"][2], image)


def test_classes_are_balanced_and_structure_tells_them_where_pixels_do_not():
    train, test = texture_set(0, 0, 700, 32), texture_set(0, 700, 200, 32)
    counts = np.bincount(train["label"], minlength=len(CLASSES))
    assert counts.min() > 60 and counts.max() < 120

    def spectra(images):
        grey = images.mean(-1) / 255
        tiles = grey.reshape(-1, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 8, 8)
        tiles = tiles - tiles.mean((2, 3), keepdims=True)
        return np.abs(np.fft.rfft2(tiles)).reshape(len(images), 16, -1).max(1)

    sets = [(part["image"], part["label"]) for part in (train, test)]
    structure = [(spectra(x), y) for x, y in sets]
    pixels = [(x.reshape(len(x), -1) / 255.0, y) for x, y in sets]
    assert probe.knn_accuracy(*structure, (20,))[20] > 0.75
    assert probe.knn_accuracy(*pixels, (20,))[20] < 0.5
