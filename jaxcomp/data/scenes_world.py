"""Samples one street world: layout, light, and everything that stands in it.

Street coordinates: `s` metres ahead along the street, `t` metres to the right of its centre line.
The camera stands at s = 0, t = `ego`, 1.65 m above the ground.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxcomp.data import scenes_objects as objects
from jaxcomp.data import scenes_scenery as scenery
from jaxcomp.data.scenes_objects import Thing

CAMERA_HEIGHT = 1.65


@dataclasses.dataclass(frozen=True)
class Street:
    """The layout, metres and radians."""

    yaw: float
    ego: float
    road: float  # half width of the carriageway
    pavement: float  # width of each pavement
    crossing: float  # s of a zebra crossing, negative: none
    dash: float  # phase of the centre line

    def to_camera(self, s, t) -> np.ndarray:
        """Ground points [..., 3] in camera coordinates."""
        t = np.asarray(t, np.float64) - self.ego
        s = np.asarray(s, np.float64)
        c, k = np.cos(self.yaw), np.sin(self.yaw)
        return np.stack([t * c + s * k, np.full_like(t * s, CAMERA_HEIGHT), -t * k + s * c], -1)

    def from_camera(self, x, z):
        """Street coordinates (s, t) of ground points."""
        c, k = np.cos(self.yaw), np.sin(self.yaw)
        return x * k + z * c, x * c - z * k + self.ego


@dataclasses.dataclass(frozen=True)
class Light:
    """Sun, sky and sensor of one frame."""

    sun: np.ndarray  # unit vector towards the sun, camera frame
    direct: float
    ambient: float
    tint: np.ndarray
    haze: np.ndarray  # colour far away, 0..255
    zenith: np.ndarray
    visibility: float  # metres to 1/e contrast
    clouds: float
    noise: float  # standard deviation of the sensor noise, 0..255


@dataclasses.dataclass(frozen=True)
class World:
    """Everything that one frame shows."""

    street: Street
    light: Light
    things: tuple[Thing, ...]


def sample_world(rng: np.random.Generator) -> World:
    """Draws a street, its light and its things."""
    street, light = _sample_street(rng), _sample_light(rng)
    things = _buildings(rng, street) + _traffic_and_clutter(rng, street)
    return World(street, light, tuple(things))


def _sample_street(rng: np.random.Generator) -> Street:
    road = rng.uniform(5.2, 6.6)
    crossing = rng.uniform(9, 30) if rng.random() < 0.25 else -1.0
    return Street(
        yaw=rng.normal(0, 0.05), ego=rng.uniform(0.8, 2.2), road=road,
        pavement=rng.uniform(2.2, 3.4), crossing=crossing, dash=rng.uniform(0, 6),
    )  # fmt: skip


def _sample_light(rng: np.random.Generator) -> Light:
    azimuth, height = rng.uniform(-np.pi, np.pi), np.deg2rad(rng.uniform(22, 65))
    sun = np.array(
        [np.cos(height) * np.sin(azimuth), -np.sin(height), np.cos(height) * np.cos(azimuth)]
    )
    mood = rng.choice(4, p=[0.45, 0.25, 0.2, 0.1])  # clear, overcast, low sun, dusk
    direct, ambient = ((0.62, 0.52), (0.18, 0.78), (0.6, 0.42), (0.14, 0.48))[mood]
    tint = np.array(((1, 1, 0.98), (0.96, 0.99, 1.03), (1.08, 0.98, 0.86), (0.92, 0.94, 1.1))[mood])
    haze = np.array(
        ((206, 218, 230), (196, 200, 204), (232, 206, 172), (128, 130, 158))[mood], float
    )
    zenith = np.array(
        ((96, 146, 214), (170, 178, 188), (120, 150, 190), (62, 72, 116))[mood], float
    )
    gain = rng.uniform(0.85, 1.12)
    return Light(
        sun=sun, direct=direct * gain, ambient=ambient * gain, tint=tint, haze=haze, zenith=zenith,
        visibility=rng.uniform(90, 260), clouds=rng.uniform(0, 1), noise=rng.uniform(1.0, 3.0),
    )  # fmt: skip


def _buildings(rng: np.random.Generator, street: Street) -> list[Thing]:
    along = street.to_camera(1.0, 0.0) - street.to_camera(0.0, 0.0)
    right = street.to_camera(0.0, 1.0) - street.to_camera(0.0, 0.0)
    found = []
    for side in (-1.0, 1.0):
        s, setback = rng.uniform(3, 9), rng.uniform(0.2, 4.0)
        while s < 95:
            length = rng.uniform(7, 15)
            if rng.random() < 0.82:
                edge = side * (street.road + street.pavement + setback + rng.uniform(0, 1.2))
                corner = street.to_camera(s, edge)
                yaw = street.yaw - np.pi / 2
                found.append(scenery.make_building(rng, corner, along, side * right, length, yaw))
            s += length + (rng.uniform(1.5, 6) if rng.random() < 0.45 else 0.1)
    return found


class _Plan:
    """Ground already taken: rejects overlapping footprints and most hidden placements."""

    def __init__(self, street: Street):
        self.street = street
        self.taken: list[tuple[float, float, float]] = []  # x, z, radius
        self.seen: list[tuple[float, float, float]] = []  # azimuth interval, distance

    def fits(self, rng, s: float, t: float, radius: float, hide: float) -> bool:
        """True when the disc is free and in view; overlaps in view pass with chance `hide`."""
        x, _, z = self.street.to_camera(s, t)
        if z < 4.0 + radius or abs(x) > 0.85 * z + 0.3 * radius:
            return False
        if any((x - a) ** 2 + (z - b) ** 2 < (radius + r) ** 2 for a, b, r in self.taken):
            return False
        low, high = np.arctan2(x - radius, z), np.arctan2(x + radius, z)
        for a, b, _distance in self.seen:
            shared = min(high, b) - max(low, a)
            if shared > 0.3 * min(high - low, b - a) and rng.random() > hide:
                return False
        self.taken.append((x, z, radius))
        self.seen.append((low, high, z))
        return True


def _distance(rng: np.random.Generator, near: float, far: float) -> float:
    return float(near * (far / near) ** rng.random())


def _traffic_and_clutter(rng: np.random.Generator, street: Street) -> list[Thing]:
    plan, things = _Plan(street), []
    if rng.random() > 0.02:  # a few streets are empty
        counts = (rng.integers(2, 7), rng.integers(1, 6), rng.integers(1, 5))
        makers = (_place_car, _place_pedestrian, _place_cyclist)
        for maker, count in zip(makers, counts, strict=True):
            things += [thing for _ in range(count) if (thing := maker(rng, street, plan))]
    for maker, count in (
        (_place_scenery, int(rng.integers(5, 11))),
        (_place_clutter, int(rng.integers(1, 6))),
    ):
        things += [thing for _ in range(count) if (thing := maker(rng, street, plan))]
    return things


def _place_car(rng, street: Street, plan: _Plan) -> Thing | None:
    ahead, oncoming = street.yaw - np.pi / 2, street.yaw + np.pi / 2
    for _ in range(12):
        s, use = _distance(rng, 7, 58), rng.random()
        side = rng.choice([-1.0, 1.0])
        if use < 0.45:  # parked
            t, yaw = (
                side * (street.road - 1.05),
                rng.choice([ahead, oncoming]) + rng.normal(0, 0.06),
            )
        elif use < 0.85:  # driving on the right
            t, yaw = side * 1.9 + rng.normal(0, 0.25), (ahead if side > 0 else oncoming)
            yaw += rng.normal(0, 0.08)
        else:  # turning or crossing
            t, yaw = rng.uniform(-3, 3), rng.uniform(-np.pi, np.pi)
        if plan.fits(rng, s, t, 2.0, hide=0.35):
            return objects.make_car(rng, street.to_camera(s, t), _wrap(yaw))
    return None


def _place_pedestrian(rng, street: Street, plan: _Plan) -> Thing | None:
    for _ in range(12):
        s, side = _distance(rng, 5.5, 38), rng.choice([-1.0, 1.0])
        if rng.random() < 0.7:  # on a pavement, mostly along it
            t = side * (street.road + rng.uniform(0.4, street.pavement - 0.3))
            yaw = street.yaw + rng.choice([-0.5, 0.5]) * np.pi + rng.normal(0, 0.5)
        else:  # on the road
            t, yaw = rng.uniform(-street.road, street.road), rng.uniform(-np.pi, np.pi)
            if street.crossing > 0 and rng.random() < 0.7:
                s, yaw = (
                    street.crossing + rng.uniform(0.2, 2.6),
                    street.yaw + rng.choice([0.0, np.pi]),
                )
        if plan.fits(rng, s, t, 0.4, hide=0.3):
            return objects.make_pedestrian(rng, street.to_camera(s, t), _wrap(yaw))
    return None


def _place_cyclist(rng, street: Street, plan: _Plan) -> Thing | None:
    for _ in range(12):
        s, side = _distance(rng, 5.5, 38), rng.choice([-1.0, 1.0])
        t = side * rng.uniform(0.8, street.road - 0.6)
        yaw = street.yaw - side * np.pi / 2 + rng.normal(0, 0.25)
        if rng.random() < 0.35:
            yaw = rng.uniform(-np.pi, np.pi)
        if plan.fits(rng, s, t, 0.9, hide=0.3):
            return objects.make_cyclist(rng, street.to_camera(s, t), _wrap(yaw))
    return None


def _place_scenery(rng, street: Street, plan: _Plan) -> Thing | None:
    for _ in range(4):
        s, side = _distance(rng, 6, 70), rng.choice([-1.0, 1.0])
        kerb = street.road + 0.35
        t = side * (kerb if rng.random() < 0.6 else kerb + street.pavement + rng.uniform(0, 1.5))
        if plan.fits(rng, s, t, 0.45, hide=0.25):
            where, kind = street.to_camera(s, t), rng.integers(5)
            if kind <= 1:
                return scenery.make_tree(rng, where)
            if kind == 2:
                return scenery.make_bush(rng, where)
            return (
                scenery.make_lamp(rng, where, side) if kind == 3 else scenery.make_sign(rng, where)
            )
    return None


def _place_clutter(rng, street: Street, plan: _Plan) -> Thing | None:
    for _ in range(4):
        s, side = _distance(rng, 6, 40), rng.choice([-1.0, 1.0])
        t = side * (street.road + rng.uniform(0.4, street.pavement))
        if plan.fits(rng, s, t, 0.6, hide=0.15):
            return scenery.make_clutter(
                rng, street.to_camera(s, t), _wrap(street.yaw + rng.normal(0, 0.4))
            )
    return None


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
