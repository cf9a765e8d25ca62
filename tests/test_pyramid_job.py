"""Training one codec for the whole pyramid: statistics, losses, drawn levels, smoke runs."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyramid_toy as toy
import pytest

import jaxcomp
from jaxcomp import main as main_module
from jaxcomp.codecs import bitstream
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles
from jaxcomp.codecs.identity import Model
from jaxcomp.codecs.pyramid import PyramidCoder
from jaxcomp.config import load_config
from jaxcomp.data.levels import cached_levels, drawn_level, level_draws
from jaxcomp.errors import ConfigError, NonFiniteError
from jaxcomp.inspecting import describe_config
from jaxcomp.jobs import pyramid_codec
from jaxcomp.models.fpn import LEVELS
from jaxcomp.sharding import make_mesh, put_batch
from jaxcomp.step import create_state, make_train_step
from jaxcomp.tasks.pyramid_codec import (
    RandomLevelTask,
    joint_statistics,
    pyramid_statistics,
    pyramid_task,
)
from jaxcomp.types import DataSplits

SIZES = [(9, 12), (5, 6), (3, 3), (2, 2), (1, 1)]
FRAMES = toy.features(SIZES, frames=8)


def make(kind, **options):
    channels = toy.CHANNELS * (5 if kind == "joint" else 1)
    codec = FactorisedCodec(in_channels=channels, n_hidden=4, n_channels=3, stages=1)
    return pyramid_task(kind, codec, 0.1, pyramid_statistics([FRAMES]), **options)


def judged(task, variables, *features):
    """The terms of evaluation, compiled: op by op they take a minute."""
    return jax.jit(lambda v, many: [task.terms(v, x, None, train=False) for x in many])(
        variables, features
    )


def initialised(task, batch=None):
    params, stats, _ = task.init(jax.random.key(0), batch or {**FRAMES, "mask": np.ones(8, "f4")})
    return params, stats, {"params": params, **stats}


@pytest.mark.parametrize(("name", "count"), [("fpn_joint", 11_172_224), ("fpn_random", 4_617_600)])
def test_documented_sizes_and_defaults(name, count):
    config = load_config(f"configs/{name}.py:kitti")
    assert describe_config(config)["total_parameters"] == count
    training = config.training
    assert (training.batch_size, training.learning_rate) == (4, 5e-5)
    assert (training.rate_weight, training.epochs) == (2.5e-4, 100)
    assert (config.model.in_channels, config.model.n_hidden, config.model.n_channels) == (
        256, 128, 192,
    )  # fmt: skip


def test_statistics_of_levels_and_of_the_joint_map():
    halves = [{k: x[i : i + 4] for k, x in FRAMES.items()} for i in (0, 4)]
    found = pyramid_statistics(halves)
    centred = []
    for i, x in enumerate(FRAMES.values()):
        np.testing.assert_allclose(found["mean"][i], x.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
        centred.append((x - x.mean((0, 1, 2))).ravel())
        np.testing.assert_allclose(found["scale"][i], centred[-1].std(), rtol=1e-3)
    joint = joint_statistics(found)
    assert joint["mean"].shape == (30,)
    np.testing.assert_allclose(joint["scale"], np.concatenate(centred).std(), rtol=1e-3)
    with pytest.raises(NonFiniteError):
        pyramid_statistics([{**FRAMES, "p4": FRAMES["p4"] * np.nan}])


def limited_task(kind, limit):
    """A task that cuts, with levels that reach far beyond, and those levels cut by hand."""
    found = pyramid_statistics([FRAMES], robust=True)
    scales = found["scale"]
    if kind == "joint":
        scales = np.full(5, joint_statistics(found)["scale"])
    cut = {
        k: np.clip(x, m - limit * s, m + limit * s)
        for (k, x), m, s in zip(FRAMES.items(), found["mean"], scales, strict=True)
    }
    wild = {k: np.where(x > cut[k], 80, x).astype("f4") for k, x in FRAMES.items()}
    assert sum((x == 80).any() for x in wild.values()) >= 3
    channels = toy.CHANNELS * (5 if kind == "joint" else 1)
    codec = FactorisedCodec(channels, n_hidden=4, n_channels=3, stages=1, limit=limit)
    return pyramid_task(kind, codec, 0.1, found), wild, cut


def test_what_the_limit_cuts_is_in_no_loss_of_single_levels():
    task, wild, cut = limited_task("random", 1.5)
    plain = pyramid_task("random", task.codec.clone(limit=0.0), 0.1, task.statistics)
    params, stats, _ = initialised(plain)
    a, b = (
        jax.jit(one.eval_loss)(params, stats, {}, {**frames, "mask": np.ones(8, "f4")})
        for one, frames in ((plain, cut), (task, wild))
    )
    assert any(name.startswith("fpn_mse") for name in a)
    for name, wanted in a.items():
        np.testing.assert_allclose(b[name], wanted, rtol=1e-3, err_msg=name)


def test_the_joint_loss_rates_what_is_coded_and_compares_with_cut_levels():
    task, wild, cut = limited_task("joint", 1.5)
    params, stats, variables = initialised(task)
    found = jax.jit(task.eval_loss)(params, stats, {}, {**wild, "mask": np.ones(8, "f4")})
    variables = refresh_quantiles(variables)
    coder = PyramidCoder(LEVELS, {"joint": Model(task.codec, variables, None)})
    (bits,) = coder.ideal_bits(wild).values()
    positions = sum(h * w for h, w in SIZES)
    np.testing.assert_allclose(found["bpp"], bits.sum() / positions, rtol=1e-4)
    restored, _ = jax.jit(task.decoded)(variables, wild)
    for i, name in enumerate(LEVELS):
        error = np.square(cut[name] - np.asarray(restored[name])).mean((1, 2, 3)).sum()
        np.testing.assert_allclose(found[f"fpn_mse/L{i}"], error, rtol=1e-4)


def test_a_limit_that_cuts_much_is_told(caplog):
    task, wild, _ = limited_task("joint", 1.5)
    pyramid_codec._tell_cut(task, SimpleNamespace(validation=lambda: iter([wild])))
    assert "model.limit=1.5 are cut: p2 " in caplog.text and "WARNING" in caplog.text


def test_the_joint_error_is_that_of_the_values_or_of_the_levels():
    terms = {}
    for weights in ("elements", "equal"):
        task = make("joint", level_weights=weights)
        _, _, variables = initialised(task)
        (terms[weights],) = judged(task, variables, task.features({}, FRAMES))
    by_level = np.stack([np.asarray(terms["equal"][f"fpn_mse/L{i}"]) for i in range(5)])
    sizes = np.array([h * w for h, w in SIZES])
    scale = float(variables["stats"]["scale"])
    by_value = (by_level * sizes[:, None]).sum(0) / sizes.sum()
    np.testing.assert_allclose(terms["elements"]["distortion"], by_value / scale**2, rtol=1e-5)
    np.testing.assert_allclose(terms["equal"]["distortion"], by_level.mean(0) / scale**2, rtol=1e-5)
    np.testing.assert_allclose(terms["equal"]["mse"], by_value, rtol=1e-5)
    rate = terms["equal"]["loss"] - terms["equal"]["distortion"]
    np.testing.assert_allclose(rate, 0.1 * terms["equal"]["bpp"], rtol=1e-3)
    with pytest.raises(ConfigError, match="level_weights"):
        make("joint", level_weights="p2")


def test_levels_of_the_shared_codec_count_alike():
    task = make("random")
    _, _, variables = initialised(task)
    levels = [{name: jnp.asarray(FRAMES[name])} for name in LEVELS]
    whole, *alone = judged(task, variables, task.features({}, FRAMES), *levels)
    alone = [terms["loss"] for terms in alone]
    np.testing.assert_allclose(whole["loss"], np.mean(alone, 0), rtol=1e-5)
    assert variables["stats"]["mean"].shape == (5, toy.CHANNELS)


class Cheap(RandomLevelTask):
    """The same batches through a loss that compiles at once."""

    def terms(self, variables, features, rng, train, judge=None):
        (x,) = features.values()
        error = jax.tree.leaves(variables["params"])[0].mean() * jnp.square(x).mean((1, 2, 3))
        return self.rated(error, error, error)


@pytest.mark.parametrize("cheap", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_five_shapes_are_compiled_and_no_more(cheap):
    task = make("random")
    if cheap:
        task = Cheap(task.codec, task.rate_weight, task.statistics)
    splits = cached_levels(FRAMES, FRAMES, 4, 0, levels=tuple(FRAMES), draw=True)
    batches, tx, mesh = splits.train(), optax.sgd(1e-3), make_mesh(jax.devices()[:1])
    state, frozen = create_state(task, tx, jax.random.key(0), next(batches), mesh=mesh)
    step = make_train_step(task, tx, mesh=mesh)
    seen, counts = [], []
    for _ in range(40):
        batch = next(batches)
        (level,) = set(batch) - {"mask"}
        state, _ = step(state, frozen, put_batch(mesh, batch), np.uint32(0))
        seen.append(level)
        counts.append(step._cache_size())
    assert set(seen) == set(LEVELS)
    first = max(seen.index(level) for level in LEVELS)
    assert counts[first] == counts[-1] == 5


def test_draws_come_from_the_seed_and_the_step():
    splits = cached_levels(FRAMES, FRAMES, 4, 3, levels=tuple(FRAMES), draw=True)
    one, two = splits.train(), splits.train()
    for _ in range(6):
        next(one)
    two.set_state(json.loads(json.dumps(one.get_state())))
    for _ in range(5):
        a, b = next(one), next(two)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    levels = [drawn_level(0, step, 5) for step in range(2000)]
    assert np.bincount(levels, minlength=5) == pytest.approx(np.full(5, 400), abs=80)
    assert levels != [drawn_level(1, step, 5) for step in range(2000)]
    assert set(next(splits.validation())) == {*LEVELS, "mask"}


def test_images_are_marked_with_the_drawn_level():
    images = cached_levels({"image": np.zeros((8, 2))}, {"image": np.zeros((4, 2))}, 4, 0,
                           levels=(), draw=False)  # fmt: skip
    splits = level_draws(images, LEVELS, seed=0)
    assert isinstance(splits, DataSplits)
    drawn = [next(iter(next(it)["take"])) for it in [splits.train()] for _ in range(8)]
    assert drawn == [LEVELS[drawn_level(0, step, 5)] for step in range(8)]
    task = make("random", head=lambda frozen, batch: {k: jnp.asarray(x) for k, x in FRAMES.items()})
    assert tuple(task.features({}, {"take": {"p4": 1}})) == ("p4",)
    assert tuple(task.features({}, {})) == LEVELS


@pytest.mark.parametrize("kind", [pytest.param("joint", marks=pytest.mark.slow), "random"])
def test_a_run_leaves_a_codec_of_all_levels(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    argv = [
        f"--config=configs/fpn_{kind}.py", f"--workdir={tmp_path / 'run'}",
        "--config.data.train_size=4", "--config.data.val_size=2", "--config.data.height=64",
        "--config.data.width=96", "--config.training.epochs=1", "--config.model.n_hidden=8",
        "--config.model.n_channels=8", "--config.model.stages=1", "--config.log.progress=False",
        "--config.training.batch_size=2",
    ]  # fmt: skip
    if kind == "random":  # with the features on disk and the tail as judge
        argv += [f"--config.data.feature_store={tmp_path / 'features'}"]
        argv += ["--config.training.task_weight=1", "--config.training.task_regions=2"]
    assert main_module.main(argv) == 0
    assert (kind == "random") == bool(list(tmp_path.glob("features/*/store.json")))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["treatment"] == kind and tuple(summary["levels"]) == LEVELS
    files = sorted((tmp_path / "run" / "streams").glob("*.jxc"))
    assert summary["bytes_per_frame"] == sum(f.stat().st_size for f in files) / 2
    shares = [level["share_of_bits"] for level in summary["levels"].values()]
    if kind == "random":
        assert sum(shares) == pytest.approx(1)
    else:
        assert shares == [None] * 5
    values = [np.prod(level["shape"]) for level in summary["levels"].values()]
    mse = [level["mse"] for level in summary["levels"].values()]
    assert summary["mse"] == pytest.approx(np.average(mse, weights=values))
    codec, detector = jaxcomp.load_codec(tmp_path / "run"), jaxcomp.load_detector()
    codec.check_detector(detector)
    decoded = codec.decompress(files[0].read_bytes())
    assert [list(x.shape[1:]) for x in decoded.values()] == [
        level["shape"] for level in summary["levels"].values()
    ]
    assert len(bitstream.read(files[0].read_bytes()).streams) == len(codec.stream_names)
    assert detector.detect_from_features(decoded)["boxes"].shape[-1] == 4
    assert "P2-P6" in (tmp_path / "run" / "index.html").read_text()
    _documented_texts(tmp_path / "run", summary, kind)


def _documented_texts(run, summary, kind):
    text = (run / "training_summary.txt").read_text()
    loss = next(line for line in text.splitlines() if "Best Validation Loss:" in line)
    assert float(loss.split(" ")[3]) == pytest.approx(summary["best_validation_loss"], abs=1e-4)
    assert f"Total Parameters: {summary['params']:,}" in text
    assert ("frozen tail" in text) == (kind == "random")
    assert "L4: " in (run / "training_diagnostics_epoch_1.txt").read_text()
    (file,) = run.glob("fpn_analysis/lambda_0.010/lambda_1e-2_epoch_1_analysis.txt")
    text = file.read_text()
    assert f"Treatment: {kind}" in text and "Batch Size: 2" in text
    assert text.count("Pyramid Key: P") == 5
    assert text.count("BPP: n/a") == (5 if kind == "joint" else 0)
    # The whole held-out set is these two frames, so that the text tells what the files cost.
    rate = float(text.split("Overall BPP: ")[1].split()[0])
    positions = sum(np.prod(level["shape"][:2]) for level in summary["levels"].values())
    assert rate == pytest.approx(summary["estimated_bits"] / 2 / positions, rel=1e-3)
