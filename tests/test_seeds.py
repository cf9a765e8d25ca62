"""Tables over seeds: what is run, what waits for what, and the means that come out."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcomp.config import load_config
from jaxcomp.errors import ConfigError
from jaxcomp.jobs import build_job, seeds, sweep

ROOT = Path(__file__).resolve().parent.parent
SPEC = "configs/hjepa_seeds.py"
# Stands for the main command; says which words it got.
RUN = """
import json, pathlib, sys
folder, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
if (folder.parent.parent / "broken").exists() and "seed_1" in folder.name:
    sys.exit("out of memory")
seed = int(folder.name.removeprefix("seed_"))
folder.mkdir(parents=True)
content = {"seconds": 3.0, "level0_mean_knn": 0.5 + 0.1 * seed, "words": words}
(folder / "summary.json").write_text(json.dumps(content))
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def command(run):
        return [sys.executable, "-c", RUN, str(run.folder), *run.arguments]

    monkeypatch.setattr(sweep, "command", command)
    return load_config(SPEC, [f"seeds.root={tmp_path / 'root'}"]).seeds


def test_every_variant_runs_with_every_seed(config):
    runs = seeds.plan(config)
    assert len({run.folder for run in runs}) == len(runs) == 9
    assert {r.config.model.fpn_fusion_method for r in runs if r.variant == "concat"} == {"concat"}
    assert [r.config.seed for r in runs if r.variant == "none"] == [0, 1, 2]
    assert len({r.config.data.seed for r in runs}) == 1


def test_columns_of_few_labels_are_there_when_asked_for():
    few, usual = (load_config(f"{SPEC}{x}").seeds.rows["level 1"] for x in (":few_labels", ""))
    more = set(few) - set(usual)
    assert few["10 % of labels untrained"] == "initial_level1_mean_low_shot_0.1"
    assert few["1 % of labels pixels"] == "pixels_low_shot_0.01" and len(more) == 6


def test_the_table_holds_mean_and_deviation_of_what_is_finished(config):
    (Path(config.root)).mkdir(parents=True)
    (Path(config.root) / "broken").touch()
    runs, lines = seeds.plan(config), []
    failed = sweep.Sweep(runs, jobs=2, say=lines.append, result=seeds.result).start()
    assert {run.seed for run in failed} == {1} and any("add seed 0: 3 s" in x for x in lines)
    text = seeds.write_table(config, runs).read_text()
    assert f"{0.6:.3f} ± {statistics.stdev([0.5, 0.7]):.3f}" in text and "add 2" in text
    (Path(config.root) / "broken").unlink()
    assert sweep.Sweep(runs, say=lines.append, result=seeds.result).start() == []
    text = seeds.write_table(config, runs).read_text()
    assert "0.600 ± 0.100" in text and "add 3" in text
    row = next(line for line in text.splitlines() if line.startswith("| add | level 1"))
    assert set(row.replace("| add | level 1", "").split()) == {"|", "-"}  # no such key stored
    records = json.loads((Path(config.root) / "seeds.json").read_text())
    assert records[0]["values"] == []
    assert [0.5, 0.6, 0.7] in [pytest.approx(r["values"]) for r in records if r["values"]]


def test_a_variant_follows_another_of_the_same_seed(config):
    variant = {"config": "configs/hjepa.py:fpn=none", "overrides": ("model.pretrained={after}",)}
    with config.unlocked():
        config.variants.next = variant | {"after": "add"}
    runs = seeds.plan(config)
    follower = next(r for r in runs if r.variant == "next" and r.seed == 2)
    first = next(r for r in runs if r.variant == "add" and r.seed == 2)
    assert f"--config.model.pretrained={first.folder}" in follower.arguments
    assert runs.index(first) < runs.index(follower)
    assert sweep.Sweep(runs, jobs=2, say=[].append, result=seeds.result).start() == []
    assert all(run.finished for run in runs)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seeds.seeds=(1,1)", "different numbers"),
        ("seeds.variants.add.after=nothing", "give a variant that needs no other"),
        ("seeds.variants.add.overrides=('model.pretrained={after}',)", "name the variant in"),
    ],
)
def test_contradictions_are_told(override, told):
    with pytest.raises(ConfigError, match=told):
        load_config(SPEC, [override])


def test_the_main_command_names_the_script():
    with pytest.raises(ConfigError, match=r"launch/seeds\.py"):
        build_job(load_config(SPEC))


def test_the_script_prints_commands_and_refuses_others(tmp_path):
    def run(*words):
        argv = [sys.executable, "launch/seeds.py", *words]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)

    dry = run(f"--config={SPEC}", "--dry-run", "--only=concat")
    assert dry.returncode == 0 and len(dry.stdout.splitlines()) == 3
    assert all("hjepa.py:fpn=concat" in line for line in dry.stdout.splitlines())
    wrong = run(f"--config={SPEC}", "--only=conca")
    assert wrong.returncode == 1 and "concat" in wrong.stderr
    assert run("--config=configs/hjepa.py").returncode == 1
