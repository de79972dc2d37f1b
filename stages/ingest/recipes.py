"""What is known of each source format (`configs/sources.yaml`): hints, default captions, licence, sizes, targets."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.caption import Task
from schemas.media import MediaKind
from schemas.region import HintKind
from schemas.yaml import load_yaml
from stages.ingest.base import SourceCaptions, SourceConfig


class Recipe(BaseModel):
    """One format. `media`, `regions`, `gigabytes` are of the training split as published; `frames` is the mean length
    of its videos in frames of the file. None is unknown.

    `hints` go to the teacher, `tasks` are asked where a source does not say otherwise (empty: the run's own), `target`
    is this source's share of the corpus in captions kept (region x task x language).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: MediaKind
    hints: tuple[HintKind, ...]
    tasks: tuple[Task, ...]
    licence: str | None
    split: str
    media: int | None = Field(ge=0)
    regions: int | None = Field(ge=0)
    gigabytes: float | None = Field(ge=0)
    frames: int | None = Field(None, ge=1)
    evidence: Literal["paper", "memory"]
    target: int = Field(ge=0)
    benchmarks: tuple[str, ...] = ()
    page: str | None


def recipes() -> dict[str, Recipe]:
    """Format name -> recipe. Raises pydantic's `ValidationError` for a damaged table."""
    text = files("configs").joinpath("sources.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Recipe]).validate_python(load_yaml(text))


def with_recipe(source: SourceConfig, recipe: Recipe, tasks: bool = True) -> SourceConfig:
    """The source with the hints, the licence and (where `tasks`) the tasks of its recipe, as far as it names none."""
    own = source.captions
    asked = own.tasks
    if asked is None and own.imported is None and tasks:
        asked = recipe.tasks or None
    captions = SourceCaptions(
        tasks=asked,
        languages=own.languages,
        hints=recipe.hints if own.hints is None else own.hints,
        imported=own.imported,
    )
    licence = recipe.licence if source.licence is None else source.licence
    return source.model_copy(update={"captions": captions, "licence": licence})
