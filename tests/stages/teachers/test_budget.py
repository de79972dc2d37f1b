"""Money: the account is never overdrawn, and a purse waits for what is in flight before it gives up."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from stages.base import BudgetSpent
from stages.teachers.budget import Account, Purse


def test_purses_of_many_threads_spend_no_more_than_there_is() -> None:
    account, spent = Account(10.0), [0.0] * 4

    async def shop(number: int) -> None:
        purse, rng = Purse(account), random.Random(number)

        async def buy() -> None:
            async with purse.paying(0.05) as payment:
                await asyncio.sleep(0)
                cost = rng.uniform(0.01, 0.05)
                payment.settle(cost)
                spent[number] += cost

        while not any(
            isinstance(r, BudgetSpent) for r in await asyncio.gather(*(buy() for _ in range(8)), return_exceptions=True)
        ):
            pass
        await purse.close()

    threads = [threading.Thread(target=lambda n=n: asyncio.run(shop(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(spent) + account.draw(0.0) <= 10.0 + 1e-9
    assert sum(spent) > 9.0


def test_a_purse_waits_for_requests_in_flight_before_it_gives_up() -> None:
    async def run() -> list[str]:
        purse, told = Purse(Account(1.0)), []
        first_may_end = asyncio.Event()

        async def first() -> None:
            async with purse.paying(1.0) as payment:
                await first_may_end.wait()
                payment.settle(0.4)
                told.append("first")

        async def second() -> None:
            async with purse.paying(0.5):
                told.append("second")

        both = [asyncio.ensure_future(first()), asyncio.ensure_future(second())]
        await asyncio.sleep(0.05)
        assert not told
        first_may_end.set()
        await asyncio.gather(*both)
        with pytest.raises(BudgetSpent):
            async with purse.paying(0.2):
                told.append("third")
        return told

    assert asyncio.run(run()) == ["first", "second"]


def test_a_request_that_ends_in_an_error_counts_as_the_most_that_it_can_cost() -> None:
    async def run() -> None:
        purse = Purse(Account(1.0))
        with pytest.raises(ConnectionError):
            async with purse.paying(0.7):
                raise ConnectionError
        with pytest.raises(BudgetSpent):
            async with purse.paying(0.4):
                pass

    asyncio.run(run())
