"""Rate-accuracy curves of the pyramid codecs: three treatments, each with and without the tail.

    python launch/sweep.py --config=configs/fpn_lambda_sweep.py           # embedded
    python launch/sweep.py --config=configs/fpn_lambda_sweep.py:smoke     # minutes, to try it
    python launch/sweep.py --config=configs/fpn_lambda_sweep.py:kitti     # the documents' recipe

It ends with the tables and the page of ROOT_report/, anchors beside the codecs. Started again, it
goes on where it was interrupted. Members (`--only=NAME,NAME` takes some of them):

    joint, random, level              squared error of the features, noise (the documents' loss)
    joint_task, random_task, ...      the frozen tail judges too, rounded latents for the decoder
    random_rounded, random_tail       each of these two alone (embedded)
    random_longer                     neither: what the same further training gives (embedded)

The runs of a member are a chain: the smallest rate weight trains from scratch, each further one
from the codec before it, for a share of the epochs. Those of the second and third kind start from
the codecs of the first, for as many epochs.
"""

from jaxcomp.config import base_config, parse_args

TASK = ("training.task_weight=1.0", "model.straight_through=True")
LEVELS = (0, 1, 2, 3, 4)


def _member(config, rate_weights, overrides=(), levels=(), epochs=(), chained_epochs=0.0, after=""):
    """A curve; `epochs` is one number for each level (or one), empty: those of the config."""
    return {
        "config": config,
        "rate_weights": rate_weights,
        "overrides": overrides,
        "levels": levels,
        "epochs": epochs,
        "chained_epochs": chained_epochs,
        "after": after,
    }


def _embedded():
    weights = (0.004, 0.015, 0.05)
    tail = (0.012, 0.045, 0.15)  # its distortion is larger than the relative error
    # Small batches: what these codecs lack in such a time is steps.
    steps = ("training.batch_size=2", "training.learning_rate=0.002")
    epochs = {"joint": (3,), "random": (7,), "level": (3, 4, 5, 6, 6)}
    members = {}

    def add(name, values, levels=(), extra=(), suffix=""):
        members[name + suffix] = _member(
            *(f"configs/fpn_{name}.py", values, (*steps, *extra), levels, epochs[name], 0.4),
            after=name if suffix else "",
        )

    for name in epochs:
        levels = LEVELS if name == "level" else ()
        add(name, weights, levels)
        add(name, tail, levels, TASK, "_task")
    add("random", tail, extra=TASK[:1], suffix="_tail")
    add("random", weights, extra=TASK[1:], suffix="_rounded")
    add("random", weights, suffix="_longer")
    return members, ("data.train_size=900", "data.val_size=100")


def _smoke():
    small = ("model.n_hidden=8", "model.n_channels=8", "training.task_regions=2")
    members = {
        "random": _member("configs/fpn_random.py", (0.01, 0.1), small, (), (1,), 1.0),
        "joint_task": _member("configs/fpn_joint.py", (0.1,), (*small, *TASK), (), (1,)),
    }
    data = ("data.train_size=8", "data.val_size=4", "data.height=64", "data.width=96")
    return members, (*data, "training.batch_size=4")


def _kitti():
    weights = (1e-4, 2.5e-4, 1e-3, 4e-3)
    members = {}
    for name in ("joint", "random", "level"):
        levels = LEVELS if name == "level" else ()
        for suffix, extra in (("", ()), ("_task", TASK)):
            config = f"configs/fpn_{name}.py:kitti"
            members[name + suffix] = _member(config, weights, extra, levels)
    return members, ()


def get_config(arg_string: str = ""):
    """The sweep of a profile."""
    args = parse_args(arg_string, profile=("embedded", "smoke", "kitti"))
    members, common = {"embedded": _embedded, "smoke": _smoke, "kitti": _kitti}[args.profile]()
    suffix = "" if args.profile == "embedded" else f"_{args.profile}"
    config = base_config(
        sweep={
            "root": f"checkpoints/fpn_sweep{suffix}",
            "overrides": common,
            "store_features": args.profile != "kitti",  # of full-size maps, 21 MB a frame
            "anchors": ("image", "feature", "detections"),
            "members": members,
        }
    )
    config.task = "sweep"
    config.profile = args.profile
    return config
