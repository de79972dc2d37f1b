"""Moving scenes: the shapes world played from a script, with exact masks and events on every frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from stages.shapes.drawing import Look, Pose, add_grain, draw_background, put_shape
from stages.shapes.palette import COLOURS, Rgb, lab
from stages.shapes.script import Actor, Arena, write_script

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClipEvent:
    """What one shape does between two moments; `colour` is its colour at the start of the event."""

    start_s: float
    end_s: float
    motion: str
    absent: bool
    colour: str


@dataclass(frozen=True)
class ClipObject:
    """One shape of a clip: its look at the start and its events, which cover the clip in order."""

    look: Look
    events: tuple[ClipEvent, ...]


@dataclass(frozen=True)
class Clip:
    """Frames uint8 (n, H, W, 3) RGB at `times_s`, visible masks bool (n, k, H, W) of the k objects."""

    frames: Array
    masks: Array
    times_s: Array
    objects: tuple[ClipObject, ...]
    camera: tuple[float, float]


def draw_clip(
    seed: int | tuple[int, ...],
    frames: int = 42,
    size: tuple[int, int] = (256, 256),
    fps: float = 6.0,
    objects: tuple[int, int] = (1, 3),
    camera: float = 0.3,
    occlusion: float = 0.0,
    leave: float = 0.4,
) -> Clip:
    """A clip of `frames` frames at `fps` and of `size` (width, height) pixels; a seed (or tuple of seeds) fixes it.

    `camera`, `occlusion` and `leave` are the chances that the camera drifts, that shapes may cross each other, and
    that the first shape leaves the frame. Motion words are relative to the background: camera motion is not motion.
    """
    rng = np.random.default_rng(seed)
    duration = frames / fps
    drift = _drift(rng, size, duration) if rng.random() < camera else (0.0, 0.0)
    arena = Arena(size[0], size[1], duration, drift)
    crossing, leaving = bool(rng.random() < occlusion), bool(rng.random() < leave)
    actors = write_script(rng, arena, int(rng.integers(objects[0], objects[1] + 1)), crossing, leaving)
    times = np.arange(frames) / fps
    images, masks = _render(rng, arena, actors, times)
    told = tuple(ClipObject(actor.look, _events(actor, masks[:, k], times)) for k, actor in enumerate(actors))
    return Clip(images, masks, times, told, drift)


def _drift(rng: np.random.Generator, size: tuple[int, int], duration_s: float) -> tuple[float, float]:
    """A camera path that crosses up to a fifth of the frame in the clip, in pixels a second."""
    share = float(rng.uniform(0.08, 0.2)) * min(size)
    angle = float(rng.uniform(0, 2 * np.pi))
    return float(share * np.cos(angle) / duration_s), float(share * np.sin(angle) / duration_s)


def _render(rng: np.random.Generator, arena: Arena, actors: tuple[Actor, ...], times: Array) -> tuple[Array, Array]:
    width, height = arena.width, arena.height
    margin = int(np.ceil(np.abs(arena.camera).max() * arena.duration_s)) + 2
    backdrop = draw_background(rng, width + 2 * margin, height + 2 * margin)
    images = np.empty((len(times), height, width, 3), np.uint8)
    owner = np.empty((len(times), height, width), np.uint8)
    for index, time_s in enumerate(times.tolist()):
        x, y = arena.camera[0] * time_s, arena.camera[1] * time_s
        centre = (margin + x + (width - 1) / 2, margin + y + (height - 1) / 2)
        image = cv2.getRectSubPix(backdrop, (width, height), centre)
        owner[index] = 0
        for number, actor in enumerate(actors):
            pose, before, after, share = actor.at(time_s)
            seen = Pose(pose.x - x, pose.y - y, pose.radius, pose.angle)
            tones = (_blend(before, after, share, False), _blend(before, after, share, True))
            rows, columns, inside = put_shape(image, actor.look, seen, tones)
            owner[index, rows, columns][inside] = number + 1
        images[index] = add_grain(image, rng, 2.0)
    masks = owner[:, None] == np.arange(1, len(actors) + 1, dtype=np.uint8)[None, :, None, None]
    return images, masks


def _blend(before: str, after: str, share: float, accent: bool) -> Rgb:
    """A tone on the straight way through L*a*b* from one colour to another."""
    ends = [COLOURS[name].accent if accent else COLOURS[name].rgb for name in (before, after)]
    if share == 0 or before == after:
        return ends[0]
    first, second = lab(np.array(ends))
    mixed = (first + (second - first) * share).astype(np.float32).reshape(1, 1, 3)
    red, green, blue = np.round(cv2.cvtColor(mixed, cv2.COLOR_LAB2RGB).reshape(3) * 255).clip(0, 255).astype(int)
    return int(red), int(green), int(blue)


def _events(actor: Actor, masks: Array, times: Array) -> tuple[ClipEvent, ...]:
    """The acts as events; absence begins and ends where the masks say so, not where the script does."""
    visible = masks.reshape(len(masks), -1).any(1)
    step = float(times[1] - times[0]) if len(times) > 1 else 1.0
    end = float(times[-1]) + step
    spans: list[tuple[float, float, str]] = [(act.start_s, act.end_s, act.motion) for act in actor.acts]
    gone = np.flatnonzero(~visible)
    if len(gone):
        leave_s, return_s = float(times[gone[0]]), min(float(times[gone[-1]]) + step, end)
        before = [(s, min(e, leave_s), m) for s, e, m in spans if s < leave_s and m != "absent"]
        after = [(max(s, return_s), e, m) for s, e, m in spans if e > return_s and m != "absent"]
        if before:
            before[-1] = (before[-1][0], leave_s, f"{before[-1][2]}, leaving")
        if after:
            after[0] = (return_s, after[0][1], f"returning, {after[0][2]}")
        spans = [*before, (leave_s, return_s, "absent"), *after]
    return tuple(
        ClipEvent(s, min(e, end), motion, motion == "absent", actor.at(s)[1]) for s, e, motion in spans if s < end
    )
