"""Rescue: captions that a policy dropped for a reason that can be repaired, asked for again or put right.

A rescued caption is a further attempt at the same row: it is scored and decided like any other, and may be dropped
again. `filter` never calls out; this is the only part of quality that may.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from schemas.arrow import arrow_schema, conform
from schemas.caption import Caption, Language, Task
from schemas.yaml import load_yaml
from stages.base import UnitError, with_digest
from stages.decide import EARLIER_EVENT
from stages.distill.config import CaptionsConfig
from stages.distill.recipe import recipe_for
from stages.distill.stage import DistillStage
from stages.distill.units import CaptionUnit, StreamUnit, VideoUnit
from stages.distill.video import StreamStage, VideoStage
from stages.policy import Policy
from stages.score.openers import without_opener
from stages.teachers.config import TeacherConfig
from stages.teachers.protocol import TeacherRequest
from stages.teachers.source import TeacherSource

STRIPPED = "opener stripped"
_SPOKEN: tuple[tuple[Language, bool], ...] = (("en", False), ("zh", True))


def rescue_plan(captions: pl.DataFrame, decisions: pl.DataFrame, policy: Policy, max_attempts: int = 3) -> pl.DataFrame:
    """The captions that the policy lets be repaired, and how.

    A caption is repaired when every reason that drops it has a `repair` and it has had fewer than `max_attempts`.
    Columns: caption_key, region_key, task, language, event_index, reason, reasons, repair (`strip_opener` or `ask`),
    instruction (what the teacher is told; null where nothing is asked), previous (the text that was dropped),
    attempts. A stream is taken up again from its first dropped event: later events of the chain follow with repair
    `ask` and no instruction, since their history changes; an event whose repair is to strip is asked again too, and so
    is a text that would be no sentence without its opener.
    """
    repairs = {check.reason: check.repair for check in policy.checks if check.action == "drop"}
    facts = captions.select("caption_key", "task", "language", "event_index", "attempts", previous="text")
    both = decisions.select("caption_key", "region_key", "status", "reason", "reasons").join(facts, on="caption_key")
    dropped = both.filter((pl.col("status") == "filtered") & (pl.col("attempts") < max_attempts))
    strippable = set(dropped.filter(_without_opener(pl.col("previous")).is_not_null())["caption_key"])
    rows = []
    for row in dropped.iter_rows(named=True):
        wanted = [repairs[reason] for reason in row["reasons"] if reason in repairs]
        if row["reason"] not in repairs or None in wanted:
            continue
        strip = set(wanted) == {"strip_opener"} and row["task"] != "stream" and row["caption_key"] in strippable
        told = None if strip else instruction([r for r in row["reasons"] if r in repairs], row["language"])
        rows.append({**row, "repair": "strip_opener" if strip else "ask", "instruction": told})
    schema = pl.Schema([*dropped.schema.items(), ("repair", pl.String()), ("instruction", pl.String())])
    plan = pl.DataFrame(rows, schema=schema, orient="row").drop("status")
    return pl.concat([_first_of_chains(plan, both), _followers(plan, both)], how="diagonal")


def instruction(reasons: list[str], language: str) -> str:
    """What the teacher is told about a caption that was dropped for these reasons, each said once."""
    table = _repairs()
    said = [table["reasons"].get(reason, table["default"])[language] for reason in reasons]
    return ("；" if language == "zh" else "; ").join(dict.fromkeys(said))


def strip_openers(captions: pl.DataFrame, plan: pl.DataFrame) -> pa.Table:
    """New attempts of the captions whose plan is `strip_opener`: the text without it, all else as it was.

    `captions` have the columns of `Caption`. A text that would be no sentence without its opener is not in the result.
    Returns rows with the schema of `Caption`, digests filled.
    """
    keys = plan.filter(pl.col("repair") == "strip_opener").select("caption_key")
    chosen = captions.join(keys, on="caption_key", how="semi")
    stripped = chosen.with_columns(
        text=_without_opener(pl.col("text")), attempts=pl.col("attempts") + 1, message=pl.lit(STRIPPED),
        status=pl.lit("ok"), reason=pl.lit(None, pl.String),
    ).filter(pl.col("text").is_not_null())  # fmt: skip
    return with_digest(conform(stripped.to_arrow(), arrow_schema(Caption)), Caption)


def _without_opener(text: pl.Expr) -> pl.Expr:
    """The texts of a frame with a column `language` without their openers, null where that leaves no sentence."""
    chinese = pl.col("language") == "zh"
    stripped = [without_opener(pl.when(chinese == wanted).then(text), language) for language, wanted in _SPOKEN]
    return pl.coalesce(stripped)


class RescueCaptionUnit(CaptionUnit):
    """A caption to be asked for again: the text that was dropped and what the teacher is told of it."""

    previous: str | None = None
    instruction: str | None = None


class RescueVideoUnit(VideoUnit):
    """As `RescueCaptionUnit`, for a whole masklet."""

    previous: str | None = None
    instruction: str | None = None


class RescueStreamUnit(StreamUnit):
    """As `RescueCaptionUnit`, for an event; later events of its chain carry no instruction."""

    previous: str | None = None
    instruction: str | None = None


class _Rescuing(DistillStage):
    """Continues each conversation with the dropped answer and what was wrong with it."""

    async def _caption(
        self, unit: CaptionUnit, request: TeacherRequest | UnitError, history: str | None = None
    ) -> Caption:
        told = getattr(unit, "instruction", None)
        if isinstance(request, TeacherRequest) and told:
            request = request.with_repair(getattr(unit, "previous", None) or "", self.recipe.prompt.repair(told))
        return await super()._caption(unit, request, history)


class RescueStage(_Rescuing, DistillStage):
    """Rescue of the captions of images."""

    unit: ClassVar[type[CaptionUnit]] = RescueCaptionUnit


class RescueVideoStage(_Rescuing, VideoStage):
    """Rescue of the captions of whole masklets."""

    unit: ClassVar[type[CaptionUnit]] = RescueVideoUnit


class RescueStreamStage(_Rescuing, StreamStage):
    """Rescue of event captions, a chain from its first dropped event on."""

    unit: ClassVar[type[CaptionUnit]] = RescueStreamUnit


def build_rescue(
    teacher: TeacherConfig,
    captions: CaptionsConfig,
    task: Task,
    language: Language,
    ledger: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source: TeacherSource | None = None,
) -> DistillStage:
    """The stage that asks again for captions of a task and language; its fingerprint is that of the distil stage.

    Takes what `build_distill` takes, and raises what it raises.
    """
    recipe = recipe_for(teacher, captions, task, language)
    options = dict(storage_options or {})
    stage = {"video": RescueVideoStage, "stream": RescueStreamStage}.get(task, RescueStage)
    return stage(recipe, source or TeacherSource(teacher, ledger, options), options)


def rescue_units(units: pa.Table, plan: pl.DataFrame, told: pl.DataFrame | None = None) -> pa.Table:
    """The distil units of one task and language that the plan asks for again, with what the teacher is told.

    `units` are all units of the distil stage; they come back with `previous`, `instruction` and `attempts` (what
    earlier runs used, which the runner adds to). For streams `told` are the current captions: the events before a
    chain's first asked one go with its units as `earlier`.
    """
    asked = plan.filter(pl.col("repair") == "ask").select("caption_key", "previous", "instruction", tried="attempts")
    frame = pl.DataFrame(pl.from_arrow(units)).join(asked, on="caption_key", how="inner", maintain_order="left")
    frame = frame.with_columns(attempts=pl.col("tried").cast(pl.Int64)).drop("tried")
    if told is not None:
        frame = frame.drop("earlier", strict=False).join(_earlier(frame, told), on="caption_key", how="left")
    return frame.to_arrow()


def _earlier(frame: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    """Per asked event the captions of its chain's events before the first asked one, as `earlier`."""
    chain = ["region_key", "language"]
    first = frame.group_by(chain).agg(first=pl.col("event_index").min())
    before = (
        told.filter((pl.col("task") == "stream") & (pl.col("status") == "ok") & pl.col("text").is_not_null())
        .join(first, on=chain)
        .filter(pl.col("event_index") < pl.col("first"))
        .sort("event_index")
        .group_by(chain)
        .agg(earlier=pl.struct("event_index", "text"))
    )
    return frame.select("caption_key", *chain).join(before, on=chain, how="left").drop(chain)


def _first_of_chains(plan: pl.DataFrame, decided: pl.DataFrame) -> pl.DataFrame:
    """The plan with, of each stream, only the event that stopped its chain."""
    return plan.join(_stops(decided), on=["region_key", "language"], how="left").filter(
        (pl.col("task") != "stream") | (pl.col("event_index") == pl.col("stop"))
    ).drop("stop")  # fmt: skip


def _followers(plan: pl.DataFrame, decided: pl.DataFrame) -> pl.DataFrame:
    """Events after the one that stopped their chain, where that one is asked again."""
    streams = plan.filter(pl.col("task") == "stream").select("region_key", "language", "event_index")
    asked = streams.join(_stops(decided), on=["region_key", "language"]).filter(pl.col("event_index") == pl.col("stop"))
    later = decided.filter((pl.col("task") == "stream") & pl.col("status").is_in(["ok", "filtered", "blocked"]))
    later = later.join(asked.select("region_key", "language", "stop"), on=["region_key", "language"])
    later = later.filter(pl.col("event_index") > pl.col("stop"))
    return later.select(
        "caption_key", "region_key", "task", "language", "event_index", "reasons", "previous", "attempts",
        reason=pl.lit(EARLIER_EVENT), repair=pl.lit("ask"), instruction=pl.lit(None, pl.String),
    )  # fmt: skip


def _stops(decided: pl.DataFrame) -> pl.DataFrame:
    lost = decided.filter((pl.col("task") == "stream") & pl.col("status").is_in(["filtered", "failed"]))
    return lost.group_by("region_key", "language").agg(stop=pl.col("event_index").min())


@cache
def _repairs() -> dict[str, Any]:
    table: dict[str, Any] = load_yaml((resources.files("stages") / "repairs.yaml").read_text("utf-8"))
    return table
