"""One question to the end: the requests that follow from each outcome, and what they cost together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from schemas.caption import Usage, added
from stages.teachers.config import RetryConfig
from stages.teachers.protocol import Reply, Teacher, TeacherRequest

OtherView = Callable[[], Awaitable[TeacherRequest | None]]


@dataclass(frozen=True)
class Asked:
    """The last reply, the request that it answers, and what all replies of this question cost."""

    reply: Reply
    request: TeacherRequest
    attempts: int
    usage: Usage


async def ask(
    teacher: Teacher,
    request: TeacherRequest,
    retry: RetryConfig,
    repair: Callable[[str], str],
    other_view: OtherView,
    wrong: Callable[[str], str | None] = lambda text: None,
) -> Asked:
    """Asks until there is an answer or the rules end.

    Truncated: again with a higher limit. Invalid: a turn that shows the error. Refused: through another view, if
    `other_view` makes one. Unavailable: the client has tried already. Each rule has its own count; a reply from the
    ledger counts like a new one, so that a restart goes on where the last run stopped. `wrong` says why an answer that
    is valid by its schema is invalid after all.
    """
    left = {"truncated": retry.truncated, "invalid": retry.invalid, "refused": retry.refused}
    used = Usage()
    attempts = 0
    while True:
        reply = await teacher.ask(request)
        if reply.outcome == "answer" and (why := wrong(reply.text or "")):
            reply = reply.model_copy(update={"outcome": "invalid", "message": why})
        attempts += 1
        used = added(used, reply.usage)
        asked = Asked(reply, request, attempts, used)
        if left.get(reply.outcome, 0) == 0:
            return asked
        left[reply.outcome] -= 1
        following = await _next(request, reply, retry, repair, other_view)
        if following is None:
            return asked
        request = following


async def _next(
    request: TeacherRequest, reply: Reply, retry: RetryConfig, repair: Callable[[str], str], other_view: OtherView
) -> TeacherRequest | None:
    if reply.outcome == "truncated":
        return request.with_limit(round(request.max_tokens * retry.limit_factor))
    if reply.outcome == "invalid":
        return request.with_repair(reply.text or "", repair(reply.message or "it is not valid JSON"))
    return await other_view()
