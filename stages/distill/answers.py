"""The answers of a teacher: one model a task, which is the JSON schema sent, the validator, and the documentation.

Every text has a pattern, so that constrained decoding cannot emit control characters (with lengths alone 2 of 30
answers of a random model were valid). Quotation marks and backslashes are outside the pattern, since a grammar made
from it would let them end the JSON string; the texts of teachers that are not constrained are normalised before they
are checked. Lengths are checked here; only that of a label stands in the schema, within its pattern: vLLM refuses
length bounds beside a pattern, and xgrammar 0.2.8 cannot compile a repetition of more than about 120 characters. What
runs on is cut by the token limit.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from schemas.base import Record
from schemas.caption import Language, Task

_CONTROL = re.compile(r"[\x00-\x1f\x7f\s]+")
_QUOTED = re.compile(r'"([^"]*)"')


def normalise(value: Any) -> Any:
    """Folds white space and turns straight double quotes and backslashes into signs that JSON need not escape."""
    if not isinstance(value, str):
        return value
    quoted = _QUOTED.sub("\u201c\\1\u201d", value.replace("\\", "/"))
    return _CONTROL.sub(" ", quoted.replace('"', "'")).strip()


def _said(what: str, often: str = "+") -> Any:
    return Field(pattern=rf'^[^\x00-\x1f\x7f"\\]{often}$', description=what)


@dataclass(frozen=True)
class AtMost:
    """Refuses texts of more than `limit` characters."""

    limit: int

    def __call__(self, text: str) -> str:
        if len(text) > self.limit:
            raise ValueError(f"has {len(text)} characters; at most {self.limit} are allowed")
        return text


def _at_most(limit: int) -> AfterValidator:
    return AfterValidator(AtMost(limit))


_Clean = BeforeValidator(normalise)
Label = Annotated[str, _said("The noun that people use for a thing of this kind.", "{1,80}"), _Clean]
Definition = Annotated[str, _said("What a thing of this kind is, as a dictionary would say it."), _Clean, _at_most(480)]
Function = Annotated[str, _said("The role of this one thing in its surroundings."), _Clean, _at_most(480)]
Brief = Annotated[str, _said("One sentence that tells the target from others of its kind."), _Clean, _at_most(400)]
Detailed = Annotated[str, _said("The target described in full."), _Clean, _at_most(2000)]
Video = Annotated[str, _said("The target over the whole video, in order of time."), _Clean, _at_most(1600)]
EventText = Annotated[str, _said("What is new about the target in this event."), _Clean, _at_most(800)]


class CaptionParts(Record):
    """What a caption row keeps of an answer."""

    text: str
    label: str | None = None
    definition: str | None = None
    function: str | None = None


class Answer(Record):
    """The base of all answers."""

    @abstractmethod
    def parts(self, task: Task, language: Language) -> CaptionParts:
        """The caption of `task` in this answer. Raises `ValueError` for a task that it does not hold."""


class LabelAnswer(Answer):
    """Task `label`."""

    label: Label

    def parts(self, task: Task, language: Language) -> CaptionParts:
        return CaptionParts(text=self.label, label=self.label)


class ExplainAnswer(Answer):
    """Task `explain`: the parts are stored apart; the text is label, definition and function in this order."""

    label: Label
    definition: Definition
    function: Function

    def parts(self, task: Task, language: Language) -> CaptionParts:
        text = join_explain(self.label, self.definition, self.function, language)
        return CaptionParts(text=text, label=self.label, definition=self.definition, function=self.function)


class _CaptionAnswer(Answer):
    caption: str

    def parts(self, task: Task, language: Language) -> CaptionParts:
        return CaptionParts(text=self.caption)


class BriefAnswer(_CaptionAnswer):
    """Task `brief`."""

    caption: Brief


class DetailedAnswer(_CaptionAnswer):
    """Task `detailed`."""

    caption: Detailed


class VideoAnswer(_CaptionAnswer):
    """Task `video`."""

    caption: Video


class EventAnswer(_CaptionAnswer):
    """Task `stream`: one event."""

    caption: EventText


class CombinedAnswer(Answer):
    """The four image tasks of a region in one reply."""

    label: Label
    definition: Definition
    function: Function
    brief: Brief
    detailed: Detailed

    def parts(self, task: Task, language: Language) -> CaptionParts:
        match task:
            case "label":
                return CaptionParts(text=self.label, label=self.label)
            case "explain":
                text = join_explain(self.label, self.definition, self.function, language)
                return CaptionParts(text=text, label=self.label, definition=self.definition, function=self.function)
            case "brief":
                return CaptionParts(text=self.brief)
            case "detailed":
                return CaptionParts(text=self.detailed)
            case _:
                raise ValueError(f"a combined answer holds no {task} caption")


_ANSWERS: dict[str, type[Answer]] = {
    model.__name__: model
    for model in (
        LabelAnswer,
        ExplainAnswer,
        BriefAnswer,
        DetailedAnswer,
        VideoAnswer,
        EventAnswer,
        CombinedAnswer,
    )
}


def answer_models() -> list[type[Answer]]:
    """All answers, in the order of their tasks."""
    return list(_ANSWERS.values())


def answer_model(schema_name: str) -> type[Answer]:
    """The model that a prompt names in its `schema` field. Raises `ValueError` for an unknown name."""
    if schema_name not in _ANSWERS:
        raise ValueError(f"no answer model {schema_name!r}; there are {', '.join(sorted(_ANSWERS))}")
    return _ANSWERS[schema_name]


def join_explain(label: str, definition: str, function: str, language: Language) -> str:
    """An explain answer as one text: label, definition, function, each a sentence."""
    if language == "zh":
        return "".join(_stopped(part, "。") for part in (label, definition, function))
    return " ".join(_stopped(part[:1].upper() + part[1:], ".") for part in (label, definition, function))


def _stopped(text: str, stop: str) -> str:
    return text if text.endswith((".", "!", "?", "。", "！", "？")) else text + stop
