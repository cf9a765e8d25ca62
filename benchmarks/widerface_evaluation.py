"""Time of WIDERFace's evaluation on a set of the size of its validation set.

    python benchmarks/widerface_evaluation.py
    python benchmarks/widerface_evaluation.py --detections 200 --json widerface.json
    python benchmarks/widerface_evaluation.py --ground-truth FOLDER_OF_THE_MAT_FILES

3,226 images with as many faces as the validation set has (39,708; drawn, unless the official files
are given), and drawn detections: one near each face, the others anywhere. One process. "files"
reads the prediction files too. The goal is 60 s.
"""

from __future__ import annotations

import os
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common
from jaxcomp.data.widerface import SUBSETS, WiderTruth, read_widerface_truth
from jaxcomp.evaluate.widerface import evaluate_widerface
from jaxcomp.evaluate.widerface_files import read_predictions, write_predictions

IMAGES, FACES, SIDE, GOAL = 3226, 39_708, 1024, 60.0


def main() -> None:
    """Measures and prints."""
    parser = common.parser(__doc__)
    parser.add_argument("--detections", type=int, default=500, help="of each image (default 500)")
    parser.add_argument("--ground-truth", help="folder of wider_face_val.mat and its subsets")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    truth = read_widerface_truth(args.ground_truth) if args.ground_truth else draw_truth(rng)
    found = {name: draw(rng, boxes, args.detections) for name, boxes in truth.boxes.items()}
    evaluate_widerface(truth.boxes, dict.fromkeys(truth.boxes, ()), {})  # compiles
    arrays = common.median_seconds(
        lambda: evaluate_widerface(truth.boxes, found, truth.subsets), args.repeats
    )
    with tempfile.TemporaryDirectory() as folder:
        write_predictions(folder, found)

        def whole() -> None:
            evaluate_widerface(truth.boxes, read_predictions(folder, truth.boxes), truth.subsets)

        files = common.median_seconds(whole, args.repeats)
    name = f"{len(truth.boxes)} images, {sum(map(len, found.values()))} detections"
    common.finish(
        [
            common.record(name, arrays, "s", goal=GOAL),
            common.record(f"{name}, files", files, "s", goal=GOAL),
        ],
        args.json,
    )


def draw_truth(rng: np.random.Generator) -> WiderTruth:
    """Faces in images as in the validation set: many with few, few with many."""
    share = rng.pareto(1.1, IMAGES) + 0.1
    counts = rng.multinomial(FACES, share / share.sum())
    boxes = {f"event/{i:04}": faces(rng, n) for i, n in enumerate(counts)}
    chances = dict(zip(SUBSETS, (0.18, 0.34, 0.8), strict=True))
    subsets = {k: {n: rng.random(len(b)) < p for n, b in boxes.items()} for k, p in chances.items()}
    return WiderTruth(boxes, subsets)


def faces(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 4] boxes."""
    size = np.exp(rng.uniform(np.log(8), np.log(300), (count, 1))) * rng.uniform(
        0.9, 1.1, (count, 2)
    )
    return np.round(np.concatenate([rng.uniform(0, SIDE, (count, 2)), size], 1))


def draw(rng: np.random.Generator, boxes: np.ndarray, count: int) -> np.ndarray:
    """[count, 5] detections, best first."""
    near = boxes[:count] + rng.normal(0, 0.08, boxes[:count].shape) * boxes[:count, 2:3]
    rows = np.concatenate([near, faces(rng, count - len(near))])
    score = np.concatenate([rng.beta(5, 2, len(near)), rng.beta(1, 6, count - len(near))])
    return np.column_stack([rows, score])[np.argsort(-score)]


if __name__ == "__main__":
    main()
