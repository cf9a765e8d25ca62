"""Geometry of the street world: polygons, capsules and discs in camera coordinates.

Everything is a flat polygon of at most `MAX_VERTICES` corners. Object frames follow KITTI: x
forward (length), y down with 0 on the ground, z to the object's right (width); `place` turns them
by `rotation_y` and moves them into the camera frame (x right, y down, z forward, metres).
"""

from __future__ import annotations

import dataclasses

import numpy as np

MAX_VERTICES = 10

_BOX_SIGNS = np.array(
    [[x, y, z] for x in (-0.5, 0.5) for y in (0.0, -1.0) for z in (-0.5, 0.5)], np.float64
)
_BOX_FACES = np.array(
    [[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]]
)


@dataclasses.dataclass(frozen=True)
class Polygons:
    """A list of flat polygons.

    Attributes:
      points: float64 [F, MAX_VERTICES, 3]; short polygons repeat their last corner.
      normals: float64 [F, 3] outward unit normals; zero means "faces the camera, never culled".
      colours: float64 [F, 3] in 0..255 before shading.
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products [F, 3]; `np.cross` spends ten times as long on arrays this small."""
    (ax, ay, az), (bx, by, bz) = a.T, b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.sqrt((vectors * vectors).sum(1, keepdims=True))
    return vectors / np.maximum(length, 1e-9)


def polygons(points, colours, centre=None) -> Polygons:
    """Polygons of [F, V, 3] corners; normals point away from `centre` (None: no culling)."""
    points = np.asarray(points, np.float64)
    count, corners = points.shape[:2]
    normals = np.zeros((count, 3))
    if centre is not None:
        normals = _unit(_cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 1]))
        outward = np.einsum("fc,fc->f", normals, points.mean(1) - np.asarray(centre, np.float64))
        normals = np.where(outward[:, None] < 0, -normals, normals)
    if corners < MAX_VERTICES:
        tail = np.repeat(points[:, -1:], MAX_VERTICES - corners, axis=1)
        points = np.concatenate([points, tail], axis=1)
    colours = np.broadcast_to(np.asarray(colours, np.float64), (count, 3))
    return Polygons(points, normals, colours)


def join(parts: list[Polygons]) -> Polygons:
    """Concatenates polygons, keeping their drawing order."""
    return Polygons(
        np.concatenate([p.points for p in parts]),
        np.concatenate([p.normals for p in parts]),
        np.concatenate([p.colours for p in parts]),
    )


def rotation(yaw: float) -> np.ndarray:
    """KITTI's rotation about the camera's y axis, [3, 3]."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def place(shape: Polygons, location, yaw: float) -> Polygons:
    """Moves polygons from an object frame to the camera frame."""
    turn = rotation(yaw).T
    return Polygons(shape.points @ turn + np.asarray(location), shape.normals @ turn, shape.colours)


def box_corners(length: float, height: float, width: float) -> np.ndarray:
    """The eight corners [8, 3] of a box standing on the ground, centred at the origin."""
    return _BOX_SIGNS * (length, height, width)


def box(length, height, width, colour, base=(0.0, 0.0, 0.0), taper=(1.0, 1.0)) -> Polygons:
    """A box standing at `base`; `taper` scales its top in length and width."""
    corners = box_corners(length, height, width)
    corners[corners[:, 1] < 0] *= (taper[0], 1.0, taper[1])
    corners += np.asarray(base)
    return polygons(corners[_BOX_FACES], colour, corners.mean(0))


def extrude(profile, width: float, colours, side_colour) -> Polygons:
    """Extrudes a convex profile [V, 2] of (forward, up) over `width`; a colour for each edge."""
    profile = np.asarray(profile, np.float64)
    flat = np.stack([profile[:, 0], -profile[:, 1], np.zeros(len(profile))], 1)
    right, left = flat + np.array([0, 0, width / 2]), flat - np.array([0, 0, width / 2])
    following = np.roll(np.arange(len(profile)), -1)
    rims = np.stack([right, right[following], left[following], left], 1)
    centre = flat.mean(0)
    sides = polygons(np.stack([right, left]), side_colour, centre)
    return join([polygons(rims, colours, centre), sides])


def capsules(starts, ends, radii, colours) -> Polygons:
    """Round sticks seen from the origin, [C, 3] ends and [C, 2] radii, as outlines."""
    starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    radii = np.asarray(radii, np.float64)
    along = ends - starts
    side = _unit(_cross(along, (starts + ends) / 2))
    along = _unit(along)
    outline = []
    for ends_at, radius, angles in (
        (starts, radii[:, :1], (np.pi / 2, 3 * np.pi / 4, np.pi, 5 * np.pi / 4, 3 * np.pi / 2)),
        (ends, radii[:, 1:], (-np.pi / 2, -np.pi / 4, 0.0, np.pi / 4, np.pi / 2)),
    ):
        for angle in angles:
            offset = along * np.cos(angle) + side * np.sin(angle)
            outline.append(ends_at + radius * offset)
    return polygons(np.stack(outline, 1), colours)


def discs(centres, radii, colours) -> Polygons:
    """Camera-facing discs (spheres seen from the origin): [D, 3] centres, [D] radii."""
    centres = np.asarray(centres, np.float64)
    angles = np.linspace(0, 2 * np.pi, MAX_VERTICES, endpoint=False)
    view = _unit(centres)
    right = _unit(np.stack([view[:, 2], np.zeros(len(view)), -view[:, 0]], 1))
    up = _cross(view, right)
    radii = np.asarray(radii, np.float64)[:, None, None]
    ring = (
        right[:, None] * np.cos(angles)[None, :, None] + up[:, None] * np.sin(angles)[None, :, None]
    )
    return polygons(centres[:, None] + radii * ring, colours)


def wheel(centre, radius: float, colour, side: float = 0.0) -> Polygons:
    """A filled disc in the object's x-y plane; `side` = ±1 culls it with that side of the body."""
    angles = np.linspace(0, 2 * np.pi, MAX_VERTICES, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], 1) * radius
    centre = np.asarray(centre, np.float64)
    inside = None if side == 0.0 else centre - (0.0, 0.0, side)
    return polygons((centre + ring)[None], colour, inside)


def hoop(centre, radius: float, thickness: float, colour, segments: int = 12) -> Polygons:
    """A ring in the object's x-y plane, as quads without culling (a bicycle's wheel)."""
    angles = np.linspace(0, 2 * np.pi, segments + 1)
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], 1)
    outer, inner = ring * radius, ring * (radius - thickness)
    quads = np.stack([outer[:-1], outer[1:], inner[1:], inner[:-1]], 1)
    return polygons(quads + np.asarray(centre), colour)
