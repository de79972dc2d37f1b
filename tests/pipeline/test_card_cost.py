"""What a dataset card says of money: all that the ledger holds, each reply once, and the calls that were saved."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.packing import cost_of
from schemas.caption import Usage
from schemas.keys import digest_value
from stages.pack.card import Story, dataset_card
from stages.teachers.cache import by_model
from stages.teachers.ledger import Ledger
from stages.teachers.segments import Entry


def _ledger(folder: Path) -> str:
    """Two replies of a model with a price and one of a model without."""
    ledger = Ledger(str(folder))
    ledger.open()
    for number, (model, usd) in enumerate([("gpt-4o", 0.25), ("gpt-4o", 0.125), ("local", None)]):
        usage = Usage(prompt_tokens=1000 + number, completion_tokens=100, cost_usd=usd)
        entry = Entry(
            request=digest_value(number), outcome="answer", text="{}", usage=usage, teacher="openai", model=model,
            created_s=float(number),
        )  # fmt: skip
        ledger.append(entry).result()
    ledger.close()
    return str(folder)


def _captions(*rows: tuple[str, str, int | None]) -> pl.DataFrame:
    """(teacher, model, number of the request that was answered)."""
    return pl.DataFrame(
        [(teacher, model, None if asked is None else digest_value(asked)) for teacher, model, asked in rows],
        schema={"teacher": pl.String, "model": pl.String, "request_digest": pl.Binary},
        orient="row",
    )


def test_each_reply_is_counted_once_and_shared_ones_are_saved_calls(tmp_path: Path) -> None:
    bought = by_model(_ledger(tmp_path / "ledger"))
    captions = _captions(
        ("openai", "gpt-4o", 0), ("openai", "gpt-4o", 0), ("openai", "gpt-4o", 1), ("imported", "pam-data", None)
    )  # fmt: skip
    named = ("teacher", "model", "captions", "replies", "saved", "prompt_tokens", "completion_tokens", "cost_usd")
    assert [tuple(row[name] for name in named) for row in cost_of(captions, bought)] == [
        ("imported", "pam-data", 1, 0, 0, 0, 0, None),
        ("openai", "gpt-4o", 3, 2, 1, 2001, 200, 0.375),
        ("openai", "local", 0, 1, 0, 1002, 100, None),
    ]


def test_the_card_has_them(tmp_path: Path) -> None:
    cost = cost_of(_captions(("openai", "gpt-4o", 0)), by_model(_ledger(tmp_path / "ledger")))
    nothing = {"samples": 0, "regions": 0, "captions": 0, "shards": 0, "bytes": 0}
    lists = dict.fromkeys(("counts", "licences", "made_by", "excluded", "shards"), ())
    story = Story(policy="default", cost=cost).model_dump()
    config = {"seed": 0, "validation_fraction": 0.05}
    card = dataset_card({"pack_id": "ab", "totals": nothing, "splits": {}, "config": config, "story": story, **lists})
    assert "| openai | gpt-4o | 1 | 2 | 0 | 2001 | 200 | 0.375 |" in card
    assert "| openai | local | 0 | 1 | 0 | 1002 | 100 |  |" in card


def test_a_run_without_a_teacher_bought_nothing(tmp_path: Path) -> None:
    bought = by_model(str(tmp_path / "none"))
    (row,) = cost_of(_captions(("measured", "none", None)), bought)
    assert (row["captions"], row["replies"], row["cost_usd"]) == (1, 0, None)
