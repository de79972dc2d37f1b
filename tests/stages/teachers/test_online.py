"""The online client against a real HTTP server that is scripted, slow, rude or broken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.base import Outage
from stages.distill.answers import BriefAnswer, ExplainAnswer
from stages.teachers.chat import TeacherSetupError, redact
from stages.teachers.config import CapabilitiesConfig, LimitsConfig, TeacherConfig
from stages.teachers.health import OUTAGE_AFTER
from stages.teachers.ledger import Ledger
from stages.teachers.ledgered import LedgeredTeacher
from stages.teachers.limiter import Limiter, backoff, duration, retry_after
from stages.teachers.online import OnlineTeacher
from stages.teachers.protocol import Decoding, Message, Reply, TeacherRequest
from stages.views.config import ViewConfig
from stages.views.encode import to_picture

FAST = LimitsConfig(in_flight=16, tries=8, first_wait_s=0.01, longest_wait_s=0.1, timeout_s=1.0)


def config(server: Any, **more: Any) -> TeacherConfig:
    return TeacherConfig(**{"backend": "openai", "model": "gpt-4o-mini", "base_url": server.url, "limits": FAST} | more)


def request(name: str = "one", model: str = "gpt-4o-mini", answer: Any = BriefAnswer) -> TeacherRequest:
    pixels = np.full((28, 28, 3), 200, np.uint8)
    picture = to_picture(pixels, ViewConfig(), encoded=True)
    messages = (Message("system", "You describe things."), Message("user", f"Describe {name}.", (picture,)))
    return TeacherRequest(model=model, messages=messages, answer=answer, decoding=Decoding(), max_tokens=64)


def ask(teacher: Any, *requests: TeacherRequest) -> list[Reply]:
    async def all_of_them() -> list[Reply]:
        await teacher.start()
        try:
            return list(await asyncio.gather(*(teacher.ask(one) for one in requests)))
        finally:
            await teacher.stop()

    return asyncio.run(all_of_them())


def test_an_answer_comes_back_typed_with_its_usage_and_cost(teacher_server: Callable[..., Any]) -> None:
    server = teacher_server()
    (reply,) = ask(OnlineTeacher(config(server)), request(answer=ExplainAnswer))
    assert reply.outcome == "answer"
    assert ExplainAnswer.model_validate_json(reply.text or "").label == "metal thing"
    assert reply.usage.prompt_tokens == server.prompt_tokens
    assert reply.usage.cost_usd == pytest.approx(
        (0.15 * reply.usage.prompt_tokens + 0.60 * reply.usage.completion_tokens) / 1e6
    )
    sent = server.chats[0]
    assert sent.schema["additionalProperties"] is False
    assert all("pattern" in field for field in sent.schema["properties"].values())
    assert sent.body["max_completion_tokens"] == 64
    assert sent.images[0][:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"token_field": "max_tokens"}, {"max_tokens": 64}),
        ({"structured": "none"}, {"response_format": None}),
        ({"seed": False, "sampling": False}, {"seed": None, "temperature": None, "top_p": None}),
        ({"extra_body": {"top_k": 3}}, {"top_k": 3}),
    ],
)
def test_what_an_endpoint_can_do_is_configuration(
    teacher_server: Callable[..., Any], capabilities: dict[str, Any], expected: dict[str, Any]
) -> None:
    server = teacher_server(answer=lambda chat: {"caption": "A thing."})
    (reply,) = ask(OnlineTeacher(config(server, capabilities=CapabilitiesConfig(**capabilities))), request())
    assert reply.outcome == "answer"
    assert {name: server.chats[0].body.get(name) for name in expected} == expected


def test_a_schema_may_be_sent_without_patterns_and_is_still_checked_with_them(
    teacher_server: Callable[..., Any],
) -> None:
    server = teacher_server(answer=lambda chat: {"caption": "x" * 500})
    (reply,) = ask(OnlineTeacher(config(server, capabilities=CapabilitiesConfig(patterns=False))), request())
    assert "pattern" not in server.chats[0].schema["properties"]["caption"]
    assert reply.outcome == "invalid"


def test_outcomes_are_typed(teacher_server: Callable[..., Any]) -> None:
    for verdict in ("refused", "truncated", "invalid"):
        server = teacher_server(verdict=lambda chat, verdict=verdict: verdict)
        (reply,) = ask(OnlineTeacher(config(server)), request())
        assert reply.outcome == verdict
        assert reply.usage.prompt_tokens > 0, "what is no answer was billed all the same"
    server = teacher_server(answer=lambda chat: "I'm sorry, I cannot see it.")
    assert ask(OnlineTeacher(config(server)), request())[0].outcome == "refused"
    server = teacher_server(answer=lambda chat: '```json\n{"caption": "A \\"red\\" cup."}\n```')
    assert ask(OnlineTeacher(config(server)), request())[0].text == '{"caption":"A “red” cup."}'


@pytest.mark.parametrize("fault", ["429", "500", "drop", "cut"])
def test_a_fault_of_the_server_is_ridden_out(teacher_server: Callable[..., Any], fault: str) -> None:
    server = teacher_server(fault_share=0.5, faults=(fault,))
    replies = ask(OnlineTeacher(config(server)), *(request(str(i)) for i in range(30)))
    assert {reply.outcome for reply in replies} == {"answer"}
    assert server.faults_served[fault] > 5


def test_a_server_that_never_recovers_makes_requests_unavailable_and_raises_nothing(
    teacher_server: Callable[..., Any],
) -> None:
    server = teacher_server(fault_share=1.0, faults=("500", "drop"))
    limits = FAST.model_copy(update={"tries": 3})
    replies = ask(OnlineTeacher(config(server, limits=limits)), *(request(str(i)) for i in range(4)))
    assert {reply.outcome for reply in replies} == {"unavailable"}
    assert "gave up after 3 tries" in (replies[0].message or "")
    nobody = TeacherConfig(backend="openai", model="m", base_url="http://127.0.0.1:9/v1", limits=limits)
    assert ask(OnlineTeacher(nobody), request())[0].outcome == "unavailable"


@pytest.mark.parametrize(("status", "code"), [(401, None), (403, None), (404, None), (429, "insufficient_quota")])
def test_an_endpoint_that_refuses_from_the_start_ends_the_run_and_asks_no_more(
    teacher_server: Callable[..., Any], status: int, code: str | None
) -> None:
    server = teacher_server(verdict=lambda chat: "reject", reject=(status, code))
    with pytest.raises(TeacherSetupError, match=str(status)):
        ask(OnlineTeacher(config(server)), request())
    assert len(server.chats) == 1, "what is refused is not tried again"


def test_an_endpoint_that_has_answered_and_then_refuses_one_request_fails_that_request(
    teacher_server: Callable[..., Any],
) -> None:
    server = teacher_server(verdict=lambda chat: "reject" if "bad" in chat.text else "answer", reject=(403, None))
    teacher = OnlineTeacher(config(server, limits=FAST.model_copy(update={"in_flight": 1})))
    replies = ask(teacher, request("a"), request("bad"), request("b"))
    assert [reply.outcome for reply in replies] == ["answer", "unavailable", "answer"]


def test_a_server_that_is_away_is_an_outage_and_not_the_requests_fault(teacher_server: Callable[..., Any]) -> None:
    limits = FAST.model_copy(update={"tries": 2, "in_flight": 1})
    nobody = TeacherConfig(backend="openai", model="m", base_url="http://127.0.0.1:9/v1", limits=limits)
    with pytest.raises(Outage, match=r"127\.0\.0\.1:9"):
        ask(OnlineTeacher(nobody), *(request(str(number)) for number in range(OUTAGE_AFTER)))
    broken = teacher_server(fault_share=1.0, faults=("500",))
    replies = ask(OnlineTeacher(config(broken, limits=limits)), *(request(str(n)) for n in range(OUTAGE_AFTER + 2)))
    assert {reply.outcome for reply in replies} == {"unavailable"}, "a server that fails at requests is there"


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ([{"type": "text", "text": '{"caption": '}, {"type": "text", "text": '"A red cup."}'}], "answer"),
        ([{"type": "image", "data": "x"}], "invalid"),
        ([], "invalid"),
        (7, "invalid"),
    ],
)
def test_content_in_parts_is_joined_and_what_is_no_text_is_invalid(
    teacher_server: Callable[..., Any], content: Any, outcome: str
) -> None:
    server = teacher_server(content=content)
    (reply,) = ask(OnlineTeacher(config(server)), request())
    assert reply.outcome == outcome


def test_retry_after_is_honoured_by_the_whole_worker(teacher_server: Callable[..., Any]) -> None:
    arrivals: list[float] = []

    def answer(chat: Any) -> dict[str, str]:
        arrivals.append(time.monotonic())
        return {"caption": "A thing."}

    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"}
    server = teacher_server(answer=answer, headers=headers)
    teacher = OnlineTeacher(config(server, limits=FAST.model_copy(update={"in_flight": 1})))
    ask(teacher, request("a"), request("b"))
    assert arrivals[1] - arrivals[0] >= 0.3


def test_quotas_space_requests_out() -> None:
    clock = [0.0]

    async def run() -> list[float]:
        limiter = Limiter(LimitsConfig(requests_per_minute=60, tokens_per_minute=6000), lambda: clock[0])
        sent = []

        async def sleep(seconds: float) -> None:
            clock[0] += seconds

        original, asyncio.sleep = asyncio.sleep, sleep  # type: ignore[assignment]
        try:
            for tokens in [10] * 10 + [1000] * 3:
                await limiter.wait(tokens)
                sent.append(clock[0])
        finally:
            asyncio.sleep = original
        return sent

    sent = asyncio.run(run())
    assert sent[9] - sent[0] >= 8.9, "one request a second"
    assert sent[12] - sent[10] >= 12.9, "a thousand tokens take ten seconds, less six that may be saved up"


def test_a_request_that_waits_for_its_slot_sees_a_pause_that_came_meanwhile() -> None:
    clock = [0.0]

    async def run() -> float:
        limiter = Limiter(LimitsConfig(requests_per_minute=60), lambda: clock[0])

        async def sleep(seconds: float) -> None:
            if clock[0] == 0.0:
                limiter.read({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"})
            clock[0] += seconds

        original, asyncio.sleep = asyncio.sleep, sleep  # type: ignore[assignment]
        try:
            await limiter.wait(1)
            await limiter.wait(1)
        finally:
            asyncio.sleep = original
        return clock[0]

    assert asyncio.run(run()) == pytest.approx(30.0)


def test_slices_of_a_quota_add_up_to_the_quota() -> None:
    limits = LimitsConfig(requests_per_minute=100, tokens_per_minute=90_000)
    part = limits.shared_by(4)
    assert part.requests_per_minute == 25
    assert part.tokens_per_minute == 22_500
    assert part.in_flight == limits.in_flight


def test_back_off_doubles_has_jitter_and_never_undercuts_the_server() -> None:
    limits = LimitsConfig(first_wait_s=1.0, longest_wait_s=8.0)
    for attempt, ceiling in ((1, 1.0), (3, 4.0), (9, 8.0)):
        waits = [backoff(attempt, limits, None) for _ in range(200)]
        assert max(waits) <= ceiling
        assert len(set(waits)) > 100
    assert all(backoff(1, limits, 5.0) >= 5.0 for _ in range(50))
    assert [duration(text) for text in ("1.5", "20ms", "6m0s", "1h2m", "soon")] == [1.5, 0.02, 360.0, 3720.0, None]
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 60 < (retry_after({"retry-after": soon}) or 0) <= 90
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "later"}) is None


def test_stopping_cancels_what_is_in_flight(teacher_server: Callable[..., Any]) -> None:
    server = teacher_server(latency_s=30.0)

    async def run() -> float:
        teacher = OnlineTeacher(config(server, limits=FAST.model_copy(update={"timeout_s": 60.0})))
        await teacher.start()
        asking = asyncio.ensure_future(teacher.ask(request()))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await teacher.stop()
        return time.monotonic() - began

    assert asyncio.run(run()) < 5.0


def test_the_ledger_answers_the_second_time_and_twins_share_one_reply(
    teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = teacher_server(latency_s=0.05)
    for _ in range(2):
        ledger = Ledger(str(tmp_path))
        ledger.open()
        replies = ask(LedgeredTeacher(OnlineTeacher(config(server)), ledger), request("a"), request("a"), request("b"))
        assert [reply.outcome for reply in replies] == ["answer"] * 3
        ledger.close()
    assert sum(server.billed.values()) == 2


def test_a_missing_key_is_a_clear_error_and_a_present_one_is_sent(
    teacher_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = teacher_server()
    monkeypatch.delenv("OUR_KEY", raising=False)
    with pytest.raises(TeacherSetupError, match="OUR_KEY"):
        OnlineTeacher(config(server, api_key_env="OUR_KEY"))
    monkeypatch.setenv("OUR_KEY", "sk-planted")
    ask(OnlineTeacher(config(server, api_key_env="OUR_KEY")), request())
    assert server.chats[0].authorization == "Bearer sk-planted"


@pytest.mark.parametrize("url", ["https://me:secret@host/v1", "https://host/v1?api-key=secret"])
def test_an_address_that_holds_a_secret_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="api_key_env") as raised:
        TeacherConfig(backend="openai", model="m", base_url=url)
    assert "secret" not in "".join(error["msg"] for error in raised.value.errors())  # type: ignore[attr-defined]


def test_keys_headers_and_signed_urls_are_redacted() -> None:
    said = (
        "Incorrect API key provided: sk-abcdefgh1234. Authorization: Bearer abc.def "
        "http://me:secret@host/v1 https://b.s3/x?X-Amz-Signature=abc plain-key"
    )
    shown = redact(said, "plain-key")
    assert not any(word in shown for word in ("abcdefgh1234", "abc.def", "secret", "Signature=abc", "plain-key"))
