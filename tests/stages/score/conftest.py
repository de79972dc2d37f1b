"""Units and captions for the tests of rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import pytest

from schemas.arrow import to_table
from stages.base import checked
from stages.score.base import ScoreStage


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@pytest.fixture(scope="session")
def score() -> Callable[..., pl.DataFrame]:
    """Runs a stage over units given as dictionaries; returns its rows in the order of the units."""

    def run(stage: ScoreStage, units: Sequence[dict[str, Any]]) -> pl.DataFrame:
        filled = [
            {
                "caption_key": key(f"caption {i}"),
                "region_key": key("region"),
                "input_digest": key(f"digest {i}"),
                "language": "en",
                **unit,
            }
            for i, unit in enumerate(units)
        ]
        table = to_table([stage.unit(**unit) for unit in filled], stage.unit)
        stage.open()
        rows = pl.concat([pl.DataFrame(pl.from_arrow(part)) for part in checked(stage, table)])
        order = pl.DataFrame({"caption_key": [unit["caption_key"] for unit in filled]})
        return order.join(rows, on="caption_key", how="left", maintain_order="left")

    return run
