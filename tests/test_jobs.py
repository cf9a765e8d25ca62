"""Configs that no workload can run are refused before anything is written; what jobs export."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxcomp import weights_file
from jaxcomp.config import base_config
from jaxcomp.errors import ConfigError, NonFiniteError
from jaxcomp.jobs import JOBS, build_job, check_job
from jaxcomp.jobs.job import export_weights

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("task", JOBS)
def test_known_workloads_on_known_data_pass(task):
    config = base_config()
    config.task, config.data.name = task, "scenes"
    check_job(config)


@pytest.mark.parametrize(
    ("task", "name", "words"),
    [
        ("feature_code", "scenes", "did you mean 'feature_codec'"),
        ("detect", "scene", r"config\.data\.name='scene'.*did you mean 'scenes'"),
        ("feature_codec", "kiti", "did you mean 'kitti'"),
    ],
)
@pytest.mark.parametrize("refuse", [check_job, build_job])
def test_other_configs_are_refused(task, name, words, refuse):
    config = base_config()
    config.task, config.data.name = task, name
    with pytest.raises(ConfigError, match=words):
        refuse(config)


def test_the_check_imports_nothing_heavy():
    code = "import sys, jaxcomp.jobs as j; print({'jax', 'tensorflow_datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


VARIABLES = {
    "params": {"layer": {"kernel": np.array([0.1, 2.0], np.float32)}},
    "batch_stats": {"layer": {"var": np.array([1e6], np.float32)}},
}


def test_exported_weights_come_back_in_their_dtype_with_their_record(tmp_path):
    path = tmp_path / "weights.npz"
    parts = ("params",)
    export_weights(path, VARIABLES, base_config(), {"kind": "toy"}, {"a": 1}, collections=parts)
    tree, meta = weights_file.load_npz(path)
    assert tree["params"]["layer"]["kernel"].dtype == np.float16
    assert tree["batch_stats"]["layer"]["var"].dtype == np.float32
    assert meta["kind"] == "toy" and meta["metrics"] == {"a": 1}
    assert meta["config"]["seed"] == base_config().seed
    export_weights(path, VARIABLES, base_config(), {}, {}, dtype=np.float32)
    tree, _ = weights_file.load_npz(path)
    np.testing.assert_array_equal(
        tree["params"]["layer"]["kernel"], VARIABLES["params"]["layer"]["kernel"]
    )


def test_weights_that_do_not_fit_are_not_exported(tmp_path):
    with pytest.raises(NonFiniteError, match=r"'batch_stats/layer/var' is not finite in float16"):
        export_weights(tmp_path / "weights.npz", VARIABLES, base_config(), {}, {})
    assert not any(tmp_path.iterdir())
