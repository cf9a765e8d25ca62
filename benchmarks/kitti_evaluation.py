"""Time of KITTI's evaluation on a data set of KITTI's size.

    python benchmarks/kitti_evaluation.py
    python benchmarks/kitti_evaluation.py --frames 500 --bootstrap 100 --json kitti.json

Drawn frames: 5 objects of three classes and a DontCare region, 15 detections around the objects;
three classes, 2-D, BEV and 3-D, orientation, three difficulties. One process. "files" is the
command `kitti-eval` as users run it, with reading the text files. The goal is 60 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common
from jaxcomp.evaluate.kitti import CLASSES, KittiFrame, evaluate
from jaxcomp.jobs.kitti_eval import write_results

SIZES = np.array([(1.5, 1.6, 3.9), (1.8, 0.6, 0.8), (1.7, 0.6, 1.8)])  # height, width, length
FOCAL, CENTRE = 720.0, (610.0, 180.0)
OBJECTS, DETECTIONS, GOAL = 5, 15, 60.0


def main() -> None:
    """Measures and prints."""
    parser = common.parser(__doc__)
    parser.add_argument("--frames", type=int, default=7481)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    pairs = [draw(rng, f"{i:06}") for i in range(args.frames)]
    truth, found = [a for a, _ in pairs], [b for _, b in pairs]
    evaluate(truth[:10], found[:10])  # compiles
    plain = common.median_seconds(lambda: evaluate(truth, found), args.repeats)
    drawn = common.median_seconds(
        lambda: evaluate(truth, found, bootstrap=args.bootstrap), args.repeats
    )
    files = median_of_command(truth, found, args.repeats)
    name = f"{args.frames} frames"
    common.finish(
        [
            common.record(name, plain, "s", goal=GOAL),
            common.record(f"{name}, {args.bootstrap} resampled sets", drawn, "s", goal=GOAL),
            common.record(f"{name}, files", files, "s", goal=GOAL),
        ],
        args.json,
    )


def median_of_command(truth: list[KittiFrame], found: list[KittiFrame], repeats: int) -> float:
    """Seconds of the whole command, a new process each time."""
    with tempfile.TemporaryDirectory() as folder:
        labels, results = Path(folder, "labels"), Path(folder, "results")
        write_results(labels, truth)
        write_results(results, found)
        command = [sys.executable, "-m", "jaxcomp", "kitti-eval"]
        command += ["--labels", str(labels), "--results", str(results)]
        options = {"cwd": sys.path[0], "check": True, "stdout": subprocess.DEVNULL}
        return common.median_seconds(lambda: subprocess.run(command, **options), repeats)


def draw(rng: np.random.Generator, name: str) -> tuple[KittiFrame, KittiFrame]:
    """(ground truth, detections) of one frame."""
    kind = rng.choice(3, OBJECTS, p=[0.7, 0.2, 0.1])
    size = SIZES[kind] * rng.uniform(0.9, 1.1, (OBJECTS, 3))
    place = rng.uniform((-20, 1.4, 5), (20, 1.9, 60), (OBJECTS, 3))
    height, x = FOCAL * np.stack([size[:, 0], place[:, 0]]) / place[:, 2]
    half = height * rng.uniform(0.25, 1, OBJECTS)
    top = CENTRE[1] + rng.uniform(-10, 10, OBJECTS)
    box = np.stack([CENTRE[0] + x - half, top, CENTRE[0] + x + half, top + height], 1)
    yaw, alpha = rng.uniform(-3, 3, (2, OBJECTS))
    types = [CLASSES[k] for k in kind]
    truth = KittiFrame(
        type=[*types, "DontCare"],
        box=np.vstack([box, [0, 150, 80, 200]]),
        alpha=[*alpha, -10],
        dimensions=np.vstack([size, [-1] * 3]),
        location=np.vstack([place, [-1000] * 3]),
        rotation_y=[*yaw, -10],
        truncated=[*rng.choice([0, 0.2, 0.4], OBJECTS, p=[0.8, 0.1, 0.1]), -1],
        occluded=[*rng.choice(4, OBJECTS, p=[0.5, 0.25, 0.2, 0.05]), -1],
        name=name,
    )
    of = rng.integers(0, OBJECTS, DETECTIONS)
    jitter = 0.05 * height[of, None] * rng.normal(size=(DETECTIONS, 4))
    jitter[:, 2:] = np.maximum(jitter[:, 2:], jitter[:, :2])
    found = KittiFrame(
        type=[types[i] for i in of],
        box=box[of] + jitter,
        score=rng.random(DETECTIONS),
        alpha=alpha[of] + 0.1 * rng.normal(size=DETECTIONS),
        dimensions=size[of] * rng.uniform(0.95, 1.05, (DETECTIONS, 3)),
        location=place[of] + 0.15 * rng.normal(size=(DETECTIONS, 3)),
        rotation_y=yaw[of] + 0.1 * rng.normal(size=DETECTIONS),
        name=name,
    )
    return truth, found


if __name__ == "__main__":
    main()
