"""The ledger: lookups, concurrent writers, forgiveness, remote segments."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.caption import Outcome, Usage
from schemas.keys import digest_value
from stages.teachers import cache
from stages.teachers.ledger import Ledger
from stages.teachers.logs import LedgerError, Segments
from stages.teachers.segments import Entry, index_bytes, index_from, index_of, pack_record, parse_record


def entry(name: object, outcome: Outcome = "answer", at: float | None = None, text: str | None = None) -> Entry:
    return Entry(
        request=digest_value(name),
        outcome=outcome,
        text=text or str(name),
        usage=Usage(prompt_tokens=10, completion_tokens=3, cost_usd=0.5),
        teacher="openai",
        model="m",
        created_s=time.time() if at is None else at,
    )


def keep(ledger: Ledger, *entries: Entry) -> None:
    for waiting in [ledger.append(one) for one in entries]:
        waiting.result(timeout=10)


def test_a_reply_is_found_at_once_and_after_reopening(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.open()
    keep(ledger, entry("a"), entry("b"))
    found = ledger.lookup(digest_value("a"))
    assert found is not None
    assert found.text == "a"
    ledger.close()
    again = Ledger(str(tmp_path))
    again.open()
    assert again.lookup(digest_value("b")) == entry("b", at=again.lookup(digest_value("b")).created_s)  # type: ignore[union-attr]
    assert again.lookup(digest_value("c")) is None
    again.close()


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    hands = [Ledger(str(tmp_path)) for _ in range(3)]
    for hand in hands:
        hand.open()
    for number, hand in enumerate(hands):
        keep(hand, *(entry([number, i]) for i in range(100)))
    late = Ledger(str(tmp_path))
    late.open()
    assert all(late.lookup(digest_value([n, i])) for n in range(3) for i in range(100)), "logs being written are read"
    for hand in (*hands, late):
        hand.close()
    last = Ledger(str(tmp_path))
    last.open()
    assert all(last.lookup(digest_value([n, i])) for n in range(3) for i in range(100))


def test_an_answer_beats_later_attempts_and_attempts_can_be_forgiven(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.open()
    keep(ledger, entry("a", at=10.0), entry("a", "invalid", at=20.0), entry("b", "refused", at=20.0))
    ledger.close()
    for forgive, expected in ((0.0, "refused"), (30.0, None)):
        again = Ledger(str(tmp_path), forgive_before=forgive)
        again.open()
        first, second = again.lookup(digest_value("a")), again.lookup(digest_value("b"))
        assert first is not None
        assert first.outcome == "answer"
        assert (second.outcome if second else None) == expected
        again.close()


def test_a_remote_ledger_is_uploaded_and_read_from_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{uuid.uuid4().hex}/ledger"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    here = Ledger(url)
    here.open()
    keep(here, *(entry(i) for i in range(1100)))
    here.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    there = Ledger(url)
    there.open()
    found = [there.lookup(digest_value(i)) for i in range(1100)]
    assert [one.text for one in found if one] == [str(i) for i in range(1100)]
    there.close()
    fs, root = fsspec.core.url_to_fs(url)
    names = [path.rpartition("/")[2] for path in fs.ls(root, detail=False)]
    assert sum(name.endswith(".seg") for name in names) == 2, "1,000 replies a segment"
    assert not list((tmp_path / "one").rglob("*.seg"))


class Gated(LocalFileSystem):
    """A folder as an object store whose uploads wait to be let through."""

    protocol = "gated"
    reached, gate = threading.Event(), threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("gated://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        self.reached.set()
        assert self.gate.wait(30)
        Path(path).parent.mkdir(exist_ok=True)
        super().pipe_file(path, value, mode, **more)


def test_a_reply_is_found_while_its_segment_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("gated", Gated, clobber=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "spool"))
    ledger = Ledger(f"gated://{tmp_path}/ledger")
    ledger.open()
    keep(ledger, *(entry(number) for number in range(1000)))
    first = ledger.append(entry("of the next log"))
    assert Gated.reached.wait(30)
    assert ledger.lookup(digest_value(7)) is not None
    Gated.gate.set()
    first.result(30)
    ledger.close()
    assert ledger.lookup(digest_value(7)) is not None


def test_logs_of_another_host_are_read_and_left_open_until_it_is_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7.cluster")
    (tmp_path / "other").mkdir()
    there = Ledger(str(tmp_path / "other"))
    there.open()
    keep(there, entry("a"))
    (log,) = (tmp_path / "other").glob("*.wal")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / log.name).write_bytes(log.read_bytes())  # no lock is seen here, as on another node
    there.close()
    monkeypatch.undo()
    here = Ledger(str(shared))
    here.open()
    assert here.lookup(digest_value("a")) is not None
    assert (shared / log.name).exists()
    with pytest.raises(LedgerError, match="--host node_7_cluster"):
        cache.gc(str(shared))
    assert cache.close_logs_of(str(shared), "node-8") == []
    assert cache.close_logs_of(str(shared), "node-7.cluster") == [log.name]
    assert here.lookup(digest_value("a")) is not None
    assert cache.gc(str(shared)) == (1, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.text(max_size=40)), max_size=30))
def test_records_and_indexes_round_trip(rows: list[tuple[int, str]]) -> None:
    entries = [entry(name, at=1.0, text=text) for name, text in rows]
    offset, records = 0, []
    for one in entries:
        data = pack_record(one)
        assert parse_record(data) == one
        records.append((offset, len(data), one))
        offset += len(data)
    index = index_from(index_bytes(index_of(records, "x.seg")), "x.seg")
    for one in entries:
        places = {place.offset for _, place in index.find(one.request)}
        assert places == {at for at, _, other in records if other.request == one.request}
    assert index.find(digest_value("never")) == []


def test_a_ledger_is_counted_taken_along_and_cleared(tmp_path: Path) -> None:
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    ledger = Ledger(here)
    ledger.open()
    keep(ledger, entry("a", "invalid", at=1.0), entry("a", at=2.0, text="old"), entry("a", at=3.0, text="new"))
    keep(ledger, entry("b", "refused", at=4.0))
    assert cache.stats(here).replies == 4, "logs being written are counted"
    with pytest.raises(LedgerError, match="being written"):
        cache.gc(here)
    ledger.close()
    counted = cache.stats(here)
    assert counted.by_outcome == {"answer": 2, "refused": 1, "invalid": 1}
    assert (counted.usage.prompt_tokens, counted.usage.cost_usd) == (40, 2.0)
    assert cache.spent(here) == counted.usage
    assert cache.export(here, tmp_path / "all.jsonl") == 4
    assert cache.load(there, tmp_path / "all.jsonl") > 0
    assert cache.load(there, tmp_path / "all.jsonl") == 0, "what is there is not added again"
    assert cache.gc(here) == (4, 1)
    for url in (here, there):
        again = Ledger(url)
        again.open()
        found = again.lookup(digest_value("a"))
        assert found is not None
        assert found.outcome == "answer"
        again.close()
    assert found.text in ("old", "new")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"bad.jsonl:1"):
        cache.load(there, tmp_path / "bad.jsonl")


def test_who_has_a_ledger_open_finds_its_replies_when_it_has_been_cleared(tmp_path: Path) -> None:
    url = str(tmp_path)
    first = Ledger(url)
    first.open()
    keep(first, entry("a", "invalid", at=1.0), entry("a", at=2.0), entry("b", at=3.0))
    first.close()
    reader = Ledger(url)
    reader.open()
    assert cache.gc(url) == (3, 2)
    for name in ("a", "b"):
        found = reader.lookup(digest_value(name))
        assert found is not None
        assert found.outcome == "answer"
    reader.close()


def scanned(url: str) -> dict[tuple[str, str], tuple[int, int, int, float | None]]:
    """What `by_model` says, by reading every reply."""
    found: dict[tuple[str, str], list[Usage]] = {}
    for one in cache.entries(Segments(url)):
        found.setdefault((one.teacher, one.model), []).append(one.usage)
    return {
        name: (
            len(used), sum(u.prompt_tokens for u in used), sum(u.completion_tokens for u in used),
            sum(u.cost_usd or 0.0 for u in used) if any(u.cost_usd is not None for u in used) else None,
        )
        for name, used in found.items()
    }  # fmt: skip


def told(url: str) -> dict[tuple[str, str], tuple[int, int, int, float | None]]:
    return {
        name: (part.replies, part.usage.prompt_tokens, part.usage.completion_tokens, part.usage.cost_usd)
        for name, part in cache.by_model(url).items()
    }


def test_what_was_bought_is_counted_once_a_segment_and_as_a_full_reading_counts(tmp_path: Path) -> None:
    url = str(tmp_path)
    for run in range(3):
        ledger = Ledger(url)
        ledger.open()
        for number, model in enumerate(["a", "b", "free"] * 5):
            usage = Usage(prompt_tokens=run + number, completion_tokens=3, cost_usd=None if model == "free" else 0.25)
            keep(ledger, entry([run, number], text="x").model_copy(update={"model": model, "usage": usage}))
        if run < 2:
            ledger.close()
    assert told(url) == scanned(url)
    assert told(url)["openai", "free"][3] is None
    assert len(list(tmp_path.glob("*.sum"))) == 2, "the open log is read"
    ledger.close()
    for kept in list(tmp_path.glob("*.sum"))[:2]:
        kept.unlink()  # as a ledger from before has none
    before = told(url)
    assert before == scanned(url)
    assert len(list(tmp_path.glob("*.sum"))) == 3, "counted once, then kept"
    for segment in tmp_path.glob("*.seg"):
        segment.write_bytes(b"")
    assert told(url) == before, "closed segments are not read again"


def test_totals_follow_their_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = str(tmp_path / "here"), f"memory://{uuid.uuid4().hex}/ledger"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "spool"))
    for url in (here, there):
        ledger = Ledger(url)
        ledger.open()
        keep(ledger, entry("a", "invalid", at=1.0), entry("a", at=2.0), entry("b", at=3.0))
        ledger.close()
        assert told(url) == scanned(url) == {("openai", "m"): (3, 30, 9, 1.5)}
        assert cache.gc(url) == (3, 2)
        assert told(url) == scanned(url) == {("openai", "m"): (2, 20, 6, 1.0)}
        assert cache.forget(url, [], [digest_value("a")]) == 1
        assert told(url) == scanned(url) == {("openai", "m"): (1, 10, 3, 0.5)}
        fs, root = fsspec.core.url_to_fs(url)
        endings = sorted(path.rpartition(".")[2] for path in fs.ls(root, detail=False))
        assert endings == ["idx", "seg", "sum"]


def test_clearing_keeps_one_reply_a_request_in_segments_of_the_usual_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LOCAL_SEGMENT_REPLIES", 4)
    now, url = time.time(), str(tmp_path)
    for run in range(2):
        ledger = Ledger(url)
        ledger.open()
        keep(ledger, *(entry(name, at=now + run, text=f"run {run}") for name in range(10)))
        keep(ledger, entry("late", "invalid", at=now - 50 + run), entry("old", "refused", at=now - 5000 + run))
        keep(ledger, entry(3, "invalid", at=now + 10 + run))
        ledger.close()
    assert cache.gc(url, keep_attempts_s=1000) == (26, 11), "ten answers and an attempt of late"
    assert len(list(tmp_path.glob("*.seg"))) == len(list(tmp_path.glob("*.idx"))) == 3
    again = Ledger(url)
    again.open()
    found = {name: again.lookup(digest_value(name)) for name in (*range(10), "late", "old")}
    again.close()
    assert {one.text for name, one in found.items() if one and name != "late"} == {"run 1"}
    assert found["late"] is not None
    assert found["late"].created_s == now - 49
    assert found["old"] is None
    assert cache.gc(url, keep_attempts_s=1000) == (11, 11)
    assert cache.gc(str(tmp_path / "none")) == (0, 0)
