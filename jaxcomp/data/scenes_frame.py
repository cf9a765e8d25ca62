"""One frame of the `scenes` data: image, KITTI labels, calibration and lidar, from (seed, index).

A frame depends on nothing but its settings, split and index, so any number of workers in any order
makes the same bytes.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from jaxcomp.data import kitti_format, scenes_lidar, scenes_render, scenes_world
from jaxcomp.data.kitti_format import Calibration, KittiObject

RENDERER_VERSION = "1.0.1"  # raise when any frame changes: it names the stored data
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class SceneSettings:
    """What defines a frame beside its index.

    Attributes:
      height: image rows.
      width: image columns.
      seed: of the whole data set.
      beams: lidar elevations.
      azimuths: lidar steps over the camera's view.
    """

    height: int = 128
    width: int = 416
    seed: int = 0
    beams: int = 32
    azimuths: int = 256


@dataclasses.dataclass(frozen=True)
class Frame:
    """A rendered frame.

    Attributes:
      image: uint8 [H, W, 3] RGB.
      objects: the labels, in a fixed order; boxes are clipped to the image.
      visible: float32 [N] share of each object's pixels that nothing hides.
      difficulty: int32 [N] 0 easy, 1 moderate, 2 hard, -1 none.
      calibration: camera and lidar geometry.
      points: float32 [P, 4] lidar points (x, y, z, reflectance), lidar frame.
    """

    image: np.ndarray
    objects: list[KittiObject]
    visible: np.ndarray
    difficulty: np.ndarray
    calibration: Calibration
    points: np.ndarray


def frame_rng(settings: SceneSettings, split: str, index: int) -> np.random.Generator:
    """The generator of one frame."""
    entropy = [settings.seed, SPLITS.index(split), index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def render_frame(settings: SceneSettings, split: str, index: int) -> Frame:
    """Renders frame `index` of `split`."""
    rng = frame_rng(settings, split, index)
    world = scenes_world.sample_world(rng)
    camera = scenes_render.kitti_camera(settings.height, settings.width)
    calibration = scene_calibration(camera)
    drawn = scenes_render.render(world, camera, rng)
    points = scenes_lidar.sweep(world, calibration, rng, settings.beams, settings.azimuths)
    objects, visible = _labels(world, drawn, camera)
    levels = [
        kitti_format.difficulty(o.box[3] - o.box[1], o.occluded, o.truncated, camera.height)
        for o in objects
    ]
    return Frame(
        drawn.image,
        objects,
        np.array(visible, np.float32),
        np.array(levels, np.int32),
        calibration,
        points,
    )


def scene_calibration(camera: scenes_render.Camera) -> Calibration:
    """Geometry like KITTI's: the lidar stands 8 cm above and 27 cm behind the camera."""
    p2 = np.array(
        [
            [camera.focal, 0, camera.cx, camera.focal * camera.baseline],
            [0, camera.focal, camera.cy, 0],
            [0, 0, 1, 0],
        ]
    )
    axes = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    turn = _small_rotation(0.0075, -0.0048, 0.0061) @ axes
    tr = np.concatenate([turn, np.array([[-0.004], [-0.076], [-0.272]])], axis=1)
    return Calibration(p2, _small_rotation(0.0021, -0.0093, 0.0044), tr)


def _small_rotation(x: float, y: float, z: float) -> np.ndarray:
    cx, sx, cy, sy, cz, sz = np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(z), np.sin(z)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _labels(world, drawn, camera) -> tuple[list[KittiObject], list[float]]:
    """Labels of the objects of which at least two by two pixels lie inside the image."""
    objects, visible = [], []
    for thing, box, seen in zip(
        scenes_render.labelled(world), drawn.boxes, drawn.visible, strict=True
    ):
        limit = np.array([camera.width, camera.height] * 2, np.float64)
        clipped = np.clip(box, 0, limit)
        size, whole = clipped[2:] - clipped[:2], box[2:] - box[:2]
        if size.min() < 2 or seen <= 0.02:
            continue
        x, y, z = (float(v) for v in thing.location)
        length, height, width = thing.size
        alpha = (thing.yaw - np.arctan2(x, z) + np.pi) % (2 * np.pi) - np.pi
        objects.append(
            KittiObject(
                type=thing.kind, truncated=float(1 - size.prod() / whole.prod()),
                occluded=0 if seen > 0.8 else (1 if seen > 0.5 else 2), alpha=float(alpha),
                box=tuple(float(v) for v in clipped), dimensions=(height, width, length),
                location=(x, y, z), rotation_y=float(thing.yaw),
            )
        )  # fmt: skip
        visible.append(float(seen))
    return objects, visible


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of uint8 [H, W, 3]; a low compression level, because noise hardly compresses."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def frame_example(settings: SceneSettings, split: str, index: int) -> dict:
    """The frame as the record stores it."""
    frame = render_frame(settings, split, index)
    objects = frame.objects

    def column(pick, shape: tuple[int, ...] = ()) -> np.ndarray:
        return np.array([pick(o) for o in objects], np.float32).reshape(len(objects), *shape)

    return {
        "index": index,
        "image": encode_png(frame.image),
        "calib": {
            "p2": frame.calibration.p2.astype(np.float32),
            "r0_rect": frame.calibration.r0_rect.astype(np.float32),
            "tr_velo_to_cam": frame.calibration.tr_velo_to_cam.astype(np.float32),
        },
        "lidar": frame.points,
        "objects": {
            "type": [o.type for o in objects],
            "truncated": column(lambda o: o.truncated),
            "occluded": column(lambda o: o.occluded).astype(np.int32),
            "alpha": column(lambda o: o.alpha),
            "box": column(lambda o: o.box, (4,)),
            "dimensions": column(lambda o: o.dimensions, (3,)),
            "location": column(lambda o: o.location, (3,)),
            "rotation_y": column(lambda o: o.rotation_y),
            "visible": frame.visible,
            "difficulty": frame.difficulty,
        },
    }
