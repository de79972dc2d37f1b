"""The page `docs/reference/answers.md`, made from the answer models."""

from __future__ import annotations

import json

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from stages.distill.answers import Answer, AtMost, answer_models
from stages.teachers.protocol import json_schema

_HEAD = """# Answers: what a teacher must say

Made from `stages/distill/answers.py` (`stages/distill/reference.py`; a test compares). A prompt names its model in the
`schema` field of its front matter. The schema is sent with the request; the lengths are checked when the reply is
there, after white space is folded and straight double quotes are turned."""


def answers_page() -> str:
    """The page as Markdown: of each model its fields, what they hold, their lengths, and the schema that is sent."""
    return "\n\n".join([_HEAD, *map(_section, answer_models())]) + "\n"


def _section(model: type[Answer]) -> str:
    rows = ["| field | what it says | characters |", "|---|---|---|"]
    rows += [f"| `{name}` | {field.description} | {_longest(field)} |" for name, field in model.model_fields.items()]
    schema = json.dumps(json_schema(model), indent=2, ensure_ascii=False)
    told = " ".join((model.__doc__ or "").split())
    return "\n\n".join([f"## {model.__name__}", told, "\n".join(rows), f"```json\n{schema}\n```"])


def _longest(field: FieldInfo) -> str:
    limits = [one.func.limit for one in field.metadata if isinstance(one, AfterValidator) and type(one.func) is AtMost]
    return f"at most {limits[0]}" if limits else "by its pattern"
