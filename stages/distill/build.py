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
    share: int = 1,
) -> DistillStage:
    """The stage that captions `task` in `language`; one such stage is one fingerprint.

    `ledger` is the run's ledger folder or URL (needed by every teacher but `measured`), `storage_options` are for the
    media's file systems and the ledger's. `share` is among how many such stages and workers the teacher's minute quotas
    are divided; they are no part of the fingerprint. Raises `PromptError` or `ValueError` for settings that do not fit
    together.
    """
    teacher = teacher.model_copy(update={"limits": teacher.limits.shared_by(share)})
    recipe = recipe_for(teacher, captions, task, language)
    options = dict(storage_options or {})
    stage = {"video": VideoStage, "stream": StreamStage}.get(task, DistillStage)
    if recipe.translates:
        stage = TranslateStage
    return stage(recipe, TeacherSource(teacher, ledger, options, forgive_before), options)
