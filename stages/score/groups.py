"""The groups of rules: which there are, which a configuration runs, and what columns they fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.base import Row
from stages.base import Stage
from stages.score.base import ScoreStage, score_columns
from stages.score.duplicates import CorpusScores, DuplicatesConfig
from stages.score.embeddings import EmbeddingStage
from stages.score.encoder import EmbeddingsConfig, ModelConfig
from stages.score.judge import JudgeConfig, JudgeStage
from stages.score.mask import MaskStage
from stages.score.pixels import PixelStage
from stages.score.similarity import CropStage, GroundingStage
from stages.score.target import TargetStage
from stages.score.text import TextStage
from stages.score.video import VideoStage

PLAIN: tuple[type[ScoreStage], ...] = (TextStage, MaskStage, TargetStage, VideoStage)
"""Groups made without arguments: a new group of rules that needs no model is named here, and nowhere else."""

GROUPS: tuple[type[ScoreStage] | type[JudgeStage], ...] = (
    *PLAIN, PixelStage, EmbeddingStage, CropStage, GroundingStage, JudgeStage,
)  # fmt: skip
ALWAYS = (*(stage.group for stage in PLAIN), "pixels")
OPTIONAL = ("embeddings", "crops", "grounding", "judge")


class ScoreConfig(BaseModel):
    """Which rules score captions. Rules over text, masks and pixels are cheap and always run; the others are off.

    `embeddings` is the sentence encoder of rules 9 and 19, `crops` a CLIP or SigLIP model for rule 13, `grounding` an
    open-vocabulary detector for rule 14, `judge` a second teacher for rules 10 to 12;
    `duplicates` compares the captions of the whole corpus with each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    embeddings: EmbeddingsConfig | None = None
    crops: ModelConfig | None = None
    grounding: ModelConfig | None = None
    judge: JudgeConfig | None = None
    duplicates: DuplicatesConfig | None = None


@dataclass(frozen=True)
class Column:
    """A score column: the group whose table holds it."""

    name: str
    group: str


def active_groups(config: ScoreConfig) -> tuple[str, ...]:
    """The groups that this configuration runs."""
    return ALWAYS + tuple(name for name in OPTIONAL if getattr(config, name) is not None)


def build_score(
    group: str,
    config: ScoreConfig,
    storage_options: Mapping[str, Any] | None = None,
    ledger: str | None = None,
    forgive_before: float = 0.0,
) -> Stage:
    """The stage of one group; `ledger` is the run's ledger folder or URL, which a second teacher's replies go to.

    Attempts without an answer from before `forgive_before` (Unix seconds) are made again. Raises `ValueError` for a
    group that does not exist or is not configured.
    """
    for stage in PLAIN:
        if stage.group == group:
            return stage()
    match group:
        case "pixels":
            return PixelStage(storage_options)
        case "embeddings" if config.embeddings is not None:
            return EmbeddingStage(config.embeddings)
        case "crops" if config.crops is not None:
            return CropStage(config.crops, storage_options)
        case "grounding" if config.grounding is not None:
            return GroundingStage(config.grounding, storage_options)
        case "judge" if config.judge is not None:
            return JudgeStage(config.judge, ledger, storage_options, forgive_before)
    known = [stage.group for stage in GROUPS]
    if group in known:
        raise ValueError(f"rule group {group!r} is off: configure score.{group}")
    raise ValueError(f"there is no rule group {group!r}; there are {', '.join(known)}")


def all_columns() -> dict[str, Column]:
    """Every score column that some group fills."""
    rows: dict[str, type[Row]] = {stage.group: stage.row for stage in GROUPS} | {"corpus": CorpusScores}
    return {name: Column(name, group) for group, row in rows.items() for name in score_columns(row)}
