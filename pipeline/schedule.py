"""What runs next: batches of whole groups, and what becomes of a batch that failed. No Ray here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.keys import digest_columns


class Fault(Enum):
    """Why a batch did not finish."""

    TRANSIENT = "transient"
    OUTAGE = "outage"
    DEATH = "worker_died"
    ERROR = "error"


@dataclass(frozen=True)
class Batch:
    """Units of one node that go to a worker together. `not_before` is a monotonic time in seconds.

    Batches of one `lane`, of whatever node, go to one worker; those without go to any.
    """

    node: str
    units: pa.Table
    tries: int = 0
    not_before: float = 0.0
    lane: int | None = None


@dataclass(frozen=True)
class Retry:
    """How often a batch is tried as it is before it is split, and how long to wait in between (seconds)."""

    transient: int = 5
    death: int = 1
    first_wait_s: float = 1.0
    most_wait_s: float = 60.0

    def wait_s(self, tries: int) -> float:
        return float(min(self.most_wait_s, self.first_wait_s * 2.0 ** min(tries, 30)))


def cut(units: pa.Table, by: tuple[str, ...], groups_per_batch: int) -> list[pa.Table]:
    """Tables of at most `groups_per_batch` whole groups each, groups in order of first appearance."""
    if not len(units):
        return []
    ordered, bounds = _grouped(units, by)
    starts = list(range(0, len(bounds) - 1, groups_per_batch))
    ends = [min(start + groups_per_batch, len(bounds) - 1) for start in starts]
    return [ordered.slice(int(bounds[a]), int(bounds[b] - bounds[a])) for a, b in zip(starts, ends, strict=True)]


def parted(units: pa.Table, by: tuple[str, ...], parts: int) -> list[pa.Table]:
    """The units in so many tables, some of them empty; a group is always in the same one, whatever is beside it."""
    if parts == 1 or not len(units):
        return [units]
    keys = digest_columns({name: units[name] for name in by}).to_pylist()
    part = np.array([int.from_bytes(key[:8], "big") % parts for key in keys])
    return [units.filter(pa.array(part == number)) for number in range(parts)]


def halves(units: pa.Table, by: tuple[str, ...]) -> list[pa.Table]:
    """The units in two halves that split no group; one table where there is one group."""
    groups = len(_grouped(units, by)[1]) - 1
    return cut(units, by, max(1, (groups + 1) // 2))


def after_fault(batch: Batch, by: tuple[str, ...], fault: Fault, now: float, retry: Retry) -> list[Batch]:
    """The batches that take the place of a failed one; none when a single group has failed for good.

    A transient fault is waited out, a worker's death is tried once more (it may have come from outside); then, as
    after any error, the batch is bisected until the poison group stands alone, so that its neighbours do not pay. An
    outage is waited out for as long as it lasts: no group is to blame for it.
    """
    if fault is Fault.OUTAGE:
        return [replace(batch, tries=batch.tries + 1, not_before=now + retry.wait_s(batch.tries))]
    patience = {Fault.TRANSIENT: retry.transient, Fault.DEATH: retry.death, Fault.ERROR: 0}[fault]
    if batch.tries < patience:
        return [replace(batch, tries=batch.tries + 1, not_before=now + retry.wait_s(batch.tries))]
    parts = halves(batch.units, by)
    if len(parts) == 1:
        return []
    return [replace(batch, units=part, tries=0, not_before=0.0) for part in parts]


def groups_per_batch(pending_groups: int, workers: int, smallest: int, largest: int) -> int:
    """Few commits for large runs, an even load for small ones: about eight batches a worker, within bounds."""
    return max(1, min(largest, max(smallest, pending_groups // max(1, workers * 8)), -(-pending_groups // workers)))


def count_groups(units: pa.Table, by: tuple[str, ...]) -> int:
    return len(_grouped(units, by)[1]) - 1 if len(units) else 0


def _grouped(units: pa.Table, by: tuple[str, ...]) -> tuple[pa.Table, np.ndarray]:
    codes = pc.dictionary_encode(digest_columns({name: units[name] for name in by})).indices
    sizes = pc.value_counts(codes).field("counts").to_numpy()
    return units.take(pc.sort_indices(codes)), np.concatenate([[0], np.cumsum(sizes)])
