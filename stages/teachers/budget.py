"""Money that may be spent: an account for a run, and the purse of each worker.

A request is sent only when the most that it can cost is set aside; what it did cost is settled when its reply is there.
So what is in flight is always paid for, and the account is never overdrawn.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stages.base import BudgetSpent, Funds

_SLICE = 1 / 64
"""The share of what is left that a purse takes at a time: few trips to the account, little stuck in idle purses."""


class Account:
    """Dollars of one process; safe to use from several threads."""

    def __init__(self, usd: float) -> None:
        self._left = max(0.0, usd)
        self._lock = threading.Lock()

    def draw(self, least: float) -> float:
        """Takes at least `least` dollars out, or nothing (0.0) where less is left."""
        with self._lock:
            if least > self._left:
                return 0.0
            taken = max(least, self._left * _SLICE)
            self._left -= taken
            return taken

    def give_back(self, usd: float) -> None:
        """Puts back what was not spent."""
        with self._lock:
            self._left += usd


class Payment:
    """One request's money: `most` is set aside, `cost` is what it cost as far as is known."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.cost = most

    def settle(self, cost: float) -> None:
        """Says what the request did cost; what nobody says counts as the most that it can have been."""
        self.cost = cost


class Purse:
    """What one worker may spend, drawn from `funds` a slice at a time. Belongs to one event loop."""

    def __init__(self, funds: Funds) -> None:
        self._funds = funds
        self._free = 0.0
        self._in_flight = 0
        self._dry = False  # once the account had too little; from then on only what is settled here comes free
        self._settled = asyncio.Event()
        self._drawing = asyncio.Lock()

    @asynccontextmanager
    async def paying(self, most: float) -> AsyncIterator[Payment]:
        """Sets `most` dollars aside for one request and settles them at its end.

        Waits for requests in flight where these may leave enough over. Raises `BudgetSpent` where nothing can.
        """
        while self._free < most:
            await self._draw_or_wait(most)
        payment = Payment(most)
        self._free -= most
        self._in_flight += 1
        try:
            yield payment
        finally:
            self._in_flight -= 1
            self._free += most - payment.cost
            self._settled.set()

    def charge(self, cost: float) -> None:
        """Counts what was bought before anything could be set aside for it."""
        self._free -= cost

    async def close(self) -> None:
        """Gives back what is left."""
        left, self._free = self._free, 0.0
        await asyncio.to_thread(self._funds.give_back, left)

    async def _draw_or_wait(self, most: float) -> None:
        async with self._drawing:
            if not self._dry and self._free < most:
                taken = await asyncio.to_thread(self._funds.draw, most - self._free)
                self._free += taken
                self._dry = not taken
        if self._free >= most:
            return
        if not self._in_flight:
            raise BudgetSpent(f"the next request may cost ${most:.4f}, and less than that is left of the budget")
        self._settled.clear()
        await self._settled.wait()
