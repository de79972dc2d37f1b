"""Builds the stage of one task and language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.caption import Language, Task
from stages.distill.config import CaptionsConfig
from stages.distill.recipe import recipe_for
from stages.distill.stage import DistillStage
from stages.distill.translation import TranslateStage
from stages.distill.video import StreamStage, VideoStage
from stages.teachers.config import TeacherConfig
from stages.teachers.source import TeacherSource


def build_distill(
    teacher: TeacherConfig,
    captions: CaptionsConfig,
    task: Task,
    language: Language,
    ledger: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    forgive_before: float = 0.0,
    source: TeacherSource | None = None,
) -> DistillStage:
    """The stage that captions `task` in `language`; one such stage is one fingerprint.

    `ledger` is the run's ledger folder or URL (needed by every teacher but `measured`), `storage_options` are for the
    media's file systems and the ledger's. `source` is where the teacher comes from, where other stages ask it as well.
    Raises `PromptError` or `ValueError` for settings that do not fit together.
    """
    recipe = recipe_for(teacher, captions, task, language)
    options = dict(storage_options or {})
    stage = {"video": VideoStage, "stream": StreamStage}.get(task, DistillStage)
    if recipe.translates:
        stage = TranslateStage
    return stage(recipe, source or TeacherSource(teacher, ledger, options, forgive_before), options)
