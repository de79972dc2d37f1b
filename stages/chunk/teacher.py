"""The teacher back end: a vision-language model proposes spans from a time-stamped contact sheet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from prompts import load
from schemas.base import Record
from schemas.geometry import Rle
from stages.base import Funds, UnitError, all_or_error
from stages.chunk.config import ChunkConfig
from stages.chunk.stage import ChunkStage, Masked
from stages.distill.asking import ask
from stages.masks import decode
from stages.media.video import open_video
from stages.teachers.config import TeacherConfig
from stages.teachers.protocol import Message, Teacher, TeacherRequest
from stages.teachers.source import TeacherSource
from stages.views.config import ViewConfig
from stages.views.encode import to_picture
from stages.views.storyboard import ClipViewConfig, contact_sheet, highlighted, uniform

PROMPTS = Path(__file__).parent / "prompts"
SHEET_FRAMES = 24
SHEET_COLUMNS = 6
CELL_SIDE = 240


class ProposedSpan(Record):
    """One event, in seconds of the video."""

    start_s: float = Field(ge=0, le=100_000)
    end_s: float = Field(ge=0, le=100_000)


class SpansAnswer(Record):
    """The teacher's events in order."""

    events: list[ProposedSpan] = Field(min_length=1, max_length=48)


class TeacherChunkStage(ChunkStage):
    """Chunks by a teacher's spans, mended and told as all spans are; a unit without an answer fails by its outcome.

    The units of a batch are asked side by side on one event loop; replies go through the run's ledger, so that an
    answer that was paid for is not bought again.
    """

    asks: bool = True

    def __init__(self, config: ChunkConfig, teacher: TeacherConfig, source: TeacherSource) -> None:
        if source.sees == "subject":
            raise ValueError(
                "chunk backend 'teacher' needs a teacher that sees pictures: set teacher.backend to openai or vllm"
            )
        super().__init__(config)
        self._teacher_config, self._source = teacher, source
        self._prompt = load("spans.en", [PROMPTS])
        self._answers: dict[bytes, list[tuple[float, float]] | UnitError] = {}
        self._teacher: Teacher

    def settings(self) -> dict[str, Any]:
        sheet = {"frames": SHEET_FRAMES, "columns": SHEET_COLUMNS, "side": CELL_SIDE}
        asked = {"teacher": self._teacher_config.settings(), "prompt": self._prompt.hash.hex(), "sheet": sheet}
        return super().settings() | {"asked": asked}

    def fund(self, funds: Funds) -> None:
        self._source.fund(funds)

    def share(self, workers: int) -> None:
        self._source.share(workers)

    def open(self) -> None:
        super().open()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="chunk-teacher", daemon=True).start()
        self._teacher = self._source.make()
        asyncio.run_coroutine_threadsafe(self._teacher.start(), self._loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._teacher.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        super().close()

    def prepare(self, units: Sequence[Masked]) -> None:
        """Asks for the spans of all these units."""
        self._answers = asyncio.run_coroutine_threadsafe(self._ask_all(units), self._loop).result()

    def spans_of(self, unit: Mapping[str, Any]) -> list[tuple[float, float]]:
        answer = self._answers[unit["region_key"]]
        if isinstance(answer, UnitError):
            raise answer
        return answer

    async def _ask_all(self, units: Sequence[Masked]) -> dict[bytes, list[tuple[float, float]] | UnitError]:
        slots = asyncio.Semaphore(self._teacher_config.limits.in_flight)
        drawing = asyncio.Semaphore(1)

        async def one(unit: Masked) -> list[tuple[float, float]] | UnitError:
            async with slots:
                try:
                    async with drawing:
                        request = await asyncio.to_thread(self._request, unit)
                    return await self._answer(request)
                except UnitError as error:
                    return error

        answers = await all_or_error(one(unit) for unit in units)
        return {unit.fields["region_key"]: answer for unit, answer in zip(units, answers, strict=True)}

    async def _answer(self, request: TeacherRequest) -> list[tuple[float, float]]:
        async def no_other_view() -> None:
            return None

        done = await ask(self._teacher, request, self._teacher_config.retry, self._prompt.repair, no_other_view)
        if done.reply.outcome != "answer":
            raise UnitError(done.reply.outcome, done.reply.message or "the teacher proposed no spans")
        answer = SpansAnswer.model_validate_json(done.reply.text or "")
        return [(span.start_s, span.end_s) for span in answer.events]

    def _request(self, unit: Masked) -> TeacherRequest:
        """The question with its contact sheet: the masklet's frames, uniform, the target outlined."""
        chosen = uniform(unit.frames, SHEET_FRAMES)
        video = open_video(unit.fields["uri"], unit.fields["fps"])
        try:
            frames = list(video.frames([frame["frame_index"] for frame in chosen]))
        except IndexError as error:
            raise UnitError("frame_out_of_range", str(error)) from error
        finally:
            video.close()
        coded = [frame["mask"] if frame["visible"] else None for frame in chosen]
        masks = [None if mask is None else decode(Rle(**mask)) for mask in coded]
        if any(mask is not None and mask.shape != frames[0].shape[:2] for mask in masks):
            raise UnitError("mask_size", f"a mask is not of the frame's size {frames[0].shape[:2]} (height, width)")
        shown = highlighted(frames, masks, CELL_SIDE, ClipViewConfig(line_share=0.01))
        sheet = contact_sheet(shown, [frame["time_s"] for frame in chosen], SHEET_COLUMNS, CELL_SIDE)
        picture = to_picture(sheet, ViewConfig(), encoded=self._source.sees == "encoded", fitted=False)
        context = {
            "label": unit.fields["label"],
            "start_s": unit.start_s,
            "end_s": unit.end_s,
            "min_s": self.config.min_s,
        }
        turns = self._prompt.render(context)
        decoding = self._teacher_config.decoding
        return TeacherRequest(
            model=self._teacher_config.identity,
            messages=(Message("system", turns.system), Message("user", turns.user, (picture,))),
            answer=SpansAnswer,
            decoding=decoding,
            max_tokens=decoding.max_tokens or self._prompt.max_tokens,
            detail=self._teacher_config.detail,
            options=self._teacher_config.request_options(),
            tags={"task": "spans", "media": unit.fields["media_key"].hex()},
        )
