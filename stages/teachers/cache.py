"""The ledger as a whole: what it holds, what it cost, taking it along, clearing it."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.base import Record
from schemas.caption import Usage, added
from stages.teachers.ledger import LOCAL_SEGMENT_REPLIES, Ledger
from stages.teachers.logs import Segments, writer_of
from stages.teachers.segments import OUTCOMES, Entry, merged, read_raw, read_records
from stages.teachers.totals import Tally

_WAITING = 10_000
"""Replies that `load` has queued and not yet seen on disk."""


class CacheStats(Record):
    """What a ledger holds. `cost_usd` is what list prices make of the usage; replies without a price count nothing."""

    replies: int
    by_outcome: dict[str, int]
    by_model: dict[str, int]
    by_task: dict[str, int]
    usage: Usage
    bytes: int


def spent(url: str, storage_options: dict[str, Any] | None = None) -> Usage:
    """Tokens and dollars of all replies, from the indexes alone: quick, for a budget that is watched."""
    columns = [index.columns for index in Segments(url, storage_options).indexes()]
    return Usage(
        prompt_tokens=sum(int(part["prompt_tokens"].sum()) for part in columns),
        completion_tokens=sum(int(part["completion_tokens"].sum()) for part in columns),
        cost_usd=float(sum(part["cost"].sum() for part in columns)),
    )


class Bought(Record):
    """Replies and what they cost together; `cost_usd` is None where none of them has a price."""

    replies: int = 0
    usage: Usage = Usage()


def by_model(url: str, storage_options: dict[str, Any] | None = None) -> dict[tuple[str, str], Bought]:
    """What was bought, by back end and model; from the totals of the segments, so that only open logs are read."""
    found: dict[tuple[str, str], Bought] = {}
    for tally in _tallies(Segments(url, storage_options)):
        name, usage = (tally.teacher, tally.model), _usage(tally)
        before = found.get(name, Bought())
        found[name] = Bought(replies=before.replies + tally.replies, usage=added(before.usage, usage))
    return found


class Answered(Record):
    """What answers to one kind of request have been like: their number, mean tokens, median seconds of a reply.

    `worker_seconds` is what a reply took of one worker, which waits for many at a time.
    """

    replies: int
    completion_tokens: float
    seconds: float | None
    worker_seconds: float | None = None


def answered(
    url: str, model: str, storage_options: dict[str, Any] | None = None, most: int = 20_000
) -> dict[str, Answered]:
    """The answers that a model has given, by kind of request, out of the latest replies of a ledger (about `most`)."""
    segments = Segments(url, storage_options)
    tokens: dict[str, list[int]] = {}
    waits: dict[str, list[float]] = {}
    waiting: dict[str, list[tuple[float, float]]] = {}
    seen = 0
    for name in reversed(segments.names()):
        if seen >= most:
            break
        with segments.open(name) as stream:
            for _, _, entry in read_records(stream):
                seen += 1
                if entry.model != model:
                    continue
                if entry.seconds:
                    waiting.setdefault(writer_of(name), []).append((entry.created_s - entry.seconds, entry.created_s))
                if entry.outcome == "answer" and "kind" in entry.tags:
                    tokens.setdefault(entry.tags["kind"], []).append(entry.usage.completion_tokens)
                    waits.setdefault(entry.tags["kind"], []).extend([entry.seconds] if entry.seconds else [])
    at_a_time = _at_a_time(waiting.values())
    return {
        kind: Answered(
            replies=len(counts),
            completion_tokens=statistics.fmean(counts),
            seconds=statistics.median(waits[kind]) if waits[kind] else None,
            worker_seconds=statistics.fmean(waits[kind]) / at_a_time if waits[kind] else None,
        )
        for kind, counts in tokens.items()
    }


def _at_a_time(waiting: Iterable[list[tuple[float, float]]]) -> float:
    """How many replies one worker waited for at a time, on average, while it waited for any.

    `waiting` has for each worker the spans (Unix seconds) between its requests and their replies.
    """
    waited = busy = 0.0
    for spans in waiting:
        until = 0.0
        for start, end in sorted(spans):
            waited += end - start
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
    return waited / busy if busy else 1.0


def stats(url: str, storage_options: dict[str, Any] | None = None) -> CacheStats:
    """Counts over all replies of a ledger, from the totals of its segments."""
    outcomes: Counter[str] = Counter()
    models: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    usage = Usage(cost_usd=0.0)
    segments = Segments(url, storage_options)
    for tally in _tallies(segments):
        outcomes[tally.outcome] += tally.replies
        models[tally.model] += tally.replies
        tasks[tally.task] += tally.replies
        usage = added(usage, _usage(tally))
    return CacheStats(
        replies=outcomes.total(),
        by_outcome={name: outcomes[name] for name in OUTCOMES if outcomes[name]},
        by_model=dict(models.most_common()),
        by_task=dict(tasks.most_common()),
        usage=usage,
        bytes=segments.size(),
    )


def _tallies(segments: Segments) -> Iterator[Tally]:
    for totals in segments.totals():
        yield from totals.tallies


def _usage(tally: Tally) -> Usage:
    return Usage(prompt_tokens=tally.prompt_tokens, completion_tokens=tally.completion_tokens, cost_usd=tally.cost_usd)


def export(url: str, path: Path, storage_options: dict[str, Any] | None = None) -> int:
    """Writes every reply as one JSON line; returns their number. Holds text and usage, and no key or address."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for entry in entries(Segments(url, storage_options)):
            out.write(entry.model_dump_json() + "\n")
            count += 1
    return count


def load(url: str, path: Path, storage_options: dict[str, Any] | None = None) -> int:
    """Adds the replies of an exported file that are not there yet; returns how many were added.

    Raises `ValueError` naming the line of a file that is no export.
    """
    ledger = Ledger(url, storage_options)
    ledger.open()
    waiting: deque[Future[None]] = deque()
    added = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    entry = Entry.model_validate_json(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not a ledger entry: {error}") from error
                known = ledger.lookup(entry.request)
                if known is None or (known.outcome != "answer" and entry.created_s > known.created_s):
                    waiting.append(ledger.append(entry))
                    added += 1
                if len(waiting) == _WAITING:
                    waiting.popleft().result()
        for done in waiting:
            done.result()
    finally:
        ledger.close()
    return added


def gc(url: str, keep_attempts_s: float = 0.0, storage_options: dict[str, Any] | None = None) -> tuple[int, int]:
    """Rewrites the ledger with the latest answer a request, and attempts younger than `keep_attempts_s`.

    Returns replies before and after. Only for a ledger that no run is using: raises `LedgerError` while a log is open.
    What is dropped is gone from `spent` and `stats` too. Holds the indexes and one segment.
    """
    segments = Segments(url, storage_options)
    segments.must_be_idle()
    index = merged(segments.indexes())
    kept = index.best(time.time() - keep_attempts_s)
    segments.replace(list(kept), _compacted(segments, kept))
    return len(index), sum(map(len, kept.values()))


def _compacted(segments: Segments, kept: Mapping[str, NDArray[np.int64]]) -> Iterator[bytes]:
    """The records at these offsets of each file, as the bytes of segments of the usual number of replies."""
    records: list[bytes] = []
    for name, offsets in kept.items():
        with segments.open(name) as stream:
            for offset in offsets.tolist():
                stream.seek(offset)
                records.append(read_raw(stream))
                if len(records) == LOCAL_SEGMENT_REPLIES:
                    yield b"".join(records)
                    records = []
    if records:
        yield b"".join(records)


def close_logs_of(url: str, host: str | None, storage_options: dict[str, Any] | None = None) -> list[str]:
    """Closes the logs that killed processes left on a host that is gone for good, None for all; returns their names.

    Only while no run uses the ledger.
    """
    return Segments(url, storage_options).close_logs_of(host)


def forget(
    url: str, media_keys: Collection[bytes], requests: Collection[bytes], storage_options: dict[str, Any] | None = None
) -> int:
    """Drops every reply about these media, by its mark or its request; returns how many.

    Only for a ledger that no run is using: raises `LedgerError` while a log is open.
    """
    segments = Segments(url, storage_options)
    segments.must_be_idle()
    about, asked = {key.hex() for key in media_keys}, set(requests)
    return segments.rewrite(lambda entry: entry.tags.get("media") not in about and entry.request not in asked)


def entries(segments: Segments) -> Iterator[Entry]:
    """Every whole record of a ledger, segment after segment, logs of live writers included."""
    for name in segments.names():
        with segments.open(name) as stream:
            for _, _, entry in read_records(stream):
                yield entry
