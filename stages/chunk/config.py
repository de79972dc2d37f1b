"""How masklets are cut into events."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.base import PathStr, Record

ChunkBackend = Literal["motion", "shots", "uniform", "teacher", "file"]


class MotionConfig(Record):
    """Change points of the masklet's trajectory, scale, turn, look and visibility.

    Times are in seconds, distances in fractions of the frame's diagonal. `pixels` reads the video, so that camera
    motion is removed and changes of colour are seen; without it only the masks speak. `penalty` is what one more event
    must gain, in units of squared noise; the noise is measured in each masklet and is at least the floors here.
    `move`, `scale` (natural logarithm of size), `turn` (radians) and `colour` (CIE Lab) are the least changes over an
    event that earn a motion word.
    """

    pixels: bool = True
    side: int = Field(default=192, ge=48, le=1024)
    max_fps: float = Field(default=8.0, gt=0)
    max_samples: int = Field(default=600, ge=16)
    penalty: float = Field(default=40.0, gt=0)
    noise_move: float = Field(default=0.0015, gt=0)
    noise_scale: float = Field(default=0.006, gt=0)
    noise_turn: float = Field(default=0.03, gt=0)
    noise_colour: float = Field(default=1.5, gt=0)
    move: float = Field(default=0.03, gt=0)
    scale: float = Field(default=0.12, gt=0)
    turn: float = Field(default=0.5, gt=0)
    colour: float = Field(default=16.0, gt=0)


class ShotsConfig(Record):
    """PySceneDetect's adaptive detector: a cut is a frame whose content differs `threshold` times as much as its
    neighbours' do."""

    threshold: float = Field(default=3.0, gt=0)


class ChunkConfig(Record):
    """Back end and rules for the spans that it proposes.

    An event lasts at least `min_s` (shorter ones join a neighbour) and at most `max_s` (longer ones are cut evenly).
    The target is absent where its mask is gone for `min_absent_s`. `uniform_s` is the length of a uniform event.
    `file` is a JSONL of spans made elsewhere: `{"source_id" or "region_key", "spans": [[start_s, end_s], ...]}`.
    """

    backend: ChunkBackend = "motion"
    min_s: float = Field(default=0.6, gt=0)
    max_s: float = Field(default=30.0, gt=0)
    min_absent_s: float = Field(default=0.4, gt=0)
    merge: bool = True
    uniform_s: float = Field(default=4.0, gt=0)
    file: PathStr | None = None
    motion: MotionConfig = MotionConfig()
    shots: ShotsConfig = ShotsConfig()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.max_s < 2 * self.min_s:
            raise ValueError(f"chunk.max_s ({self.max_s}) must be at least twice chunk.min_s ({self.min_s})")
        if (self.backend == "file") != (self.file is not None):
            raise ValueError("chunk.file names the spans of the back end 'file', and is for that back end alone")
        return self
