"""`pending` is a set difference, checked against Python's."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tables import pending

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=30)


def frame(rows: list[tuple[int, int]]) -> pl.DataFrame:
    keys = [(bytes([key]) * 16, bytes([digest]) * 16, key) for key, digest in rows]
    schema = {"key": pl.Binary, "input_digest": pl.Binary, "number": pl.Int64}
    return pl.DataFrame(keys, schema=schema, orient="row")


@given(units=pairs.map(set).map(sorted), done=pairs)
def test_pending_is_the_set_difference_with_all_columns(
    units: list[tuple[int, int]], done: list[tuple[int, int]]
) -> None:
    left = pending(frame(units).lazy(), frame(done).lazy(), ["key", "input_digest"])
    assert left.columns == ["key", "input_digest", "number"]
    assert left.sort("key", "input_digest").equals(frame(sorted(set(units) - set(done))))


def test_a_unit_in_segments_is_done_when_it_has_all_of_them() -> None:
    units = frame([(1, 0), (2, 0), (3, 0), (4, 0)]).lazy()
    done = frame([(1, 0), (1, 0), (1, 0), (2, 0), (2, 0), (3, 0)])
    done = done.with_columns(pl.Series("num_segments", [3, 3, 3, 3, 3, 1]))
    left = pending(units, done.lazy(), ["key", "input_digest"], count_field="num_segments")
    assert sorted(left["number"].to_list()) == [2, 4]


def test_everything_is_pending_where_nothing_is_done() -> None:
    units = frame([(1, 0), (2, 1)])
    assert len(pending(units.lazy(), units.clear().lazy(), ["key", "input_digest"])) == 2
