"""Batches hold whole groups, whatever is cut or split; faults lose no unit."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schedule import Batch, Fault, Retry, after_fault, count_groups, cut, groups_per_batch, halves, parted

groups = st.lists(st.integers(0, 12), max_size=60).map(
    lambda numbers: pa.table(
        {"group": pa.array(numbers, pa.int64()), "unit": pa.array(range(len(numbers)), pa.int64())}
    )
)


def units(tables: list[pa.Table]) -> list[int]:
    return sorted(unit for table in tables for unit in table["unit"].to_pylist())


@given(groups, st.integers(1, 9))
def test_cut_keeps_groups_whole_and_loses_nothing(table: pa.Table, size: int) -> None:
    batches = cut(table, ("group",), size)
    assert units(batches) == list(range(len(table)))
    homes = Counter(group for batch in batches for group in set(batch["group"].to_pylist()))
    assert all(count == 1 for count in homes.values())
    assert all(count_groups(batch, ("group",)) <= size for batch in batches)


@given(groups.filter(len))
def test_bisecting_ends_at_single_groups(table: pa.Table) -> None:
    waiting, alone = [table], []
    while waiting:
        parts = halves(waiting.pop(), ("group",))
        if len(parts) == 1:
            alone += parts
        else:
            waiting += parts
    assert units(alone) == list(range(len(table)))
    assert all(len(set(part["group"].to_pylist())) == 1 for part in alone)


@given(groups, st.integers(1, 5))
def test_a_group_is_always_in_the_same_part(table: pa.Table, parts: int) -> None:
    found = parted(table, ("group",), parts)
    assert units(found) == list(range(len(table)))
    some = parted(table.slice(0, len(table) // 2), ("group",), parts)
    assert all(set(units([few])) <= set(units([all_])) for few, all_ in zip(some, found, strict=False))


@given(groups.filter(len), st.integers(0, 2000))
def test_an_outage_is_waited_out_and_splits_nothing(table: pa.Table, tries: int) -> None:
    retry = Retry(first_wait_s=1.0, most_wait_s=3.0)
    (again,) = after_fault(Batch("node", table, tries), ("group",), Fault.OUTAGE, 10.0, retry)
    assert units([again.units]) == units([table])
    assert 10.0 < again.not_before <= 13.0


@given(groups.filter(len), st.sampled_from([Fault.TRANSIENT, Fault.DEATH, Fault.ERROR]))
def test_a_fault_is_retried_then_split_then_given_up_for_one_group_only(table: pa.Table, fault: Fault) -> None:
    retry = Retry(transient=2, death=1, first_wait_s=1.0, most_wait_s=3.0)
    batch, tries = Batch("node", table), {Fault.TRANSIENT: 2, Fault.DEATH: 1, Fault.ERROR: 0}[fault]
    for attempt in range(tries):
        (batch,) = after_fault(batch, ("group",), fault, 10.0, retry)
        assert batch.tries == attempt + 1
        assert 10.0 < batch.not_before <= 13.0
    rest = after_fault(batch, ("group",), fault, 10.0, retry)
    if count_groups(table, ("group",)) == 1:
        assert rest == []
    else:
        assert units([part.units for part in rest]) == list(range(len(table)))
        assert all(part.tries == 0 for part in rest)


@given(st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 64))
def test_batches_are_neither_too_many_nor_too_few(pending: int, workers: int, smallest: int) -> None:
    size = groups_per_batch(pending, workers, smallest, 256)
    assert 1 <= size <= max(256, smallest)
    assert size <= max(1, -(-pending // workers))
