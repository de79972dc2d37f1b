"""The `openai` teacher: any OpenAI-compatible chat endpoint, hundreds of requests in flight on one event loop."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import Any, Literal

import openai
import orjson
from openai import AsyncOpenAI

from stages.teachers.budget import Purse
from stages.teachers.chat import api_key, chat_body, read_completion, redact
from stages.teachers.config import TeacherConfig
from stages.teachers.health import Health
from stages.teachers.limiter import Limiter, backoff, retry_after
from stages.teachers.pricing import most_cost, price_of, priced, request_tokens
from stages.teachers.protocol import Reply, Teacher, TeacherRequest

_AGAIN = frozenset({408, 409, 425, 429})
_POLICY = ("content_policy", "content_filter", "safety", "moderation")


_AWAY = frozenset({429, 502, 503, 504})
_REFUSED = frozenset({401, 403, 404})


@dataclass(frozen=True)
class _Fault:
    """A try that came to nothing: why, the seconds that the server asks to wait, whether it may have been billed.

    `away`: the server did not look at the request; `refused`: it will not from this client, and asking again is idle.
    """

    said: str
    wait_s: float | None = None
    billed: bool = False
    away: bool = False
    refused: bool = False


class OnlineTeacher(Teacher):
    """Asks over HTTP. Transport faults, 408, 409, 425, 429 and 5xx are tried again; other 4xx are not.

    With a `purse` no try is made that it cannot pay for: `ask` raises `BudgetSpent` instead. It raises
    `TeacherSetupError` where the endpoint refuses this client from the first request on, and `Outage` where request
    after request finds nobody there.
    """

    name = "openai"
    billed = True
    sees: Literal["encoded", "pixels", "subject"] = "encoded"

    def __init__(self, config: TeacherConfig, purse: Purse | None = None) -> None:
        self._config = config
        self._limits = config.limits
        self._purse = purse
        self.model = config.identity
        self._price = price_of(str(config.model), config.prices)
        self._key = api_key(config)
        self._health = Health(config.base_url or "the endpoint")
        self._client: AsyncOpenAI
        self._limiter: Limiter
        self._slots: asyncio.Semaphore

    async def start(self) -> None:
        self._limiter = Limiter(self._limits, time.monotonic)
        self._slots = asyncio.Semaphore(self._limits.in_flight)
        self._client = open_client(self._config, self._key)

    async def stop(self) -> None:
        await self._client.close()
        if self._purse is not None:
            await self._purse.close()

    async def ask(self, request: TeacherRequest) -> Reply:
        async with self._slots:
            body = chat_body(request, self._config)
            expected = request_tokens(request, self._price) + request.max_tokens // 2
            waited = 0.0
            for attempt in itertools.count(1):
                await self._limiter.wait(expected)
                outcome = await self._paid(request, body)
                if isinstance(outcome, Reply):
                    self._health.answered()
                    return outcome
                pause = backoff(attempt, self._limits, outcome.wait_s)
                waited += pause
                if outcome.refused or attempt >= self._limits.tries or waited > self._limits.give_up_s:
                    return self._given_up(outcome, attempt)
                if outcome.wait_s is not None:
                    self._limiter.pause(outcome.wait_s)
                await asyncio.sleep(pause)
        raise AssertionError("the loop returns")

    def _given_up(self, fault: _Fault, tries: int) -> Reply:
        if fault.refused:
            self._health.refused(fault.said)
        elif fault.away:
            self._health.missed(fault.said)
        return Reply(outcome="unavailable", message=f"gave up after {tries} tries: {fault.said}")

    async def _paid(self, request: TeacherRequest, body: dict[str, Any]) -> Reply | _Fault:
        """One try, with its money set aside before it and settled after it."""
        most = most_cost(request, self._price)
        if self._purse is None or most is None:
            return await self._once(request, body)
        async with self._purse.paying(most) as payment:
            outcome = await self._once(request, body)
            if isinstance(outcome, Reply):
                payment.settle(outcome.usage.cost_usd or 0.0)
            elif not outcome.billed:
                payment.settle(0.0)
            return outcome

    async def _once(self, request: TeacherRequest, body: dict[str, Any]) -> Reply | _Fault:
        """A reply, or what went wrong for now."""
        try:
            # The client's own time-out is between bytes: a server that drips would hold a slot for ever.
            async with asyncio.timeout(self._limits.timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(**_arguments(body))
            self._limiter.read(raw.headers)
            reply = read_completion(request, orjson.loads(raw.http_response.content))
            return reply.model_copy(update={"usage": priced(reply.usage, self._price)})
        except openai.APIStatusError as error:
            self._limiter.read(error.response.headers)
            return self._rejected(error)
        except openai.APIConnectionError as error:
            away = not isinstance(error, openai.APITimeoutError)
            return _Fault(f"{type(error).__name__}: {self._said(error)}", billed=True, away=away)
        except TimeoutError:
            return _Fault(f"no whole reply within {self._limits.timeout_s:g} s", billed=True)
        except ValueError as error:
            return _Fault(f"a reply that is not what it should be: {self._said(error)}", billed=True)

    def _rejected(self, error: openai.APIStatusError) -> Reply | _Fault:
        status, said = error.status_code, f"{error.status_code}: {self._said(error)}"
        if status in (400, 403) and any(word in said.lower() for word in _POLICY):
            return Reply(outcome="refused", message=said)
        if status in _REFUSED or error.code == "insufficient_quota":
            return _Fault(said + self._hint(status), refused=True)
        if status in _AGAIN or status >= 500:
            return _Fault(said, wait_s=retry_after(error.response.headers), away=status in _AWAY)
        return Reply(outcome="unavailable", message=said)

    def _said(self, error: Exception) -> str:
        return redact(str(error), self._key)[:300]

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            return f" (is {self._config.api_key_env or 'teacher.api_key_env'} set to a key of this endpoint?)"
        if status == 404:
            return f" (does {self._config.base_url or 'the endpoint'} serve the model {self._config.model!r}?)"
        return ""


def open_client(config: TeacherConfig, key: str | None) -> AsyncOpenAI:
    """A client with room for all that is in flight, which leaves trying again to us."""
    room = config.limits.in_flight + 8
    pool = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=room, max_keepalive_connections=room)
    return AsyncOpenAI(
        api_key=key or "none",
        base_url=config.base_url,
        max_retries=0,
        timeout=config.limits.timeout_s,
        http_client=openai.DefaultAsyncHttpxClient(limits=pool, timeout=config.limits.timeout_s),
    )


def _arguments(body: dict[str, Any]) -> dict[str, Any]:
    """The body as arguments of the client: fields that are not OpenAI's own travel in `extra_body`."""
    own = {
        "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "response_format",
    }  # fmt: skip
    extra = {name: value for name, value in body.items() if name not in own}
    known: dict[str, Any] = {name: value for name, value in body.items() if name in own}
    return known | ({"extra_body": extra} if extra else {})
