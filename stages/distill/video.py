"""Captions of masklets: the whole clip, and event by event with history."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from schemas.caption import Caption
from stages.base import UnitError, groups
from stages.distill.clips import clip_context, clip_pictures, clip_subject
from stages.distill.stage import DistillStage
from stages.distill.units import CaptionUnit, StreamUnit, VideoUnit
from stages.teachers.protocol import Picture, TeacherRequest

BLOCKED = "earlier_event_failed"


class VideoStage(DistillStage):
    """One caption a masklet, from its storyboard."""

    unit: ClassVar[type[CaptionUnit]] = VideoUnit

    def _requests(self, units: Sequence[CaptionUnit]) -> list[TeacherRequest | UnitError]:
        return [self._made_or_error(unit, ()) for unit in units]

    def _requests_through(self, unit: CaptionUnit, views: Sequence[str]) -> TeacherRequest | None:
        """A refused clip has no other view: a frame of it would be another question."""
        return None

    def _made_or_error(self, unit: CaptionUnit, history: Sequence[str]) -> TeacherRequest | UnitError:
        assert isinstance(unit, VideoUnit | StreamUnit)
        try:
            return self._clip_request(unit, history)
        except UnitError as error:
            return error

    def _clip_request(self, unit: VideoUnit | StreamUnit, history: Sequence[str]) -> TeacherRequest:
        recipe = self.recipe
        sees = self.source.sees
        subject, pictures, times = None, list[Picture](), list[float]()
        if sees == "subject":
            subject = clip_subject(unit, self._videos, history)
        else:
            pictures, times = clip_pictures(unit, self._videos, recipe.views, recipe, sees)
        context = {**recipe.source_context(unit.label, unit.hints), **clip_context(unit, times, history)}
        return recipe.request(unit.media_key, pictures, context, subject, recipe.views)


class StreamStage(VideoStage):
    """The captions of a chain, (region, language), in order: each request carries the last captions as history.

    After a failure the later events are `blocked`; a chain that was taken up again gets its earlier captions with its
    units. Chains run side by side without a thread each.
    """

    unit: ClassVar[type[CaptionUnit]] = StreamUnit
    group_by: ClassVar[tuple[str, ...]] = ("region_key", "language")

    def patience_s(self, units: pa.Table) -> float:
        """A chain is done when its last event is: each may take as long as one question."""
        return super().patience_s(units) * max(map(len, groups(units, self.group_by)), default=1)

    async def captions(self, units: Sequence[CaptionUnit]) -> list[Caption]:
        """The captions of one chain, in the order of its events."""
        chain = sorted((unit for unit in units if isinstance(unit, StreamUnit)), key=lambda unit: unit.event_index)
        told = {caption.event_index: caption.text for unit in chain for caption in unit.earlier or ()}
        rows: list[Caption] = []
        failed: int | None = None
        for unit in chain:
            if failed is not None:
                rows.append(self._blocked(unit, failed))
                continue
            row = await self._event(unit, told)
            rows.append(row)
            if row.status == "ok" and row.text is not None:
                told[unit.event_index] = row.text
            else:
                failed = unit.event_index
        return rows

    async def _event(self, unit: StreamUnit, told: dict[int, str]) -> Caption:
        missing = [index for index in range(unit.event_index) if index not in told]
        history = history_for(unit.event_index, told, self.recipe.history)
        if self.recipe.history and missing and missing[-1] >= unit.event_index - self.recipe.history:
            return self.failed(unit, "no_history", f"event {missing[-1]} of this chain has no caption to go on from")
        async with self._rendering:
            request = await asyncio.to_thread(self._made_or_error, unit, history)
        return await self._caption(unit, request, "\n".join(history) or None)

    def _blocked(self, unit: StreamUnit, failed: int) -> Caption:
        made = self._made(unit, self.recipe.views)
        return Caption(
            **made, status="blocked", reason=BLOCKED, message=f"event {failed} of this chain failed", attempts=0
        )


def history_for(event_index: int, told: dict[int, str], depth: int) -> list[str]:
    """The captions of the `depth` events before an event, the latest last."""
    return [told[index] for index in range(max(0, event_index - depth), event_index) if index in told]
