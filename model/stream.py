"""Streaming captions of a trained PAM: clip after clip, each told what was said before, the target carried along.

The published notebook carries the bounding box of the last mask and fails when the target is gone. Here the mask is
carried; where it is empty the old tracker goes on through the next clip until it sees the target again, and a clip
without it is `lost`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from model.inference import PAM, extent
from model.vision import Prompt, Taps, Tracker, shown_frames
from schemas.base import Record
from schemas.caption import Language
from schemas.geometry import Rle
from stages import masks


class StreamConfig(Record):
    """`sample_frames` of the video are used (PAM: 96; None: all), in clips of `clip_frames` (None: the model's own,
    PAM: 32).

    `history_depth` previous captions go into the prompt (PAM: 1); `carry` is what prompts the next clip: the last
    `mask`, or its `box` as in the published notebook.
    """

    sample_frames: int | None = Field(default=96, ge=1)
    clip_frames: int | None = Field(default=None, ge=1)
    history_depth: int = Field(default=1, ge=0)
    carry: Literal["mask", "box"] = "mask"
    language: Language = "en"


@dataclass(frozen=True)
class Segment:
    """One clip of the stream: the video's frames it covers, its caption (None when `lost`), a mask or None a frame."""

    frames: list[int]
    text: str | None
    lost: bool
    masks: list[Rle | None]


def stream(pam: PAM, frames: Any, prompt: Prompt, config: StreamConfig | None = None) -> Iterator[Segment]:
    """Yields the segments of a video as they are done; the prompt is on its first frame.

    `frames` as in `PAM.describe_clip`. Memory does not grow with the video's length. Raises ValueError for a prompt
    that does not lie on the picture.
    """
    config = config or StreamConfig()
    count, size = extent(frames)
    prompt.check(size)
    length = config.clip_frames or pam.pam.config.stream_frames
    used = np.linspace(0, count - 1, min(config.sample_frames or count, count)).astype(int).tolist()
    said: list[str] = []
    carried: Prompt | None = prompt
    tracker: Tracker | None = None
    for start in range(0, len(used), length):
        clip = used[start : start + length]
        run = _Clip(pam, clip, size, config)
        run.follow(frames, carried, tracker)
        text = run.caption(" ".join(said[-config.history_depth :]) if said and config.history_depth else None)
        if text is not None:
            said.append(text)
        yield Segment(clip, text, text is None, run.masks)
        carried, tracker = run.handover(), run.tracker


class _Clip:
    """One clip of a stream: tracks the target, keeps the taps of the frames to be shown."""

    def __init__(self, pam: PAM, clip: list[int], size: tuple[int, int], config: StreamConfig) -> None:
        self.pam, self.clip, self.size, self.config = pam, clip, size, config
        self.masks: list[Rle | None] = []
        self.taps: dict[int, Taps] = {}
        self.first: int | None = None
        self.tracker: Tracker | None = None

    def follow(self, frames: Any, carried: Prompt | None, old: Tracker | None) -> None:
        """Runs over the frames. Without a carried prompt the old tracker looks until it sees the target again."""
        for at, features in enumerate(self.pam.frame_features(frames, self.clip)):
            if carried is None and self.first is None:
                if old is None:
                    raise RuntimeError("a stream starts with a prompt")
                seen = self.pam.rle(old.step(features), self.size)[0]
                if seen is None:
                    self.masks.append(None)
                    self.tracker = old
                    continue
                carried = self._prompt(seen)
            if self.first is None:
                self.first = at
                self.tracker = self.pam.sam.tracker([_given(carried)], [self.size])
            taps = _given(self.tracker).step(features)
            self.masks += self.pam.rle(taps, self.size)
            self._keep(at, taps)

    def _keep(self, at: int, taps: Taps) -> None:
        first = self.first or 0
        wanted = shown_frames(len(self.clip) - first, self.pam.pam.config.video_frames)
        if at - first in wanted:
            self.taps[at - first] = taps

    def caption(self, history: str | None) -> str | None:
        """The clip's words, or None when the target is nowhere in it."""
        if self.first is None or not any(self.masks):
            return None
        wanted = shown_frames(len(self.clip) - self.first, self.pam.pam.config.video_frames)
        return self.pam.caption_clip([self.taps[at] for at in wanted], self.config.language, history)

    def handover(self) -> Prompt | None:
        """What prompts the next clip; None when the target is not on the last frame."""
        last = self.masks[-1]
        return None if last is None else self._prompt(last)

    def _prompt(self, mask: Rle) -> Prompt:
        if self.config.carry == "box":
            return Prompt(box=masks.box_of(mask))
        return Prompt(mask=masks.decode(mask))


def _given(value: Any) -> Any:
    if value is None:
        raise RuntimeError("a clip is followed before it is asked for")
    return value
