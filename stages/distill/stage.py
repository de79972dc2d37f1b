"""The stage: units to captions through a teacher."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from schemas.arrow import from_table, to_table
from schemas.caption import Caption
from stages.base import AsyncStage, Funds, Resources, UnitError, all_or_error
from stages.distill.answers import Answer
from stages.distill.asking import Asked, ask
from stages.distill.clips import prompt_frame
from stages.distill.recipe import Recipe
from stages.distill.render import Pixels, image_subject, load_image, teacher_pictures
from stages.distill.units import CaptionUnit
from stages.media.video import VideoCache, video_cache
from stages.teachers.config import TeacherConfig
from stages.teachers.protocol import Teacher, TeacherRequest
from stages.teachers.source import TeacherSource

_RENDERERS = 2
_BATCH_GROUPS = 4096


class DistillStage(AsyncStage):
    """The captions of one task in one language. Every unit comes back as one row.

    Pixels are decoded once a media, at most two media at a time; what waits for the teacher holds only the small
    pictures that it was sent. Subclasses say how a unit becomes a request.
    """

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 1
    table: ClassVar[str] = "captions"
    unit: ClassVar[type[CaptionUnit]] = CaptionUnit
    row: ClassVar[type[Caption]] = Caption
    unit_field: ClassVar[str] = "caption_key"
    group_by: ClassVar[tuple[str, ...]] = ("media_key",)

    def __init__(self, recipe: Recipe, source: TeacherSource, storage_options: Mapping[str, Any] | None = None) -> None:
        self.recipe = recipe
        self.source = source
        self.storage_options = dict(storage_options or {})
        self.in_flight = _groups_in_flight(recipe.teacher)
        self.waits = self.asks = recipe.teacher.backend != "measured"
        if recipe.teacher.backend == "vllm":
            engine = recipe.teacher.engine
            self.resources = Resources(num_cpus=1.0, num_gpus=engine.num_gpus * engine.tensor_parallel_size)
        self.batch_groups = max(16, self.in_flight // 2)
        self.shares_requests = self.asks and recipe.prompt.task == "combined"
        if recipe.teacher.backend == "openai_batch":
            self.most_groups = self.batch_groups
        self._teacher: Teacher
        self._videos: VideoCache

    def settings(self) -> dict[str, Any]:
        return self.recipe.settings()

    def patience_s(self, units: pa.Table) -> float:
        teacher = self.recipe.teacher
        return teacher.batch.longest_s if teacher.backend == "openai_batch" else 0.0

    def fund(self, funds: Funds) -> None:
        self.source.fund(funds)

    def share(self, workers: int) -> None:
        self.source.share(workers)

    async def on_loop_start(self) -> None:
        self._rendering = asyncio.Semaphore(_RENDERERS)
        self._videos = video_cache()
        self._teacher = self.source.make()
        await self._teacher.start()

    async def on_loop_stop(self) -> None:
        await self._teacher.stop()
        self._videos.close()

    async def process_group(self, units: pa.Table) -> pa.Table:
        rows = await self.captions(from_table(units, self.unit))
        return to_table(rows, Caption)

    async def captions(self, units: Sequence[CaptionUnit]) -> list[Caption]:
        """The captions of one group, in the order of its units."""
        async with self._rendering:
            asked = await asyncio.to_thread(self._requests, units)
        return await all_or_error(self._caption(u, r) for u, r in zip(units, asked, strict=True))

    def preview(self, units: Sequence[CaptionUnit]) -> list[TeacherRequest | UnitError]:
        """The first request of every unit as the teacher would get it, or why there is none; asks nobody.

        Units may be of several media. For a chain, only the events whose history is known can be shown.
        """
        videos, self._videos = getattr(self, "_videos", None), video_cache()
        try:
            return [self._requests([unit])[0] for unit in units]
        finally:
            self._videos.close()
            if videos is not None:
                self._videos = videos

    def _requests(self, units: Sequence[CaptionUnit]) -> list[TeacherRequest | UnitError]:
        """One request a unit, or why there is none; the media is decoded once."""
        try:
            pixels = self._pixels(units[0])
        except UnitError as error:
            return [error] * len(units)
        made: list[TeacherRequest | UnitError] = []
        for unit in units:
            try:
                made.append(self._request(unit, pixels, self.recipe.views))
            except UnitError as error:
                made.append(error)
        return made

    def _pixels(self, unit: CaptionUnit) -> Pixels:
        if unit.kind == "video":
            return prompt_frame(self._videos, unit)
        return load_image(unit, self.storage_options)

    def _request(self, unit: CaptionUnit, pixels: Pixels, views: Sequence[str]) -> TeacherRequest:
        recipe = self.recipe
        sees = self.source.sees
        subject = image_subject(unit, pixels) if sees == "subject" else None
        pictures = [] if sees == "subject" else teacher_pictures(unit, pixels, views, recipe.pictures, sees)
        return recipe.request(unit.media_key, pictures, recipe.source_context(unit.label, unit.hints), subject, views)

    async def _caption(
        self, unit: CaptionUnit, request: TeacherRequest | UnitError, history: str | None = None
    ) -> Caption:
        if isinstance(request, UnitError):
            return self.failed(unit, request.reason, request.message)
        recipe = self.recipe
        other = recipe.teacher.retry.other_view
        seen = list(recipe.views)

        async def other_view() -> TeacherRequest | None:
            if self.source.sees == "subject" or other in recipe.views:
                return None
            async with self._rendering:
                again = await asyncio.to_thread(self._requests_through, unit, [other])
            if again is not None:
                seen[:] = [other]
            return again

        def wrong(text: str) -> str | None:
            return self.wrong(unit, recipe.answer.model_validate_json(text))

        done = await ask(self._teacher, request, recipe.teacher.retry, recipe.prompt.repair, other_view, wrong)
        return self.answered(unit, done, seen, history)

    def wrong(self, unit: CaptionUnit, answer: Answer) -> str | None:
        """What is wrong with an answer that is valid by its schema; None where nothing is."""
        return None

    def _requests_through(self, unit: CaptionUnit, views: Sequence[str]) -> TeacherRequest | None:
        """The unit asked through other views; None where these cannot be drawn."""
        try:
            return self._request(unit, self._pixels(unit), views)
        except UnitError:
            return None

    def answered(self, unit: CaptionUnit, done: Asked, views: Sequence[str], history: str | None) -> Caption:
        """The row of a unit whose question is at its end: ok with an answer, else failed by its outcome."""
        reply = done.reply
        made = self._made(unit, views)
        made |= {
            "history": history,
            "outcome": reply.outcome,
            "finish_reason": reply.finish_reason,
            "usage": done.usage,
            "request_digest": done.request.digest,
            "attempts": (unit.attempts or 0) + done.attempts,
            "message": reply.message,
        }
        if reply.outcome != "answer":
            return Caption(**made, status="failed", reason=reply.outcome)
        answer = self.recipe.answer.model_validate_json(reply.text or "")
        parts = answer.parts(unit.task, unit.language)
        return Caption(**made, **parts.model_dump())

    def failed(self, unit: CaptionUnit, reason: str, message: str) -> Caption:
        """The row of a unit about which no question could be asked."""
        made = self._made(unit, self.recipe.views)
        return Caption(**made, status="failed", reason=reason, message=message, attempts=(unit.attempts or 0) + 1)

    def _made(self, unit: CaptionUnit, views: Sequence[str]) -> dict[str, Any]:
        prompt = self.recipe.prompt
        return {
            "caption_key": unit.caption_key,
            "region_key": unit.region_key,
            "media_key": unit.media_key,
            "task": unit.task,
            "language": unit.language,
            "event_index": unit.event_index,
            "input_digest": unit.input_digest,
            "teacher": self.source.name,
            "model": self.source.model,
            "prompt_id": prompt.id,
            "prompt_hash": prompt.hash,
            "views": list(views),
            "decoding": self.recipe.teacher.decoding.model_dump_json(),
        }


def _groups_in_flight(teacher: TeacherConfig) -> int:
    """A batch job fills only if as many questions wait side by side as one file holds."""
    if teacher.backend == "openai_batch":
        return min(teacher.batch.max_requests, _BATCH_GROUPS)
    return teacher.limits.in_flight
