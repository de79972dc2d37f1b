"""The units of distil: what one caption needs to know of its region."""

from __future__ import annotations

from schemas.base import Box, Key, Record, Status
from schemas.caption import NO_EVENT, Language, Task
from schemas.geometry import FrameMask, Rle
from schemas.media import MediaKind
from schemas.region import Hint
from schemas.sample import SampleEvent


class EarlierCaption(Record):
    """The caption that an earlier event of the same chain already has."""

    event_index: int
    text: str


class CaptionUnit(Record):
    """One caption to be made. `mask` and `box` (xyxy) are the refined ones, on the prompt frame.

    `attempts` counts what earlier runs tried in vain.
    """

    caption_key: Key
    region_key: Key
    media_key: Key
    task: Task
    language: Language
    event_index: int = NO_EVENT
    uri: str
    kind: MediaKind
    source: str
    label: str | None = None
    hints: list[Hint] = []
    width: int
    height: int
    frame_index: int = 0
    mask: Rle | None = None
    box: Box | None = None
    fps: float | None = None
    attempts: int | None = None
    input_digest: Key


class VideoUnit(CaptionUnit):
    """The caption of a whole masklet; `frames` are all its segments, `events` its spans where it was chunked."""

    frames: list[FrameMask] | None = None
    events: list[SampleEvent] | None = None
    duration_s: float | None = None


class StreamUnit(CaptionUnit):
    """The caption of one event of a masklet; frames inclusive at both ends.

    `earlier` are captions that the chain already has, where a chain is taken up again in its middle.
    """

    frames: list[FrameMask] | None = None
    num_events: int
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    visible_share: float
    absent: bool
    motion: str | None = None
    earlier: list[EarlierCaption] | None = None


class TranslationUnit(CaptionUnit):
    """A caption in another language out of the English one, whose status and parts are the unit's input.

    `source_text` is the whole English caption; of an explanation the other three hold its parts.
    """

    source_status: Status
    source_text: str | None = None
    source_label: str | None = None
    source_definition: str | None = None
    source_function: str | None = None

    def source_parts(self) -> dict[str, str]:
        """The English text by the answer field that its translation goes into."""
        parts = {
            "caption": self.source_text,
            "label": self.source_label,
            "definition": self.source_definition,
            "function": self.source_function,
        }
        return {name: text for name, text in parts.items() if text is not None}
