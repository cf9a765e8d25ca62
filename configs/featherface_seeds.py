"""FeatherFace V2 with and without V1 as its teacher, at equal steps, three seeds each.

    python launch/seeds.py --config=configs/featherface_seeds.py --jobs=2
    python launch/seeds.py --config=configs/featherface_seeds.py:smoke     # minutes, to try it

Each seed trains a V1, then a V2 that learns from it and a V2 that learns alone: 37 minutes of one
core of an AMD EPYC in all. Mean AP 0.767 ± 0.034 (V1), 0.564 ± 0.065 and 0.300 ± 0.112
(docs/faces.md). Columns: average precision on held-out procedural faces of 32 pixels and more, 16
and more, and all.
"""

from jaxcomp.config import base_config, parse_args

V2 = "configs/featherface.py:v2"


def get_config(arg_string: str = ""):
    """The table of a profile."""
    args = parse_args(arg_string, profile=("embedded", "smoke"))
    smoke = args.profile == "smoke"
    small = ("data.train_size=16", "data.val_size=8", "training.epochs=1", "training.batch_size=8")
    taught = ("distil.teacher={after}",)
    config = base_config(
        seeds={
            "root": "checkpoints/featherface_seeds" + ("_smoke" if smoke else ""),
            "seeds": (0, 1) if smoke else (0, 1, 2),
            "overrides": small if smoke else (),
            "digits": 3,
            "variants": {
                "v1": {"config": "configs/featherface.py:v1", "overrides": (), "after": ""},
                "v2_alone": {"config": V2, "overrides": (), "after": ""},
                "v2_taught": {"config": V2, "overrides": taught, "after": "v1"},
            },
            "rows": {
                "": {f"AP {n}": f"ap_{n}" for n in ("easy", "medium", "hard", "mean")},
            },
        }
    )
    config.task = "seeds"
    config.profile = args.profile
    return config
