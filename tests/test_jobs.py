"""Configs that no workload can run are refused before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxcomp.config import base_config
from jaxcomp.errors import ConfigError
from jaxcomp.jobs import JOBS, build_job, check_job

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
