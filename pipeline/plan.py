"""What a run will cost before it is run: calls, tokens, money, hours, disk.

A sample of the units that a run will ask about is rendered into the very requests that would be sent; their texts and
pictures are counted by the model's rule (stages/teachers/prices.yaml) and scaled to all units. What a model will
answer is not known: completion tokens, and all that follows from them, are a range.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

import numpy as np
import pyarrow as pa

from schemas.arrow import from_table
from schemas.base import Record
from schemas.caption import Language, Task
from stages.base import UnitError
from stages.distill.stage import DistillStage
from stages.teachers.cache import Answered
from stages.teachers.config import LimitsConfig, TeacherConfig
from stages.teachers.pricing import Price, price_of, request_tokens
from stages.teachers.protocol import TeacherRequest

DEFAULT_SAMPLE = 24
_ANSWER_SHARES = (0.1, 0.35, 0.9)
"""Answers as shares of the prompt's token limit: short, usual, long."""
_RETRIES = (1.0, 1.03, 1.15)
"""Calls per caption: no retry, the usual few, many."""
_ASSUMED_EVENTS = (2, 4, 8)
_HISTORY_TOKENS = 40
"""What one earlier caption adds to a streaming prompt; the sample is rendered without any."""
_CAPTION_BYTES = 700
_MASK_BYTES = 900
_REGION_BYTES = 500
_LEDGER_BYTES = 1200
_STALE_DAYS = 365


class Range(Record):
    """A low, a likely and a high value."""

    low: float
    likely: float
    high: float

    def scaled(self, factor: float) -> Range:
        """All three times a factor."""
        return Range(low=self.low * factor, likely=self.likely * factor, high=self.high * factor)

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, likely=self.likely + other.likely, high=self.high + other.high)


ZERO = Range(low=0, likely=0, high=0)


class TaskPlan(Record):
    """The cost of one task in one language. Money is None where the model has no list price.

    `answers` is how many answers to this prompt the ledger holds: with some, tokens out rest on these, and `hours` says
    how long one worker waits for the teacher.
    """

    task: Task
    language: Language
    captions: int
    sampled: int
    calls: Range
    prompt_tokens: Range
    completion_tokens: Range
    online_usd: Range | None
    batch_usd: Range | None
    hours: Range | None = None
    answers: int = 0
    note: str | None = None


class LocalPlan(Record):
    """The hours that a stage takes of this cluster's GPUs or cores; `assumes` says on what measurement they rest.

    `hours` is None where nothing was measured.
    """

    stage: str
    items: int
    unit: str
    hours: Range | None
    assumes: str
    device: Literal["GPU", "core"] = "core"


class DiskPlan(Record):
    """Bytes that a run will need; `sources` is what the data sets take as published, where that was looked up."""

    tables: int
    ledger: int
    shards: int
    sources: int = 0

    @property
    def total(self) -> int:
        return self.tables + self.ledger + self.shards


class Plan(Record):
    """The plan of a run. `rows` are those of the whole job, where its files are not here yet; `warnings` for people."""

    teacher: str
    model: str
    price_date: date
    tasks: list[TaskPlan]
    local: list[LocalPlan]
    disk: DiskPlan
    online_usd: Range | None
    batch_usd: Range | None
    rows: dict[str, int] = {}
    warnings: list[str] = []


@dataclass(frozen=True)
class Asked:
    """What a run will ask of one task and language: its stage, `total` captions, and units to sample from.

    `events_assumed` says that the units of a stream are not cut into events yet, so that `total` counts masklets;
    `shares` is set where another task's requests answer this one too.
    """

    stage: DistillStage
    total: int
    units: pa.Table
    events_assumed: bool = False
    shares: str | None = None


@dataclass(frozen=True)
class Local:
    """How much local work a run has: images and video frames to refine, and the bytes of all media to be packed.

    `regions_read` are those that ingest reads, where selection keeps fewer; `source_bytes` what the data sets take.
    """

    images: int = 0
    video_frames: int = 0
    regions: int = 0
    media_bytes: int = 0
    refine: str = "grabcut"
    regions_read: int = 0
    source_bytes: int = 0


def plan(
    teacher: TeacherConfig,
    asked: Sequence[Asked],
    local: Local,
    sample: int = DEFAULT_SAMPLE,
    answered: Mapping[str, Answered] | None = None,
) -> Plan:
    """The plan of a run. `answered` says what answers to a kind of request have been like, where there are any.

    Tasks that share one combined request are planned as one: its calls stand with the first of them.

    No request is sent. Raises `ValueError` for a price table that cannot be read.
    """
    price = price_of(teacher.identity, teacher.prices)
    tasks = [_task_plan(teacher, price, one, sample, answered or {}) for one in shared(asked)]
    measured = teacher.backend == "measured"
    captions = sum(round(task.calls.likely) for task in tasks)
    return Plan(
        teacher=teacher.backend,
        model=teacher.identity,
        price_date=price.date,
        tasks=tasks,
        local=[*_local_plans(local), *_engine_plans(teacher, tasks, asked, answered or {})],
        disk=_disk(local, captions, measured),
        online_usd=_sum([task.online_usd for task in tasks]),
        batch_usd=_sum([task.batch_usd for task in tasks]),
        warnings=_warnings(teacher, price, tasks),
    )


def sample_rows(units: pa.Table, count: int) -> pa.Table:
    """At most `count` rows, spread evenly over a table: the same rows every time."""
    if not len(units):
        return units
    picked = np.unique(np.linspace(0, len(units) - 1, min(count, len(units))).round().astype(int))
    return units.take(pa.array(picked, pa.int64()))


def _task_plan(
    teacher: TeacherConfig,
    price: Price,
    asked: Asked,
    sample: int,
    answered: Mapping[str, Answered],
) -> TaskPlan:
    recipe = asked.stage.recipe
    captions = Range(low=asked.total, likely=asked.total, high=asked.total)
    if asked.events_assumed:
        low, likely, high = (asked.total * events for events in _ASSUMED_EVENTS)
        captions = Range(low=low, likely=likely, high=high)
    common = {"task": recipe.task, "language": recipe.language, "captions": round(captions.likely)}
    free = "the measured teacher asks nobody" if teacher.backend == "measured" else asked.shares
    if free is not None:
        note = free
        return TaskPlan(
            **common, sampled=0, calls=ZERO, prompt_tokens=ZERO, completion_tokens=ZERO,
            online_usd=ZERO, batch_usd=ZERO, note=note,
        )  # fmt: skip
    units = from_table(sample_rows(asked.units, sample), asked.stage.unit)
    requests = [made for made in asked.stage.preview(units) if not isinstance(made, UnitError)]
    calls = Range(**{name: getattr(captions, name) * factor for name, factor in _named(_RETRIES)})
    if not requests:
        return TaskPlan(
            **common, sampled=0, calls=calls, prompt_tokens=ZERO, completion_tokens=ZERO, online_usd=None,
            batch_usd=None, note="no unit could be rendered, so nothing could be counted",
        )  # fmt: skip
    prompt = _prompt_tokens(requests, price, _HISTORY_TOKENS * recipe.history if recipe.task == "stream" else 0)
    known = answered.get(recipe.kind)
    completion = _completion_tokens(requests[0], known)
    spread = [
        ("low", prompt[0], completion[0]),
        ("likely", prompt[1], completion[1]),
        ("high", prompt[2], completion[2]),
    ]
    tokens_in = Range(**{name: getattr(calls, name) * per_call for name, per_call, _ in spread})
    tokens_out = Range(**{name: getattr(calls, name) * per_call for name, _, per_call in spread})
    return TaskPlan(
        **common,
        sampled=len(requests),
        calls=calls,
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
        online_usd=_money(price, tokens_in, tokens_out, batch=False),
        batch_usd=_money(price, tokens_in, tokens_out, batch=True) if price.batch is not None else None,
        hours=_hours(teacher.limits, calls, tokens_in + tokens_out, known),
        answers=known.replies if known else 0,
    )


def shared(asked: Sequence[Asked]) -> list[Asked]:
    """What is asked, with the requests that several tasks share standing with the first of the most captions alone."""
    first: dict[str, Asked] = {}
    for one in sorted(asked, key=lambda one: -one.total):
        first.setdefault(one.stage.recipe.kind, one)
    bearers = {id(one) for one in first.values()}
    return [
        one if id(one) in bearers else replace(one, shares=f"asked for together with {_bearer(first, one)}")
        for one in asked
    ]


def _bearer(first: Mapping[str, Asked], one: Asked) -> str:
    recipe = first[one.stage.recipe.kind].stage.recipe
    return f"{recipe.task}/{recipe.language}"


def _hours(limits: LimitsConfig, calls: Range, tokens: Range, known: Answered | None) -> Range | None:
    """Hours of asking online with one worker: by the seconds of a reply, and not below what minute limits allow."""
    if known is None or known.seconds is None:
        return None
    seconds = calls.scaled(known.seconds / limits.in_flight)
    for quota, amount in ((limits.requests_per_minute, calls), (limits.tokens_per_minute, tokens)):
        if quota is not None:
            least = amount.scaled(60 / quota)
            seconds = Range(**{n: max(getattr(seconds, n), getattr(least, n)) for n in ("low", "likely", "high")})
    return seconds.scaled(1 / 3600)


def _prompt_tokens(requests: Sequence[TeacherRequest], price: Price, more: int) -> tuple[float, float, float]:
    """Mean tokens a request, with the sampling error of the mean (two standard errors) to both sides."""
    counts = [request_tokens(request, price) + more for request in requests]
    mean = statistics.fmean(counts)
    error = 2 * statistics.stdev(counts) / math.sqrt(len(counts)) if len(counts) > 1 else 0.1 * mean
    return max(0.0, mean - error), mean, mean + error


def _completion_tokens(request: TeacherRequest, known: Answered | None) -> tuple[float, float, float]:
    """Tokens of an answer; from few answers (a probe) their mean is known to within two standard errors or so."""
    if known is not None:
        usual, doubt = known.completion_tokens, 0.1 + 1.0 / math.sqrt(known.replies + 1)
        return max(1.0, usual * (1 - doubt)), usual, usual * (1 + doubt)
    low, likely, high = (share * request.max_tokens for share in _ANSWER_SHARES)
    return low, likely, high


def _money(price: Price, tokens_in: Range, tokens_out: Range, batch: bool) -> Range | None:
    if price.input is None or price.output is None:
        return None
    costs = {
        name: price.cost(round(getattr(tokens_in, name)), round(getattr(tokens_out, name)), batch) or 0.0
        for name in ("low", "likely", "high")
    }
    return Range(**costs)


_RATES: dict[str, tuple[float, float, Literal["GPU", "core"], str]] = {
    # Measured on one H200 (benchmarks/results/sam2_*.txt) and on two CPU cores; a range of a factor two to each side.
    "sam2": (113.0, 50.0, "GPU", "SAM 2.1-large on one H200: 113 images/s, 50 video frames/s with four objects"),
    "grabcut": (4.0, 2.0, "core", "GrabCut on one CPU core: about 4 images/s, 2 video frames/s"),
}


def _local_plans(local: Local) -> list[LocalPlan]:
    images, frames, device, assumes = _RATES.get(local.refine, _RATES["grabcut"])
    found = []
    for items, rate, unit in ((local.images, images, "images"), (local.video_frames, frames, "video frames")):
        if items:
            hours = items / rate / 3600
            spread = Range(low=hours / 2, likely=hours, high=hours * 2)
            told = {"stage": "refine", "items": items, "unit": unit, "hours": spread, "assumes": assumes}
            found.append(LocalPlan(**told, device=device))
    return found


def _engine_plans(
    teacher: TeacherConfig, tasks: Sequence[TaskPlan], asked: Sequence[Asked], answered: Mapping[str, Answered]
) -> list[LocalPlan]:
    """GPU-hours of an engine in this cluster's own workers, by its answers in the ledger; loading it is not in them."""
    if teacher.backend != "vllm":
        return []
    gpus = teacher.engine.num_gpus * teacher.engine.tensor_parallel_size
    found = []
    for task, one in zip(tasks, asked, strict=True):
        if not task.calls.likely:
            continue
        known = answered.get(one.stage.recipe.kind)
        hours, assumes = None, "unknown, use --probe N"
        if known is not None and known.seconds is not None and known.worker_seconds is not None:
            # Few answers in flight keep an engine less busy than many do: at best a full load takes no longer.
            best = min(known.worker_seconds, known.seconds / teacher.limits.in_flight)
            spread = [(task.calls.low, best), (task.calls.likely, known.worker_seconds)]
            spread.append((task.calls.high, known.worker_seconds))
            low, likely, high = (calls * seconds * gpus / 3600 for calls, seconds in spread)
            hours = Range(low=low, likely=likely, high=high)
            assumes = f"{known.replies} answers in the ledger, {gpus:g} GPUs a worker"
        told = {"stage": f"distill {task.task}/{task.language}", "items": round(task.calls.likely), "unit": "requests"}
        found.append(LocalPlan(**told, hours=hours, assumes=assumes, device="GPU"))
    return found


def _disk(local: Local, captions: int, measured: bool) -> DiskPlan:
    return DiskPlan(
        tables=max(local.regions, local.regions_read) * _REGION_BYTES
        + local.regions * _MASK_BYTES
        + 2 * captions * _CAPTION_BYTES,
        ledger=0 if measured else captions * _LEDGER_BYTES,
        shards=local.media_bytes + local.regions * _MASK_BYTES + captions * _CAPTION_BYTES,
        sources=local.source_bytes,
    )


def _warnings(teacher: TeacherConfig, price: Price, tasks: Sequence[TaskPlan]) -> list[str]:
    found = []
    if teacher.backend != "measured":
        if (date.today() - price.date).days > _STALE_DAYS:
            found.append(f"the price of {teacher.identity} was read on {price.date}; check it, or set teacher.prices")
        if price.match == "*":
            found.append(
                f"{teacher.identity} is in no price table: pictures are counted as 28 px patches, money not at all"
            )
    found += [f"{task.task}/{task.language}: {task.note}" for task in tasks if task.note]
    return list(dict.fromkeys(found))


def _sum(parts: Sequence[Range | None]) -> Range | None:
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    total = ZERO
    for part in known:
        total = total + part
    return total


def _named(values: tuple[float, float, float]) -> list[tuple[str, float]]:
    return list(zip(("low", "likely", "high"), values, strict=True))
