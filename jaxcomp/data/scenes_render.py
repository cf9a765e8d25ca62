"""Renders a street world with the painter's algorithm at twice the size, then halves it.

The ground is shaded per pixel by inverse projection; everything else is polygons. The canvas is
RGBA whose fourth channel holds the object's number, so one pass gives the image and who is visible.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from jaxcomp.data.scenes_mesh import box_corners, rotation
from jaxcomp.data.scenes_objects import CLASSES, Thing
from jaxcomp.data.scenes_world import CAMERA_HEIGHT, Light, Street, World

_SCALE = 2  # supersampling
_NEAR = 0.3  # polygons that reach closer than this (metres) are dropped


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole like KITTI's left colour camera, scaled to the image size.

    Attributes:
      height: pixels.
      width: pixels.
      focal: pixels.
      cx: principal point, pixels.
      cy: principal point, pixels.
      baseline: metres that this camera stands left of the reference camera 0.
    """

    height: int
    width: int
    focal: float
    cx: float
    cy: float
    baseline: float = 0.06


def kitti_camera(height: int, width: int) -> Camera:
    """KITTI's focal length and principal point, scaled from 375 x 1242 by width (and height)."""
    return Camera(
        height, width, 721.5377 * width / 1242, 609.5593 * width / 1242, 172.854 * height / 375
    )


@dataclasses.dataclass(frozen=True)
class Rendering:
    """The image and what was measured while drawing it.

    Attributes:
      image: uint8 [H, W, 3] RGB.
      boxes: float64 [N, 4] xyxy of each object before clipping, in `objects` order.
      visible: float64 [N] share of the object's pixels inside the image that nothing hides.
    """

    image: np.ndarray
    boxes: np.ndarray
    visible: np.ndarray


def project(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Reference-camera points [..., 3] to pixels [..., 2]."""
    z = np.maximum(points[..., 2], 1e-6)
    u = camera.focal * (points[..., 0] + camera.baseline) / z + camera.cx
    v = camera.focal * points[..., 1] / z + camera.cy
    return np.stack([u, v], -1)


def labelled(world: World) -> list[Thing]:
    """The things that carry a label, in a fixed order."""
    return [thing for thing in world.things if thing.kind in CLASSES]


def render(world: World, camera: Camera, rng: np.random.Generator) -> Rendering:
    """Draws the world; `rng` supplies textures and sensor noise."""
    background = _ground_and_sky(world.street, world.light, camera, rng)
    canvas = _canvas(background, world, camera)
    objects = labelled(world)
    numbers = {id(thing): index + 1 for index, thing in enumerate(objects)}
    draw = ImageDraw.Draw(canvas)
    outlines: dict[int, tuple[np.ndarray, list]] = {}
    for thing in sorted(world.things, key=_far_first):
        pixels, colours = _shade(thing, world.light, camera)
        flat = _flat(pixels)
        number = numbers.get(id(thing), 0)
        if number:
            outlines[number] = (pixels, flat)
        for outline, colour in zip(flat, colours, strict=True):
            draw.polygon(outline, fill=(*colour, number))
    boxes, visible = _measure(np.asarray(canvas)[..., 3], outlines, len(objects))
    return Rendering(_develop(canvas, world.light, camera, rng), boxes, visible)


def _flat(pixels: np.ndarray) -> list:
    """[F, V, 2] corners as one flat list of numbers for each polygon."""
    return pixels.reshape(len(pixels), 2 * pixels.shape[1]).tolist()


def _far_first(thing: Thing) -> tuple[bool, float]:
    return (not thing.background, -float(np.hypot(thing.location[0], thing.location[2])))


def _shade(thing: Thing, light: Light, camera: Camera) -> tuple[np.ndarray, list]:
    """Visible polygons as supersampled pixels [F, V, 2] and their colours."""
    shape = thing.shape
    eye = shape.points[:, 0] + (camera.baseline, 0, 0)
    free = ~shape.normals.any(1)
    front = np.einsum("fc,fc->f", shape.normals, eye) < 0
    keep = (free | front) & (shape.points[..., 2].min(1) > _NEAR)
    points, normals, colours = shape.points[keep], shape.normals[keep], shape.colours[keep]
    pixels = project(points, camera) * _SCALE
    lit = np.maximum(normals @ light.sun, 0.0)
    lit = np.where(free[keep], 0.55, lit)
    shade = light.ambient * (0.86 - 0.14 * normals[:, 1]) + light.direct * lit
    distance = np.linalg.norm(points.mean(1), axis=1) if len(points) else np.zeros(0)
    clear = np.exp(-distance / light.visibility)[:, None]
    colours = colours * shade[:, None] * light.tint * clear + light.haze * (1 - clear)
    return pixels, np.clip(colours, 0, 255).astype(np.uint8).tolist()


def _canvas(background: np.ndarray, world: World, camera: Camera) -> Image.Image:
    """The background at drawing size with shadows, as RGBA with an empty fourth channel."""
    size = (camera.width * _SCALE, camera.height * _SCALE)
    mask = Image.new("L", (camera.width, camera.height), 0)
    draw = ImageDraw.Draw(mask)
    sun = world.light.sun
    for thing in world.things:
        points = thing.shape.points
        if thing.background:
            continue
        rise = (points[..., 1] - CAMERA_HEIGHT) / sun[1]
        ground = points - rise[..., None] * sun
        ground = ground[ground[..., 2].min(1) > 1.0]
        for outline in _flat(project(ground, camera)):
            draw.polygon(outline, fill=255)
    depth = 0.75 * world.light.direct / (world.light.direct + world.light.ambient)
    shadow = np.asarray(mask, np.float32)[..., None] * np.float32(depth / 255)
    shadow[: int(camera.cy) + 1] = 0
    # Contact shadows: what little light reaches below a car, whatever the sun does.
    flat = np.clip(background * (1 - shadow), 0, 255).astype(np.uint8)
    image = Image.fromarray(flat).resize(size, Image.Resampling.BILINEAR)
    contact = ImageDraw.Draw(image)
    for thing in sorted(labelled(world), key=_far_first):
        _contact_shadow(contact, thing, world.light, camera)
    image.putalpha(0)
    return image


def _contact_shadow(draw, thing: Thing, light: Light, camera: Camera) -> None:
    length, _, width = thing.size
    corners = box_corners(length * 0.98, 0.0, width * 0.98)[[0, 1, 5, 4]]
    corners = corners @ rotation(thing.yaw).T + thing.location
    if corners[:, 2].min() > _NEAR and thing.kind == "Car":
        clear = np.exp(-np.linalg.norm(thing.location) / light.visibility)
        tone = 34 * clear + light.haze * (1 - clear)
        draw.polygon(
            (project(corners, camera) * _SCALE).ravel().tolist(),
            fill=tuple(tone.astype(int).tolist()),
        )


def _ground_and_sky(street: Street, light: Light, camera: Camera, rng) -> np.ndarray:
    """float32 [H, W, 3] picture of the empty street."""
    image = np.empty((camera.height, camera.width, 3), np.float32)
    horizon = min(camera.height, max(0, int(np.floor(camera.cy)) + 1))
    image[:horizon] = _sky(light, camera, horizon, rng)
    rows = np.arange(horizon, camera.height, dtype=np.float32) + 0.5
    z = (camera.focal * CAMERA_HEIGHT / np.maximum(rows - camera.cy, 0.25))[:, None]
    columns = np.arange(camera.width, dtype=np.float32)[None] + 0.5
    x = (columns - camera.cx) * z / camera.focal - camera.baseline
    s, t = street.from_camera(x, z)
    ground = _ground_colour(street, s, t, z, camera, rng)
    shade = light.ambient + light.direct * -light.sun[1]
    clear = np.exp(-np.hypot(x, z) / light.visibility)[..., None]
    image[horizon:] = ground * (shade * light.tint) * clear + light.haze * (1 - clear)
    return image


def _sky(light: Light, camera: Camera, rows: int, rng) -> np.ndarray:
    rise = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None] ** 1.3
    sky = light.haze * (1 - rise) + light.zenith * rise
    coarse = Image.fromarray(rng.random((5, 12), np.float32))
    cloud = np.asarray(coarse.resize((camera.width, rows), Image.Resampling.BICUBIC))
    cover = np.clip((cloud - 1.1 + 0.6 * light.clouds) * 3, 0, 0.8)[..., None]
    return sky * (1 - cover) + np.minimum(light.haze * 1.12, 250) * cover


def _soft(distance, footprint):
    """1 inside an edge (distance > 0), 0 outside, blended over one pixel."""
    return np.clip(distance / footprint + 0.5, 0, 1)


def _ground_colour(street: Street, s, t, z, camera: Camera, rng) -> np.ndarray:
    across = np.maximum(z / camera.focal, 0.01).astype(np.float32)
    ahead = np.maximum(z * across / CAMERA_HEIGHT, 0.01)
    off, noise = np.abs(t), _ground_noise(s, t, across, ahead, rng)
    tones = rng.uniform(-12, 12, 3)
    colour = np.broadcast_to(np.array([88, 120, 58], np.float32) + tones[0], (*t.shape, 3))
    outer = street.road + street.pavement
    tiles = _soft(0.05 - np.abs((s % 1.5) - 0.75), ahead) * np.clip(0.5 / ahead, 0, 1)
    layers = (
        (_soft(outer - off, across), np.array([158, 152, 144]) + tones[1]),
        (_soft(outer - off, across) * tiles, np.array([128, 122, 116]) + tones[1]),
        (_soft(street.road + 0.18 - off, across), np.array([188, 186, 180])),
        (_soft(street.road - off, across), np.array([92, 93, 97]) + tones[2]),
        (_marks(street, s, t, off, across, ahead), np.array([222, 220, 214])),
    )
    for weight, tone in layers:
        weight = weight[..., None].astype(np.float32)
        colour = colour + weight * (tone.astype(np.float32) - colour)
    return colour * noise[..., None]


def _marks(street: Street, s, t, off, across, ahead):
    """Coverage of the painted lines: dashed centre, parking edge, zebra crossing."""
    dashed = _soft(0.08 - off, across) * _soft(1.5 - np.abs((s + street.dash) % 6 - 3), ahead)
    edge = _soft(0.06 - np.abs(off - (street.road - 2.2)), across) * 0.75
    paint = np.maximum(dashed, edge)
    if street.crossing > 0:
        stripes = _soft(0.28 - np.abs(t % 1.1 - 0.55), across) * (off < street.road - 0.2)
        paint = np.maximum(paint, stripes * _soft(1.5 - np.abs(s - street.crossing - 1.5), ahead))
    return paint


def _ground_noise(s, t, across, ahead, rng) -> np.ndarray:
    """A factor near 1: fine grain near the camera, broad patches farther away."""
    grain = rng.normal(0, 0.09, (256, 256)).astype(np.float32)
    patch = Image.fromarray(rng.normal(0, 0.07, (32, 32)).astype(np.float32))
    patch = np.asarray(patch.resize((256, 256), Image.Resampling.BICUBIC))
    fine = grain[(s * 14).astype(np.int32) & 255, (t * 14).astype(np.int32) & 255]
    broad = patch[(s * 8).astype(np.int32) & 255, (t * 8).astype(np.int32) & 255]
    return 1 + fine * np.clip(0.14 / ahead, 0, 1) + broad * np.clip(1.5 / ahead, 0, 1)


def _measure(numbers: np.ndarray, outlines: dict, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (unclipped, image pixels) and visible shares of the objects."""
    boxes, visible = np.zeros((count, 4)), np.zeros(count)
    seen = np.bincount(numbers.ravel(), minlength=256)
    height, width = numbers.shape
    for number, (pixels, _) in outlines.items():
        flat = pixels.reshape(-1, 2)
        if not len(flat):
            continue
        low, high = flat.min(0), flat.max(0)
        boxes[number - 1] = np.concatenate([low, high]) / _SCALE
        x0, y0 = np.clip(np.floor(low), 0, (width, height)).astype(int)
        x1, y1 = np.clip(np.ceil(high) + 1, 0, (width, height)).astype(int)
        if x1 <= x0 or y1 <= y0:
            continue
        alone = Image.new("1", (int(x1 - x0), int(y1 - y0)))
        draw = ImageDraw.Draw(alone)
        for outline in _flat(pixels - (x0, y0)):
            draw.polygon(outline, fill=1)
        total = int(np.count_nonzero(np.asarray(alone)))
        visible[number - 1] = min(1.0, seen[number] / total) if total else 0.0
    return boxes, visible


def _develop(canvas: Image.Image, light: Light, camera: Camera, rng) -> np.ndarray:
    """Downsamples, then adds texture and sensor noise."""
    rgb = np.asarray(canvas.convert("RGB").reduce(_SCALE), np.float32)
    size = (camera.height, camera.width)
    coarse = Image.fromarray(
        rng.normal(1, 0.035, (size[0] // 4 + 1, size[1] // 4 + 1)).astype(np.float32)
    )
    texture = np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR))
    grain = rng.standard_normal((*size, 3), np.float32) * np.float32(light.noise)
    return np.clip(rgb * texture[..., None] + grain + 0.5, 0, 255).astype(np.uint8)
