"""Quotas: how fast one worker may ask, from its configuration and from what the server says."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from stages.teachers.config import LimitsConfig

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Limiter:
    """Spaces requests by requests and tokens a minute, and pauses all of a worker when the server asks for it.

    A token bucket a limit, filled evenly and never more than a tenth of a minute ahead, so that the slices of many
    workers add up to the whole quota at any time. `clock` gives seconds.
    """

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rates = [
            (rate / 60.0, weight)
            for rate, weight in ((limits.requests_per_minute, "request"), (limits.tokens_per_minute, "token"))
            if rate is not None
        ]
        self._next_free = [clock() for _ in self._rates]
        self._paused_until = 0.0

    async def wait(self, tokens: int) -> None:
        """Returns when one more request of about `tokens` tokens may be sent."""
        await self._pause_over()
        now = self._clock()
        due = now
        for i, (rate, weight) in enumerate(self._rates):
            start = max(self._next_free[i], now - 6.0)
            self._next_free[i] = start + (1 if weight == "request" else tokens) / rate
            due = max(due, start)
        if due > now:
            await asyncio.sleep(due - now)
            await self._pause_over()

    def pause(self, seconds: float) -> None:
        """Holds all requests of this worker back for a while."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    async def _pause_over(self) -> None:
        while (pause := self._paused_until - self._clock()) > 0:
            await asyncio.sleep(pause)

    def read(self, headers: Mapping[str, str]) -> None:
        """Pauses where a reply's rate-limit headers say that nothing is left until a reset."""
        for what in ("requests", "tokens"):
            left, reset = headers.get(f"x-ratelimit-remaining-{what}"), headers.get(f"x-ratelimit-reset-{what}")
            if left is not None and reset is not None and left.strip() == "0" and (seconds := duration(reset)):
                self.pause(seconds)


def duration(text: str) -> float | None:
    """Seconds of `1.5`, `20ms`, `6m0s`; None for anything else."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    milliseconds = headers.get("retry-after-ms")
    if milliseconds is not None and (value := duration(milliseconds)) is not None:
        return value / 1000.0
    told = headers.get("retry-after")
    if told is None:
        return None
    seconds = duration(told)
    return _seconds_until(told) if seconds is None else seconds


def _seconds_until(date: str) -> float | None:
    """Seconds to an HTTP date, 0 for one that is over; None for what is no date."""
    try:
        when = parsedate_to_datetime(date)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def backoff(attempt: int, limits: LimitsConfig, asked: float | None) -> float:
    """Seconds before try `attempt` + 1 (from 1): full jitter under a doubling ceiling, never less than asked for."""
    ceiling = min(limits.longest_wait_s, limits.first_wait_s * 2.0 ** (attempt - 1))
    jitter = random.uniform(0.0, ceiling)
    return jitter if asked is None else asked + jitter * 0.1
