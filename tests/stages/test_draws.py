"""A draw is a function of the seed and the keys, and of no library's own hash."""

from __future__ import annotations

import polars as pl
import pytest

from schemas.keys import digest_value
from stages.draws import drawn


@pytest.mark.parametrize("seed", [0, 7])
def test_a_draw_is_the_digest_of_seed_and_key(seed: int) -> None:
    keys = [digest_value(number) for number in range(50)]
    wanted = [int.from_bytes(digest_value({"seed": seed, "key": key})[:8], "little") for key in keys]
    assert drawn(pl.Series(keys), seed).to_list() == wanted
    assert drawn(pl.Series(keys[3:9]), seed).to_list() == wanted[3:9]


def test_nothing_is_drawn_from_nothing() -> None:
    assert drawn(pl.Series([], dtype=pl.Binary), 0).to_list() == []
