"""Events: the spans into which a masklet is cut for streaming captions."""

from __future__ import annotations

from typing import ClassVar

from schemas.base import Key, Row


class Event(Row):
    """One span of a masklet, frames inclusive at both ends. `event_key` = H(region key, event index).

    `motion` is the measured motion of the target in words (`moving right`, `still`, `turning`, `absent`, ...), camera
    motion removed; `displacement` is its path in fractions of the frame's diagonal.
    """

    key_field: ClassVar[str] = "event_key"
    content: ClassVar[tuple[str, ...]] = (
        "region_key", "event_index", "start_frame", "end_frame", "absent", "motion", "status", "reason",
    )  # fmt: skip

    event_key: Key
    region_key: Key
    media_key: Key
    event_index: int
    num_events: int
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    visible_share: float
    absent: bool = False
    motion: str | None = None
    displacement: float | None = None
    backend: str
    message: str | None = None
