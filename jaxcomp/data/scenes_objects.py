"""The things of the street world: cars, people, cyclists, trees, poles, clutter and buildings.

Each maker draws its looks from a generator and returns a `Thing`: polygons for the camera and a few
oriented boxes for the lidar, both in camera coordinates.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxcomp.data import scenes_mesh as mesh

CAR, PEDESTRIAN, CYCLIST = "Car", "Pedestrian", "Cyclist"
CLASSES = (CAR, PEDESTRIAN, CYCLIST)

_CAR_PAINT = np.array(
    [
        [205, 30, 35], [25, 60, 170], [235, 236, 238], [38, 40, 44], [150, 155, 162],
        [230, 175, 30], [25, 110, 60], [120, 20, 40], [90, 150, 205], [215, 95, 25],
    ],
    np.float64,
)  # fmt: skip
_CLOTHES = np.array(
    [
        [200, 45, 50], [40, 80, 180], [235, 200, 60], [60, 150, 80], [225, 225, 225],
        [45, 45, 55], [150, 70, 160], [230, 120, 40], [90, 185, 200], [110, 80, 60],
    ],
    np.float64,
)  # fmt: skip
_TROUSERS = np.array(
    [[35, 45, 80], [40, 40, 42], [110, 95, 75], [70, 80, 95], [85, 60, 50]], np.float64
)
_SKIN = np.array([[236, 196, 168], [205, 155, 120], [150, 105, 75], [100, 70, 50]], np.float64)
_HAIR = np.array([[35, 28, 25], [90, 60, 35], [190, 150, 85], [120, 115, 110]], np.float64)
_GLASS = np.array([48.0, 62.0, 78.0])
_TYRE = np.array([26.0, 26.0, 28.0])


@dataclasses.dataclass(frozen=True)
class Solid:
    """An oriented box that a lidar beam can hit; `location` is its bottom centre (camera frame)."""

    location: tuple[float, float, float]
    size: tuple[float, float, float]  # length, height, width in metres
    yaw: float
    reflectance: float


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of the world.

    Attributes:
      kind: a name of `CLASSES`, or a word for clutter and background.
      shape: polygons in camera coordinates, in drawing order.
      solids: what the lidar sees.
      location: bottom centre in camera coordinates, metres.
      size: length, height, width of the 3-D box, metres.
      yaw: KITTI's rotation_y.
      background: drawn before everything that stands on the street.
    """

    kind: str
    shape: mesh.Polygons
    solids: tuple[Solid, ...]
    location: np.ndarray
    size: tuple[float, float, float]
    yaw: float
    background: bool = False


def _pick(rng: np.random.Generator, palette: np.ndarray, jitter: float = 12.0) -> np.ndarray:
    return np.clip(palette[rng.integers(len(palette))] + rng.normal(0, jitter, 3), 8, 250)


def _at(location, yaw: float, offset) -> tuple[float, float, float]:
    return tuple(float(v) for v in np.asarray(location) + mesh.rotation(yaw) @ np.asarray(offset))


def make_car(rng: np.random.Generator, location, yaw: float) -> Thing:
    """A car: extruded body, tapered cabin with windows, wheels, lights and plates."""
    length, width, height = rng.uniform(3.5, 4.6), rng.uniform(1.55, 1.82), rng.uniform(1.38, 1.75)
    paint = _pick(rng, _CAR_PAINT)
    shape = mesh.join(
        [
            *_car_body(rng, length, width, height, paint),
            *_car_cabin(rng, length, width, height, paint),
        ]
    )
    waist = 0.56 * height
    solids = (
        Solid(_at(location, yaw, (0, -0.18, 0)), (length, waist - 0.18, width), yaw, 0.55),
        Solid(
            _at(location, yaw, (-0.06 * length, -waist, 0)),
            (0.46 * length, height - waist, 0.84 * width), yaw, 0.25,
        ),
    )  # fmt: skip
    shape = mesh.place(shape, location, yaw)
    return Thing(CAR, shape, solids, np.asarray(location), (length, height, width), yaw)


def _car_body(rng, length: float, width: float, height: float, paint) -> list[mesh.Polygons]:
    front, back, waist, sill = length / 2, -length / 2, 0.56 * height, 0.18
    profile = [
        (back, sill + 0.05), (back, waist * 0.92), (back + 0.12, waist), (front - 1.0, waist),
        (front - 0.1, waist * 0.86), (front, waist * 0.62), (front, sill + 0.05),
        (front - 0.15, sill), (back + 0.15, sill),
    ]  # fmt: skip
    edges = np.tile(paint, (len(profile), 1))
    edges[[0, 5]] *= 0.8  # bumpers
    parts = [mesh.extrude(profile, width, edges, paint * 0.95)]
    half, radius = width / 2, 0.2 * height
    hub = rng.uniform(120, 200)
    for side in (-1.0, 1.0):
        quad = [(back + 0.1, -sill, 0), (front - 0.1, -sill, 0),
                (front - 0.1, -sill - 0.14, 0), (back + 0.1, -sill - 0.14, 0)]  # fmt: skip
        at_side = np.array([quad], np.float64) + np.array([0, 0, side * (half + 0.002)])
        parts.append(mesh.polygons(at_side, paint * 0.4, (0, -0.4, 0)))
        for x in (front - 0.19 * length, back + 0.2 * length):
            parts.append(mesh.wheel((x, -radius, side * half), radius, _TYRE, side))
            parts.append(mesh.wheel((x, -radius, side * half), radius * 0.58, [hub] * 3, side))
    parts += _car_lights(rng, front, back, half, waist)
    return parts


def _car_lights(rng, front: float, back: float, half: float, waist: float) -> list[mesh.Polygons]:
    def panel(x, z0, z1, y0, y1, colour):
        quad = [[(x, -y0, z0), (x, -y0, z1), (x, -y1, z1), (x, -y1, z0)]]
        return mesh.polygons(quad, colour, (0, -0.4, 0))

    brake = (250, 40, 30) if rng.random() < 0.4 else (180, 22, 24)
    parts = [panel(back - 0.01, -0.3, 0.3, 0.42, 0.54, (225, 222, 200))]
    parts.append(panel(front + 0.01, -0.55, 0.55, 0.32, 0.5, (30, 30, 33)))
    for side in (-1.0, 1.0):
        z0, z1 = side * half * 0.55, side * half * 0.98
        parts.append(panel(back - 0.01, z0, z1, waist * 0.66, waist * 0.88, brake))
        parts.append(panel(front + 0.01, z0, z1, waist * 0.46, waist * 0.62, (250, 248, 225)))
    return parts


def _car_cabin(rng, length: float, width: float, height: float, paint) -> list[mesh.Polygons]:
    waist, rear = 0.55 * height, -0.42 * length + rng.uniform(0, 0.35)
    nose, lean = 0.24 * length, rng.uniform(0.55, 0.75)
    low, high, inset = 0.94 * width / 2, 0.74 * width / 2, 0.07
    x = np.array([rear, nose, nose - lean, rear + 0.35])
    y = -np.array([waist, waist, height, height])
    z = np.array([low, low, high, high])
    right, left = np.stack([x, y, z], 1), np.stack([x, y, -z], 1)
    around = [np.stack([right[i], right[j], left[j], left[i]]) for i, j in ((1, 2), (2, 3), (3, 0))]
    faces = np.stack([right, left, *around])
    centre = faces.mean((0, 1))
    body = mesh.polygons(faces, paint, centre)
    # Windows are the faces drawn a little smaller, on all sides but the roof.
    panes = faces[[0, 1, 2, 4]]
    middle = panes.mean(1, keepdims=True)
    panes = middle + (panes - middle) * np.array(
        [1 - 1.5 * inset, 1 - 2.6 * inset, 1 - 1.6 * inset]
    )
    glass = mesh.polygons(panes, _GLASS + rng.uniform(-15, 25), centre)
    pillar = rear + 0.48 * (nose - rear)
    posts = []
    for side in (-1.0, 1.0):
        foot, top = (-waist, side * low), (-height, side * high)
        quad = [
            (pillar + x, *end)
            for x, end in zip((-0.05, 0.05, 0.05, -0.05), (foot, foot, top, top), strict=True)
        ]
        posts.append(mesh.polygons([quad], paint, centre))
    return [body, glass, *posts]


def _sorted_by_depth(shape: mesh.Polygons) -> mesh.Polygons:
    order = np.argsort(-np.linalg.norm(shape.points.mean(1), axis=1), kind="stable")
    return mesh.Polygons(shape.points[order], shape.normals[order], shape.colours[order])


def _figure(joints, radii, colours, location, yaw: float) -> tuple[mesh.Polygons, np.ndarray]:
    """Capsules of joints (forward, up, right); returns polygons and local extents [2, 3]."""
    joints = np.asarray(joints, np.float64) * (1, -1, 1)  # [C, 2, 3]
    radii = np.asarray(radii, np.float64)
    low = (joints - radii[..., None]).min((0, 1))
    high = (joints + radii[..., None]).max((0, 1))
    world = joints @ mesh.rotation(yaw).T + np.asarray(location)
    return mesh.capsules(world[:, 0], world[:, 1], radii, colours), np.stack([low, high])


def make_pedestrian(rng: np.random.Generator, location, yaw: float) -> Thing:
    """A walking or standing person with head, torso, arms and legs."""
    height = rng.uniform(1.55, 1.9)
    k, swing = height / 1.75, rng.uniform(0.02, 0.34) * rng.choice([-1, 1])
    shirt, legs, skin = _pick(rng, _CLOTHES), _pick(rng, _TROUSERS), _pick(rng, _SKIN, 6)
    hair = _pick(rng, _HAIR, 6)
    hip, shoulder, head = 0.9 * k, 1.43 * k, 1.61 * k
    joints, radii, colours = [], [], []

    def limb(a, b, r0, r1, colour):
        joints.append((a, b))
        radii.append((r0 * k, r1 * k))
        colours.append(colour)

    for side in (-1.0, 1.0):
        step = side * swing
        knee, foot = (step * 0.6 + 0.03, 0.5 * k, side * 0.09), (step, 0.07 * k, side * 0.09)
        limb((0, hip, side * 0.08), knee, 0.1, 0.08, legs)
        limb(knee, foot, 0.08, 0.06, legs * 0.95)
        limb(foot, (step + 0.14, 0.05 * k, side * 0.1), 0.055, 0.045, (35, 30, 30))
        elbow = (-step * 0.5, 1.14 * k, side * 0.25)
        limb((0, shoulder - 0.04, side * 0.2), elbow, 0.065, 0.055, shirt * 0.85)
        limb(elbow, (-step * 0.7 + 0.08, 0.9 * k, side * 0.25), 0.05, 0.045, skin)
    limb((0, hip, 0), (0, shoulder - 0.1 * k, 0), 0.16, 0.19, shirt)
    limb((0, shoulder, 0), (0, head, 0), 0.06, 0.06, skin)
    limb((0.02, head, 0), (0.02, height - 0.13 * k, 0), 0.11, 0.11, skin)
    limb((-0.03, head + 0.03, 0), (-0.01, height - 0.115 * k, 0), 0.11, 0.115, hair)
    if rng.random() < 0.25:  # a rucksack
        limb((-0.2, 1.1 * k, 0), (-0.2, 1.32 * k, 0), 0.13, 0.12, _pick(rng, _CLOTHES))
    shape, extent = _figure(joints, radii, colours, location, yaw)
    return _person_thing(PEDESTRIAN, [shape], extent, location, yaw, lean=0.0)


def _person_thing(kind, shapes, extent, location, yaw: float, lean: float) -> Thing:
    length, width = 2 * np.abs(extent[:, 0]).max(), 2 * np.abs(extent[:, 2]).max()
    height = -extent[0, 1]
    solids = [
        Solid(_at(location, yaw, (lean, -0.8, 0)), (0.34, height - 1.08, 0.44), yaw, 0.4),
        Solid(_at(location, yaw, (lean, -height + 0.28, 0)), (0.22, 0.28, 0.22), yaw, 0.35),
    ]
    if kind == CYCLIST:
        solids.append(Solid(_at(location, yaw, (0, -0.1, 0)), (1.6, 0.55, 0.06), yaw, 0.5))
        solids.append(Solid(_at(location, yaw, (0.1, -0.35, 0)), (0.45, 0.5, 0.32), yaw, 0.35))
    else:
        for side in (-0.09, 0.09):
            solids.append(Solid(_at(location, yaw, (0, 0, side)), (0.2, 0.8, 0.15), yaw, 0.3))
    size = (float(length), float(height), float(width))
    shape = _sorted_by_depth(mesh.join(shapes))
    return Thing(kind, shape, tuple(solids), np.asarray(location), size, yaw)


def make_cyclist(rng: np.random.Generator, location, yaw: float) -> Thing:
    """A rider on a bicycle: two hoops, a frame, and a body that leans forward."""
    shirt, legs, skin = _pick(rng, _CLOTHES), _pick(rng, _TROUSERS), _pick(rng, _SKIN, 6)
    frame, helmet = _pick(rng, _CAR_PAINT), _pick(rng, _CLOTHES)
    k, phase = rng.uniform(0.94, 1.06), rng.uniform(0, 2 * np.pi)
    joints, radii, colours = [], [], []

    def limb(a, b, r0, r1, colour):
        joints.append((a, b))
        radii.append((r0, r1))
        colours.append(colour)

    crank, saddle, bars = (-0.02, 0.32, 0.0), (-0.25, 0.92 * k, 0.0), (0.42, 1.0 * k, 0.0)
    front, rear = (0.53, 0.34, 0.0), (-0.53, 0.34, 0.0)
    neck = (0.36, 0.82 * k, 0.0)
    for a, b in ((crank, saddle), (crank, neck), (saddle, neck), (crank, rear), (saddle, rear),
                 (bars, front)):  # fmt: skip
        limb(a, b, 0.028, 0.028, frame)
    limb((0.42, 1.0 * k, -0.24), (0.42, 1.0 * k, 0.24), 0.025, 0.025, (40, 40, 44))
    hip, shoulder = (-0.22, 0.98 * k, 0.0), (0.14, 1.42 * k, 0.0)
    for side in (-1.0, 1.0):
        turn = phase + (np.pi if side > 0 else 0.0)
        foot = (crank[0] + 0.16 * np.cos(turn), crank[1] + 0.16 * np.sin(turn), side * 0.12)
        knee = ((hip[0] + foot[0]) / 2 + 0.24, (hip[1] + foot[1]) / 2 + 0.1, side * 0.12)
        limb((hip[0], hip[1], side * 0.09), knee, 0.1, 0.075, legs)
        limb(knee, foot, 0.072, 0.055, legs * 0.92)
        limb(foot, (foot[0] + 0.14, foot[1] - 0.01, side * 0.12), 0.05, 0.04, (35, 30, 30))
        limb(
            (shoulder[0], shoulder[1], side * 0.18),
            (0.33, 1.14 * k, side * 0.25),
            0.06,
            0.05,
            shirt * 0.85,
        )
        limb((0.33, 1.14 * k, side * 0.25), (0.43, 1.03 * k, side * 0.22), 0.045, 0.04, skin)
    limb(hip, shoulder, 0.15, 0.18, shirt)
    limb((0.24, 1.56 * k, 0), (0.25, 1.61 * k, 0), 0.105, 0.1, skin)
    limb((0.2, 1.64 * k, 0), (0.28, 1.65 * k, 0), 0.115, 0.1, helmet)
    shape, extent = _figure(joints, radii, colours, location, yaw)
    hoops = [
        mesh.place(mesh.hoop((x, -0.34, 0), 0.345, 0.055, _TYRE), location, yaw)
        for x in (-0.53, 0.53)
    ]
    extent[0, 0], extent[1, 0] = min(extent[0, 0], -0.88), max(extent[1, 0], 0.88)
    return _person_thing(CYCLIST, [*hoops, shape], extent, location, yaw, lean=0.02)
