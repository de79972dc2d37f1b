"""From what a model said to a typed outcome; one judge for all back ends."""

from __future__ import annotations

import re

from pydantic import ValidationError

from schemas.caption import Usage
from stages.teachers.protocol import Reply, TeacherRequest

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n?(.*?)\n?\s*```\s*\Z", re.DOTALL)
_REFUSAL = re.compile(
    r"\A\W*(i'?m sorry|i am sorry|sorry,|i can(?:'|no)t |i can not |i'?m (?:not able|unable)|i am (?:not able|unable)"
    r"|as an ai|抱歉|对不起|很遗憾|我无法|我不能|无法)",
    re.IGNORECASE,
)
_SHOWN_ERRORS = 3
_WORDS = {"string_pattern_mismatch": "is empty, too long, or holds characters that are not allowed"}


def judge(
    request: TeacherRequest, text: str | None, finish_reason: str | None, refusal: str | None, usage: Usage
) -> Reply:
    """The reply to a request: an answer only if it is valid by the request's own model.

    An answer's text is its canonical JSON; other outcomes keep what the model said, and why it is no answer.
    """
    common = {"finish_reason": finish_reason, "usage": usage}
    said = text or ""
    if refusal or finish_reason == "content_filter":
        return Reply(outcome="refused", text=text, message=(refusal or "stopped by the content filter")[:500], **common)
    if finish_reason in ("length", "max_tokens"):
        return Reply(outcome="truncated", text=text, message="the answer reached the token limit", **common)
    fenced = _FENCE.match(said)
    try:
        answer = request.answer.model_validate_json(fenced.group(1) if fenced else said)
    except ValidationError as error:
        if _REFUSAL.match(said):
            return Reply(outcome="refused", text=text, message=said[:500], **common)
        return Reply(outcome="invalid", text=text, message=explain(error), **common)
    return Reply(outcome="answer", text=answer.model_dump_json(), **common)


def explain(error: ValidationError) -> str:
    """A validator's complaint in one line, for the model and for people; the patterns themselves are left out."""
    told = []
    for item in error.errors(include_url=False, include_input=False)[:_SHOWN_ERRORS]:
        where = ".".join(str(part) for part in item["loc"])
        what = _WORDS.get(item["type"], item["msg"]).removeprefix("Value error, ")
        told.append(f"{where}: {what}" if where else what)
    return "; ".join(told)
