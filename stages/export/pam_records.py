"""From samples to PAM's records, one for each caption that can be one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from prompts.pam import IMAGE_MARK, user_text
from schemas.base import Box
from schemas.geometry import FrameMask, Rle
from schemas.sample import Sample, SampleCaption, SampleRegion
from stages.chunk.streaming import event_frames
from stages.export.pam_geometry import ENOUGH_POINTS, sample_points, xywh
from stages.export.pam_text import RecordId, explain_answer

PromptKind = Literal["box", "point", "boxNpoint"]
_RESERVED = (IMAGE_MARK, "<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Exportable:
    """A caption as a PAM record without its paths; `reason` says why it cannot be one.

    `frames` are source frame indices (empty for images), `record` holds all keys but `image`, `image_root`, `frames`.
    """

    region: SampleRegion
    caption: SampleCaption
    frames: list[int] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


def exportables(sample: Sample, prompt: PromptKind, num_points: int) -> Iterator[Exportable]:
    """Every caption of a sample, as record or with the reason why not.

    A stream ends at its first event that cannot be a record (those after it are `chain_broken`), since what they tell
    follows on from an answer that nobody could learn. An event from which the target is absent has nothing to prompt
    with and is left out alone: its text is the history of the next.
    """
    for region in sample.regions:
        broken: set[str] = set()
        for caption in sorted(region.captions, key=lambda caption: caption.event_index):
            found = _exportable(sample, region, caption, prompt, num_points)
            if caption.task == "stream" and caption.language in broken:
                found = Exportable(region, caption, reason="chain_broken")
            if caption.task == "stream" and found.reason not in (None, "target_absent"):
                broken.add(caption.language)
            yield found


def _exportable(
    sample: Sample, region: SampleRegion, caption: SampleCaption, prompt: PromptKind, num_points: int
) -> Exportable:
    answer, history = answer_of(caption), _history(region, caption)
    if not answer:
        return Exportable(region, caption, reason="no_answer")
    if any(mark in text for mark in _RESERVED for text in (answer, history or "")):
        return Exportable(region, caption, reason="reserved_token")
    video = caption.task in ("video", "stream")
    if video != (sample.media.kind == "video"):
        return Exportable(region, caption, reason="task_of_other_kind")
    where = _on_frames(sample, region, caption) if video else ([], region.box, region.mask)
    if where is None:
        return Exportable(region, caption, reason="target_absent")
    frames, box, mask = where
    visual = _visual(sample, region, box, mask, prompt, num_points)
    if isinstance(visual, str):
        return Exportable(region, caption, reason=visual)
    turns = [
        {"from": "human", "value": user_text(caption.task, caption.language, history)},
        {"from": "gpt", "value": answer},
    ]
    name = RecordId(region.region_key.hex(), caption.task, caption.language, caption.event_index)
    record = {"id": str(name), "type": sample.media.kind, "conversations": turns, **visual}
    return Exportable(region, caption, frames, record)


def answer_of(caption: SampleCaption) -> str:
    """The text that PAM shall learn to answer."""
    if caption.task == "label":
        return (caption.label or caption.text).strip()
    if caption.task == "explain":
        joined = explain_answer(caption.language, caption.label, caption.definition, caption.function)
        return joined or caption.text.strip()
    return caption.text.strip()


def _history(region: SampleRegion, caption: SampleCaption) -> str | None:
    """The text of the event before, which is a kept one: packing cuts chains at their first gap."""
    if caption.task != "stream" or caption.event_index == 0:
        return None
    before = (
        other
        for other in region.captions
        if (other.task, other.language) == ("stream", caption.language) and other.event_index == caption.event_index - 1
    )
    return next(before).text.strip()


def _on_frames(
    sample: Sample, region: SampleRegion, caption: SampleCaption
) -> tuple[list[int], Box | None, Rle | None] | None:
    """Frames, box and mask for a clip or an event: the prompt is on the first listed frame, so the target is there."""
    first, last = 0, sample.media.num_frames - 1
    if caption.event_index >= 0:
        event = next((each for each in region.events if each.event_index == caption.event_index), None)
        if event is None:
            return None
        first, last = event.start_frame, event.end_frame
    masklet = region.frames or [_prompt_frame(region)]
    found = event_frames(masklet, first, last)
    return None if found is None else (found.indices, found.box, found.prompt.mask)


def _prompt_frame(region: SampleRegion) -> FrameMask:
    return FrameMask(
        frame_index=region.frame_index, time_s=region.time_s, visible=True, box=region.box, mask=region.mask
    )


def _visual(
    sample: Sample, region: SampleRegion, box: Box | None, mask: Rle | None, prompt: PromptKind, num_points: int
) -> dict[str, Any] | str:
    """`bbox`, `points` and `labels`, unused ones null, or the reason why there are none."""
    video = sample.media.kind == "video"
    bounds = points = None
    if prompt != "point":
        bounds = None if box is None else xywh(box, sample.media.width, sample.media.height)
        if bounds is None:
            return "no_box"
    if prompt != "box":
        least = ENOUGH_POINTS[sample.media.kind]
        points = None if mask is None else sample_points(mask, max(num_points, least), region.region_key, least)
        if not points:
            return "no_mask"
        if 1 < len(points) < least:
            points = points[:1]
    labels = None if points is None else [1] * len(points)
    found = {"bbox": bounds, "points": points, "labels": labels}
    return {name: [value] if video and value is not None else value for name, value in found.items()}
