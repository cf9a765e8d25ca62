"""Scenery of the street world: trees, poles, signs, clutter and buildings (never labelled)."""

from __future__ import annotations

import numpy as np

from jaxcomp.data import scenes_mesh as mesh
from jaxcomp.data.scenes_objects import Solid, Thing

_WALLS = np.array(
    [
        [196, 178, 150], [168, 108, 84], [150, 152, 156], [205, 196, 176], [140, 92, 78],
        [176, 160, 128], [120, 128, 140], [214, 188, 140],
    ],
    np.float64,
)  # fmt: skip
_PANE = np.array([66.0, 80.0, 96.0])


def _thing(kind, parts, solids, location, size, background=False) -> Thing:
    return Thing(kind, mesh.join(parts), tuple(solids), np.asarray(location), size, 0.0, background)


def make_tree(rng: np.random.Generator, location) -> Thing:
    """A trunk under a crown of overlapping leaf balls, darker below."""
    x, y, z = location
    trunk, crown = rng.uniform(1.8, 3.0), rng.uniform(1.1, 2.1)
    bark = np.array([88, 68, 50]) + rng.normal(0, 8, 3)
    leaf = np.array([62, 112, 44]) + rng.normal(0, 16, 3)
    parts = [mesh.capsules([(x, y, z)], [(x, y - trunk - 0.5, z)], [(0.16, 0.11)], bark)]
    count = 13
    offsets = rng.normal(0, 0.42, (count, 3)) * crown
    offsets = offsets[np.argsort(-offsets[:, 1])]  # lower balls first
    centres = np.array([x, y - trunk - crown, z]) + offsets
    tone = 1.0 - 0.22 * offsets[:, 1:2] / crown + rng.normal(0, 0.06, (count, 1))
    parts.append(
        mesh.discs(centres, crown * rng.uniform(0.38, 0.62, count), np.clip(leaf * tone, 12, 230))
    )
    solids = [
        Solid((x, y, z), (0.28, trunk, 0.28), 0.0, 0.3),
        Solid((x, y - trunk, z), (1.5 * crown, 1.9 * crown, 1.5 * crown), 0.4, 0.45),
    ]
    return _thing("tree", parts, solids, location, (0.4, trunk + 2 * crown, 0.4))


def make_bush(rng: np.random.Generator, location) -> Thing:
    """A low bush."""
    x, y, z = location
    leaf = np.array([70, 110, 50]) + rng.normal(0, 14, 3)
    size = rng.uniform(0.3, 0.6)
    offsets = np.stack(
        [rng.normal(0, size, 6), -rng.uniform(0.4, 1.1, 6) * size, rng.normal(0, size, 6)], 1
    )
    tone = 1.0 + rng.normal(0, 0.12, (6, 1))
    parts = [
        mesh.discs(
            offsets + np.array([x, y, z]), np.full(6, size * 0.7), np.clip(leaf * tone, 12, 230)
        )
    ]
    solids = [Solid((x, y, z), (2 * size, 1.4 * size, 2 * size), 0.0, 0.45)]
    return _thing("bush", parts, solids, location, (2 * size, 2 * size, 2 * size))


def make_lamp(rng: np.random.Generator, location, side: float) -> Thing:
    """A street lamp whose arm reaches over the road."""
    x, y, z = location
    grey, height = np.full(3, rng.uniform(70, 120)), rng.uniform(5.0, 7.0)
    top = (x, y - height, z)
    arm = (x - side * 1.2, y - height - 0.15, z)
    parts = [
        mesh.capsules([(x, y, z), top], [top, arm], [(0.09, 0.06), (0.05, 0.05)], grey),
        mesh.capsules([arm], [(arm[0] - side * 0.4, arm[1], z)], [(0.1, 0.1)], (235, 230, 205)),
    ]
    return _thing(
        "lamp",
        parts,
        [Solid((x, y, z), (0.16, height, 0.16), 0.0, 0.4)],
        location,
        (0.2, height, 0.2),
    )


def make_sign(rng: np.random.Generator, location) -> Thing:
    """A traffic sign: a disc, a triangle or a panel on a post."""
    x, y, z = location
    height, radius = rng.uniform(2.0, 2.6), rng.uniform(0.28, 0.4)
    centre = np.array([x, y - height, z - 0.06])
    parts = [mesh.capsules([(x, y, z)], [(x, y - height, z)], [(0.035, 0.035)], (130, 132, 135))]
    style = rng.integers(3)
    if style == 0:
        inner = ((245, 245, 245), (30, 70, 170))[rng.integers(2)]
        parts.append(mesh.discs([centre], [radius], (200, 25, 30)))
        parts.append(mesh.discs([centre - (0, 0, 0.01)], [radius * 0.68], inner))
    else:
        colour, edge = (((30, 80, 175), (240, 240, 240)), ((245, 245, 240), (205, 30, 35)))[
            style - 1
        ]
        ring = (
            [(-1, -0.8), (1, -0.8), (1, 0.8), (-1, 0.8)]
            if style == 1
            else [(-1, 0.7), (1, 0.7), (0, -1)]
        )
        flat = np.array([(a, b, 0.0) for a, b in ring]) * radius
        parts.append(mesh.polygons([centre + flat], edge))
        parts.append(mesh.polygons([centre + flat * 0.72 - (0, 0, 0.01)], colour))
    solids = [
        Solid((x, y, z), (0.07, height, 0.07), 0.0, 0.4),
        Solid((x, y - height + radius, z), (2 * radius, 2 * radius, 0.05), 0.0, 0.95),
    ]
    return _thing("sign", parts, solids, location, (2 * radius, height, 0.1))


def make_clutter(rng: np.random.Generator, location, yaw: float) -> Thing:
    """A bin, carton, bollard, letter box or bench: things that a detector must not report."""
    sizes = {"bin": (0.6, 1.05, 0.6), "carton": (0.7, 0.55, 0.5), "bollard": (0.18, 0.95, 0.18),
             "postbox": (0.45, 1.3, 0.4), "bench": (1.6, 0.5, 0.5)}  # fmt: skip
    colours = {"bin": (60, 95, 70), "carton": (176, 138, 92), "bollard": (120, 120, 122),
               "postbox": (225, 180, 25), "bench": (125, 88, 56)}  # fmt: skip
    kind = list(sizes)[rng.integers(len(sizes))]
    length, height, width = (v * rng.uniform(0.85, 1.15) for v in sizes[kind])
    colour = np.clip(np.array(colours[kind], np.float64) + rng.normal(0, 14, 3), 10, 245)
    parts = [mesh.box(length, height, width, colour, taper=(0.94, 0.94))]
    if kind == "bin":
        parts.append(mesh.box(length * 1.1, 0.1, width * 1.1, colour * 0.6, base=(0, -height, 0)))
    if kind == "bench":
        parts.append(mesh.box(length, 0.45, 0.1, colour * 0.9, base=(0, -height, width / 2)))
    placed = [mesh.place(part, location, yaw) for part in parts]
    where = tuple(float(v) for v in location)
    solids = [Solid(where, (length, height, width), yaw, 0.4)]
    return _thing(kind, placed, solids, location, (length, height, width))


def _wall(origin, along, length: float, height: float) -> np.ndarray:
    """A vertical quad [4, 3] from `origin` (on the ground) along a unit vector."""
    end = origin + along * length
    up = np.array([0.0, -height, 0.0])
    return np.stack([origin, end, end + up, origin + up])


def _panes(origin, along, length: float, floors: int, storey: float) -> np.ndarray:
    """Window quads [N, 4, 3] of a wall, on a regular grid."""
    columns = max(1, int(length // 2.6))
    a = (np.arange(columns) + 0.5) * length / columns
    b = (np.arange(floors) + 0.52) * storey
    a, b = (v.ravel() for v in np.meshgrid(a, b))
    corners = np.array([(-0.55, -0.65), (0.55, -0.65), (0.55, 0.65), (-0.55, 0.65)])
    reach = a[:, None] + corners[None, :, 0]
    rise = b[:, None] + corners[None, :, 1]
    return origin + reach[..., None] * along - rise[..., None] * np.array([0.0, 1.0, 0.0])


def make_building(
    rng: np.random.Generator, corner, along, across, length: float, yaw: float
) -> Thing:
    """A house: the wall along the street, the wall towards the camera, windows, and a roof.

    Args:
      rng: looks.
      corner: nearest ground corner at the street, camera frame [3].
      along: unit vector along the street, away from the camera.
      across: unit vector away from the street.
      length: metres along the street.
      yaw: rotation_y of `along`.
    """
    floors, storey, depth = int(rng.integers(2, 5)), rng.uniform(2.7, 3.2), rng.uniform(7, 11)
    height = floors * storey
    colour = np.clip(_WALLS[rng.integers(len(_WALLS))] + rng.normal(0, 10, 3), 20, 240)
    centre = corner + along * length / 2 + across * depth / 2 - np.array([0, height / 2, 0])
    walls = np.stack([_wall(corner, along, length, height), _wall(corner, across, depth, height)])
    plinth = np.stack([_wall(corner, along, length, 0.7), _wall(corner, across, depth, 0.7)])
    panes = np.concatenate(
        [
            _panes(corner, along, length, floors, storey),
            _panes(corner, across, depth, floors, storey),
        ]
    )
    lit = rng.random((len(panes), 1)) < 0.12
    glass = np.where(lit, (222, 200, 140), _PANE + rng.normal(0, 14, (len(panes), 1)))
    up, ridge = np.array([0, -height, 0.0]), np.array([0, -height - rng.uniform(1.5, 3.0), 0.0])
    eave, far = corner + up - across * 0.3, corner + along * length + up - across * 0.3
    top = corner + ridge + across * depth / 2
    roof = np.stack([eave, far, top + along * length, top])[None]
    gable = np.stack([corner + up, corner + up + across * depth, top, top])[None]
    tiles = np.clip(np.array([128, 66, 50]) * rng.uniform(0.6, 1.2) + rng.normal(0, 10, 3), 20, 220)
    parts = [
        mesh.polygons(roof, tiles, centre), mesh.polygons(gable, colour * 0.95, centre),
        mesh.polygons(walls, colour, centre), mesh.polygons(plinth, colour * 0.7, centre),
        mesh.polygons(panes, glass, centre),
    ]  # fmt: skip
    middle = corner + along * length / 2 + across * depth / 2
    solids = [Solid(tuple(map(float, middle)), (length, height, depth), yaw, 0.4)]
    return _thing("building", parts, solids, middle, (length, height, depth), background=True)
