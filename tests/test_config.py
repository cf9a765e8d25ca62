import json
import pathlib
import subprocess
import sys

import pytest

from jaxcomp import config as config_lib
from jaxcomp.errors import ConfigError

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
PARAMETERS = {"level": 2, "profile": ("embedded", "kitti"), "small": False, "rate": 1e-3}


def test_arguments_are_typed_and_bare_words_choose():
    args = config_lib.parse_args("kitti, level=3,small,rate=5e-4", **PARAMETERS)
    assert (args.profile, args.level, args.small, args.rate) == ("kitti", 3, True, 5e-4)
    assert config_lib.parse_args("", **PARAMETERS).profile == "embedded"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kity", ["'kity'", "did you mean 'kitti'", "embedded"]),
        ("levle=3", ["'levle=3'", "level="]),
        ("level=two", ["level='two'", "int"]),
        ("profile=kit", ["profile='kit'", "'kitti'"]),
        ("kitti,profile=embedded", ["given twice"]),
        ("small=maybe", ["small='maybe'", "bool"]),
    ],
)
def test_bad_arguments_are_named_with_the_nearest(text, words):
    with pytest.raises(ConfigError) as caught:
        config_lib.parse_args(text, **PARAMETERS)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_overrides_are_typed_and_leave_the_original():
    config = config_lib.base_config(model={"filters": 5, "deep": {"rate": 0.5}})
    changed = config_lib.apply_overrides(
        config, ["--config.training.rate_weight=5e-4", "model.deep.rate=1", "log.wandb=true"]
    )
    assert changed.training.rate_weight == 5e-4 and changed.log.wandb is True
    assert changed.model.deep.rate == 1.0 and config.model.deep.rate == 0.5
    assert config_lib.validate(changed).is_locked


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.rate_wieght=1", ["training.rate_wieght", "did you mean 'training.rate_weight'"]),
        ("trainig.epochs=1", ["did you mean 'training.epochs'"]),
        ("training.epochs=1.5", ["training.epochs='1.5'", "int"]),
        ("training=1", ["config.training"]),
        ("training.epochs", ["no value"]),
        ("level=5", ["config.level=5", "at most 4"]),
        ("level=-1", ["config.level=-1", "at least 0"]),
        ("training.rate_weight=-1", ["rate_weight=-1.0", "at least 0"]),
        ("training.rate_weight=nan", ["rate_weight=nan"]),
        ("training.learning_rate=0", ["learning_rate=0.0", "more than 0"]),
        ("data.height=0", ["data.height=0"]),
        ("model.dtype=float31", ["did you mean 'float32'"]),
        ("training.lr_schedule.name=plato", ["'plateau'"]),
        ("training.batch_size=601", ["batch_size=601", "train_size=600"]),
        ("training.lr_schedule.min_lr=1", ["min_lr=1", "learning_rate"]),
        ("training.lr_schedule.warmup_epochs=2", ["warmup_cosine"]),
        ("alerts.rate_ratio_low=11", ["rate_ratio_low=11"]),
    ],
)
def test_bad_values_are_named(override, words):
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(config_lib.apply_overrides(config_lib.base_config(), [override]))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_validate_finds_unknown_missing_and_mistyped_keys():
    config = config_lib.base_config()
    with config.unlocked():
        config.training.epoch = 3
    with pytest.raises(ConfigError, match=r"training\.epoch; did you mean 'training\.epochs'"):
        config_lib.validate(config)
    with config.unlocked():
        del config.training["epoch"]
        del config.data["seed"]
    with pytest.raises(ConfigError, match=r"data\.seed is missing"):
        config_lib.validate(config)
    config = config_lib.base_config().copy_and_resolve_references()
    with config.ignore_type():
        config.training.epochs = "many"
    with pytest.raises(ConfigError, match="'many' of type str, but int"):
        config_lib.validate(config)


def test_a_locked_base_rejects_misspelt_keys():
    with pytest.raises(AttributeError, match="epochs"):
        config_lib.base_config().training.epoch = 3


@pytest.mark.parametrize(
    ("override", "same"),
    [
        *((f"{key}=7", True) for key in ("log.every_steps", "data.workers", "data.num_threads")),
        *((f"{key}=7", True) for key in ("checkpoint.keep", "alerts.grad_norm", "data.dir")),
        *((f"{key}=7", True) for key in ("evaluation.pictures", "checkpoint.every_steps")),
        *((f"{key}=7", False) for key in ("training.rate_weight", "data.seed", "data.max_boxes")),
        *((f"{key}=7", False) for key in ("seed", "evaluation.frames", "training.epochs")),
    ],
)
def test_digest_is_of_what_changes_the_result(override, same):
    config = config_lib.base_config(evaluation={"pictures": 4, "frames": 3})
    changed = config_lib.apply_overrides(config, [override])
    assert (config_lib.digest(config) == config_lib.digest(changed)) is same
    stored = json.loads(config_lib.to_json(config))
    assert config_lib.digest(stored) == config_lib.digest(config)


def test_a_key_that_came_later_does_not_keep_older_runs_from_resuming():
    now = config_lib.load_config("configs/fpn_level.py", [])
    older = json.loads(config_lib.to_json(now))
    assert older["model"].pop("limit") == 0.0
    assert config_lib.digest(older) == config_lib.digest(now)
    other = config_lib.load_config("configs/fpn_level.py", ["model.limit=12.0"])
    assert config_lib.digest(other) != config_lib.digest(older)


def shipped(name, *overrides):
    return config_lib.load_config(str(CONFIGS / name), overrides)


@pytest.mark.parametrize(
    "name", ["detector.py", "detector.py:kitti", "fpn_level.py:level=4", "fpn_level.py:kitti"]
)
def test_shipped_configs_are_valid(name):
    assert shipped(name).task


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("detector.py", "model.num_classes=1", ["num_classes=1", "at least 2"]),
        ("detector.py", "model.num_classes=3", ["num_classes=3", "4"]),
        ("detector.py", "model.fpn_features=0", ["fpn_features=0"]),
        ("detector.py", "model.rpn_iou=1.5", ["rpn_iou=1.5", "at most 1"]),
        ("detector.py", "model.score_threshold=nan", ["score_threshold=nan"]),
        ("detector.py", "model.stage_blocks=(1,2,2)", ["stage_blocks", "length 3"]),
        ("detector.py", "model.stage_blocks=(1,2,2,x)", ["stage_blocks"]),
        ("detector.py", "model.anchor_sizes=(8.0,)", ["anchor_sizes", "length 1"]),
        ("detector.py", "model.anchor_ratios=(0.5,0)", ["anchor_ratios", "more than 0"]),
        ("detector.py", "sampling.anchors=0", ["sampling.anchors=0"]),
        ("detector.py", "model.name=faster_rcnn", ["model.name='faster_rcnn'", "small_fpn_v2"]),
        ("detector.py", "data.height=100", ["data.height=100", "nearest is 96"]),
        ("fpn_level.py", "data.width=1242", ["data.width=1242", "nearest is 1248"]),
        ("fpn_level.py", "evaluation.pictures=-1", ["pictures=-1"]),
        ("fpn_level.py", "model.name=factorized", ["model.name='factorized'"]),
        ("fpn_level.py", "model.dtype=float16", ["float16", "loss_scale"]),
        ("fpn_level.py", "extra_keys=1", ["Unknown key"]),
    ],
)
def test_values_of_workloads_are_checked(name, override, words):
    with pytest.raises(ConfigError) as caught:
        shipped(name, override)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("text", ["(3)", "3,a", "('a',)", "{[]: 1}", "(" * 300, "True"])
def test_tuples_that_cannot_be_read_are_config_errors(text):
    with pytest.raises(ConfigError, match="tuple"):
        config_lib.parse_value(text, (1.0, 2.0), "x")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", "task: detect", "Python file"),
        ("c.py", "x = 1\ndef get_config(:\n", "c.py:2: SyntaxError"),
        ("c.py", "x = 1\nimport no_such_module\n", "c.py:2: ModuleNotFoundError"),
        ("c.py", "def get_config(arg):\n    return 1 / 0\n", "c.py:2: ZeroDivisionError"),
        ("c.py", "def get_config(arg):\n    return None\n", "NoneType"),
        ("c.py", "x = 1\n", "defines no get_config"),
    ],
)
def test_files_that_are_no_config_are_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        config_lib.load_config(str(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 1


def test_load_config_and_argv(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(
        "from jaxcomp.config import base_config, parse_args\n"
        "def get_config(arg_string=''):\n"
        "    config = base_config()\n"
        "    config.level = parse_args(arg_string, level=1).level\n"
        "    return config\n"
    )
    argv = [f"--config={file}:level=3", "--workdir=w", "--config.seed", "7"]
    spec, overrides, rest = config_lib.split_argv(argv)
    config = config_lib.load_config(spec, overrides)
    assert (config.level, config.seed, rest) == (3, 7, ["--workdir=w"])
    with pytest.raises(ConfigError, match=r"toy\.py"):
        config_lib.load_config(str(tmp_path / "toi.py"))
    with pytest.raises(ConfigError, match="no value"):
        config_lib.split_argv(["--config.seed"])


@pytest.mark.parametrize(
    "module", ["jaxcomp", "jaxcomp.config", "jaxcomp.workdir", "jaxcomp.errors"]
)
def test_light_modules_load_nothing_heavy(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'grain', 'tensorflow',\n"
        "         'tensorflow_datasets', 'torch', 'numba', 'matplotlib', 'PIL', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
