"""The groups of rules: which there are, which a configuration runs, and what columns they fill."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from stages.base import Stage
from stages.score.base import ScoreStage, score_columns
from stages.score.mask import MaskStage
from stages.score.text import TextStage

GROUPS: tuple[type[ScoreStage], ...] = (TextStage, MaskStage)


class ScoreConfig(BaseModel):
    """Which rules score captions. Text and mask rules are cheap and always run."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Column:
    """A score column: the group whose table holds it."""

    name: str
    group: str


def active_groups(config: ScoreConfig) -> tuple[str, ...]:
    """The groups that this configuration runs."""
    return tuple(stage.group for stage in GROUPS)


def build_score(group: str, config: ScoreConfig) -> Stage:
    """The stage of one group. Raises `ValueError` for a group that does not exist."""
    if group == TextStage.group:
        return TextStage()
    if group == MaskStage.group:
        return MaskStage()
    raise ValueError(f"there is no rule group {group!r}; there are {', '.join(stage.group for stage in GROUPS)}")


def all_columns() -> dict[str, Column]:
    """Every score column that some group fills."""
    return {name: Column(name, stage.group) for stage in GROUPS for name in score_columns(stage.row)}
