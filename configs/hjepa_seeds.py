"""H-JEPA with and without a pyramid, three seeds each: what its features know, level by level.

    python launch/seeds.py --config=configs/hjepa_seeds.py --jobs=2
    python launch/seeds.py --config=configs/hjepa_seeds.py:smoke         # a minute, to try it

Columns: k-nearest neighbours (k = 20) and a linear probe, after training, for the same network
untrained and for raw pixels; RankMe. With the argument `few_labels` also linear probes that saw 1 %
and 10 % of the labels. Rows: the mean over the tokens of each level.
"""

from jaxcomp.config import base_config, parse_args


def _row(name, few_labels):
    low = {
        f"{100 * share:g} % of labels{words}": f"{prefix}{stem}_low_shot_{share}"
        for share in ((0.01, 0.1) if few_labels else ())
        for words, prefix, stem in (
            ("", "", name), (" untrained", "initial_", name), (" pixels", "", "pixels"),
        )
    }  # fmt: skip
    return {
        "k-NN": f"{name}_knn",
        "k-NN untrained": f"initial_{name}_knn",
        "k-NN pixels": "pixels_knn",
        "linear": f"{name}_linear",
        "linear untrained": f"initial_{name}_linear",
        "linear pixels": "pixels_linear",
        **low,
        "RankMe": f"{name}_rankme",
    }


def get_config(arg_string: str = ""):
    """The table of a profile."""
    args = parse_args(arg_string, profile=("embedded", "smoke"), few_labels=False)
    smoke = args.profile == "smoke"
    small = (
        "data.train_size=64",
        "data.val_size=48",
        "training.epochs=1",
        "training.batch_size=16",
    )
    config = base_config(
        seeds={
            "root": "checkpoints/hjepa_seeds" + ("_smoke" if smoke else ""),
            "seeds": (0, 1) if smoke else (0, 1, 2),
            "overrides": small if smoke else (),
            "digits": 3,
            "variants": {
                fpn: {"config": f"configs/hjepa.py:fpn={fpn}", "overrides": (), "after": ""}
                for fpn in ("none", "add", "concat")
            },
            "rows": {
                "encoder": _row("encoder_mean", args.few_labels),
                **{f"level {i}": _row(f"level{i}_mean", args.few_labels) for i in range(3)},
            },
        }
    )
    config.task = "seeds"
    config.profile = args.profile
    return config
