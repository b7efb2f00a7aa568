"""Scenes of one or two objects on a background, rendered from a description: the data that `still_life` is trained on.

A scene is shaded like a real one (Lambert and Blinn-Phong terms on analytic normals, a cast shadow), so that soft
transitions in an edit have something to be soft about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


SIZE = 256

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 32, 38),
    "orange": (242, 125, 20),
    "yellow": (240, 208, 40),
    "green": (70, 160, 50),
    "blue": (40, 85, 200),
    "purple": (125, 50, 165),
    "pink": (244, 130, 180),
    "white": (244, 243, 238),
}
KINDS = ("apple", "pear", "banana", "lemon", "cup", "bottle")
BACKGROUNDS = {
    "plain": "a plain background",
    "striped": "a striped background",
    "checked": "a checked background",
    "tabletop": "a tabletop",
    "gradient": "a gradient background",
}

# Muted tones, so that no background has the colour of an object.
_TONES = np.array(
    [
        (196, 186, 168),
        (168, 174, 180),
        (112, 126, 142),
        (150, 164, 146),
        (186, 164, 130),
        (186, 154, 150),
        (150, 172, 192),
        (128, 110, 98),
    ],
    np.float32,
)
_WOOD = np.array([(150, 104, 66), (122, 82, 52), (176, 134, 90)], np.float32)
_STEM = np.array((92, 62, 38), np.float32)
_LEAF = np.array((66, 120, 46), np.float32)


def _check_known(**values: tuple[str, Collection[str]]) -> None:
    for name, (value, known) in values.items():
        if value not in known:
            raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(known)}.")


@dataclass(frozen=True)
class Item:
    """An object, and where it stands.

    Attributes:
        kind: One of `KINDS`.
        colour: One of `COLOURS`.
        position: Its centre (x, y), as fractions of the image's side, y downwards.
    """

    kind: str
    colour: str
    position: tuple[float, float] = (0.72, 0.58)

    def __post_init__(self):
        _check_known(kind=(self.kind, KINDS), colour=(self.colour, COLOURS))

    @property
    def words(self) -> str:
        """Its name with the article, e.g. "an orange cup"."""
        return f"{'an' if self.colour == 'orange' else 'a'} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """One still life.

    Attributes:
        kind: One of `KINDS`.
        colour: One of `COLOURS`.
        background: One of `BACKGROUNDS`.
        position: Centre of the object (x, y), as fractions of the image's side, y downwards.
        light: Where the light comes from, -1 (left) to 1 (right).
        seed: Decides what the caption does not say: size, tilt, tones and the pattern's scale.
        beside: A second object; both are smaller then, and where they overlap, this one is in front.
    """

    kind: str
    colour: str
    background: str
    position: tuple[float, float] = (0.5, 0.55)
    light: float = -0.6
    seed: int = 0
    beside: Item | None = None

    def __post_init__(self):
        _check_known(kind=(self.kind, KINDS), colour=(self.colour, COLOURS), background=(self.background, BACKGROUNDS))

    @property
    def items(self) -> list[Item]:
        """What stands in it, in the order of the caption."""
        first = Item(self.kind, self.colour, self.position)
        return [first] if self.beside is None else [first, self.beside]

    @property
    def caption(self) -> str:
        """The whole sentence, e.g. "a red apple and a blue cup on a tabletop"."""
        return f"{' and '.join(item.words for item in self.items)} on {BACKGROUNDS[self.background]}"

    @classmethod
    def random(cls, seed: int, pairs: float = 0.0) -> Scene:
        """The scene of a seed: every attribute drawn uniformly.

        Args:
            pairs: The share of scenes with two objects, which differ in kind and colour; the first is on the left.
        """
        rng = np.random.default_rng([seed, 1])
        scene = cls(
            kind=str(rng.choice(KINDS)),
            colour=str(rng.choice(list(COLOURS))),
            background=str(rng.choice(list(BACKGROUNDS))),
            position=(float(rng.uniform(0.42, 0.58)), float(rng.uniform(0.5, 0.6))),
            light=float(rng.uniform(-1, 1)),
            seed=seed,
        )
        return scene._with_second(rng) if rng.random() < pairs else scene

    def _with_second(self, rng: np.random.Generator) -> Scene:
        kind = str(rng.choice([kind for kind in KINDS if kind != self.kind]))
        colour = str(rng.choice([colour for colour in COLOURS if colour != self.colour]))
        (left, right), (first, second) = rng.uniform((0.25, 0.7), (0.3, 0.75)), rng.uniform(0.54, 0.62, 2)
        beside = Item(kind, colour, (float(right), float(second)))
        return replace(self, position=(float(left), float(first)), beside=beside)


class Surface(NamedTuple):
    """What the camera sees of an object, on a grid: `inside` and `depth` are (H, W), the others (H, W, 3).

    `depth` points to the camera in units of the object's half height and is 0 outside; `normal` has unit length.
    """

    inside: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray


def _smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def _revolve(radius: Callable[[np.ndarray], np.ndarray], across: np.ndarray, along: np.ndarray):
    """Inside, depth and normal of a solid of revolution about the axis `along`, whose profile is `radius(along)`."""
    r = np.maximum(radius(along), 1e-4)
    slope = (radius(along + 1e-3) - radius(along - 1e-3)) / 2e-3
    a = np.clip(across / r, -1, 1)
    z = np.sqrt(1 - a * a)
    inside = (np.abs(across) < r) & (r > 1e-3)
    return inside, z * r, _unit(np.stack([a, -slope, z], -1))


def _paint(surface: Surface, where: np.ndarray, colour: np.ndarray, depth: float = 0.0) -> Surface:
    """A flat detail (stem, leaf, rim) over a surface; it faces the camera."""
    facing = np.broadcast_to(np.array((0.0, -0.5, 0.87), np.float32), surface.normal.shape)
    return Surface(
        surface.inside | where,
        np.where(where, depth, surface.depth),
        np.where(where[..., None], facing, surface.normal),
        np.where(where[..., None], colour, surface.albedo),
    )


def _segment(u, v, start, end, width):
    """Where (u, v) lies within `width` of the segment from `start` to `end`."""
    (u0, v0), (u1, v1) = start, end
    t = np.clip(((u - u0) * (u1 - u0) + (v - v0) * (v1 - v0)) / ((u1 - u0) ** 2 + (v1 - v0) ** 2), 0, 1)
    return np.hypot(u - u0 - t * (u1 - u0), v - v0 - t * (v1 - v0)) < width


def _apple(u, v, colour):
    def radius(y):
        y = (y - 0.1) / 0.9
        return 0.98 * np.maximum(1 - y * y, 0) ** 0.5 * (1 - 0.12 * y)

    inside, depth, normal = _revolve(radius, u, v)
    dimple = np.exp(-((u / 0.3) ** 2) - ((v + 0.74) / 0.12) ** 2)[..., None]
    apple = Surface(inside, depth, normal, colour * (1 - 0.55 * dimple))
    apple = _paint(apple, _segment(u, v, (0.0, -0.7), (0.1, -1.05), 0.055), _STEM, 0.5)
    leaf = ((u - 0.34) * 0.9 + (v + 0.95) * 0.45) ** 2 / 0.075 + (
        -(u - 0.34) * 0.45 + (v + 0.95) * 0.9
    ) ** 2 / 0.014 < 1
    return _paint(apple, leaf, _LEAF, 0.5)


def _pear(u, v, colour):
    def radius(y):
        y = (y - 0.06) / 0.94
        return np.maximum(1 - y * y, 0) ** 0.5 * (0.6 + 0.27 * np.tanh(2.4 * y))

    pear = Surface(*_revolve(radius, u, v), np.broadcast_to(colour, (*u.shape, 3)))
    return _paint(pear, _segment(u, v, (0.0, -0.84), (0.14, -1.12), 0.05), _STEM, 0.3)


def _lemon(u, v, colour):
    turn = np.array((np.cos(0.25), np.sin(0.25)), np.float32)
    along, across = u * turn[0] - (v - 0.4) * turn[1], u * turn[1] + (v - 0.4) * turn[0]

    def radius(x):
        body = 0.6 * np.maximum(1 - (x / 0.92) ** 2, 0) ** 0.62
        nubs = 0.16 * np.exp(-(((np.abs(x) - 0.9) / 0.16) ** 2)) * (np.abs(x) < 1.08)
        return body + nubs

    inside, depth, n = _revolve(radius, across, along)
    # the profile's axis lies in the picture's plane: turn (across, along) back to (u, v)
    normal = np.stack(
        [n[..., 0] * turn[1] + n[..., 1] * turn[0], n[..., 0] * turn[0] - n[..., 1] * turn[1], n[..., 2]], -1
    )
    return Surface(inside, depth, normal, np.broadcast_to(colour, (*u.shape, 3)))


def _banana(u, v, colour):
    # a tube around an arc that opens upwards
    x, y, bend = u, v + 0.75, 1.2
    angle = np.arctan2(x, y)
    t = angle / 0.95
    width = 0.34 * np.maximum(1 - np.abs(t) ** 2.6, 0) ** 0.6 + 0.07 * (np.abs(t) < 1.08)
    offset = np.hypot(x, y) - bend
    a = np.clip(offset / np.maximum(width, 1e-4), -1, 1)
    z = np.sqrt(1 - a * a)
    inside = (np.abs(offset) < width) & (np.abs(t) < 1.08)
    normal = np.stack([a * np.sin(angle), a * np.cos(angle), z], -1)
    tip = _smoothstep(0.9, 0.98, np.abs(t))[..., None]
    return Surface(inside, z * width, normal, colour * (1 - tip) + _STEM * tip)


def _cup(u, v, colour):
    def radius(y):
        return np.where((y > -0.62) & (y < 1), 0.72 - 0.12 * (y + 0.62) - 0.3 * np.maximum(y - 0.86, 0), 0.0)

    inside, depth, normal = _revolve(radius, u, v + 0.10 * (1 - (u / 0.75) ** 2).clip(0) * (v < 0) - 0.1 * (v > 0.8))
    ring = np.hypot((u - 0.72) / 0.36, (v - 0.12) / 0.42)
    tube = np.abs(ring - 0.82) < 0.2
    a = np.clip((ring - 0.82) / 0.2, -1, 1)
    out = _unit(np.stack([u - 0.72, v - 0.12, np.zeros_like(u)], -1))
    tube_normal = out * a[..., None] + np.array((0, 0, 1), np.float32) * np.sqrt(1 - a * a)[..., None]
    handle = tube & ~inside & (u > 0.4)
    cup = Surface(
        inside | handle,
        np.where(handle, 0.1, depth),
        np.where(handle[..., None], tube_normal, normal),
        np.broadcast_to(colour, (*u.shape, 3)),
    )
    rim = np.hypot(u / 0.72, (v + 0.62) / 0.17)
    cup = _paint(cup, rim < 1, colour * 0.92, 0.2)
    return _paint(cup, rim < 0.86, colour * 0.42, -0.2)


def _bottle(u, v, colour):
    def radius(y):
        body = 0.16 + 0.28 * _smoothstep(-0.5, -0.1, y)
        foot = np.maximum(1 - (np.maximum(y - 0.9, 0) / 0.12) ** 2, 0) ** 0.5
        return np.where((y > -1.15) & (y < 1), body * foot, 0.0)

    inside, depth, normal = _revolve(radius, u, v)
    cap = ((v < -0.98) & (v > -1.15))[..., None]
    label = ((v > 0.12) & (v < 0.56))[..., None]
    albedo = np.where(cap, np.float32(60), np.where(label, 0.45 * colour + 0.55 * np.float32(238), colour))
    return Surface(inside, depth, normal, albedo)


_SHAPES = {"apple": _apple, "pear": _pear, "banana": _banana, "lemon": _lemon, "cup": _cup, "bottle": _bottle}


def _background(scene: Scene, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W, 3) in 0..255; x and y are (H, W) grids in [0, 1]."""
    first, second = _TONES[rng.choice(len(_TONES), 2, replace=False)]
    if scene.background in ("striped", "checked") and abs(first.sum() - second.sum()) < 60:
        second = second * 0.72  # two tones of equal brightness would hide the pattern
    scale, phase = rng.uniform(4, 6), rng.uniform(0, 1, 2)
    angle = rng.uniform(-0.5, 0.5)
    edge = 0.08  # softness of the pattern's edges, in periods

    def wave(t):
        return _smoothstep(0.25 - edge, 0.25 + edge, np.abs((t % 1) - 0.5))

    if scene.background == "striped":
        mix = wave((x * np.cos(angle) + y * np.sin(angle)) * scale + phase[0])
    elif scene.background == "checked":
        a, b = wave(x * scale * 0.7 + phase[0]), wave(y * scale * 0.7 + phase[1])
        mix = a * (1 - b) + b * (1 - a)
    elif scene.background == "gradient":
        second = second * 0.5 if first.sum() > second.sum() else np.minimum(second * 1.3, 250)
        mix = np.clip((y - 0.5) * 1.1 + (x - 0.5) * angle + 0.5, 0, 1)
    elif scene.background == "tabletop":
        second = _WOOD[rng.integers(len(_WOOD))]
        mix = _smoothstep(-0.006, 0.006, y - rng.uniform(0.56, 0.66))
        grain = 1 + 0.06 * np.sin(2 * np.pi * (y * 17 + 0.5 * np.sin(x * 5 + phase[0] * 6)))
        return first * (1 - mix[..., None]) + second * (mix * grain)[..., None]
    else:
        mix = np.zeros_like(x)
    return first * (1 - mix[..., None]) + second * mix[..., None]


SAMPLES = 2  # each pixel is the mean of SAMPLES x SAMPLES
_PAIR_SCALE = 0.64  # of two objects, against one alone


class _View(NamedTuple):
    """An object as the camera sees it: grids (H, W) about it in units of its half height, and its surface."""

    dx: np.ndarray
    dy: np.ndarray
    surface: Surface


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y (H, W) in [0, 1], SAMPLES times as fine as the picture."""
    axis = ((np.arange(size * SAMPLES) + 0.5) / (size * SAMPLES)).astype(np.float32)
    return tuple(np.meshgrid(axis, axis))


def _look(item: Item, rng: np.random.Generator, x: np.ndarray, y: np.ndarray, scale: float) -> _View:
    half = rng.uniform(0.29, 0.36) * scale
    tilt = rng.uniform(-0.12, 0.12)
    albedo = np.clip(np.array(COLOURS[item.colour], np.float32) * rng.uniform(0.92, 1.04, 3), 0, 255).astype(np.float32)
    dx, dy = (x - item.position[0]) / half, (y - item.position[1]) / half
    u, v = dx * np.cos(tilt) + dy * np.sin(tilt), -dx * np.sin(tilt) + dy * np.cos(tilt)
    return _View(dx, dy, _SHAPES[item.kind](u, v, albedo))


def _views(scene: Scene, x: np.ndarray, y: np.ndarray) -> tuple[list[_View], np.random.Generator]:
    """Each object from back to front, and the generator for what is drawn behind them."""
    rng = np.random.default_rng([scene.seed, 2])
    scale = 1.0 if scene.beside is None else _PAIR_SCALE
    views = [_look(scene.items[0], rng, x, y, scale)]
    if scene.beside is not None:
        views.append(_look(scene.beside, np.random.default_rng([scene.seed, 3]), x, y, scale))
    return views, rng


def _shrink(picture: np.ndarray) -> np.ndarray:
    """(H, W, ...) in 0..255 to uint8, each pixel the mean of its samples."""
    height, width = (side // SAMPLES for side in picture.shape[:2])
    picture = picture.reshape(height, SAMPLES, width, SAMPLES, *picture.shape[2:]).mean((1, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def render(scene: Scene, size: int = SIZE) -> np.ndarray:
    """Draws a scene: (size, size, 3) uint8 RGB. The same scene gives the same picture."""
    x, y = _grid(size)
    views, rng = _views(scene, x, y)
    picture = _background(scene, rng, x, y).astype(np.float32)
    for view in views:
        shadow = ((view.dx + 0.55 * scene.light) / 1.05) ** 2 + ((view.dy - 0.94) / 0.24) ** 2
        picture = picture * (1 - 0.5 * np.exp(-shadow))[..., None]

    light = _unit(np.array((0.9 * scene.light, -0.65, 0.75), np.float32))
    halfway = _unit(light + np.array((0, 0, 1), np.float32))
    for surface in (view.surface for view in views):
        diffuse = np.clip(surface.normal @ light, 0, None)
        gloss = np.clip(surface.normal @ halfway, 0, None) ** 40
        shaded = surface.albedo * (0.38 + 0.72 * diffuse)[..., None] + 90 * gloss[..., None]
        picture = np.where(surface.inside[..., None], shaded, picture)
    return _shrink(picture)


def depth(scene: Scene, size: int = SIZE) -> np.ndarray:
    """How near the objects are: (size, size) uint8, 0 for the background, up to 255 for the nearest surfaces."""
    nearness = np.zeros((size * SAMPLES,) * 2, np.float32)
    for view in _views(scene, *_grid(size))[0]:
        nearness = np.where(view.surface.inside, 255 * (view.surface.depth + 0.5) / 1.5, nearness)
    return _shrink(nearness)


def masks(scene: Scene, size: int = SIZE) -> dict[str, np.ndarray]:
    """Where each thing is that the caption names.

    Returns:
        (size, size) uint8 by word, 255 where a pixel shows it whole: the kind and the colour of each object, and the
        background ("striped background", "tabletop") for all that they leave. Objects that share a word share its mask.
    """
    shown = np.full((size * SAMPLES,) * 2, -1)  # which object, counted from 0
    for index, view in enumerate(_views(scene, *_grid(size))[0]):
        shown[view.surface.inside] = index
    where: dict[str, np.ndarray] = {BACKGROUNDS[scene.background].removeprefix("a "): shown == -1}
    for index, item in enumerate(scene.items):
        for word in (item.kind, item.colour):
            where[word] = where.get(word, False) | (shown == index)
    return {word: _shrink(255.0 * mask) for word, mask in where.items()}
