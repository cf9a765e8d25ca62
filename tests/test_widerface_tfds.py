"""WIDERFace that TensorFlow Datasets prepared: written by its own builder, read without TensorFlow.

The same images and labels lie beside it as the official folder has them; both readers must agree.
"""

import io
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from jaxcomp.config import load_config
from jaxcomp.data.face_records import face_records, face_splits, widerface_source
from jaxcomp.data.widerface_tfds import find_prepared
from jaxcomp.errors import DataError

SPLITS = (("train", "train"), ("validation", "val"))  # TFDS's names and the files'
SIZES = {"train": ((40, 60, "RGB"), (50, 30, "L"), (32, 32, "RGB")), "val": ((48, 64, "RGB"),) * 2}
# x, y, width, height, blur, expression, illumination, invalid, occlusion, pose of each face
FACES = {
    "train": (
        ((5, 6, 20, 24, 2, 0, 1, 0, 1, 0), (30, 10, 10, 12, 0, 1, 0, 1, 2, 1)),
        ((3, 4, 9, 11, 1, 0, 0, 0, 0, 1),),
        (),  # no face
    ),
    "val": (((0, 0, 64, 48, 0, 0, 0, 0, 0, 0),), ((1, 2, 3, 4, 0, 0, 0, 1, 0, 0),)),
}


def name_of(split, i):
    return f"0--Event/0_Event_{split}_{i}.jpg"


def encoded(split, i):
    height, width, mode = SIZES[split][i]
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "JPEG")
    return file.getvalue()


def write_official(root):
    """Images and text files as they are downloaded."""
    (root / "wider_face_split").mkdir()
    for split, images in FACES.items():
        lines = []
        for i, faces in enumerate(images):
            path = root / f"WIDER_{split}" / "images" / name_of(split, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(split, i))
            rows = faces or ((0,) * 10,)
            lines += [name_of(split, i), str(len(faces)), *(" ".join(map(str, r)) for r in rows)]
        file = root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
        file.write_text("\n".join(lines) + "\n")
    return root


def record(split, i):
    """As TFDS's builder makes it."""
    height, width, _ = SIZES[split][i]
    names = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
    faces = []
    for x, y, w, h, *kinds in FACES[split][i]:
        box = (y / height, x / width, (y + h) / height, (x + w) / width)
        faces.append({"bbox": np.array(box, np.float32), **dict(zip(names, kinds, strict=True))})
    image = io.BytesIO(encoded(split, i))
    return {"image": image, "image/filename": name_of(split, i), "faces": faces}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data_dir with `wider_face/0.1.0`, of TFDS's own features."""
    with warnings.catch_warnings(action="ignore"):
        import tensorflow_datasets as tfds
        from etils import epath
        from tensorflow_datasets.object_detection import wider_face

        class Small(wider_face.WiderFace, skip_registration=True):
            name = "wider_face"
            code_path = epath.Path(__file__)
            pkg_dir_path = code_path.parent

            def _info(self):
                return self.dataset_info_from_configs(features=super()._info().features)

            def _split_generators(self, dl_manager):
                return {long: self._generate_examples(short) for long, short in SPLITS}

            def _generate_examples(self, split):
                for i in range(len(FACES[split])):
                    yield name_of(split, i), record(split, i)

        assert issubclass(Small, tfds.core.GeneratorBasedBuilder)
        folder = tmp_path_factory.mktemp("tfds")
        Small(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def by_name(source):
    return {name: source.read(row) for row, name in enumerate(source.names)}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_both_readers_give_the_same(data_dir, tmp_path, split):
    official = by_name(widerface_source(str(write_official(tmp_path)), split))
    prepared = by_name(widerface_source(str(data_dir), split))
    assert official.keys() == prepared.keys()
    assert len(prepared) == {"train": 2, "validation": 1}[split]  # of the others no face is usable
    for name, (image, labels) in prepared.items():
        other, truth = official[name]
        np.testing.assert_array_equal(image, other)
        np.testing.assert_allclose(labels.boxes, truth.boxes, atol=1e-4)
        np.testing.assert_array_equal(labels.attributes, truth.attributes)
        assert not labels.has_landmarks.any() and (labels.landmarks == -1).all()


def test_every_folder_of_the_data_set_will_do(data_dir, tmp_path):
    version = data_dir / "wider_face" / "0.1.0"
    assert all(find_prepared(p) == version for p in (data_dir, version.parent, version))
    assert find_prepared(tmp_path) is None
    shutil.copytree(data_dir / "wider_face", tmp_path / "wider_face")
    shutil.copytree(data_dir / "wider_face", tmp_path / "others")
    assert find_prepared(tmp_path) == tmp_path / "wider_face" / "0.1.0"
    # Official files are preferred: RetinaFace's have landmarks.
    write_official(tmp_path)
    assert widerface_source(str(tmp_path), "train", 1).names == ("0--Event/0_Event_train_0",)


def config(folder):
    changes = (f"data.dir={folder}", "data.height=64", "data.width=64", "training.batch_size=2")
    return load_config("configs/featherface.py:v1,widerface", (*changes, "data.num_threads=0"))


def test_batches_for_training(data_dir):
    splits = face_splits(config(data_dir), 2)
    assert splits.steps_per_epoch == 1
    whole = next(iter(splits.validation()))
    assert whole["image"].shape == (2, 64, 64, 3) and whole["mask"].tolist() == [1, 0]
    assert whole["labels"][0].tolist()[:2] == [-1, 0]  # a face without landmarks
    np.testing.assert_allclose(whole["boxes"][0, 0], [0, 0, 1, 0.75], atol=1e-3)
    assert set(face_records(config(data_dir))) == {"train", "validation"}


def test_what_cannot_be_used_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir / "wider_face", tmp_path / "wider_face")
    info = tmp_path / "wider_face/0.1.0/dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="no random access"):
        widerface_source(str(tmp_path), "train")
    features = tmp_path / "wider_face/0.1.0/features.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"array_record"'))
    features.write_text(features.read_text().replace('"invalid"', '"other"'))
    with pytest.raises(DataError, match="have no invalid"):
        widerface_source(str(tmp_path), "train")
