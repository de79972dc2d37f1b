"""A recipe: all that the captions of one task and language depend on beside their units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prompts import Prompt, for_task
from schemas.caption import Language, Task
from schemas.keys import digest_value
from schemas.region import Hint
from stages.distill.answers import Answer, answer_model
from stages.distill.config import IMAGE_TASKS, VIDEO_TASKS, CaptionsConfig
from stages.teachers.config import TeacherConfig
from stages.teachers.measured import MEASURED_VERSION
from stages.teachers.protocol import Message, Picture, Subject, TeacherRequest, json_schema
from stages.views.config import ViewConfig
from stages.views.images import view_identity
from stages.views.storyboard import ClipViewConfig

TRANSLATION_CHECKS = 1
"""The version of what a translation is checked for (stages/distill/translation.py)."""


@dataclass(frozen=True)
class Recipe:
    """One task in one language: the prompt, the answer that it asks for, the views, the teacher."""

    task: Task
    language: Language
    prompt: Prompt
    answer: type[Answer]
    views: tuple[str, ...]
    pictures: ViewConfig
    clips: ClipViewConfig
    history: int
    hints: bool
    teacher: TeacherConfig
    translates: bool = False

    @property
    def kind(self) -> str:
        """The kind of its requests: requests of one kind are alike, and tasks that share a request have one kind."""
        return self.prompt.id if self.prompt.task == "combined" else f"{self.prompt.id}/{self.task}"

    def settings(self) -> dict[str, Any]:
        """The fingerprint's part of the recipe, as plain JSON values."""
        common: dict[str, Any] = {
            "task": self.task,
            "language": self.language,
            "prompt": self.prompt.hash.hex(),
            "answer": digest_value(json.dumps(json_schema(self.answer), sort_keys=True)).hex(),
            "teacher": self.teacher.settings(),
        }
        if self.translates:
            return common | {"translates": "en", "checks": TRANSLATION_CHECKS}
        if self.task == "stream":
            common["history"] = self.history
        if self.teacher.backend == "measured":
            return common | {"measured": MEASURED_VERSION}
        if self.task in VIDEO_TASKS:
            common["clips"] = self.clips.model_dump(mode="json")
        return common | {
            "views": [view_identity(view) for view in self.views],
            "pictures": self.pictures.model_dump(mode="json"),
            "hints": self.hints,
        }

    def request(
        self,
        media_key: bytes,
        pictures: Sequence[Picture],
        context: dict[str, Any],
        subject: Subject | None,
        views: Sequence[str],
    ) -> TeacherRequest:
        """The request for one unit; `context` adds what video and stream templates use.

        `media_key` marks the reply in the ledger, so that a media can be taken out of it.
        """
        turns = self.prompt.render({**context, "views": list(views), "mark": self.pictures.mark})
        decoding = self.teacher.decoding
        return TeacherRequest(
            model=self.teacher.identity,
            messages=(Message("system", turns.system), Message("user", turns.user, tuple(pictures))),
            answer=self.answer,
            decoding=decoding,
            max_tokens=decoding.max_tokens or self.prompt.max_tokens,
            detail=self.teacher.detail,
            options=self.teacher.request_options(),
            subject=subject,
            tags={
                "task": self.task,
                "language": self.language,
                "prompt": self.prompt.id,
                "kind": self.kind,
                "media": media_key.hex(),
            },
        )

    def source_context(self, label: str | None, hints: Sequence[Hint]) -> dict[str, Any]:
        """What the source says of the target, for the templates: label, definitions, everything else."""
        shown = list(hints) if self.hints else []
        own = [hint.text for hint in shown if hint.kind == "definition" and hint.language == self.language]
        other = [hint.text for hint in shown if hint.kind == "definition" and hint.language != self.language]
        phrases = [hint.text for hint in shown if hint.kind not in ("definition", "label")]
        return {
            "label": label if self.hints else None,
            "definitions": (own or other)[:1],
            "phrases": phrases[:4],
        }


def recipe_for(teacher: TeacherConfig, captions: CaptionsConfig, task: Task, language: Language) -> Recipe:
    """The recipe of a task in a language. Raises `PromptError` or `ValueError` for a prompt that does not fit."""
    folders = [captions.prompts] if captions.prompts else []
    translates = captions.translates(language)
    combined = captions.combined and task in IMAGE_TASKS
    own = for_task(task, language, folders)
    prompt = for_task("translate" if translates else "combined", language, folders) if translates or combined else own
    return Recipe(
        task=task,
        language=language,
        prompt=prompt,
        answer=answer_model(own.schema_name if translates else prompt.schema_name),
        views=() if translates else captions.views.get(task) or tuple(prompt.views),
        pictures=captions.pictures,
        clips=captions.clips,
        history=captions.history,
        hints=captions.hints,
        teacher=teacher,
        translates=translates,
    )
