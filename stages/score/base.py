"""The rule and the stage that runs a group of rules.

A rule turns columns of units into columns of scores. A score is a fact about a caption: it is computed once and kept,
and null says that the rule did not run or does not apply, which no policy reads as a pass or a fail by itself. What is
kept is decided over the scores, by `stages.decide`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import Any, ClassVar, Literal, Self

import polars as pl
import pyarrow as pa

from schemas.base import Key, Record, Row
from schemas.caption import Language
from stages.base import Stage, fingerprint

Need = Literal["text", "mask", "pixels", "embeddings", "teacher", "corpus"]

LANGUAGES: tuple[Language, ...] = ("en", "zh")
_PLAIN = frozenset({"caption_key", "region_key", *Row.model_fields})


class Rule(ABC):
    """One way in which a caption can be wrong, measured.

    `name` is the rule's name in reports, `number` its place in the list of rules in docs/guides/filters.md. `columns`
    are the score columns that it fills. Raise `version` when the same caption would get another score: that
    rule, and no other, is then run again over what it has scored.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = ("text",)
    languages: ClassVar[tuple[Language, ...]] = LANGUAGES
    columns: ClassVar[tuple[str, ...]]

    def settings(self) -> dict[str, Any]:
        """What the scores depend on beside the units and the version: lexicon hashes, models, limits."""
        return {}

    def open(self) -> None:
        """Called once in each worker before the first batch: load weights."""

    @abstractmethod
    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        """The score columns of these units, row by row in their order.

        `units` are all of one language and hold what the group's `prepare` added (columns that begin with `_`).
        """


class ScoreRow(Row):
    """What every score row starts with; a group's row adds one nullable column a score. Key: `caption_key`."""

    key_field: ClassVar[str] = "caption_key"

    caption_key: Key
    region_key: Key


class ScoreUnit(Record):
    """What every score unit starts with; a group's unit adds the columns that its rules read."""

    caption_key: Key
    region_key: Key
    input_digest: Key
    language: Language


class ScoreStage(Stage):
    """Scores captions by one group of rules: one wide row a caption, in the table `scores/<group>`.

    A group is a subclass with `group`, `table`, `unit`, `row` and a tuple of rules; it may override `prepare` to
    compute once what several rules read (tokens, decoded masks).
    """

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    group: ClassVar[str]
    unit_field: ClassVar[str] = "caption_key"
    group_by: ClassVar[tuple[str, ...]] = ("caption_key",)
    batch_groups: int = 20_000

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        declared = set(score_columns(self.row))
        filled = [column for rule in rules for column in rule.columns]
        if unknown := sorted(set(filled) - declared):
            raise ValueError(f"{type(self).__name__}: {self.row.__name__} declares no column {', '.join(unknown)}")
        if doubled := sorted({column for column in filled if filled.count(column) > 1}):
            raise ValueError(f"{type(self).__name__}: two rules fill {', '.join(doubled)}")
        self.rules = rules

    def only(self, names: Collection[str]) -> Self:
        """This stage with the rules of these names alone; its fingerprint is theirs."""
        stage = copy.copy(self)
        stage.rules = tuple(rule for rule in self.rules if rule.name in names)
        return stage

    def settings(self) -> dict[str, Any]:
        rules = {rule.name: {"version": rule.version, **rule.settings()} for rule in self.rules}
        return {"group": self.group, "rules": rules}

    def open(self) -> None:
        for rule in self.rules:
            rule.open()

    def prepare(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        """The units of one language with columns that several rules share.

        A column `_failure` names, where it is not null, why a unit cannot be scored (its media is gone).
        """
        return units

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        frame = pl.DataFrame(pl.from_arrow(units))
        for language in LANGUAGES:
            part = frame.filter(pl.col("language") == language)
            if len(part):
                yield self._scored(part, language)

    def _scored(self, units: pl.DataFrame, language: Language) -> pa.Table:
        ready = self.prepare(units, language)
        columns = {name: units[name] for name in ("caption_key", "region_key", "input_digest")}
        for rule in self.rules:
            if language not in rule.languages:
                continue
            scored = rule.scores(ready, language)
            if tuple(scored.columns) != rule.columns or len(scored) != len(units):
                raise ValueError(
                    f"rule {rule.name} declares columns {rule.columns} of {len(units)} rows"
                    f" and returned {tuple(scored.columns)} of {len(scored)}"
                )
            columns |= {name: scored[name] for name in scored.columns}
        return with_fate(pl.DataFrame(columns), ready).to_arrow()


def rule_prints(stage: ScoreStage) -> dict[str, str]:
    """The fingerprint (hexadecimal) of each rule of a group by its full name, `score/<group>/<rule>`."""
    return {f"score/{stage.group}/{rule.name}": fingerprint(stage.only((rule.name,))).hex() for rule in stage.rules}


def with_fate(scores: pl.DataFrame, units: pl.DataFrame) -> pl.DataFrame:
    """Score rows with their status: `failed` with the reason in the units' column `_failure`, where there is one."""
    failure = pl.lit(units["_failure"] if "_failure" in units.columns else None, pl.String)
    return scores.with_columns(
        status=pl.when(failure.is_null()).then(pl.lit("ok")).otherwise(pl.lit("failed")),
        reason=failure,
        attempts=pl.lit(1, pl.Int64),
    )


def score_columns(row: type[Row]) -> tuple[str, ...]:
    """The score columns of a group's row, in the order in which it declares them."""
    return tuple(name for name in row.model_fields if name not in _PLAIN)
