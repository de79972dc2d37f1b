"""Outlines, textures and backgrounds: how a shape is put on a canvas, without anti-aliasing: masks are exact."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

from stages.shapes.palette import COLOURS, Rgb

Array = np.ndarray[Any, Any]
_SUBPIXEL_BITS = 4
_TAU = 2 * np.pi


@dataclass(frozen=True)
class Look:
    """What a shape looks like wherever it is. `pitch` is the texture's period in units of the radius."""

    kind: str
    colour: str
    texture: str
    pitch: float = 0.4


@dataclass(frozen=True)
class Pose:
    """Where a shape is: centre in pixels, radius of its circumscribed circle in pixels, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float


def draw_look(rng: np.random.Generator, kinds: tuple[str, ...], textures: tuple[str, ...]) -> Look:
    """A random look from the given kinds and textures and all colours."""
    return Look(
        kind=kinds[rng.integers(len(kinds))],
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        texture=textures[rng.integers(len(textures))],
        pitch=float(rng.uniform(0.3, 0.5)),
    )


def outlines(kind: str, pose: Pose) -> list[Array]:
    """The polygons of a shape, float64 (n, 2) in pixels; overlapping polygons cut holes (even-odd)."""
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * pose.radius
    return [polygon @ turn + (pose.x, pose.y) for polygon in _unit_outlines(kind)]


def put_shape(image: Array, look: Look, pose: Pose, tones: tuple[Rgb, Rgb] | None = None) -> tuple[slice, slice, Array]:
    """Draws a shape in place on an RGB uint8 image.

    `tones` (main and accent) replace the look's own colours. Returns the rows and columns of its box within the image
    and its full mask (bool) there; an empty box where it lies outside.
    """
    height, width = image.shape[:2]
    polygons = outlines(look.kind, pose)
    low = np.floor(np.min([p.min(0) for p in polygons], axis=0)).astype(int) - 1
    high = np.ceil(np.max([p.max(0) for p in polygons], axis=0)).astype(int) + 2
    x0, y0 = np.clip(low, 0, (width, height))
    x1, y1 = np.clip(high, 0, (width, height))
    rows, columns = slice(y0, max(y0, y1)), slice(x0, max(x0, x1))
    canvas = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    if canvas.size == 0:
        return rows, columns, canvas.astype(bool)
    fixed = [np.round((p - (x0, y0)) * (1 << _SUBPIXEL_BITS)).astype(np.int32) for p in polygons]
    cv2.fillPoly(canvas, fixed, (1,), lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
    inside = canvas.astype(bool)
    main, accent = tones or (COLOURS[look.colour].rgb, COLOURS[look.colour].accent)
    patch = image[rows, columns]
    patch[inside] = main
    if look.texture != "plain":
        patch[inside & _pattern(look, pose, x0, y0, canvas.shape)] = accent
    return rows, columns, inside


def draw_background(rng: np.random.Generator, width: int, height: int) -> Array:
    """A muted textured background, RGB uint8 (height, width, 3): noise, a gradient or blobs, of low chroma."""
    first, second = (_muted(rng) for _ in range(2))
    kind = rng.integers(3)
    if kind == 0:
        mix = _smooth_noise(rng, width, height, cells=24)
    elif kind == 1:
        angle = rng.uniform(0, _TAU)
        ramp = np.linspace(-0.5, 0.5, width)[None] * np.cos(angle) + np.linspace(-0.5, 0.5, height)[:, None] * np.sin(
            angle
        )
        mix = ((ramp - ramp.min()) / max(np.ptp(ramp), 1e-6)).astype(np.float32)
    else:
        mix = np.clip((_smooth_noise(rng, width, height, cells=6) - 0.45) * 6, 0, 1)
    grain = _smooth_noise(rng, width, height, cells=max(width, height) // 3) * 20 - 10
    mixed = first + (second - first) * mix[..., None] + grain[..., None]
    image: Array = np.clip(mixed, 0, 255).astype(np.uint8)
    return image


def add_grain(image: Array, rng: np.random.Generator, strength: float = 4.0) -> Array:
    """The image with sensor noise of the given standard deviation, uint8."""
    span = round(strength * 12**0.5 / 2)  # a uniform distribution of this half-width has that deviation
    noise = rng.integers(-span, span + 1, image.shape, np.int16)
    noisy: Array = np.clip(image + noise, 0, 255).astype(np.uint8)
    return noisy


def _muted(rng: np.random.Generator) -> Array:
    lightness = rng.uniform(80, 160)
    tone: Array = np.clip(lightness + rng.uniform(-16, 16, 3), 0, 255).astype(np.float32)
    return tone


def _smooth_noise(rng: np.random.Generator, width: int, height: int, cells: int) -> Array:
    longest = max(width, height)
    shape = (max(2, cells * height // longest), max(2, cells * width // longest))
    coarse = rng.random(shape, np.float32)
    smooth: Array = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 1)


def _pattern(look: Look, pose: Pose, x0: int, y0: int, shape: tuple[int, ...]) -> Array:
    """Where the accent shows, bool over the shape's box; the pattern moves, grows and turns with the shape."""
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    scale = 1 / (pose.radius * look.pitch)
    dx = (np.arange(shape[1]) + (x0 + 0.5 - pose.x))[None] * scale
    dy = (np.arange(shape[0]) + (y0 + 0.5 - pose.y))[:, None] * scale
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    if look.texture == "striped":
        return np.asarray((u % 1.0) < 0.4)
    if look.texture == "dotted":
        return np.asarray((u % 1.0 - 0.5) ** 2 + (v % 1.0 - 0.5) ** 2 < 0.1)
    if look.texture == "checked":
        return np.asarray(((np.floor(u) + np.floor(v)) % 2) == 0)
    waves = np.sin(9.1 * u + 2.3 * np.sin(5.3 * v)) * np.sin(8.3 * v + 1.7 * np.sin(6.1 * u))
    return np.asarray(waves > 0.45)


@cache
def _unit_outlines(kind: str) -> tuple[Array, ...]:
    """The polygons of a kind within the unit circle, not turned."""
    if kind in ("circle", "ring", "ellipse"):
        circle = _arc(0, _TAU, 96)
        if kind == "circle":
            return (circle,)
        return (circle * (1, 0.55),) if kind == "ellipse" else (circle, circle * 0.55)
    if kind == "crescent":
        outer, inner = np.arctan2(0.726, 0.6875), np.arctan2(0.726, 0.1875)  # where the two circles meet
        bite = _arc(inner, _TAU - inner, 48) * 0.75 + (0.5, 0)
        return (_centred(np.concatenate([_arc(outer, _TAU - outer, 80), bite[::-1]])),)
    if kind in ("square", "triangle", "hexagon"):
        sides = {"square": 4, "triangle": 3, "hexagon": 6}[kind]
        return (_arc(0, _TAU, sides),)
    if kind == "star":
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)[:, None]
        return (_arc(0, _TAU, 10) * radii,)
    if kind == "rectangle":
        return (np.array([[-0.9, -0.43], [0.9, -0.43], [0.9, 0.43], [-0.9, 0.43]]),)
    if kind == "l-shape":
        corner = [[-0.6, -0.8], [-0.1, -0.8], [-0.1, 0.3], [0.6, 0.3], [0.6, 0.8], [-0.6, 0.8]]
        return (_centred(np.array(corner)),)
    if kind == "cross":
        a, b = 0.95, 0.3
        half = [[-b, -a], [b, -a], [b, -b], [a, -b], [a, b], [b, b]]
        return (np.array(half + [[-x, -y] for x, y in half]),)
    raise ValueError(f"there is no shape {kind!r}")


def _arc(start: float, stop: float, points: int) -> Array:
    angles = np.linspace(start, stop, points, endpoint=stop - start < _TAU)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _centred(polygon: Array) -> Array:
    """The polygon with its centre of area at the origin, scaled back into the unit circle."""
    x, y = polygon.T
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    cross = x * y2 - x2 * y
    centre = np.array([((x + x2) * cross).sum(), ((y + y2) * cross).sum()]) / (3 * cross.sum())
    moved = polygon - centre
    scaled: Array = moved / np.linalg.norm(moved, axis=1).max()
    return scaled
