"""`report` and `kitti-eval`: what runs and results are worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxcomp.workdir import atomic_write, json_text


def add(commands: Any) -> None:
    """Adds the parsers."""
    report = commands.add_parser("report", help="pages and a table from run directories")
    report.add_argument("dirs", nargs="+", help="run directories, or folders of runs")
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


def run_report(args: argparse.Namespace) -> None:
    """Runs `report`."""
    from jaxcomp.report import __main__ as report

    report.run([Path(d) for d in args.dirs], markdown=args.markdown, out=args.out)


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
