"""Rules 18 and 19 as far as words go: what a caption says of motion, order and history, against the masklet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final

import polars as pl

from schemas.base import Record, Row
from schemas.caption import Language, Task
from stages.score.base import Need, Rule, ScoreRow, ScoreStage, ScoreUnit
from stages.score.claims import LEXICONS, WAYS, claim_settings, in_turn, said_of

OPPOSITE: Final = {"left": "right", "right": "left", "up": "down", "down": "up"}

COPY_GRAM: Final = {"en": 4, "zh": 6}
_TOKEN: Final = {"en": re.compile(r"\d+\.\d+|[\w'’\-]+"), "zh": re.compile(r"[\u3400-\u9fff]|[A-Za-z]+|\d+")}
_PARTICLES: Final = frozenset("的了着地得")
"""Chinese characters that may be put in or left out without saying anything else."""


class Spell(Record):
    """One event of the region's masklet."""

    event_index: int
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    absent: bool
    motion: str | None = None


class VideoScoreUnit(ScoreUnit):
    """A caption of a video, with its own event (stream) or all events of its region (video)."""

    task: Task
    text: str | None = None
    history: str | None = None
    absent: bool | None = None
    motion: str | None = None
    visible_share: float | None = None
    events: list[Spell] | None = None


class VideoScores(ScoreRow):
    """Scores of rules 18 and 19 by words; all null for captions of images."""

    motion_wrong_way: int | None = None
    motion_of_still: int | None = None
    stillness_of_moving: int | None = None
    absence_unsaid: int | None = None
    absence_invented: int | None = None
    motion_order: float | None = None
    history_copied: float | None = None
    event_visible_share: float | None = None


class Motion(Rule):
    """Rule 18: motion that the masklet does not bear out, camera motion removed.

    `motion_wrong_way` counts claimed directions, growth and shrinking that are measured the other way round, or
    directions claimed of a target that moves in others only. `motion_of_still` is 1 where the text says that the
    target moves and no event has it moving (displacement below 3 % of the diagonal). `stillness_of_moving` is 1 where
    it is said to be still and no motion is told, and it moves in all events. `absence_unsaid` is 1 where the target is
    absent from the event and the text does not say so of anything, `absence_invented` where it says so of a target that
    is there throughout. What a text says of the camera, of parts of bodies and of others is not counted
    (`motion_asides`, `motion_others`). Null without events, and where the motion of one was not measured.
    Source: FILTERS rule 18; the measured motion is that of `stages.chunk`.
    """

    name = "motion"
    number = 18
    version = 3
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask")
    columns = ("motion_wrong_way", "motion_of_still", "stillness_of_moving", "absence_unsaid", "absence_invented")

    def settings(self) -> dict[str, Any]:
        return claim_settings()

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        rows = [_motion_scores(row) for row in units.iter_rows(named=True)]
        return pl.DataFrame(rows, schema=dict.fromkeys(self.columns, pl.Int64), orient="row")


class Order(Rule):
    """Rule 18, second half: things told in another order than they happen.

    `motion_order` is the share of a video caption's motion claims that can be read off its events in the order told
    (the longest common subsequence over the claims that some event bears out); `A after B` counts as B, A. Null with
    fewer than two such claims. Source: temporal order words against event order.
    """

    name = "order"
    number = 18
    version = 3
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask")
    columns = ("motion_order",)

    def settings(self) -> dict[str, Any]:
        return claim_settings()

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        found = [_order_of(row, language) for row in units.iter_rows(named=True)]
        return pl.DataFrame({"motion_order": pl.Series(found, dtype=pl.Float64)})


class Stream(Rule):
    """Rule 19: an event caption that copies its history, or speaks of a target that can hardly be seen.

    `history_copied` is the share of the text's runs of four words (Chinese: six characters, particles aside) that its
    history holds, so that clauses told in another order are still found; null without history or under four words.
    `event_visible_share` is the share of the event's frames on which the target is visible, null where the event is one
    of absence.
    Source: FILTERS rule 19; repetition from history is a known flaw of PAM's streaming data.
    """

    name = "stream"
    number = 19
    version = 2
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask")
    columns = ("history_copied", "event_visible_share")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        pairs = units.select("text", "history").iter_rows()
        copied = [copied_share(text, history, language) for text, history in pairs]
        there = pl.when(pl.col("absent").not_()).then(pl.col("visible_share"))
        return units.select(
            history_copied=pl.Series(copied, dtype=pl.Float64), event_visible_share=there.cast(pl.Float64)
        )


def copied_share(text: str | None, history: str | None, language: Language) -> float | None:
    """The share of a text's token runs that also occur in its history."""
    if not text or not history:
        return None
    size = COPY_GRAM[language]
    grams = _grams(text, size, language)
    if not grams:
        return None
    known = set(_grams(history, size, language))
    return sum(gram in known for gram in grams) / len(grams)


def measured(row: dict[str, Any]) -> list[frozenset[str]] | None:
    """What happens in each event that a caption is about: names of `LEXICONS`, or `moving` for motion of any kind.

    Null without events, and where the motion of one was not measured: that is not stillness.
    """
    if row["task"] == "stream":
        told = [] if row["absent"] is None else [(row["absent"], row["motion"])]
    else:
        told = [(event["absent"], event["motion"]) for event in row["events"] or ()]
    if not told or any(motion is None and not absent for absent, motion in told):
        return None
    return [_happens(absent, motion) for absent, motion in told]


@lru_cache(maxsize=4096)
def _happens(absent: bool, motion: str) -> frozenset[str]:
    if absent:
        return frozenset({"absent"})
    words: set[str] = set()
    for word in motion.split(", "):
        if word.startswith("moving "):
            words.update(way for way in word.removeprefix("moving ").split() if way in WAYS)
            words.add("moving")
        else:
            words.add({"leaving": "absent"}.get(word, word))
    return frozenset(words - {""})


def _motion_scores(row: dict[str, Any]) -> tuple[int | None, ...]:
    events = measured(row)
    if not events or not row["text"]:
        return (None,) * 5
    said = {name for name in LEXICONS if row[f"_said {name}"]}
    done = frozenset[str]().union(*events)
    turned = {OPPOSITE[way] for way in done if way in OPPOSITE}
    ways = done & set(WAYS)
    wrong = sum(1 for way in said & set(WAYS) if way not in done and (way in turned or (ways and not said & ways)))
    wrong += sum(1 for a, b in (("growing", "shrinking"), ("shrinking", "growing")) if a in said - done and b in done)
    moving = row["_said moving"] or bool(said & set(WAYS))
    away = all(event == {"absent"} for event in events)
    return (
        int(wrong),
        int(moving and not done - {"still", "absent"} and not away),
        int("still" in said and not moving and all("moving" in event for event in events)),
        int(away and not row["_away"]),
        int("absent" in said and "absent" not in done),
    )


def _order_of(row: dict[str, Any], language: Language) -> float | None:
    events = measured(row) if row["task"] == "video" and row["text"] else None
    if not events:
        return None
    done = frozenset[str]().union(*events)
    told = in_turn(row["_bare"], [name for name in LEXICONS if name in done and row[f"_said {name}"]], language)
    if len(told) < 2:
        return None
    return _in_order(told, events) / len(told)


def _in_order(told: Sequence[str], events: Sequence[frozenset[str]]) -> int:
    """The most claims that can be read off the events in order; several claims may be of one event."""
    best = [0] * (len(events) + 1)  # best[i]: of the claims so far, read off the first i events
    for claim in told:
        row = best[:]
        for i, event in enumerate(events, 1):
            row[i] = max(row[i - 1], best[i] + (claim in event))
        best = row
    return best[-1]


def _grams(text: str, size: int, language: Language) -> list[tuple[str, ...]]:
    tokens = [token for token in _TOKEN[language].findall(text.lower()) if token not in _PARTICLES]
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


class VideoStage(ScoreStage):
    """Rules 18 and 19 by words."""

    group: ClassVar[str] = "video"
    table: ClassVar[str] = "scores/video"
    unit: ClassVar[type[ScoreUnit]] = VideoScoreUnit
    row: ClassVar[type[Row]] = VideoScores
    batch_groups: int = 4096

    def __init__(self) -> None:
        super().__init__((Motion(), Order(), Stream()))

    def prepare(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        """What texts about events claim: the columns of `stages.score.claims.said_of`, read once a text."""
        measurable = pl.col("events").is_not_null() | pl.col("absent").is_not_null()
        texts = units.filter(measurable)["text"].drop_nulls().unique()
        said = said_of(texts, language).with_columns(text=texts)
        return units.join(said, on="text", how="left", maintain_order="left")
