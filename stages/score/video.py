"""Rules 18 and 19 as far as words go: what a caption says of motion, order and history, against the masklet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import polars as pl

from schemas.base import Record, Row
from schemas.caption import Language, Task
from stages.score.base import Need, Rule, ScoreRow, ScoreStage, ScoreUnit
from stages.score.lexicon import load_lexicon, settings_of

WAYS: Final = ("left", "right", "up", "down")
OPPOSITE: Final = {"left": "right", "right": "left", "up": "down", "down": "up"}
LEXICONS: Final = {
    "left": "motion_left",
    "right": "motion_right",
    "up": "motion_up",
    "down": "motion_down",
    "still": "motion_still",
    "growing": "motion_grows",
    "shrinking": "motion_shrinks",
    "turning": "motion_turns",
    "changing colour": "motion_recolours",
    "absent": "motion_away",
    "returning": "motion_back",
}
"""What a text may claim, and the list of its words."""

COPY_GRAM: Final = {"en": 5, "zh": 10}
_TOKEN: Final = {"en": re.compile(r"[\w'’\-]+"), "zh": re.compile(r"[\u3400-\u9fff]|[A-Za-z]+|\d+")}
_AFTER: Final = re.compile(r"([^.!?;]*?)\b(?:after)\b([^.!?;]*)", re.IGNORECASE)


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
    it is said to be still alone, and moves in all events. `absence_unsaid` is 1 where the target is absent from the
    event and the text does not say so, `absence_invented` where it says so of a target that is there throughout.
    Null without events. Source: FILTERS rule 18; the measured motion is that of `stages.chunk`.
    """

    name = "motion"
    number = 18
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask")
    columns = ("motion_wrong_way", "motion_of_still", "stillness_of_moving", "absence_unsaid", "absence_invented")

    def settings(self) -> dict[str, Any]:
        return settings_of("motion_any", *LEXICONS.values())

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        rows = [_motion_scores(row, language) for row in units.iter_rows(named=True)]
        return pl.DataFrame(rows, schema=dict.fromkeys(self.columns, pl.Int64), orient="row")


class Order(Rule):
    """Rule 18, second half: things told in another order than they happen.

    `motion_order` is the share of a video caption's motion claims that can be read off its events in the order told
    (the longest common subsequence over the claims that some event bears out); `A after B` counts as B, A. Null with
    fewer than two such claims. Source: temporal order words against event order.
    """

    name = "order"
    number = 18
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask")
    columns = ("motion_order",)

    def settings(self) -> dict[str, Any]:
        return settings_of(*LEXICONS.values())

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        found = [_order_of(row, language) for row in units.iter_rows(named=True)]
        return pl.DataFrame({"motion_order": pl.Series(found, dtype=pl.Float64)})


class Stream(Rule):
    """Rule 19: an event caption that copies its history, or speaks of a target that can hardly be seen.

    `history_copied` is the share of the text's runs of five words (Chinese: ten characters) that its history holds;
    null without history or under five words. `event_visible_share` is the share of the event's frames on which the
    target is visible, null where the event is one of absence.
    Source: FILTERS rule 19; repetition from history is a known flaw of PAM's streaming data.
    """

    name = "stream"
    number = 19
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask")
    columns = ("history_copied", "event_visible_share")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        pairs = units.select("text", "history").iter_rows()
        copied = [copied_share(text, history, language) for text, history in pairs]
        there = pl.when(pl.col("absent").not_()).then(pl.col("visible_share"))
        return units.select(
            history_copied=pl.Series(copied, dtype=pl.Float64), event_visible_share=there.cast(pl.Float64)
        )


def claims(text: str, language: Language) -> list[str]:
    """What a text claims of its target's motion, in the order told: names of `LEXICONS`."""
    if language == "en":
        text = _AFTER.sub(lambda found: f"{found.group(2)} , {found.group(1)}", text)
    found = [(at, name) for name in LEXICONS for at in _places(LEXICONS[name], text, language)]
    return [name for _, name in sorted(found)]


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


def measured(row: dict[str, Any]) -> list[set[str]]:
    """What happens in each event that a caption is about: names of `LEXICONS`, empty without a motion word."""
    if row["task"] == "stream":
        told = [] if row["absent"] is None else [(row["absent"], row["motion"])]
    else:
        told = [(event["absent"], event["motion"]) for event in row["events"] or ()]
    return [_happens(absent, motion) for absent, motion in told]


def _happens(absent: bool, motion: str | None) -> set[str]:
    if absent:
        return {"absent"}
    words: set[str] = set()
    for word in (motion or "").split(", "):
        if word.startswith("moving "):
            words.update(way for way in word.removeprefix("moving ").split() if way in WAYS)
            words.add("moving")
        else:
            words.add({"leaving": "absent"}.get(word, word))
    return words - {""}


def _motion_scores(row: dict[str, Any], language: Language) -> tuple[int | None, ...]:
    events = measured(row)
    text = row["text"]
    if not events or not text:
        return (None,) * 5
    said = set(claims(text, language))
    done = set().union(*events)
    turned = {OPPOSITE[way] for way in done if way in OPPOSITE}
    ways = done & set(WAYS)
    wrong = sum(1 for way in said & set(WAYS) if way not in done and (way in turned or (ways and not said & ways)))
    wrong += sum(1 for a, b in (("growing", "shrinking"), ("shrinking", "growing")) if a in said - done and b in done)
    moving = bool(said & set(WAYS)) or _says_moving(text, language)
    changes = done - {"still", "absent"}
    away = all(event == {"absent"} for event in events)
    return (
        int(wrong),
        int(moving and not changes and not away),
        int("still" in said and not said & set(WAYS) and all("moving" in event for event in events)),
        int(away and "absent" not in said),
        int("absent" in said and "absent" not in done),
    )


def _says_moving(text: str, language: Language) -> bool:
    """Whether a verb of motion is left once claims of stillness are taken out ("does not move")."""
    still = load_lexicon("motion_still").regex(language)
    rest = re.sub(still, " ", text) if still else text
    return bool(load_lexicon("motion_any").hits(rest, language))


def _order_of(row: dict[str, Any], language: Language) -> float | None:
    if row["task"] != "video" or not row["text"]:
        return None
    events = measured(row)
    done = set().union(*events) if events else set()
    told = [claim for claim in claims(row["text"], language) if claim in done]
    if len(told) < 2:
        return None
    return _in_order(told, events) / len(told)


def _in_order(told: Sequence[str], events: Sequence[set[str]]) -> int:
    """The most claims that can be read off the events in order; several claims may be of one event."""
    best = [0] * (len(events) + 1)  # best[i]: of the claims so far, read off the first i events
    for claim in told:
        row = best[:]
        for i, event in enumerate(events, 1):
            row[i] = max(row[i - 1], best[i] + (claim in event))
        best = row
    return best[-1]


def _places(lexicon: str, text: str, language: Language) -> list[int]:
    expression = load_lexicon(lexicon).regex(language)
    return [match.start() for match in re.finditer(expression, text)] if expression else []


def _grams(text: str, size: int, language: Language) -> list[tuple[str, ...]]:
    tokens = _TOKEN[language].findall(text.lower())
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
