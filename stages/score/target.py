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
    label_contradicts: int | None = None
    target_named: int | None = None
    neighbours_named: int | None = None
    neighbour_share: float | None = None
    subject_is_neighbour: int | None = None
    colour_conflict_share: float | None = None
    count_conflict_share: float | None = None
    name_conflict_share: float | None = None
    count_excess: int | None = None


class LabelMatch(Rule):
    """Rule 9, first half: the label that the teacher gave against the source's, by words.

    `label_matches` is 1 where the teacher's label names the source's class (the same words, a synonym that the source
    gives, a common other name, the head noun), 0 where it does not; null where either is missing. A 0 is no proof:
    the embedding rule judges synonyms that no table holds. `label_contradicts` is 1 where the label is known to be
    something else: the name of a neighbour, or of a class of the table where the source's label has one too and they
    share none ("elephant" for a dog); 0 where they agree, null where a table lacks one of them.
    Source: FILTERS rule 9.
    """

    name = "label_match"
    number = 9
    version = 2
    columns = ("label_matches", "label_contradicts")

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash()}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        return units.select(label_matches="_label_matches", label_contradicts="_label_contradicts")


class Neighbours(Rule):
    """Rule 15: a caption that speaks of another object of the image instead of its own.

    `target_named` is 1 where the text names the target's class, 0 where not (null without a label in the language);
    `neighbours_named` counts other labelled regions' classes that it names; `neighbour_share` is the share of
    neighbours among the classes named, null where none is. A share of 1 says that the text names nothing but
    neighbours, which it also does where it calls its target by a word that the table lacks ("A pug on a couch").
    `subject_is_neighbour` is 1 where the first noun phrase is about a neighbour and does not name the target.
    Source: FILTERS rule 15; background and neighbour leakage are reported by DAM (arXiv 2504.16072).
    """

    name = "neighbours"
    number = 15
    version = 2
    columns = ("target_named", "neighbours_named", "neighbour_share", "subject_is_neighbour")

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash()}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        total = pl.col("_own") + pl.col("_near")
        return units.select(
            target_named="_own",
            neighbours_named="_near",
            neighbour_share=pl.when(total > 0).then(pl.col("_near") / total),
            subject_is_neighbour="_about_other",
        )


class Siblings(Rule):
    """Rule 10, first half: captions of one region that contradict each other by words.

    Each is the share of siblings (same language, whole-region captions) that contradict this text, null where it or
    all of them say nothing of the matter: `colour_conflict_share`, whose colours of the target have none in common
    with this text's; `count_conflict_share`, where one speaks of several targets and the other of one;
    `name_conflict_share`, whose subject is of another class of the table (English). Where only two texts speak of a
    matter, a conflict does not say which of them is wrong.
    Source: FILTERS rule 10.
    """

    name = "siblings"
    number = 10
    version = 2
    columns = ("colour_conflict_share", "count_conflict_share", "name_conflict_share")

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash()}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        return units.select(
            colour_conflict_share="_colour_conflict",
            count_conflict_share="_count_conflict",
            name_conflict_share="_name_conflict",
        )


class Counts(Rule):
    """Rule 16, counts: a text about several things where the region is one.

    `count_excess` is the number that the text says of its target less one, 0 where it speaks of one or picks one out
    of several ("one of the two dogs"); null for crowds, groups, labels that are plural themselves and definitions, and
    where the text does not name the target.
    Source: FILTERS rule 16; "a group of seals" for one seal is reported by DAM (arXiv 2504.16072).
    """

    name = "counts"
    number = 16
    version = 2
    columns = ("count_excess",)

    def settings(self) -> dict[str, Any]:
        return {"tables": tables_hash()}

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        label = pl.col("source_label").fill_null("")
        plural = label.str.contains(r"(?i)[^su]s$|\b(?:people|pair|set|group)\b")
        single = ~(pl.col("is_crowd") | pl.col("is_group") | plural | (pl.col("task") == "explain"))
        return units.select(count_excess=pl.when(single).then(pl.col("_number") - 1))


class TargetStage(ScoreStage):
    """Rules 9, 10, 15 and 16 by words."""

    group: ClassVar[str] = "target"
    table: ClassVar[str] = "scores/target"
    unit: ClassVar[type[ScoreUnit]] = TargetUnit
    row: ClassVar[type[Row]] = TargetScores

    def __init__(self) -> None:
        super().__init__((LabelMatch(), Neighbours(), Siblings(), Counts()))

    def prepare(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        return units.hstack(mentions.readings(units, language))
