"""The script of a clip: for each shape, what it does and when, from which its pose at any moment follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from stages.shapes.drawing import Look, Pose, draw_look
from stages.shapes.palette import COLOURS, KINDS, TEXTURES, TURNING_KINDS

DIRECTIONS: Final[dict[str, tuple[float, float]]] = {
    "right": (1, 0),
    "left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up right": (0.7071, -0.7071),
    "up left": (-0.7071, -0.7071),
    "down right": (0.7071, 0.7071),
    "down left": (-0.7071, 0.7071),
}
MIN_ACT_S = 0.9
MIN_ABSENT_S = 0.8
_SPEEDS = (0.08, 0.2)
"""Fractions of the frame's diagonal a second."""


@dataclass(frozen=True)
class Act:
    """One thing a shape does: rates a second (`dx`, `dy` pixels, `growth` log radius, `spin` radians), end colour."""

    motion: str
    start_s: float
    end_s: float
    dx: float = 0.0
    dy: float = 0.0
    growth: float = 0.0
    spin: float = 0.0
    colour: str | None = None


@dataclass(frozen=True)
class Actor:
    """A shape, where it starts, and its acts in order, which cover the clip without gaps."""

    look: Look
    start: Pose
    acts: tuple[Act, ...]

    def at(self, time_s: float) -> tuple[Pose, str, str, float]:
        """Its pose at a moment, the colour it comes from, the colour it goes to, and how far (0 to 1) it has got."""
        pose, colour = self.start, self.look.colour
        for act in self.acts:
            passed = min(time_s, act.end_s) - act.start_s
            pose = advance(pose, act, passed)
            if act.colour is not None:
                share = passed / (act.end_s - act.start_s)
                if share < 1:
                    return pose, colour, act.colour, share
                colour = act.colour
            if time_s <= act.end_s:
                break
        return pose, colour, colour, 0.0


@dataclass(frozen=True)
class Arena:
    """The frame in which actors move: its size in pixels, and the drift of the camera in pixels a second."""

    width: int
    height: int
    duration_s: float
    camera: tuple[float, float] = (0.0, 0.0)

    @property
    def diagonal(self) -> float:
        return float(np.hypot(self.width, self.height))

    def holds(self, pose: Pose, time_s: float) -> bool:
        """Whether a shape at `pose` (scene pixels) is wholly in the frame at a moment."""
        x, y = pose.x - self.camera[0] * time_s, pose.y - self.camera[1] * time_s
        r = pose.radius * 1.05
        return r <= x <= self.width - r and r <= y <= self.height - r


def advance(pose: Pose, act: Act, seconds: float) -> Pose:
    """The pose after `seconds` of an act."""
    return Pose(
        x=pose.x + act.dx * seconds,
        y=pose.y + act.dy * seconds,
        radius=pose.radius * float(np.exp(act.growth * seconds)),
        angle=pose.angle + act.spin * seconds,
    )


def write_script(
    rng: np.random.Generator, arena: Arena, objects: int, occlusion: bool, leave: bool
) -> tuple[Actor, ...]:
    """Scripts for up to `objects` shapes, of different colours.

    Without `occlusion` a shape is left out when its way crosses that of an earlier one. With `leave` the first shape
    leaves the frame once, and returns when time allows.
    """
    actors: list[Actor] = []
    for number in range(objects):
        for _ in range(20):
            actor = _write_actor(rng, arena, leave and number == 0)
            taken = {colour for other in actors for colour in _colours(other)}
            if taken & _colours(actor):
                continue
            if occlusion or not any(_meet(actor, other, arena.duration_s) for other in actors):
                actors.append(actor)
                break
    return tuple(actors)


def _write_actor(rng: np.random.Generator, arena: Arena, leave: bool) -> Actor:
    look = draw_look(rng, tuple(KINDS), tuple(TEXTURES))
    side = min(arena.width, arena.height)
    drift = np.abs(arena.camera) * arena.duration_s
    radius = float(rng.uniform(0.09, 0.17)) * side
    low = np.minimum(radius * 1.1 + drift, (arena.width / 2, arena.height / 2))
    x, y = rng.uniform(low, np.maximum((arena.width, arena.height) - low, low + 1e-3))
    actor = Actor(look, Pose(float(x), float(y), radius, float(rng.uniform(0, 2 * np.pi))), ())
    leaves_at = float(rng.uniform(0.15, 0.45)) * arena.duration_s if leave else None
    time_s = 0.0
    while time_s < arena.duration_s - 1e-6:
        if leaves_at is not None and time_s >= leaves_at:
            acts, leaves_at = (*actor.acts, *_leave(rng, arena, actor, time_s)), None
        elif actor.acts and arena.duration_s - time_s < MIN_ACT_S:  # too little is left for another act
            acts = (*actor.acts[:-1], replace(actor.acts[-1], end_s=arena.duration_s))
        else:
            acts = (*actor.acts, _act(rng, arena, actor, time_s))
        actor = replace(actor, acts=acts)
        time_s = actor.acts[-1].end_s
    return actor


def _act(rng: np.random.Generator, arena: Arena, actor: Actor, time_s: float) -> Act:
    """One more act, different from the last, at whose end the shape is still in the frame."""
    left = arena.duration_s - time_s
    length = float(rng.uniform(MIN_ACT_S, 2.2))
    length = left if left - length < MIN_ACT_S else length
    length = min(round(length * 24) / 24, left)
    last = actor.acts[-1].motion if actor.acts else ""
    pose, colour, _, _ = actor.at(time_s)
    for _ in range(24):
        act = _candidate(rng, arena, actor.look, colour, time_s, length)
        end = advance(pose, act, length)
        if act.motion == last or not arena.holds(end, time_s + length):
            continue
        if 0.07 <= end.radius / min(arena.width, arena.height) <= 0.22:
            return act
    still = Act("still", time_s, time_s + length)
    return still if last != "still" else _recolour(rng, colour, time_s, length)


def _candidate(rng: np.random.Generator, arena: Arena, look: Look, colour: str, time_s: float, length: float) -> Act:
    end_s = time_s + length
    turn = ["turn"] * 2 if look.kind in TURNING_KINDS else []
    kinds = ["move"] * 7 + ["size"] * 2 + ["still"] * 2 + ["colour"] + turn
    kind = kinds[rng.integers(len(kinds))]
    if kind == "move":
        name = list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
        speed = float(rng.uniform(*_SPEEDS)) * arena.diagonal
        return Act(f"moving {name}", time_s, end_s, dx=DIRECTIONS[name][0] * speed, dy=DIRECTIONS[name][1] * speed)
    if kind == "size":
        growth = float(rng.choice([-1, 1]) * rng.uniform(0.22, 0.45))
        return Act("growing" if growth > 0 else "shrinking", time_s, end_s, growth=growth)
    if kind == "turn":
        return Act("turning", time_s, end_s, spin=float(rng.choice([-1, 1]) * rng.uniform(0.8, 2.0)))
    if kind == "colour":
        return _recolour(rng, colour, time_s, length)
    return Act("still", time_s, end_s)


def _recolour(rng: np.random.Generator, colour: str, time_s: float, length: float) -> Act:
    others = [name for name in COLOURS if name != colour]
    return Act("changing colour", time_s, time_s + length, colour=others[rng.integers(len(others))])


def _leave(rng: np.random.Generator, arena: Arena, actor: Actor, time_s: float) -> tuple[Act, ...]:
    """Out by the nearest side, away for a while, and back in by the same side while time allows."""
    pose = actor.at(time_s)[0]
    end = arena.duration_s
    x, y = pose.x - arena.camera[0] * time_s, pose.y - arena.camera[1] * time_s
    ways = {"left": x, "right": arena.width - x, "up": y, "down": arena.height - y}
    last = actor.acts[-1].motion if actor.acts else ""
    name = min((way for way in ways if way not in last), key=lambda way: ways[way])
    dx, dy = DIRECTIONS[name]
    speed = float(rng.uniform(0.18, 0.26)) * arena.diagonal
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}[name]
    out_s = round((ways[name] + pose.radius * 1.1) / speed * 24) / 24
    away_s = round(float(rng.uniform(MIN_ABSENT_S + 0.3, MIN_ABSENT_S + 1.0)) * 24) / 24
    back_s = round((ways[name] + pose.radius * 1.1) / speed * 24) / 24
    camera = arena.camera  # out of sight it keeps up with the camera, so that it comes back by the side it left
    go = Act(f"moving {name}", time_s, min(time_s + out_s, end), camera[0] + dx * speed, camera[1] + dy * speed)
    if go.end_s >= end:
        return (go,)
    away = Act("absent", go.end_s, min(go.end_s + away_s, end), *camera)
    if end - away.end_s < back_s + 0.1:
        return go, replace(away, end_s=end)
    back = Act(f"moving {opposite}", away.end_s, away.end_s + back_s, camera[0] - dx * speed, camera[1] - dy * speed)
    return go, away, back


def _colours(actor: Actor) -> set[str]:
    return {actor.look.colour} | {act.colour for act in actor.acts if act.colour is not None}


def _meet(a: Actor, b: Actor, duration_s: float) -> bool:
    for time_s in np.arange(0, duration_s + 1e-6, 0.125):
        one, two = a.at(float(time_s))[0], b.at(float(time_s))[0]
        if np.hypot(one.x - two.x, one.y - two.y) < one.radius + two.radius:
            return True
    return False
