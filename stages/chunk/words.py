"""The words for measured motion, and what they mean."""

from __future__ import annotations

from math import atan2, pi, tau
from typing import Final

DIRECTIONS: Final = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
"""Eighths of the circle, clockwise on the screen from the right."""

MOTIONS: Final = (
    "still",
    *(f"moving {name}" for name in DIRECTIONS),
    "moving about",
    "growing",
    "shrinking",
    "turning",
    "changing colour",
    "leaving",
    "returning",
    "absent",
)
"""All words of `Event.motion`; several are joined by `, `. Directions and sizes are of the picture as seen, with camera
motion removed; `moving about` ends near where it began."""


def direction(dx: float, dy: float) -> str:
    """The direction word of a displacement in pixels (y grows downwards)."""
    return DIRECTIONS[round(atan2(dy, dx) % tau / (pi / 4)) % 8]
