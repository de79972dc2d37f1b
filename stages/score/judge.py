"""Rules 10, 11 and 12: a second teacher looks at the region, or at the texts, and says whether they agree."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from schemas.arrow import from_table, to_table
from schemas.base import Record, Row
from schemas.keys import digest_value
from schemas.yaml import load_yaml
from stages.base import AsyncStage, Funds, UnitError, all_or_error
from stages.distill.answers import BriefAnswer
from stages.distill.render import teacher_pictures
from stages.distill.units import CaptionUnit
from stages.score.base import ScoreRow
from stages.score.pixels import STILL_TASKS, load_frame
from stages.score.target import Sibling
from stages.teachers.config import TeacherConfig
from stages.teachers.protocol import Message, Picture, Teacher, TeacherRequest
from stages.teachers.source import TeacherSource
from stages.views.config import ImageView, ViewConfig
from stages.views.images import view_identity

Question = Literal["two_views", "second_caption", "siblings"]
VERDICT_TOKENS, CAPTION_TOKENS, MOST_SIBLINGS = 32, 256, 6


class JudgeConfig(Record):
    """The second teacher, best another model than the one that wrote the captions, and what it is asked.

    `two_views` (rule 11) shows it the target through each of `views` with the caption; `second_caption` (rule 12) lets
    it caption the target itself and compares; `siblings` (rule 10) lets it read all captions of the region, without a
    picture. Replies go to the run's ledger like any other, and cost money.
    """

    teacher: TeacherConfig
    questions: tuple[Question, ...] = ("two_views", "second_caption", "siblings")
    views: tuple[ImageView, ...] = Field(default=("crop_mask", "full_mask"), min_length=1)
    pictures: ViewConfig = ViewConfig()


class JudgeUnit(CaptionUnit):
    """A caption, its region, and the region's other captions."""

    text: str | None = None
    fps: float | None = None
    siblings: list[Sibling] | None = None


class JudgeScores(ScoreRow):
    """Scores of rules 10, 11 and 12; null where not asked, not applicable (video tasks), or not answered.

    `views_agree` is the share of views through which the second teacher finds that the caption describes the target
    (rule 11, as Sa2VA's two-view check, arXiv 2501.04001); `second_caption_agrees` is 1 where its own caption could be
    of the same object (rule 12, as VideoRefer's reviewer, arXiv 2501.00599, which dropped 60 %); `siblings_agree` is 1
    where the caption contradicts none of its siblings (rule 10).
    """

    views_agree: float | None = None
    second_caption_agrees: int | None = None
    siblings_agree: int | None = None


class Verdict(Record):
    """The second teacher's answer."""

    verdict: Literal["yes", "no"]


class Unanswered(Exception):
    """A question that the second teacher did not answer; the outcome is the row's reason."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class JudgeStage(AsyncStage):
    """Rules 10, 11 and 12; off until `score.judge` names a second teacher."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    group: ClassVar[str] = "judge"
    table: ClassVar[str] = "scores/judge"
    unit: ClassVar[type[Record]] = JudgeUnit
    row: ClassVar[type[Row]] = JudgeScores
    unit_field: ClassVar[str] = "caption_key"
    group_by: ClassVar[tuple[str, ...]] = ("media_key",)
    asks: bool = True

    def __init__(
        self,
        config: JudgeConfig,
        ledger: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        forgive_before: float = 0.0,
    ) -> None:
        if config.teacher.backend == "measured":
            raise ValueError("score.judge.teacher: the measured teacher cannot judge; name a model that sees")
        self.config = config
        self.storage_options = dict(storage_options or {})
        self.source = TeacherSource(config.teacher, ledger, self.storage_options, forgive_before)
        self.in_flight = config.teacher.limits.in_flight
        self._teacher: Teacher

    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "group": self.group,
            "rules": {question: {"version": 1} for question in sorted(config.questions)},
            "prompts": digest_value(_prompts()).hex(),
            "teacher": config.teacher.settings(),
            "views": [view_identity(view) for view in config.views],
            "pictures": config.pictures.model_dump(mode="json"),
        }

    def fund(self, funds: Funds) -> None:
        self.source.fund(funds)

    def share(self, workers: int) -> None:
        self.source.share(workers)

    async def on_loop_start(self) -> None:
        self._rendering = asyncio.Semaphore(2)
        self._teacher = self.source.make()
        await self._teacher.start()

    async def on_loop_stop(self) -> None:
        await self._teacher.stop()

    async def process_group(self, units: pa.Table) -> pa.Table:
        asked = from_table(units, JudgeUnit)
        frames: dict[tuple[str, int], NDArray[np.uint8] | UnitError] = {}
        async with self._rendering:
            for unit in asked:
                place = (unit.uri, unit.frame_index)
                if place not in frames and unit.task in STILL_TASKS:
                    frames[place] = await asyncio.to_thread(self._frame, unit)
        rows = await all_or_error(self._row(u, frames.get((u.uri, u.frame_index))) for u in asked)
        return to_table(rows, JudgeScores)

    def _frame(self, unit: JudgeUnit) -> NDArray[np.uint8] | UnitError:
        try:
            return load_frame(unit.uri, unit.kind, unit.frame_index, unit.fps, self.storage_options)
        except UnitError as error:
            return error

    async def _row(self, unit: JudgeUnit, frame: NDArray[np.uint8] | UnitError | None) -> JudgeScores:
        made = {"caption_key": unit.caption_key, "region_key": unit.region_key, "input_digest": unit.input_digest}
        if not unit.text or unit.task not in STILL_TASKS or frame is None:
            return JudgeScores(**made)
        if isinstance(frame, UnitError):
            return JudgeScores(**made, status="failed", reason=frame.reason)
        scores: dict[str, Any] = {}
        try:
            if "two_views" in self.config.questions:
                scores["views_agree"] = await self._two_views(unit, unit.text, frame)
            if "second_caption" in self.config.questions:
                scores["second_caption_agrees"] = await self._second_caption(unit, unit.text, frame)
            if "siblings" in self.config.questions:
                scores["siblings_agree"] = await self._siblings(unit, unit.text)
        except UnitError as error:
            return JudgeScores(**made, **scores, status="failed", reason=error.reason)
        except Unanswered as error:
            return JudgeScores(**made, **scores, status="failed", reason=error.outcome)
        return JudgeScores(**made, **scores)

    async def _two_views(self, unit: JudgeUnit, text: str, frame: NDArray[np.uint8]) -> float:
        said = []
        for view in self.config.views:
            words = _prompts()["looks"].format(how=_prompts()["how"][view], text=text)
            said.append(await self._verdict(unit, words, self._pictures(unit, frame, view)))
        return sum(said) / len(said)

    async def _second_caption(self, unit: JudgeUnit, text: str, frame: NDArray[np.uint8]) -> int:
        view = self.config.views[0]
        words = _prompts()["describe"].format(how=_prompts()["how"][view])
        reply = await self._ask(unit, words, self._pictures(unit, frame, view), BriefAnswer, CAPTION_TOKENS)
        other = BriefAnswer.model_validate_json(reply).caption
        return await self._verdict(unit, _prompts()["same"].format(text=text, other=other), ())

    async def _siblings(self, unit: JudgeUnit, text: str) -> int | None:
        others = [
            sibling.text
            for sibling in unit.siblings or ()
            if sibling.text and sibling.language == unit.language and sibling.task != unit.task
        ]
        if not others:
            return None
        listed = "\n".join(f"- {other}" for other in others[:MOST_SIBLINGS])
        return await self._verdict(unit, _prompts()["agree"].format(text=text, others=listed), ())

    def _pictures(self, unit: JudgeUnit, frame: NDArray[np.uint8], view: str) -> tuple[Picture, ...]:
        sees: Literal["encoded", "pixels"] = "pixels" if self.source.sees == "pixels" else "encoded"
        return tuple(teacher_pictures(unit, frame, (view,), self.config.pictures, sees))

    async def _verdict(self, unit: JudgeUnit, words: str, pictures: tuple[Picture, ...]) -> int:
        reply = await self._ask(unit, words, pictures, Verdict, VERDICT_TOKENS)
        return int(Verdict.model_validate_json(reply).verdict == "yes")

    async def _ask(
        self, unit: JudgeUnit, words: str, pictures: tuple[Picture, ...], answer: type[Record], max_tokens: int
    ) -> str:
        teacher = self.config.teacher
        reply = await self._teacher.ask(
            TeacherRequest(
                model=teacher.identity,
                messages=(Message("system", _prompts()["system"]), Message("user", words, pictures)),
                answer=answer,
                decoding=teacher.decoding,
                max_tokens=teacher.decoding.max_tokens or max_tokens,
                detail=teacher.detail,
                options=teacher.request_options(),
                tags={"task": "judge", "media": unit.media_key.hex()},
            )
        )
        if reply.outcome != "answer" or reply.text is None:
            raise Unanswered(reply.outcome)
        return reply.text


@cache
def _prompts() -> dict[str, Any]:
    text = (resources.files("stages.score.words") / "judge.yaml").read_text("utf-8")
    prompts: dict[str, Any] = load_yaml(text)
    return prompts
