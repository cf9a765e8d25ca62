"""Pictures that TensorFlow Datasets prepared, through TFDS's own writer."""

import io
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from jaxcomp.config import load_config
from jaxcomp.data.pictures import load_pictures, picture_splits
from jaxcomp.data.tfds_folder import version_folder
from jaxcomp.errors import DataError

COUNTS = {"train": 12, "test": 5, "unlabelled": 7}


def colours(split, row):
    rng = np.random.default_rng([len(split), row])
    return rng.integers(0, 256, (10 + row % 3, 12, 3), np.uint8), row % 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with warnings.catch_warnings(action="ignore"):
        import tensorflow_datasets as tfds
        from etils import epath

        class Colours(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            name = "colours"
            code_path = epath.Path(__file__)
            pkg_dir_path = code_path.parent

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                }
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split, n) for split, n in COUNTS.items()}

            def _generate_examples(self, split, count):
                for row in range(count):
                    image, label = colours(split, row)
                    file = io.BytesIO()
                    Image.fromarray(image).save(file, "PNG")
                    yield f"{row:03d}", {"image": io.BytesIO(file.getvalue()), "label": label}

        folder = tmp_path_factory.mktemp("tfds")
        Colours(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "colours"


def config(folder, *changes):
    base = ["data.name=tfds", f"data.dir={folder}", "data.height=16", "data.width=16",
            "data.num_threads=0", "training.batch_size=4"]  # fmt: skip
    return load_config(
        "configs/hjepa.py", [*base, "data.train_size=0", "data.val_size=0", *changes]
    )


def test_pictures_and_labels_are_those_that_were_stored(prepared):
    sets = load_pictures(config(prepared))
    assert {name: len(one) for name, one in sets.items()} == {"train": 12, "validation": 5}
    assert sets["train"].classes == ("a", "b", "c")
    for name, split in (("train", "train"), ("validation", "test")):
        stored = {colours(split, row)[0].tobytes(): colours(split, row)[1]
                  for row in range(COUNTS[split])}  # fmt: skip
        labels = sets[name].labels
        for row in range(len(sets[name])):
            assert stored.pop(sets[name].load(row).tobytes()) == labels[row]
        assert not stored
        assert labels[:4].tolist() == [labels[i] for i in range(4)]
        assert labels[np.array([2, 0])].tolist() == [labels[2], labels[0]]


def test_batches_have_one_size_and_a_set_can_be_cut(prepared):
    splits = picture_splits(config(prepared, "data.train_size=8"), 4)
    batch = next(splits.train())
    assert batch["image"].shape == (4, 16, 16, 3) and splits.steps_per_epoch == 2
    assert set(batch["label"].tolist()) <= {0, 1, 2}
    other = picture_splits(config(prepared), 4)
    assert other.fingerprint != splits.fingerprint


def test_another_split_can_train_and_a_third_be_probed(prepared):
    changes = ("data.train_split=unlabelled", "data.probe_split=train")
    sets = load_pictures(config(prepared, *changes))
    assert {name: len(one) for name, one in sets.items()} == {
        "train": 7, "validation": 5, "probe": 12
    }  # fmt: skip
    with pytest.raises(DataError, match=r"no split nothing, but .*data\.train_split"):
        load_pictures(config(prepared, "data.train_split=nothing"))


def test_the_latest_version_of_one_data_set_is_read(prepared, tmp_path):
    for version in ("1.0.0", "10.0.0", "9.1.0"):
        shutil.copytree(prepared / "1.0.0", tmp_path / "some/colours" / version)
    assert version_folder(tmp_path / "some/colours").name == "10.0.0"
    assert version_folder(tmp_path / "some").name == "10.0.0"
    shutil.copytree(prepared, tmp_path / "some/others")
    with pytest.raises(DataError, match=r"holds 2 data sets .*colours.*others"):
        version_folder(tmp_path / "some")


def test_what_is_no_data_set_is_named(prepared, tmp_path):
    with pytest.raises(DataError, match=r"data\.dir is empty"):
        load_pictures(config(""))
    with pytest.raises(DataError, match="holds no data set"):
        load_pictures(config(tmp_path))
    copy = tmp_path / "colours"
    shutil.copytree(prepared, copy)
    record = next(copy.glob("*/*train*.array_record*"))
    record.write_bytes(record.read_bytes()[:60])
    with pytest.raises(DataError, match="cannot be read"):
        load_pictures(config(copy))["train"].load(0)
    info = next(copy.glob("*/dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="no random access"):
        load_pictures(config(copy))
