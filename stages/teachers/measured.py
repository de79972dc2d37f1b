"""The measured teacher: no model, only what can be measured in the pixels under the mask, in words.

The embedded default of demos and dry runs. It names a target as its source does, and says colours, size, place, shape,
texture and, for video, measured motion. It sees no meaning and its rows say `measured`, so that nobody takes it for a
vision-language model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationError

from stages.teachers import words
from stages.teachers.measure import Facts, measure
from stages.teachers.protocol import Reply, Subject, Teacher, TeacherRequest

MEASURED_VERSION = 1


class MeasuredTeacher(Teacher):
    """Answers from `request.subject`; deterministic, free, and never asked through the ledger."""

    name = "measured"
    model = f"measured-{MEASURED_VERSION}"
    billed = False
    sees: Literal["encoded", "pixels", "subject"] = "subject"

    async def ask(self, request: TeacherRequest) -> Reply:
        """The measured answer. Raises `ValueError` for a request without a subject."""
        if request.subject is None:
            raise ValueError("the measured teacher needs the subject of a request, not its messages")
        fields = describe(request.subject, list(request.answer.model_fields))
        try:
            answer = request.answer.model_validate(fields)
        except ValidationError as error:
            return Reply(outcome="invalid", message=str(error), finish_reason="stop")
        return Reply(outcome="answer", text=answer.model_dump_json(), finish_reason="stop")


def describe(subject: Subject, fields: list[str]) -> dict[str, str]:
    """The named answer fields of a subject, from its measurements."""
    facts = facts_of(subject)
    name = words.name_of(subject, facts)
    return {field: _field(field, subject, facts, name) for field in fields}


def facts_of(subject: Subject) -> Facts | None:
    """Measurements of the subject's frame; None where the target is not in view on any frame."""
    if subject.pixels is None or subject.mask is None or not subject.mask.any():
        return None
    return measure(subject.pixels, subject.mask, subject.crop, subject.width, subject.height)


def _field(field: str, subject: Subject, facts: Facts | None, name: str) -> str:
    language = subject.language
    if field == "label":
        return name
    if field == "definition":
        return words.definition_of(subject, name)
    if subject.task == "stream":
        happening = next(e for e in subject.events if e.event_index == subject.event_index)
        return words.event(facts, name, happening, not subject.history, language)
    if subject.task == "video":
        return words.video(facts, name, subject.events, language)
    if facts is None:
        raise ValueError("an image task needs a mask that is not empty")
    if field == "function":
        return words.function_of(facts, language)
    detailed = field == "detailed" or (field == "caption" and subject.task == "detailed")
    return words.detailed(facts, name, language) if detailed else words.brief(facts, name, language)
