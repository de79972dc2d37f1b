"""The groups of rules: which there are, which a configuration runs, and what columns they fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.base import Row
from stages.base import Stage
from stages.score.base import ScoreStage, score_columns
from stages.score.duplicates import CorpusScores, DuplicatesConfig
from stages.score.mask import MaskStage
from stages.score.pixels import PixelStage
from stages.score.target import TargetStage
from stages.score.text import TextStage

GROUPS: tuple[type[ScoreStage], ...] = (TextStage, MaskStage, TargetStage, PixelStage)


class ScoreConfig(BaseModel):
    """Which rules score captions. Rules over text, masks and pixels are cheap and always run; the others are off.

    `duplicates` compares the captions of the whole corpus with each other (`stages.score.duplicates`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    duplicates: DuplicatesConfig | None = None


@dataclass(frozen=True)
class Column:
    """A score column: the group whose table holds it."""

    name: str
    group: str


def active_groups(config: ScoreConfig) -> tuple[str, ...]:
    """The groups that this configuration runs."""
    return tuple(stage.group for stage in GROUPS)


def build_score(group: str, config: ScoreConfig, storage_options: Mapping[str, Any] | None = None) -> Stage:
    """The stage of one group. Raises `ValueError` for a group that does not exist."""
    makers: dict[str, Callable[[], Stage]] = {
        TextStage.group: TextStage,
        MaskStage.group: MaskStage,
        TargetStage.group: TargetStage,
        PixelStage.group: lambda: PixelStage(storage_options),
    }
    if group not in makers:
        raise ValueError(f"there is no rule group {group!r}; there are {', '.join(makers)}")
    return makers[group]()


def all_columns() -> dict[str, Column]:
    """Every score column that some group fills."""
    rows: dict[str, type[Row]] = {stage.group: stage.row for stage in GROUPS} | {"corpus": CorpusScores}
    return {name: Column(name, group) for group, row in rows.items() for name in score_columns(row)}
