"""`evaluate`, `report`, `kitti-eval`, `widerface-eval`: what codecs, runs and results are worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxcomp.commands import add_parser
from jaxcomp.workdir import atomic_write, json_text

_DESCRIPTION = """\
Accuracy against bytes: every trained codec below the given folders and every anchor, on the same
held-out frames, with the same tail of the detector.

Each codec.npz is a point. Runs that differ in the rate weight alone (--config.training.rate_weight;
a larger one gives fewer bits) are points of one curve; codecs of single levels become one pyramid
where all five of a rate weight are there. Anchors are what a reader would use instead:
  image       JPEG, WebP, AVIF, JPEG XL at six qualities each, then the whole detector
  feature     8/6/4/3-bit quantisation with zstd; features as a picture through HEVC (or VVC)
  detections  the whole detector at the edge, which sends its boxes
What this machine lacks is named on the page; pip install 'jaxcomp[anchors,plots]' brings most.

--out gets rate_accuracy.{csv,json,md,tex}, bd.{csv,json,md}, figures/*.svg (and .png with the extra
"plots") and index.html. Every point is written to OUT/points when it is complete: run the same
command again after an interrupt, or with more folders, and only what is missing is measured. A
folder takes points of one detector and one set of frames.

Codecs of an H-JEPA's tokens (configs/hjepa_codec.py) are measured by probes instead: --out gets
token_accuracy.{csv,json,md}, figures/*.svg and index.html, --anchors also takes vector and label
(detections: both), --detector is the H-JEPA, and --bootstrap has no effect.

The data and the detector are those of the runs (their config.json); --config.data.KEY=VALUE changes
one value, as in --config.data.dir=KITTI_FOLDER, and --config=FILE[:ARGS] names another config.
"""
_EXAMPLES = """\
examples:
  python -m jaxcomp evaluate checkpoints/ --out=comparison
  python -m jaxcomp evaluate RUN RUN … --out=quick --frames=20 --anchors=avif,hevc-level,detections
  python -m jaxcomp evaluate sweep/ --out=codecs --anchors=none
  python -m jaxcomp evaluate kitti_runs/ --out=kitti --config.data.dir=FOLDER
  python -m jaxcomp report comparison                  # tables, figures and page again
"""


def add(commands: Any) -> None:
    """Adds the parsers."""
    _add_evaluate(commands)
    report = commands.add_parser("report", help="pages and a table from run directories")
    report.add_argument(
        "dirs", nargs="+", help="run directories, folders of runs, or folders of `evaluate`"
    )
    report.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    report.add_argument("--out", type=Path, help="also write a page that compares them")
    report.set_defaults(run=run_report)

    kitti = commands.add_parser(
        "kitti-eval",
        help="KITTI's AP (2-D, BEV, 3-D) and orientation from folders of its text files",
        description="KITTI's average precision at 40 and 11 recalls for easy, moderate and hard "
        "objects, in the image (2d), from above (bev) and in 3-D (3d), and the average orientation "
        "similarity (aos). DIR holds one FRAME.txt for each frame, empty if nothing was detected.",
    )
    kitti.add_argument("--labels", required=True, metavar="DIR", help="label_2, the ground truth")
    kitti.add_argument(
        "--results", required=True, metavar="DIR", help="detections: a label's columns and a score"
    )
    kitti.add_argument(
        "--classes", default="Car,Pedestrian,Cyclist", help="default: Car,Pedestrian,Cyclist"
    )
    kitti.add_argument(
        "--overlaps", help="as Car=0.5,Cyclist=0.25 (default 0.7 for Car, 0.5 for all others)"
    )
    kitti.add_argument(
        "--frames", metavar="FILE", help="frames to evaluate, one a line, as ImageSets/val.txt"
    )
    kitti.add_argument("--json", metavar="FILE", help="also write everything, with the curves")
    kitti.add_argument(
        "--bootstrap", type=int, default=0, metavar="N",
        help="95%% intervals from N resampled sets of frames, say 1000 (default 0: none)",
    )  # fmt: skip
    kitti.add_argument("--seed", type=int, default=0, help="of the resampling (default 0)")
    kitti.set_defaults(run=run_kitti_eval)
    _add_widerface(commands)


def _add_widerface(commands: Any) -> None:
    wider = commands.add_parser(
        "widerface-eval",
        help="WIDERFace's AP (easy, medium, hard) of prediction files, or of a detector",
        description="WIDERFace's average precision as the official tool computes it. --results "
        "holds EVENT/IMAGE.txt for every image of the validation set; with --weights and --images "
        "they are made first, those that are there are kept.",
    )
    wider.add_argument(
        "--truth", required=True, metavar="DIR",
        help="wider_face_val.mat and wider_{easy,medium,hard}_val.mat",
    )  # fmt: skip
    wider.add_argument("--results", required=True, metavar="DIR", help="EVENT/IMAGE.txt files")
    wider.add_argument("--weights", metavar="FILE", help="a face detector that makes them")
    wider.add_argument("--images", metavar="DIR", help="WIDER_val/images, for --weights")
    wider.add_argument(
        "--protocol", default="original",
        help="vga640, original (default), resize1600 or multiscale_flip; printed with every AP",
    )  # fmt: skip
    wider.add_argument("--json", metavar="FILE", help="also write everything, with the curves")
    wider.set_defaults(run=run_widerface_eval)


def _add_evaluate(commands: Any) -> None:
    evaluate = add_parser(
        commands,
        "evaluate",
        help="codecs and anchors on the same frames -> accuracy against bytes, BD-rates, a page",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    evaluate.add_argument(
        "dirs", nargs="*", metavar="DIR", help="run directories, folders of them, or codec.npz"
    )
    evaluate.add_argument(
        "--out", "--output_dir", dest="out", required=True, type=Path, metavar="FOLDER",
        help="the folder of the comparison; one that is there goes on",
    )  # fmt: skip
    evaluate.add_argument(
        "--anchors", default="image,feature,detections", metavar="LIST",
        help="kinds (image,feature,detections), names as avif or hevc-level, or none; default: "
        "all kinds",
    )  # fmt: skip
    evaluate.add_argument(
        "--frames", type=int, default=0, metavar="N", help="the first N held-out frames (all)"
    )
    evaluate.add_argument(
        "--detector", "--detection_model", dest="detector", metavar="FILE",
        help="detector.npz or its run directory; default: that of the runs",
    )  # fmt: skip
    evaluate.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N",
        help="sets of frames behind the 95%% intervals (default 1000)",
    )  # fmt: skip
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    evaluate.add_argument(
        "--edge-slowdown", type=float, default=1.0, metavar="X",
        help="end-to-end times: the edge is X times slower than this machine (default 1)",
    )  # fmt: skip
    evaluate.add_argument(
        "--config", metavar="FILE[:ARGS]", help="data of this config, not of the runs'"
    )
    # The names that the documents use for the same things.
    for old in ("--checkpoint_dir", "--compression_model", "--test_data"):
        evaluate.add_argument(old, help=argparse.SUPPRESS)
    evaluate.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> None:
    """Runs `evaluate`."""
    from jaxcomp.errors import ConfigError
    from jaxcomp.jobs import comparing

    named = (args.checkpoint_dir, args.compression_model)
    dirs = [Path(d) for d in (*args.dirs, *named) if d]
    if not dirs:
        raise ConfigError("evaluate needs folders of trained codecs; see evaluate --help")
    overrides = [*args.overrides]
    if args.test_data:
        overrides.append(f"data.dir={args.test_data}")
    comparing.run(
        dirs,
        args.out,
        anchors=args.anchors,
        frames=args.frames,
        config=args.config,
        overrides=tuple(overrides),
        detector=args.detector,
        replicates=args.bootstrap,
        seed=args.seed,
        edge_slowdown=args.edge_slowdown,
    )


def run_report(args: argparse.Namespace) -> None:
    """Runs `report`."""
    from jaxcomp.report import __main__ as report

    report.run([Path(d) for d in args.dirs], markdown=args.markdown, out=args.out)


def run_widerface_eval(args: argparse.Namespace) -> None:
    """Runs `widerface-eval`."""
    from jaxcomp.errors import ConfigError
    from jaxcomp.evaluate.widerface import text_table
    from jaxcomp.evaluate.widerface_protocols import protocol_of
    from jaxcomp.jobs import widerface_eval

    protocol_of(args.protocol)
    if bool(args.weights) != bool(args.images):
        raise ConfigError("--weights and --images belong together")
    if args.weights:
        widerface_eval.detect_folder(
            args.truth, args.images, args.weights, args.results, args.protocol
        )
    result = widerface_eval.evaluate_folder(args.truth, args.results)
    print(text_table(result, args.protocol), end="")
    if args.json:
        atomic_write(args.json, json_text({"protocol": args.protocol, **result}))


def run_kitti_eval(args: argparse.Namespace) -> None:
    """Runs `kitti-eval`."""
    from jaxcomp.evaluate.kitti import text_table
    from jaxcomp.jobs import kitti_eval

    result = kitti_eval.evaluate_folders(
        args.labels,
        args.results,
        args.frames,
        classes=[name.strip() for name in args.classes.split(",")],
        overlaps=kitti_eval.parse_overlaps(args.overlaps),
        bootstrap=args.bootstrap,
        seed=args.seed,
    )
    print(text_table(result), end="")
    if args.json:
        atomic_write(args.json, json_text(result))
