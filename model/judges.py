"""Scores that a language model gives: DLC-Bench style, G-STDC, VideoRefer-Bench-D, by any configured teacher.

The prompts are Markdown files (`prompts/judges/`), the answers pydantic models: an answer that does not fit is asked
for again, and one that never fits counts as unanswered, not as 0. Figures depend on the judge: the same captions got
67.9 on DLC-Bench from Llama-3.1-8B and 77.1 from GPT-4o, so compare only with figures of the same judge and prompt.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field, field_validator

import prompts
from model.answers import Answer, streams
from prompts import loader
from schemas.base import Record
from stages.teachers.config import TeacherConfig
from stages.teachers.protocol import Message, Teacher, TeacherRequest
from stages.teachers.source import TeacherSource

Bench = Literal["dlc", "g_stdc", "videorefer_d"]
FOLDER = Path(prompts.__file__).parent / "judges"
_LETTERS = "ABCDE"
_ASPECTS = ("subject_correspondence", "appearance_description", "temporal_description", "hallucination_detection")
R = TypeVar("R", bound=Record)


class JudgeError(Exception):
    """A judge cannot be asked; the message names the file and what is wrong."""


class Choice(Record):
    """One option of a question."""

    choice: Literal["A", "B", "C", "D", "E"]


class Continuity(Record):
    """G-STDC: how well the events of one target continue one another, 0 to 5."""

    score: float = Field(ge=0, le=5)
    reason: str


class VideoReferD(Record):
    """VideoRefer-Bench-D: four whole numbers, 0 to 5."""

    subject_correspondence: int = Field(ge=0, le=5)
    appearance_description: int = Field(ge=0, le=5)
    temporal_description: int = Field(ge=0, le=5)
    hallucination_detection: int = Field(ge=0, le=5)


class Question(Record):
    """One question of DLC-Bench's `qa.json`: choices are (text, points)."""

    question: str
    choices: tuple[tuple[str, float], ...] = Field(min_length=2, max_length=len(_LETTERS))
    type: Literal["positive", "negative"]


class JudgeConfig(Record):
    """Which judge, and which scores it gives. `dlc` needs `questions` and `class_names` (DLC-Bench's two files).

    `prompts` are folders that are searched before the built-in prompts. A judge answers at temperature 0 unless
    `teacher.decoding` names another: the same captions should get the same score.
    """

    teacher: TeacherConfig
    benches: tuple[Bench, ...] = ("g_stdc", "videorefer_d")
    questions: Path | None = None
    class_names: Path | None = None
    prompts: tuple[Path, ...] = ()

    @field_validator("teacher")
    @classmethod
    def _judges_coldly(cls, teacher: TeacherConfig) -> TeacherConfig:
        if "temperature" in teacher.decoding.model_fields_set:
            return teacher
        cold = teacher.decoding.model_copy(update={"temperature": 0.0})
        return teacher.model_copy(update={"decoding": cold})


@dataclass(frozen=True)
class Judged:
    """Means by name (see `run_judges`), notices, and every verdict."""

    values: dict[str, float]
    notices: list[str]
    details: list[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """One question to the judge: the prompt's id, its variables, the answer's model."""

    prompt: str
    context: dict[str, Any]
    answer: type[Record]


def run_judges(config: JudgeConfig, answers: Sequence[Answer], ledger: Path, published: bool = False) -> Judged:
    """Asks the judge about all answers. Replies are kept in the `ledger` folder and never paid for twice.

    - `dlc_positive`, `dlc_negative`, `dlc` (their mean): points of DLC-Bench's questions about the region that
      `target` names (an annotation id), mean by region first; at most 0 where the object is not recognised. A question
      without an answer is in no mean, nor is a region of which nobody said whether it is recognised; both are counted
      in the notices.
    - `g_stdc`: 0 to 5 a target over its ordered events. `published` puts all videos into one item, as PAM's script
      does, whose records carry no video's name.
    - `videorefer_d` and its four aspects: 0 to 5 a clip's caption, against its first reference.

    Raises JudgeError.
    """
    plans = [_plan(bench, config, answers, published) for bench in config.benches]
    asked = [question for plan in plans for question in plan.asked]
    replies = iter(asyncio.run(_ask(config, asked, ledger)) if asked else [])
    values: dict[str, float] = {}
    notices, details = [], []
    for bench, plan in zip(config.benches, plans, strict=True):
        said = [next(replies) for _ in plan.asked]
        values |= plan.scores(said)
        silent = sum(reply is None for reply in said)
        notices.append(
            f"{bench}: {len(said)} questions to {config.teacher.identity}, {silent} without an answer{plan.note(said)}"
        )
        details += [
            {"bench": bench, "item": item} | (reply.model_dump() if reply is not None else {"unanswered": True})
            for item, reply in zip(plan.items, said, strict=True)
        ]
    return Judged(values, notices, details)


async def _ask(config: JudgeConfig, asked: Sequence[Asked], ledger: Path) -> list[Record | None]:
    if config.teacher.backend in ("measured", "openai_batch"):
        raise JudgeError(f"the {config.teacher.backend} teacher cannot judge; name a model behind HTTP or vLLM")
    source = TeacherSource(config.teacher, str(ledger))
    teacher = source.make()
    await teacher.start()
    try:
        return list(await asyncio.gather(*(_one(teacher, config, question) for question in asked)))
    finally:
        await teacher.stop()


async def _one(teacher: Teacher, config: JudgeConfig, asked: Asked) -> Record | None:
    prompt = loader.load(asked.prompt, (*config.prompts, FOLDER))
    turns = prompt.render(asked.context)
    request = TeacherRequest(
        model=config.teacher.identity,
        messages=(Message("system", turns.system), Message("user", turns.user)),
        answer=asked.answer,
        decoding=config.teacher.decoding,
        max_tokens=config.teacher.decoding.max_tokens or prompt.max_tokens,
        options=config.teacher.request_options(),
        tags={"task": prompt.task},
    )
    for left in range(config.teacher.retry.invalid, -1, -1):
        reply = await teacher.ask(request)
        if reply.outcome == "answer" and reply.text is not None:
            return asked.answer.model_validate_json(reply.text)
        if reply.outcome != "invalid" or not left:
            break
        request = request.with_repair(reply.text or "", prompt.repair(reply.message or "it was not valid"))
    return None


@dataclass(frozen=True)
class _Plan:
    """What one bench asks, under which names, and what becomes of the replies (None: unanswered)."""

    asked: list[Asked]
    items: list[str]
    scores: Callable[[Sequence[Record | None]], dict[str, float]]
    note: Callable[[Sequence[Record | None]], str] = lambda said: ""


def _plan(bench: Bench, config: JudgeConfig, answers: Sequence[Answer], published: bool) -> _Plan:
    if bench == "dlc":
        return _dlc(answers, *_dlc_files(config))
    return _g_stdc(answers, published) if bench == "g_stdc" else _videorefer_d(answers)


def _g_stdc(answers: Sequence[Answer], published: bool) -> _Plan:
    groups = {f"{target} {language}": events for (target, language), events in streams(answers).items()}
    if published and groups:
        groups = {"unknown": [event for events in groups.values() for event in events]}
    asked = []
    for events in groups.values():
        series = {"references": [e.wanted for e in events], "descriptions": [e.predicted for e in events]}
        asked.append(Asked("g_stdc.en", series, Continuity))

    def scores(said: Sequence[Record | None]) -> dict[str, float]:
        given = [reply.score for reply in said if isinstance(reply, Continuity)]
        return {"g_stdc": float(np.mean(given))} if given else {}

    return _Plan(asked, list(groups), scores)


def _videorefer_d(answers: Sequence[Answer]) -> _Plan:
    clips = [a for a in answers if a.task in ("video", "stream") and a.wanted]
    asked = [Asked("videorefer_d.en", {"reference": a.wanted, "description": a.predicted}, VideoReferD) for a in clips]

    def scores(said: Sequence[Record | None]) -> dict[str, float]:
        given = [reply for reply in said if isinstance(reply, VideoReferD)]
        if not given:
            return {}
        means = {f"videorefer_{name}": float(np.mean([getattr(v, name) for v in given])) for name in _ASPECTS}
        return means | {"videorefer_d": float(np.mean(list(means.values())))}

    return _Plan(asked, [str(a.row) for a in clips], scores)


def _dlc(answers: Sequence[Answer], questions: Mapping[str, Sequence[Question]], names: Mapping[str, str]) -> _Plan:
    asked, items = [], []
    regions = [answer for answer in answers if answer.target in questions]
    for answer in regions:
        name = names.get(answer.target)
        if name is None:
            raise JudgeError(f"dlc: the class names have no region {answer.target!r}")
        known = f"Could the description be of this, or of something of a similar kind: {name}?"
        texts: list[tuple[str, tuple[str, ...]]] = [(known, ("Yes", "No"))]
        texts += [(q.question, tuple(text for text, _ in q.choices)) for q in questions[answer.target]]
        for at, (text, choices) in enumerate(texts):
            lettered = list(zip(_LETTERS, choices, strict=False))
            context = {"description": answer.predicted, "question": text, "choices": lettered}
            asked.append(Asked("dlc.en", context, Choice))
            items.append(f"{answer.target}#{at}")

    asked_of = [questions[region.target] for region in regions]
    missing = len(questions.keys() - {region.target for region in regions})

    def note(said: Sequence[Record | None]) -> str:
        skipped, left_out = _unanswered(asked_of, iter(said))
        counts = {
            f"{missing} of {len(questions)} regions were not described": missing,
            f"{skipped} regions are skipped, whether they are recognised was not answered": skipped,
            f"{left_out} questions without an answer are left out of the means": left_out,
        }
        return "".join(f"; {text}" for text, count in counts.items() if count)

    return _Plan(asked, items, lambda said: _dlc_scores(asked_of, iter(said)), note)


def _dlc_scores(regions: Sequence[Sequence[Question]], replies: Iterator[Record | None]) -> dict[str, float]:
    """Points by kind, the mean of the regions' means; what has no answer is in no mean."""
    found: dict[str, list[float]] = {"positive": [], "negative": []}
    for known, worths in _region_points(regions, replies):
        points: dict[str, list[float]] = {"positive": [], "negative": []}
        for kind, worth in worths if known is not None else ():
            if worth is not None:
                points[kind].append(worth if known else min(0.0, worth))
        for kind, each in points.items():
            found[kind] += [float(np.mean(each))] if each else []
    means = {f"dlc_{kind}": float(np.mean(each)) for kind, each in found.items() if each}
    return means | ({"dlc": float(np.mean(list(means.values())))} if len(means) == 2 else {})


def _unanswered(regions: Sequence[Sequence[Question]], replies: Iterator[Record | None]) -> tuple[int, int]:
    """Regions whose first question has no answer, and questions without one of the other regions."""
    given = list(_region_points(regions, replies))
    open_ = [worth is None for known, worths in given if known is not None for _, worth in worths]
    return sum(known is None for known, _ in given), sum(open_)


def _region_points(
    regions: Sequence[Sequence[Question]], replies: Iterator[Record | None]
) -> Iterator[tuple[bool | None, list[tuple[str, float | None]]]]:
    """Of each region: whether it is recognised (its first reply), and of each question its kind and points.

    None stands for no answer, which an option that is not there is too.
    """
    for questions in regions:
        first = _option(next(replies), 2)
        worths: list[tuple[str, float | None]] = []
        for question in questions:
            at = _option(next(replies), len(question.choices))
            worths.append((question.type, question.choices[at][1] if at is not None else None))
        yield (first == 0 if first is not None else None), worths


def _option(reply: Record | None, count: int) -> int | None:
    at = _LETTERS.index(reply.choice) if isinstance(reply, Choice) else count
    return at if at < count else None


def _dlc_files(config: JudgeConfig) -> tuple[dict[str, list[Question]], dict[str, str]]:
    if config.questions is None or config.class_names is None:
        raise JudgeError("judge: dlc needs `questions` and `class_names`, DLC-Bench's qa.json and class_names.json")
    try:
        raw = json.loads(config.questions.read_text(encoding="utf-8"))
        questions = {str(key): [Question.model_validate(q) for q in some] for key, some in raw.items()}
        names = {str(k): str(v) for k, v in json.loads(config.class_names.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise JudgeError(f"{config.questions}, {config.class_names}: not DLC-Bench's files: {error}") from error
    return questions, names
