"""A lidar sweep of the street world: rays against the ground and oriented boxes (slab test).

Slab test: Kay and Kajiya, "Ray tracing complex scenes", SIGGRAPH 1986.
"""

from __future__ import annotations

import numpy as np

from jaxcomp.data.kitti_format import Calibration
from jaxcomp.data.scenes_mesh import box_corners, rotation
from jaxcomp.data.scenes_objects import Solid
from jaxcomp.data.scenes_world import CAMERA_HEIGHT, Street, World

_FIELD = np.deg2rad(45.0)  # half the azimuth range: what the camera sees
_TOP, _BOTTOM = np.deg2rad(2.0), np.deg2rad(-24.8)  # elevations of an HDL-64
_REACH = 80.0  # metres
_RANGE_NOISE = 0.015  # metres, standard deviation


def sweep(
    world: World, calibration: Calibration, rng: np.random.Generator, beams: int, azimuths: int
) -> np.ndarray:
    """Scans the world.

    Args:
      world: what stands where, in the rectified camera frame.
      calibration: places the lidar.
      rng: range noise and dropped returns.
      beams: elevations between +2 and -24.8 degrees.
      azimuths: steps over ±45 degrees around straight ahead.

    Returns:
      float32 [N, 4]: x forward, y left, z up (metres, lidar frame) and reflectance in [0, 1].
    """
    matrix = calibration.velo_to_rect()
    local = _directions(beams, azimuths)
    rays = local @ matrix[:, :3].T
    origin = matrix[:, 3]
    distance, strength = _ground(world.street, origin, rays)
    columns = np.arctan2(rays[0, :, 0], rays[0, :, 2])
    # Beams of one azimuth step differ by the small roll of the sensor: widen by two steps.
    margin = 2 * abs(columns[1] - columns[0]) + 0.01
    for thing in world.things:
        for solid in thing.solids:
            _hit(solid, origin, rays, columns, margin, distance, strength)
    return _returns(local, distance, strength, rng)


def _directions(beams: int, azimuths: int) -> np.ndarray:
    """Unit vectors [beams, azimuths, 3] in the lidar frame, from right to left."""
    elevation = np.linspace(_TOP, _BOTTOM, beams)[:, None]
    azimuth = np.linspace(-_FIELD, _FIELD, azimuths)[None]
    flat = np.cos(elevation)
    parts = (flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation) + 0 * azimuth)
    return np.stack(parts, -1)


def _ground(street: Street, origin, rays) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore"):
        distance = np.where(rays[..., 1] > 1e-6, (CAMERA_HEIGHT - origin[1]) / rays[..., 1], np.inf)
    near = np.minimum(distance, 1e3)
    _, t = street.from_camera(origin[0] + near * rays[..., 0], origin[2] + near * rays[..., 2])
    material = np.where(np.abs(t) < street.road, 0.22, 0.42)
    return distance, material * (0.35 + 0.65 * np.clip(rays[..., 1] * 4, 0, 1))


def _hit(solid: Solid, origin, rays, columns, margin: float, distance, strength) -> None:
    """Shortens the rays (in place) that meet the box, looking only at its azimuths."""
    length, height, width = solid.size
    turn = rotation(solid.yaw)
    corners = box_corners(length, height, width) @ turn.T + solid.location - origin
    span = slice(None)
    if corners[:, 2].min() > 0.1:
        angles = np.arctan2(corners[:, 0], corners[:, 2])
        inside = (columns >= angles.min() - margin) & (columns <= angles.max() + margin)
        found = np.flatnonzero(inside)
        if not len(found):
            return
        span = slice(found[0], found[-1] + 1)
    elif corners[:, 2].max() < 0.1:
        return
    start = (origin - solid.location) @ turn
    steps = rays[:, span] @ turn
    steps = np.where(np.abs(steps) < 1e-9, 1e-9, steps)
    low = np.array([-length / 2, -height, -width / 2])
    high = np.array([length / 2, 0.0, width / 2])
    one, two = (low - start) / steps, (high - start) / steps
    entries = np.minimum(one, two)
    enter, leave = entries.max(-1), np.maximum(one, two).min(-1)
    better = (enter > 0.5) & (enter <= leave) & (enter < distance[:, span])
    facing = np.abs(np.take_along_axis(steps, entries.argmax(-1)[..., None], -1))[..., 0]
    distance[:, span] = np.where(better, enter, distance[:, span])
    strength[:, span] = np.where(
        better, solid.reflectance * (0.35 + 0.65 * facing), strength[:, span]
    )


def _returns(local, distance, strength, rng) -> np.ndarray:
    """Points of the rays that came back; weak and far returns are lost more often."""
    noise = rng.normal(0, _RANGE_NOISE, distance.shape)
    lost = 0.04 + 0.25 * (np.minimum(distance, _REACH) / _REACH) ** 2 + 0.1 * (strength < 0.1)
    keep = (distance < _REACH) & (rng.random(distance.shape) > lost)
    points = local[keep] * (distance + noise)[keep][:, None]
    reflectance = np.clip(strength[keep] + rng.normal(0, 0.03, len(points)), 0, 1)
    return np.concatenate([points, reflectance[:, None]], 1).astype(np.float32)
