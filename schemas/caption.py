"""Captions, the scores that rules give them, and the decisions of a policy."""

from __future__ import annotations

from typing import ClassVar, Literal

from schemas.base import Key, Record, Row

Task = Literal["label", "explain", "brief", "detailed", "video", "stream"]
Language = Literal["en", "zh"]
Outcome = Literal["answer", "refused", "truncated", "invalid", "unavailable"]

TASKS: tuple[Task, ...] = ("label", "explain", "brief", "detailed", "video", "stream")
NO_EVENT = -1


class Usage(Record):
    """Tokens and money of the replies behind one row, all attempts counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None


def added(one: Usage, two: Usage) -> Usage:
    """The sum of two usages; a cost is known where at least one is."""
    costs = [usage.cost_usd for usage in (one, two) if usage.cost_usd is not None]
    return Usage(
        prompt_tokens=one.prompt_tokens + two.prompt_tokens,
        completion_tokens=one.completion_tokens + two.completion_tokens,
        cost_usd=sum(costs) if costs else None,
    )


class Caption(Row):
    """A teacher's answer for region x task x language x event (`NO_EVENT` for tasks of the whole region).

    `text` is the answer as one text; an explain answer also keeps its parts. `caption_key` = H(region key, task,
    language, event index).
    """

    key_field: ClassVar[str] = "caption_key"
    content: ClassVar[tuple[str, ...]] = (
        "caption_key",
        "text",
        "label",
        "definition",
        "function",
        "status",
        "reason",
    )

    caption_key: Key
    region_key: Key
    media_key: Key
    task: Task
    language: Language
    event_index: int = NO_EVENT
    text: str | None = None
    label: str | None = None
    definition: str | None = None
    function: str | None = None
    history: str | None = None
    outcome: Outcome | None = None
    finish_reason: str | None = None
    teacher: str
    model: str
    prompt_id: str
    prompt_hash: Key
    views: list[str] = []
    decoding: str = "{}"
    usage: Usage = Usage()
    request_digest: Key | None = None
    message: str | None = None


class Decision(Row):
    """A policy's word on one caption; `reasons` names every rule that spoke against it, the first is `reason`."""

    key_field: ClassVar[str] = "caption_key"

    caption_key: Key
    region_key: Key
    reasons: list[str] = []
    policy: str


class HumanVerdict(Row):
    """A person's word on one caption, which overrides every policy; `input_digest` is the caption's digest: the word
    is on this text and no other."""

    key_field: ClassVar[str] = "caption_key"

    caption_key: Key
    region_key: Key
    verdict: Literal["keep", "drop"]
