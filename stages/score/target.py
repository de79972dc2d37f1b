"""Rules 9, 10, 15 and 16 as far as words go: whether a caption speaks of its own target, and of one thing alone."""

from __future__ import annotations

from typing import Any, ClassVar

import polars as pl

from schemas.base import Record, Row
from schemas.caption import Language, Task
from schemas.region import Hint
from stages.score import mentions
from stages.score.base import Rule, ScoreRow, ScoreStage, ScoreUnit
from stages.score.words.tables import tables_hash


class Sibling(Record):
    """Another caption of the same region."""

    task: str
    language: str
    event_index: int
    text: str | None = None


class TargetUnit(ScoreUnit):
    """A caption, what the source says of its target and of the other regions on the media, and its siblings."""

    task: Task
    event_index: int = -1
    text: str | None = None
    label: str | None = None
    source_label: str | None = None
    hints: list[Hint] = []
    neighbours: list[str] = []
    siblings: list[Sibling] = []
    is_crowd: bool = False
    is_group: bool = False


class TargetScores(ScoreRow):
    """Scores of rules 9, 10, 15 and 16 by words."""

    label_matches: int | None = None
    target_named: int | None = None
    neighbours_named: int | None = None
    neighbour_share: float | None = None
    colour_conflict_share: float | None = None
    count_excess: int | None = None


class LabelMatch(Rule):
    """Rule 9, first half: the label that the teacher gave against the source's, by words.

    `label_matches` is 1 where the teacher's label names the source's class (the same words, a synonym that the source
    gives, a common other name, the head noun), 0 where it does not; null where either is missing. A 0 is no proof:
    the embedding rule judges synonyms that no table holds.
    Source: FILTERS rule 9.
    """

    name = "label_match"
    number = 9
    columns = ("label_matches",)

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash()}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        given = pl.when(pl.col("task") == "label").then(pl.col("text")).otherwise(pl.col("label"))
        labels = units.with_columns(_padded=mentions.padded(given.str.replace_all("_", " "), language), _given=given)
        found = mentions.mentioned(labels, mentions.target_names(units, language), language)
        named = mentions.by_row(found, [(pl.col("times") > 0).any().cast(pl.Int64).alias("named")], len(units))["named"]
        return labels.select(label_matches=pl.when(pl.col("_given").is_not_null()).then(named))


class Neighbours(Rule):
    """Rule 15: a caption that speaks of another object of the image instead of its own.

    `target_named` is 1 where the text names the target's class, 0 where not (null without a label in the language);
    `neighbours_named` counts other labelled classes of the media that it names; `neighbour_share` is the share of
    neighbours among the classes named, null where none is. A detailed caption may well name what its target touches:
    a share of 1 says that it speaks of nothing but neighbours.
    Source: FILTERS rule 15; background and neighbour leakage are reported by DAM (arXiv 2504.16072).
    """

    name = "neighbours"
    number = 15
    columns = ("target_named", "neighbours_named", "neighbour_share")

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash()}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        height = len(units)
        targets = mentions.target_names(units, language)
        others = mentions.neighbour_names(units, language, targets)
        hit = (pl.col("times") > 0).cast(pl.Int64)
        own = mentions.by_row(mentions.mentioned(units, targets, language), [hit.max().alias("own")], height)["own"]
        near = mentions.by_row(mentions.mentioned(units, others, language), [hit.sum().alias("near")], height)["near"]
        frame = units.select("text", own=own, near=near.fill_null(0))
        total = pl.col("own") + pl.col("near")
        told = pl.col("text").is_not_null() & pl.col("own").is_not_null()
        return frame.select(
            target_named=pl.when(told).then("own"),
            neighbours_named=pl.when(told).then("near"),
            neighbour_share=pl.when(told & (total > 0)).then(pl.col("near") / total),
        )


class SiblingColours(Rule):
    """Rule 10, first half: captions of one region that contradict each other on its colour.

    `colour_conflict_share` is the share of siblings (same language, whole-region captions) whose colours of the target
    have none in common with this text's; null where this text or all siblings name no colour of the target. Where
    only two texts speak of colour, a conflict does not say which of them is wrong.
    Source: FILTERS rule 10.
    """

    name = "sibling_colours"
    number = 10
    columns = ("colour_conflict_share",)

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash()}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        own = units.select("_colours").with_row_index("row")
        pairs = (
            units.select("source_label", "hints", "siblings", me="task", my_event="event_index")
            .with_row_index("row")
            .explode("siblings")
            .filter(pl.col("siblings").is_not_null())
            .unnest("siblings")
            .filter(
                (pl.col("language") == language)
                & pl.col("text").is_not_null()
                & ((pl.col("task") != pl.col("me")) | (pl.col("event_index") != pl.col("my_event")))
                & pl.col("task").is_in(["explain", "brief", "detailed", "video"])
            )
        )
        if not len(pairs):
            return pl.DataFrame(
                {"colour_conflict_share": [None] * len(units)}, schema={"colour_conflict_share": pl.Float64}
            )
        told = pairs.with_columns(_padded=mentions.padded(pl.col("text"), language))
        theirs = pairs.select("row", theirs=target_colours(told, language)).join(own, on="row", maintain_order="left")
        spoke = theirs.filter((pl.col("theirs") > 0) & (pl.col("_colours") > 0))
        conflict = (pl.col("theirs") & pl.col("_colours")) == 0
        return mentions.by_row(spoke, [conflict.mean().alias("colour_conflict_share")], len(units))


class Counts(Rule):
    """Rule 16, counts: a text about several things where the region is one.

    `count_excess` is the number that the text says of its target less one, 0 where it speaks of one; null for crowds,
    groups and labels that are plural themselves, and where the text does not name the target.
    Source: FILTERS rule 16; "a group of seals" for one seal is reported by DAM (arXiv 2504.16072).
    """

    name = "counts"
    number = 16
    columns = ("count_excess",)

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash()}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        said = mentions.said_of_target(units, language, mentions.target_names(units, language))
        number = mentions.by_row(mentions.number_of_target(said, language), [pl.col("number").first()], len(units))
        plural = pl.col("source_label").fill_null("").str.contains(r"(?i)[^s]s$|\b(?:people|pair|set|group)\b")
        single = ~(pl.col("is_crowd") | pl.col("is_group") | plural)
        return units.select(count_excess=pl.when(single).then(number["number"] - 1))


class TargetStage(ScoreStage):
    """Rules 9, 10, 15 and 16 by words."""

    group: ClassVar[str] = "target"
    table: ClassVar[str] = "scores/target"
    unit: ClassVar[type[ScoreUnit]] = TargetUnit
    row: ClassVar[type[Row]] = TargetScores

    def __init__(self) -> None:
        super().__init__((LabelMatch(), Neighbours(), SiblingColours(), Counts()))

    def prepare(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        told = units.with_columns(_padded=mentions.padded(pl.col("text"), language))
        return told.with_columns(_colours=target_colours(told, language))


def target_colours(units: pl.DataFrame, language: Language) -> pl.Series:
    """The colours that each text says of its target, as bit masks; 0 where it says none. Units need `_padded`."""
    said = mentions.said_of_target(units, language, mentions.target_names(units, language))
    found = mentions.colours_of_target(said, language)
    return mentions.by_row(found, [pl.col("colours").first()], len(units))["colours"].fill_null(0)
