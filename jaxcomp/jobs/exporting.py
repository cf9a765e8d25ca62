"""Face detectors for other runtimes: ONNX or StableHLO files, checked against JAX."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.errors import ConfigError, DataError, NonFiniteError
from jaxcomp.evaluate.widerface_protocols import InputProtocol, detect_image, merge
from jaxcomp.interop.onnx_face import INPUT, NAMES, face_onnx
from jaxcomp.interop.onnx_graph import require
from jaxcomp.loaders_face import LoadedFaceDetector
from jaxcomp.models.featherface import MEAN_BGR, FaceConfig, FaceDetector
from jaxcomp.models.featherface import priors as face_priors
from jaxcomp.ops import priors as prior_ops
from jaxcomp.workdir import atomic_write

MULTIPLE = 32  # of the sizes that an export is checked at
SIZES = ((320, 320), (416, 416), (640, 640), (832, 832), (480, 640))
# Largest difference from JAX's outputs; of numbers above one, as a share of them. RetinaFace's
# reach 480, where neighbouring numbers of single precision are 3e-5 apart.
TOLERANCE = 1e-4


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Sizes from "320,480x640": sides, or rows x columns; "none" for none.

    Raises:
      ConfigError: it is no number, or no positive multiple of 32.
    """
    if text.strip().lower() == "none":
        return []
    sizes = []
    for word in text.split(","):
        rows, cross, columns = word.strip().lower().partition("x")
        try:
            size = (int(rows), int(columns if cross else rows))
        except ValueError:
            raise ConfigError(f"size {word!r} is not of the form 640 or 480x640") from None
        for side in size:
            if side < MULTIPLE or side % MULTIPLE:
                near = max(round(side / MULTIPLE), 1) * MULTIPLE
                raise ConfigError(
                    f"size {word.strip()!r}: {side} is no positive multiple of {MULTIPLE}; the "
                    f"nearest is {near}"
                )
        sizes.append(size)
    return sizes


def raw_outputs(model: FaceDetector, variables: Any, x: jax.Array) -> dict[str, jax.Array]:
    """What the exported files compute, by their names.

    Args:
      model: the network.
      variables: its weights.
      x: float32 [B, 3, H, W], BGR minus the mean.
    """

    def run(model: FaceDetector, x: jax.Array) -> dict[str, jax.Array]:
        return model.tail(model.pyramid(jnp.transpose(x, (0, 2, 3, 1))))

    maps: Any = model.apply(variables, x, method=run)
    maps["classes"] = jax.nn.softmax(maps["classes"])
    return {NAMES[name]: value for name, value in maps.items()}


def session(content: bytes, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU.

    Raises:
      ConfigError: onnxruntime is not installed.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_session(one: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name."""
    names = [out.name for out in one.get_outputs()]
    return dict(zip(names, one.run(None, {INPUT: x}), strict=True))


def sample_input(size: tuple[int, int], batch: int = 1, seed: int = 0) -> np.ndarray:
    """Smooth random images as the network's input, float32 [B, 3, H, W]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (batch, 3, -(-size[0] // 8), -(-size[1] // 8)))
    x = coarse.repeat(8, 2).repeat(8, 3)[:, :, : size[0], : size[1]]
    noisy = x + rng.normal(0, 8, x.shape)
    return (np.clip(noisy, 0, 255) - np.reshape(MEAN_BGR, (1, 3, 1, 1))).astype(np.float32)


def differences(
    one: Any,
    detector: LoadedFaceDetector,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int] = (1,),
) -> list[dict[str, Any]]:
    """How far onnxruntime is from JAX, for every size and batch.

    Returns:
      [{"batch", "height", "width", "anchors", "max_abs_difference", "max_difference": the same
      divided by the number itself where that is above one, "largest": number}].

    Raises:
      NonFiniteError: an output is not finite.
    """
    # The weights are an argument: as constants they would be folded, which takes long.
    run = jax.jit(raw_outputs, static_argnums=0)
    rows = []
    for size in sizes:
        for batch in batches if size == sizes[0] else batches[:1]:
            x = sample_input(size, batch)
            ours, theirs = run(detector.model, detector.variables, x), run_session(one, x)
            ours = jax.device_get(ours)
            if not all(np.isfinite(v).all() for v in (*ours.values(), *theirs.values())):
                raise NonFiniteError(f"outputs at {size[0]}x{size[1]} are not finite")
            gaps = {k: np.abs(ours[k] - theirs[k]) for k in ours}
            shares = [gaps[k] / np.maximum(np.abs(ours[k]), 1.0) for k in ours]
            rows.append({
                "batch": batch, "height": size[0], "width": size[1],
                "anchors": ours[NAMES["boxes"]].shape[1],
                "max_abs_difference": max(float(gap.max()) for gap in gaps.values()),
                "max_difference": max(float(share.max()) for share in shares),
                "largest": max(float(np.abs(v).max()) for v in ours.values()),
            })  # fmt: skip
    return rows


def export_onnx(
    detector: LoadedFaceDetector,
    out: Path,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    decode: bool = False,
    tolerance: float = TOLERANCE,
) -> list[dict[str, Any]]:
    """Writes one ONNX file for every batch, height and width, if it agrees with JAX.

    Args:
      detector: what to export.
      out: the file to write.
      sizes: (rows, columns) at which it is checked, the first at a batch of two as well.
      decode: decode and suppress in the graph; the check is of the same graph without that.
      tolerance: largest difference, see `differences`.

    Returns:
      See `differences`.

    Raises:
      ConfigError: a package is not installed.
      DataError: the file's ending is not .onnx.
      NonFiniteError: an output is not finite, or further from JAX than the tolerance.
    """
    if out.suffix != ".onnx":
        raise DataError(f"{str(out)!r} must end in .onnx")
    raw = face_onnx(detector.variables, detector.model.cfg).SerializeToString()
    rows = differences(session(raw), detector, sizes, (1, 2))
    worst = max((row["max_difference"] for row in rows), default=0.0)
    if worst > tolerance:
        raise NonFiniteError(
            f"the graph differs from JAX by {worst:.3g}, more than {tolerance:g}; nothing is "
            "written"
        )
    if decode:
        raw = face_onnx(
            detector.variables, detector.model.cfg, decode=True
        ).SerializeToString()  # fmt: skip
        session(raw)  # that it loads
    atomic_write(out, raw)
    return rows


def export_stablehlo(
    detector: LoadedFaceDetector, out: Path, size: tuple[int, int], batch: int = 1
) -> dict[str, Any]:
    """Writes the network for one size as serialised StableHLO, which `jax.export` reads.

    Returns:
      {"batch", "height", "width", "bytes", "max_abs_difference": of what was read back}.

    Raises:
      DataError: the file's ending is not .stablehlo.
    """
    if out.suffix != ".stablehlo":
        raise DataError(f"{str(out)!r} must end in .stablehlo")
    variables = jax.tree.map(np.asarray, detector.variables)
    function = jax.jit(functools.partial(raw_outputs, detector.model, variables))
    spec = jax.ShapeDtypeStruct((batch, 3, *size), jnp.float32)
    content = bytes(jax.export.export(function, platforms=("cpu", "cuda", "tpu"))(spec).serialize())
    atomic_write(out, content)
    x = sample_input(size, batch)
    again = jax.export.deserialize(bytearray(out.read_bytes())).call(x)
    ours = function(x)
    worst = max(float(np.abs(np.asarray(again[k]) - np.asarray(ours[k])).max()) for k in ours)
    largest = max(float(jnp.abs(value).max()) for value in ours.values())
    height, width = size
    return {
        "batch": batch, "height": height, "width": width, "bytes": len(content),
        "max_abs_difference": worst, "largest": largest,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OnnxFaceDetector:
    """An exported detector behind the interface of the evaluations.

    Attributes:
      session: of onnxruntime; the file has the three raw outputs.
      cfg: sizes.
      bucket: images are padded with zeros, the mean colour, to multiples of this.
    """

    session: Any
    cfg: FaceConfig
    bucket: int = MULTIPLE

    def scan(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """See `evaluate.widerface_protocols.Scanner`."""
        x = to_input(image, self.bucket)
        out = {k: run_session(self.session, x)[v][0] for k, v in NAMES.items()}
        rows, columns = x.shape[2:]
        pixels = np.array([columns, rows] * 2, np.float32)
        order = np.argsort(-out["classes"][:, 1], kind="stable")[: self.cfg.candidates]
        order = order[out["classes"][order, 1] > self.cfg.score_threshold]
        anchors = face_priors((rows, columns), self.cfg)[order]
        boxes = prior_ops.decode_boxes(out["boxes"][order], anchors, self.cfg.variances)
        points = prior_ops.decode_landmarks(out["landmarks"][order], anchors, self.cfg.variances)
        return {
            "boxes": np.asarray(boxes) * pixels,
            "landmarks": np.asarray(points).reshape(-1, 5, 2) * pixels[:2],
            "scores": out["classes"][order, 1],
        }

    def detect(
        self, image: np.ndarray, *, protocol: str | InputProtocol | None = None
    ) -> dict[str, Any]:
        """Faces of an image, as `LoadedFaceDetector.detect`."""
        if protocol is not None:
            return detect_image(self, image, protocol)
        how = InputProtocol("", iou=self.cfg.nms_iou, most=self.cfg.max_detections)
        return merge(self.scan(image), how)


def to_input(image: np.ndarray, multiple: int = 1) -> np.ndarray:
    """RGB [H, W, 3], uint8 or float [0, 1] -> [1, 3, H', W'], padded with zeros."""
    x = image.astype(np.float32) * (1.0 if image.dtype == np.uint8 else 255.0)
    x = x[..., ::-1] - np.array(MEAN_BGR, np.float32)
    height, width = x.shape[:2]
    border = [(0, -n % multiple) for n in (height, width)]
    return np.ascontiguousarray(np.pad(x, (*border, (0, 0))).transpose(2, 0, 1)[None])


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The differences as aligned columns."""
    heads = ("batch", "size", "anchors", "max abs difference", "of numbers up to")
    lines = [f"{heads[0]:>5} {heads[1]:>9} {heads[2]:>8} {heads[3]:>19} {heads[4]:>17}"]
    for row in rows:
        size = f"{row['height']}x{row['width']}"
        text = (
            f"{row['batch']:>5} {size:>9} {row['anchors']:>8,} {row['max_abs_difference']:>19.2e}"
        )
        lines.append(f"{text} {row['largest']:>17.1f}")
    return "\n".join(lines) + "\n"
