"""A folder with everything that a device needs to find faces: no jaxcomp, no JAX."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data.face_records import HELD_OUT, FaceRecords, procedural
from jaxcomp.data.faces import FaceSettings
from jaxcomp.data.images import read_image
from jaxcomp.errors import DataError
from jaxcomp.evaluate.widerface_protocols import rescale
from jaxcomp.interop.onnx_face import INPUT, face_onnx
from jaxcomp.interop.onnx_graph import require
from jaxcomp.jobs import exporting
from jaxcomp.jobs.face_scores import evaluate_faces
from jaxcomp.loaders_face import LoadedFaceDetector
from jaxcomp.models.featherface import MEAN_BGR
from jaxcomp.workdir import atomic_write, json_text

RAW, DETECTOR, QUANTISED = "model.onnx", "detector.onnx", "model_int8.onnx"
CALIBRATION_IMAGES = 64
LONGEST = 640  # pixels of a calibration image's longer side, at most

EXAMPLE = '''\
"""Faces of a photo: python usage_example.py PHOTO [SCORE]. Needs numpy, pillow, onnxruntime."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parent


def find_faces(session, config, photo):
    """{"boxes" [N, 4], "landmarks" [N, 10], "scores" [N]} in pixels of the photo."""
    x = np.asarray(photo.convert("RGB"), np.float32)[..., ::-1] - config["mean_bgr"]
    border = [(0, -side % config["multiple"]) for side in x.shape[:2]]  # zeros: the mean colour
    x = np.pad(x, (*border, (0, 0))).transpose(2, 0, 1)[None].astype(np.float32)
    names = [out.name for out in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": x})))


def main():
    config = json.loads((FOLDER / "deployment_config.json").read_text())
    session = onnxruntime.InferenceSession(str(FOLDER / config["detector"]))
    photo = Image.open(sys.argv[1])
    least = float(sys.argv[2]) if len(sys.argv) > 2 else config["confidence_threshold"]
    faces = find_faces(session, config, photo)
    picture = photo.convert("RGB")
    draw = ImageDraw.Draw(picture)
    for box, points, score in zip(faces["boxes"], faces["landmarks"], faces["scores"]):
        if score >= least:
            print(f"{score:.3f}", *(f"{value:.1f}" for value in box))
            draw.rectangle(tuple(map(float, box)), outline=(255, 160, 0))
            draw.point([float(value) for value in points], fill=(0, 255, 0))
    picture.save("faces.png")


if __name__ == "__main__":
    main()
'''

README = """\
# Face detector

`python usage_example.py PHOTO` prints score and box (x1 y1 x2 y2) of each face and draws them in
`faces.png`. It needs numpy, pillow and onnxruntime (checked with {runtime}), nothing else.

| file | what |
|---|---|
| `{detector}` | boxes, landmarks, scores, batch_index after suppression, pixels |
| `{raw}` | the raw outputs `bbox_regressions`, `classifications`, `landmarks` |
{int8}| `deployment_config.json` | preprocessing, anchors, thresholds, measured differences |
| `SHA256SUMS` | check with `sha256sum -c SHA256SUMS` |

Input `input`: float32 [batch, 3, height, width], BGR minus (104, 117, 123), any batch and size;
pad to multiples of {multiple} with zeros. Anchors lie inside the graph of `{detector}`; for
`{raw}` they follow from `deployment_config.json`: level by level, row by row, size by size, centre
(column + 0.5) x step, and centre + 0.1 x side x prediction, side x exp(0.2 x prediction).
"""


def write_package(
    detector: LoadedFaceDetector,
    folder: Path,
    *,
    sizes: Sequence[tuple[int, int]] = exporting.SIZES,
    int8: bool = False,
    calibration: Path | None = None,
    images: int = 40,
) -> dict[str, Any]:
    """Writes the folder; files that are there are replaced.

    Args:
      detector: what to ship.
      folder: where to.
      sizes: at which the graph is checked against JAX.
      int8: add a quantised file, measured beside the others.
      calibration: a folder of photos for that; None for procedural images.
      images: procedural images on which both are measured.

    Returns:
      The content of `deployment_config.json`.

    Raises:
      ConfigError: a package is not installed.
      NonFiniteError: the graph does not agree with JAX.
      DataError: there is no photo to calibrate with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = exporting.export_onnx(detector, folder / RAW, sizes=sizes)
    cfg = detector.model.cfg
    decoder = face_onnx(detector.variables, cfg, decode=True).SerializeToString()
    exporting.session(decoder)
    atomic_write(folder / DETECTOR, decoder)
    config: dict[str, Any] = {
        "detector": DETECTOR,
        "raw_model": RAW,
        "input": {"name": INPUT, "layout": "NCHW", "colours": "BGR", "dtype": "float32"},
        "mean_bgr": list(MEAN_BGR),
        "multiple": exporting.MULTIPLE,
        "confidence_threshold": 0.5,
        "score_threshold": cfg.score_threshold,
        "nms_threshold": cfg.nms_iou,
        "top_k": cfg.candidates,
        "keep_top_k": cfg.max_detections,
        "steps": list(cfg.steps),
        "min_sizes": [list(sizes) for sizes in cfg.min_sizes],
        "variances": list(cfg.variances),
        "weights_digest": detector.digest,
        "checked_against_jax": rows,
    }
    if int8:
        config["int8"] = add_int8(detector, folder, calibration, images)
    atomic_write(folder / "deployment_config.json", json_text(config))
    atomic_write(folder / "usage_example.py", EXAMPLE)
    line = f"| `{QUANTISED}` | the raw outputs from 8-bit integers |\n" if int8 else ""
    words = README.format(
        detector=DETECTOR, raw=RAW, int8=line, multiple=exporting.MULTIPLE,
        runtime=require("onnxruntime").__version__,
    )  # fmt: skip
    atomic_write(folder / "README.md", words)
    names = [RAW, DETECTOR, "deployment_config.json", "usage_example.py", "README.md"]
    names += [QUANTISED] if int8 else []
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    atomic_write(folder / "SHA256SUMS", "".join(sums))
    return config


def add_int8(
    detector: LoadedFaceDetector, folder: Path, calibration: Path | None, images: int
) -> dict[str, Any]:
    """Quantises `model.onnx` after looking at images, and measures both on procedural ones.

    Returns:
      {"bytes", "fp32_bytes", "ap", "fp32_ap": {"easy", "medium", "hard"}, "images"}.
    """
    raw, out = folder / RAW, folder / QUANTISED
    content = quantise(raw.read_bytes(), list(_calibration(calibration)))
    atomic_write(out, content)
    records = FaceRecords(procedural(FaceSettings(), HELD_OUT, images), (320, 320), 64)
    found = {}
    for key, path in (("fp32_ap", raw), ("ap", out)):
        one = exporting.OnnxFaceDetector(exporting.session(path.read_bytes()), detector.model.cfg)
        metrics, _ = evaluate_faces(one, records)  # type: ignore[arg-type]
        found[key] = {name: metrics[f"ap_{name}"] for name in ("easy", "medium", "hard")}
    sizes = {"bytes": len(content), "fp32_bytes": raw.stat().st_size, "images": images}
    return {**found, **sizes}


def _calibration(folder: Path | None) -> Iterator[np.ndarray]:
    """Inputs [1, 3, H, W] of photos, or of procedural images."""
    if folder is None:
        source = procedural(FaceSettings(), HELD_OUT + 100_000, CALIBRATION_IMAGES // 2)
        pictures = (source.read(i)[0] for i in range(len(source)))
    else:
        endings = (".jpg", ".jpeg", ".png", ".webp")
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings)
        if not paths:
            raise DataError(f"{folder}: no .jpg, .png or .webp to calibrate with")
        pictures = (read_image(p) for p in paths[:CALIBRATION_IMAGES])
    for image in pictures:
        scale = min(1.0, LONGEST / max(image.shape[:2]))
        seen = rescale(image, scale) if scale < 1 else image
        yield exporting.to_input(seen, exporting.MULTIPLE)


def quantise(content: bytes, inputs: Sequence[np.ndarray]) -> bytes:
    """An ONNX file with 8-bit weights (by channel) and activations, for onnxruntime.

    Convolutions become integers, except those that make the outputs: their largest numbers are of
    anchors without a face, and a step of 1/255 of that range would move every box. Deformable
    convolutions stay as they are, as onnxruntime computes them in single precision only; what tells
    them where to read may be integers, which moved no box.

    Args:
      content: the file in single precision.
      inputs: what the ranges of the activations are taken from.

    Raises:
      ConfigError: onnxruntime is not installed.
    """
    tools = require("onnxruntime.quantization")
    rest = iter(inputs)

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> Any:
            x = next(rest, None)
            return None if x is None else {INPUT: x}

    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place, "fp32.onnx"), Path(place, "int8.onnx")
        source.write_bytes(content)
        tools.quantize_static(
            str(source), str(target), Reader(), quant_format=tools.QuantFormat.QDQ,
            per_channel=True, activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8, op_types_to_quantize=["Conv"],
            nodes_to_exclude=delicate_nodes(content),
        )  # fmt: skip
        return target.read_bytes()


def delicate_nodes(content: bytes) -> list[str]:
    """Convolutions whose result is an output, but for changes of shape and the like in between."""
    graph = require("onnx").load_from_string(content).graph
    makers = {name: node for node in graph.node for name in node.output}
    todo = [out.name for out in graph.output]
    found, seen = set[str](), set[str]()
    while todo:
        name = todo.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv":
            found.add(node.name)
        elif node.op_type != "DeformConv":
            todo += node.input
    return sorted(found)


def sums_hold(folder: Path) -> bool:
    """Whether the files of a package are those of its `SHA256SUMS`."""
    lines = io.StringIO((folder / "SHA256SUMS").read_text())
    pairs = (line.split() for line in lines)
    return all(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for digest, name in pairs
    )
