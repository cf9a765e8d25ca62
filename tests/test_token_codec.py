"""Codecs for the tokens of an H-JEPA: a run, its files, bad input, the commands, a comparison."""

import importlib.util
import json

import hjepa_toy as toy
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxcomp
from jaxcomp import cli
from jaxcomp import main as main_module
from jaxcomp.config import load_config
from jaxcomp.data.pictures import load_pictures
from jaxcomp.errors import CheckpointError, ConfigError, NonFiniteError
from jaxcomp.inspecting import describe_config
from jaxcomp.jobs import build_job, point_systems, sweep, token_features
from jaxcomp.jobs.feature_files import write_features
from jaxcomp.jobs.job import export_weights
from jaxcomp.loaders.hjepa import HJEPA_FILE
from jaxcomp.loaders.hjepa import KIND as HJEPA_KIND
from jaxcomp.loaders.token_head import TokenHead, load_token_head
from jaxcomp.tasks.jepa import hjepa_config

CONFIG = "configs/hjepa_codec.py"
DATA = ("data.height=16", "data.width=16", "data.train_size=24", "data.val_size=10",
        "data.num_threads=0")  # fmt: skip
NETWORK = ("model.width=16", "model.depth=1", "model.heads=2", "model.predictor_depth=1",
           "model.predictor_heads=2")  # fmt: skip
SMALL = ("model.n_hidden=4", "model.n_channels=4", "model.stages=1", "training.batch_size=8",
         "training.epochs=1", "evaluation.probe_rows=24",
         "evaluation.attentive_rows=24", "log.progress=False")  # fmt: skip


def save_network(folder, *changes):
    """A drawn network as a run of configs/hjepa.py leaves it."""
    folder.mkdir()
    config = load_config("configs/hjepa.py", [*DATA, *NETWORK, "training.batch_size=8", *changes])
    variables = toy.network(hjepa_config(config))[1]
    export_weights(folder / HJEPA_FILE, variables, config, {"kind": HJEPA_KIND}, {})
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("network") / "run")


def words(network, *more):
    return [*DATA, *SMALL, f"hjepa.path={network}", *more]


def config_of(network, *more, args="width=16"):
    return load_config(f"{CONFIG}:{args}", words(network, *more))


def run_main(network, workdir, *more, args="width=16", flags=()):
    given = [f"--config.{word}" for word in words(network, *more)]
    return main_module.main([f"--config={CONFIG}:{args}", f"--workdir={workdir}", *given, *flags])


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "level0"
    assert run_main(network, workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def maps(network):
    """Uncoded maps of the held-out pictures, [10, 4, 4, 16]."""
    config = config_of(network)
    held = load_pictures(config)["validation"]
    return token_features.token_maps(load_token_head(network), held, config, 0, np.arange(10))


def test_a_run_counts_real_files_and_probes_what_they_hold(run, maps):
    summary = json.loads((run / "summary.json").read_text())
    files = sorted((run / "streams").glob("*.jxc"))
    sizes = [file.stat().st_size for file in files]
    assert summary["frames"] == len(files) == len(maps)
    assert summary["bytes_per_frame"] == pytest.approx(np.mean(sizes))
    assert summary["container_bytes_per_frame"] == 24  # of a file of one stream named "t0"
    payload = summary["actual_bits"] / 8 / len(files)
    assert summary["bytes_per_frame"] == pytest.approx(24 + payload)
    assert 0 < summary["estimated_bits"] < summary["actual_bits"]
    assert summary["feature_shape"] == [4, 4, 16] and summary["raw_bytes_per_frame"] == 4 * 256
    for name in ("knn", "linear", "attentive"):
        for prefix in ("uncoded_", "", "refit_"):
            assert 0 <= summary[prefix + name] <= 1
    page = (run / "index.html").read_text()
    assert "Token codec for level 0" in page and "k-NN" in page and "mAP" not in page


def test_what_a_file_gives_back_is_what_the_network_synthesises(run, maps):
    codec = jaxcomp.load_codec(run)
    assert codec.levels == ("t0",) and codec.meta["detector_kind"] == "hjepa"
    whole = toy.compiled(codec.codec.apply)(codec.variables, jnp.asarray(maps))["x_hat"]
    for row in (0, 7):
        decoded = codec.decompress((run / "streams" / f"{row:06d}.jxc").read_bytes())["t0"]
        assert decoded.shape == (1, 4, 4, 16)
        np.testing.assert_allclose(decoded[0], whole[row], atol=1e-4)


def test_measuring_again_gives_the_same(run, network):
    before = json.loads((run / "summary.json").read_text())
    assert run_main(network, run, flags=("--mode=eval",)) == 0
    after = json.loads((run / "summary.json").read_text())
    same = ("bytes_per_frame", "actual_bits", "relative_mse", "knn", "refit_linear")
    assert {k: before[k] for k in same} == {k: after[k] for k in same}


def test_the_commands_take_feature_files_and_pictures(run, network, maps, tmp_path, capsys):
    stream, features = tmp_path / "one.jxc", tmp_path / "one.npz"
    write_features(features, {"t0": maps[3:4], "t1": maps[3:4, :2, :2]}, {})
    assert cli.main(["compress", str(features), f"--codec={run}", f"--out={stream}"]) == 0
    assert stream.read_bytes() == (run / "streams" / "000003.jxc").read_bytes()
    np.save(tmp_path / "one.npy", maps[3])
    assert cli.main(["compress", str(tmp_path / "one.npy"), f"--codec={run}"]) == 0
    assert (tmp_path / "one.jxc").read_bytes() == stream.read_bytes()
    back = tmp_path / "back.npz"
    assert cli.main(["decompress", str(stream), f"--codec={run}", f"--out={back}"]) == 0
    with np.load(back) as file:
        assert file["t0"].shape == (1, 4, 4, 16)
    capsys.readouterr()
    assert cli.main(["inspect", str(stream), f"--codec={run}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["codec"]["matches"] and told["streams"][0]["name"] == "t0"
    picture = load_pictures(config_of(network))["validation"].load(3)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    argv = ["compress", str(tmp_path / "picture.png"), f"--codec={run}", "--no-metadata"]
    assert cli.main(argv) == 0
    assert (tmp_path / "picture.jxc").read_bytes() == stream.read_bytes()
    write_features(features, {"t1": maps[3:4]}, {})
    assert cli.main(["compress", str(features), f"--codec={run}", "--overwrite"]) == 1
    assert "'t0' needed" in capsys.readouterr().err


def test_tokens_that_are_made_batch_by_batch_are_the_cached_ones(network, maps):
    job = build_job(config_of(network, "data.cache_features=False"))
    batch = next(iter(job.splits.validation()))
    features = job.task.features(job.task.frozen, batch)
    np.testing.assert_allclose(features, maps[:8], atol=1e-4)
    cached = build_job(config_of(network))
    for name, value in cached.task.statistics.items():
        np.testing.assert_allclose(job.task.statistics[name], value, rtol=1e-3, atol=1e-4)
    assert set(cached.task.frozen) == {"digest"}


def test_a_level_pooled_along_the_list_has_one_row(tmp_path):
    network = save_network(tmp_path / "run", "model.pooling=1d")
    assert describe_config(config_of(network, args="level=1,width=16"))["feature_shape"] == [
        1,
        8,
        16,
    ]
    head = load_token_head(network)
    found = head.get_fpn_features(np.zeros((1, 16, 16, 3), np.uint8))
    assert {k: x.shape for k, x in found.items()} == {
        "t0": (1, 4, 4, 16), "t1": (1, 1, 8, 16), "t2": (1, 1, 4, 16),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("hjepa.path=", "hjepa.path is empty"),
        ("data.name=scenes", "this task reads textures"),
        ("training.pooled_weight=-1.0", "pooled_weight"),
    ],
)
def test_bad_values_are_named(network, wrong, what):
    with pytest.raises(ConfigError, match=what):
        config_of(network, wrong)


def test_a_loss_without_a_distortion_is_refused(network):
    weights = (f"training.{name}_weight=0" for name in ("feature", "whitened", "pooled"))
    with pytest.raises(ConfigError, match="nothing to learn from"):
        config_of(network, *weights)


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ("level=3", ConfigError, "levels 0 to 2"),
        ("model.in_channels=8", ConfigError, "16 channels; set it"),
        ("data.height=32", ConfigError, "data.height=16"),
        ("hjepa.path=/nowhere", CheckpointError, "configs/hjepa.py"),
    ],
)
def test_a_config_that_does_not_fit_the_network_is_refused(network, change, error, what):
    with pytest.raises(error, match=what):
        build_job(config_of(network, change))


def test_a_folder_without_a_network_and_other_pictures_are_told(network, tmp_path, caplog, capsys):
    (tmp_path / "empty").mkdir()
    assert run_main(tmp_path / "empty", tmp_path / "run") == 1
    assert "hjepa.npz" in capsys.readouterr().err
    build_job(config_of(network, "data.seed=5"))
    assert "was trained on other pictures: --config.data.seed=0" in caplog.text


def test_a_diverged_network_is_refused(network):
    head = load_token_head(network)
    head.model._extract = lambda *_: jnp.full((1, 16, 16), jnp.nan)
    with pytest.raises(NonFiniteError, match="level 0 hold NaN"):
        TokenHead(head.model).maps(np.zeros((1, 16, 16, 3), np.uint8), 0)


def test_a_comparison_has_codecs_and_anchors_and_goes_on(run, network, tmp_path, capsys):
    out = tmp_path / "comparison"
    argv = ["evaluate", str(run), f"--out={out}", "--anchors=jpeg,uniform-level,vector,label"]
    assert cli.main([*argv, "--frames=4"]) == 0
    results = json.loads((out / "token_accuracy.json").read_text())
    kinds = [point["kind"] for point in results["points"]]
    features = 6 if importlib.util.find_spec("zstandard") else 0  # of the extra `anchors`
    assert [kinds.count(k) for k in ("learned", "feature", "image", "local")] == [1, features, 6, 7]
    assert ("uniform-level" in str(results["missing"])) == (not features)
    by_name = {point["name"]: point for point in results["points"]}
    learned = next(p for p in results["points"] if p["kind"] == "learned")
    files = list((out / "streams").rglob("*.jxc"))
    assert len(files) == 4 and learned["bytes_per_picture"] == pytest.approx(
        np.mean([file.stat().st_size for file in files])
    )
    assert [by_name[f"vector-{n}_t0"]["bytes_per_picture"] for n in (8, 3, 1)] == [16, 6, 2]
    assert by_name["label_t0"]["bytes_per_picture"] == 1
    assert by_name["label_t0"]["knn"] == results["uncoded"]["0"]["knn"]
    if features:
        finest = by_name["uniform-level-8_t0"]
        assert by_name["vector-8_t0"]["relative_mse"] > finest["relative_mse"]
    table = (out / "token_accuracy.md").read_text()
    assert table.count("\n") == 2 + 1 + len(kinds) and "codec of tokens, level 0" in table
    assert {p.stem for p in (out / "figures").glob("*.svg")} == {
        "knn", "linear", "attentive", "refit_knn", "refit_linear", "refit_attentive",
    }  # fmt: skip
    capsys.readouterr()
    (out / "index.html").unlink()
    before = {p: p.stat().st_mtime_ns for p in (out / "points").iterdir()}
    assert cli.main([*argv, "--frames=4"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "points").iterdir()} == before
    (out / "index.html").unlink()
    assert cli.main(["report", str(out)]) == 0 and (out / "index.html").exists()
    assert cli.main([*argv, "--frames=5"]) == 1
    assert "points of other data" in capsys.readouterr().err


def test_a_codec_of_another_network_is_refused(run, tmp_path, capsys):
    other = save_network(tmp_path / "other", "model.width=32")
    argv = ["evaluate", str(run), f"--out={tmp_path / 'out'}", "--anchors=none"]
    assert cli.main([*argv, f"--detector={other}"]) == 1
    assert "of 16 channels" in capsys.readouterr().err
    head = load_token_head(other)
    head.digest = "0" * 64
    with pytest.raises(CheckpointError, match="another detector"):
        jaxcomp.load_codec(run).check_detector(head)


def test_the_sweep_is_chains_of_rate_weights_with_the_network_named():
    runs = sweep.plan(load_config("configs/hjepa_codec_sweep.py:run=RUN").sweep)
    assert {run.member for run in runs} == {"level0", "level1", "level2"}
    first, second = [run for run in runs if run.member == "level2"][:2]
    assert first.after is None and second.after == first.folder
    assert second.config.hjepa.path == "RUN" and second.config.level == 2
    assert second.config.training.epochs < first.config.training.epochs


def test_levels_stay_points_of_their_own(run):
    (point,) = point_systems.find_points([run], None)
    assert point.system == "codec of tokens, level 0" and point.rate_weight == 0.03
