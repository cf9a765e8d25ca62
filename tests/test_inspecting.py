import pytest
import toy

from jaxcomp import inspecting, workdir
from jaxcomp.errors import CheckpointError, DataError


def test_a_run_that_is_not_finished_tells_its_config_and_last_step(tmp_path):
    with workdir.open_workdir(toy.config(seed=3), name="", explicit=tmp_path / "run"):
        pass
    found = inspecting.describe_file(tmp_path / "run")
    assert found["config"]["seed"] == 3 and found["last_step"] is None
    for step in ("5", "10", "15.orbax-checkpoint-tmp"):
        (tmp_path / "run" / "checkpoints" / step).mkdir(parents=True)
    assert inspecting.describe_file(tmp_path / "run")["last_step"] == 10


def test_damaged_files_are_typed_errors(tmp_path):
    (tmp_path / "config.json").write_text('{"task": ')
    with pytest.raises(CheckpointError, match=r"config\.json.*damaged"):
        inspecting.describe_file(tmp_path)
    (tmp_path / "summary.json").write_text('{"task": "detect", ')
    with pytest.raises(CheckpointError, match=r"summary\.json.*damaged"):
        inspecting.describe_file(tmp_path)
    with pytest.raises(DataError, match="neither"):
        inspecting.describe_file(tmp_path / "nothing")
