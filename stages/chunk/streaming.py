"""A streaming chain's logic, free of teachers and files: frames, prompt, history, blocking, how far it goes out.

A chain is one region in one language, its events in order. Facts about PAM's records are from its public training code
(github.com/Perceive-Anything/PAM, `llava/train/train.py`, `llava_arch.py`): at least 16 frames, 32 listed in the
released files, the prompt on the first listed frame, the previous caption in the prompt's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prompts.pam import NO_HISTORY
from schemas.base import Box, Status
from schemas.caption import Language
from schemas.geometry import FrameMask

LISTED_FRAMES = 32
LEAST_FRAMES = 16


@dataclass(frozen=True)
class EventFrames:
    """The frames of one event's record: source indices in order (the first is the prompt's; repeats pad a short event).

    `prompt` is the target on the first of them, `box` its xyxy box in pixels.
    """

    indices: list[int]
    prompt: FrameMask
    box: Box


def event_frames(
    frames: Sequence[FrameMask],
    start_frame: int,
    end_frame: int,
    count: int = LISTED_FRAMES,
    least: int = LEAST_FRAMES,
    available: Sequence[int] | None = None,
) -> EventFrames | None:
    """The frames to list for an event, frames inclusive at both ends; None when the target is never visible in it.

    The first listed frame is the first on which the target has a mask and a box, so that the prompt fits; the others
    are uniform from there to the event's end, at most `count`. With fewer than `least` frames there, the nearest are
    repeated up to `least`. `available` restricts the listing to these source frames (those of a shard).
    """
    inside = sorted((f for f in frames if start_frame <= f.frame_index <= end_frame), key=lambda f: f.frame_index)
    allowed = None if available is None else set(available)
    prompt = next((f for f in inside if _shows(f) and (allowed is None or f.frame_index in allowed)), None)
    if prompt is None or prompt.box is None:
        return None
    span = range(prompt.frame_index, end_frame + 1)
    listed = list(span) if allowed is None else [index for index in span if index in allowed]
    wanted = max(least, min(count, len(listed)))
    places = np.round(np.linspace(0, len(listed) - 1, wanted)).astype(int)
    return EventFrames([listed[int(place)] for place in places], prompt, prompt.box)


def history_before(event_index: int, told: Mapping[int, str], depth: int = 1) -> list[str]:
    """The texts of the `depth` events before one, the latest last. Raises `KeyError` naming one that has no text."""
    return [told[index] for index in range(max(0, event_index - depth), event_index)]


def history_text(texts: Sequence[str], language: Language) -> str:
    """What stands behind `Previous caption:` in PAM's prompt: the earlier texts, or its word for none."""
    return (" " if language == "en" else "").join(texts) or NO_HISTORY[language]


def chain_statuses(statuses: Sequence[Status | None]) -> list[Status | None]:
    """A chain's statuses (None: not yet asked) with everything behind the first failure `blocked`.

    A link that is still to be asked stays None; what lies behind it cannot have been asked and stays as it is.
    """
    out: list[Status | None] = []
    broken = False
    for status in statuses:
        out.append("blocked" if broken else status)
        broken = broken or status not in ("ok", None)
    return out


def exported_length(kept: Sequence[bool | None]) -> int:
    """How many events of a chain go out: those before the first that is rejected (False) or missing (None).

    Later events speak of a history that would not be in the corpus.
    """
    return next((index for index, keep in enumerate(kept) if not keep), len(kept))


def _shows(frame: FrameMask) -> bool:
    return frame.visible and frame.mask is not None and frame.box is not None
