"""The durable tables through their public interface, on a local disk and on S3."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipeline.commits import RunError, checkpoint_files, parse_commit_path, parse_part_path
from pipeline.tables import LeaseHeld, LeaseLost, Run, pending, write_part
from pipeline.verify import verify
from schemas.keys import digest_value

Things = Callable[..., pa.Table]


def commit_files(run: Run) -> list[str]:
    return [info.path for info in run.store.files("tables") if parse_commit_path(info.path)]


def part_files(run: Run) -> list[str]:
    return [info.path for info in run.store.files("tables") if parse_part_path(info.path)]


def numbers(run: Run, fingerprint: bytes | None) -> list[int]:
    return sorted(run.view().rows("things", fingerprint, ["number"]).collect()["number"].to_list())


def test_a_run_that_nobody_has_written_is_empty(run: Run, thing_schema: pa.Schema, fingerprint: bytes) -> None:
    view = run.view()
    assert view.tables == {}
    assert view.snapshot is None
    assert view.active("refine") is None
    assert run.holder() is None
    empty = view.rows("things", fingerprint, schema=thing_schema).collect()
    assert empty.columns == thing_schema.names
    assert len(empty) == 0
    with pytest.raises(LookupError, match="things"):
        view.rows("things", fingerprint)


def test_rows_are_seen_when_committed_and_not_before(run: Run, things: Things, fingerprint: bytes) -> None:
    with run.writer("me") as writer:
        part = write_part(run.store, "things", writer.epoch, things(range(3)), "thing_key")
        assert run.view().tables == {}
        assert writer.commit("things", fingerprint, things(range(3))["thing_key"], part)
        assert numbers(run, fingerprint) == [0, 1, 2]
        assert writer.view().tables == run.view().tables
    seen = run.view().rows("things", fingerprint).collect()
    assert seen.to_arrow().select(["number", "thing_key"]).to_pylist() == [
        {"number": n, "thing_key": digest_value(["thing", n])} for n in range(3)
    ]
    assert run.view().written("things", fingerprint) == Counter(ok=3)
    assert verify(run).ok


def test_the_same_rows_are_committed_once(run: Run, things: Things, fingerprint: bytes) -> None:
    with run.writer("me") as writer:
        assert writer.commit_table("things", fingerprint, things([1, 2]), "thing_key")
        assert not writer.commit_table("things", fingerprint, things([2, 1]), "thing_key")
        assert len(part_files(run)) == 1
        assert writer.commit_table("things", digest_value("another way"), things([1, 2]), "thing_key")
    assert numbers(run, fingerprint) == [1, 2]


def test_a_second_attempt_replaces_the_first(run: Run, things: Things, fingerprint: bytes) -> None:
    with run.writer("build") as writer:
        rows = things([1, 2], status="failed", reason="no_answer")
        writer.commit_table("things", fingerprint, rows, "thing_key")
        writer.commit_table("things", fingerprint, things([3]), "thing_key")
        writer.commit_table("things", fingerprint, things([2], attempts=2), "thing_key")
    with run.writer("retry-failed") as writer:
        writer.commit_table("things", fingerprint, things([1], attempts=2), "thing_key")
        for view in (writer.view(), run.view()):
            seen = view.rows("things", fingerprint, ["number", "status", "attempts"]).sort("number").collect()
            assert seen.rows() == [(1, "ok", 2), (2, "ok", 2), (3, "ok", 1)]
            assert view.written("things") == Counter(failed=2, ok=3)
    assert verify(run).ok


def test_another_input_digest_is_another_row(run: Run, things: Things, fingerprint: bytes) -> None:
    with run.writer("me") as writer:
        writer.commit_table("things", fingerprint, things([1], version=0), "thing_key")
        writer.commit_table("things", fingerprint, things([1], version=1), "thing_key")
    assert numbers(run, fingerprint) == [1, 1]


def test_a_view_by_several_fingerprints_and_by_all(run: Run, things: Things) -> None:
    first, second, third = (digest_value(n) for n in range(3))
    with run.writer("me") as writer:
        for number, each in enumerate((first, second, third)):
            writer.commit_table("things", each, things([number]), "thing_key")
    view = run.view()
    assert view.fingerprints("things") == [first, second, third]
    assert view.rows("things", [first, third], ["number"]).sort("number").collect()["number"].to_list() == [0, 2]
    assert numbers(run, None) == [0, 1, 2]


def test_tables_with_a_folder_in_their_name(run: Run, things: Things, fingerprint: bytes) -> None:
    with run.writer("me") as writer:
        writer.commit_table("scores/length", fingerprint, things([1]), "thing_key")
        writer.commit_table("scores/length/zh", fingerprint, things([2]), "thing_key")
    view = run.view()
    assert sorted(view.tables) == ["scores/length", "scores/length/zh"]
    assert view.rows("scores/length", fingerprint).collect()["number"].to_list() == [1]


def test_a_view_does_not_move(run: Run, things: Things, fingerprint: bytes) -> None:
    with run.writer("me") as writer:
        writer.commit_table("things", fingerprint, things([1]), "thing_key")
        before = run.view()
        writer.commit_table("things", fingerprint, things([2]), "thing_key")
        writer.compact()
        assert before.rows("things", fingerprint).collect()["number"].to_list() == [1]
        assert numbers(run, fingerprint) == [1, 2]


def test_columns_that_older_parts_lack_are_null(
    run: Run, things: Things, thing_schema: pa.Schema, fingerprint: bytes
) -> None:
    with run.writer("me") as writer:
        writer.commit_table("things", fingerprint, things([1]).drop_columns(["text"]), "thing_key")
        writer.commit_table("things", fingerprint, things([2], text="new"), "thing_key")
    seen = run.view().rows("things", fingerprint, ["number", "text"], schema=thing_schema).sort("number").collect()
    assert seen.rows() == [(1, None), (2, "new")]


def test_storage_that_polars_has_no_reader_for(things: Things, thing_schema: pa.Schema, fingerprint: bytes) -> None:
    run = Run.open(f"memory://{uuid.uuid4().hex}")
    with run.writer("me") as writer:
        rows = things([1, 2], status="failed", reason="no_answer")
        writer.commit_table("things", fingerprint, rows, "thing_key")
        writer.commit_table("things", fingerprint, things([2], attempts=2), "thing_key")
        writer.compact()
    for schema in (None, thing_schema):
        seen = run.view().rows("things", fingerprint, ["number", "status"], schema=schema)
        assert seen.filter(pl.col("number") > 0).sort("number").collect().rows() == [(1, "failed"), (2, "ok")]
    assert verify(run).ok


def test_rows_without_identity_are_refused(local_run: Run, things: Things) -> None:
    with local_run.writer("me") as writer:
        with pytest.raises(ValueError, match="input_digest"):
            write_part(local_run.store, "things", writer.epoch, things([1]).drop_columns(["input_digest"]), "thing_key")
        with pytest.raises(ValueError, match="nulls in 'text'"):
            write_part(local_run.store, "things", writer.epoch, things([1]), "text")
    assert part_files(local_run) == []


def test_a_part_of_another_table_or_epoch_is_refused(local_run: Run, things: Things, fingerprint: bytes) -> None:
    rows = things([1])
    with local_run.writer("me") as writer:
        old = write_part(local_run.store, "things", writer.epoch, rows, "thing_key")
        with pytest.raises(ValueError, match="things"):
            writer.commit("others", fingerprint, rows["thing_key"], old)
    with local_run.writer("me") as writer, pytest.raises(ValueError, match="epoch 1"):
        writer.commit("things", fingerprint, rows["thing_key"], old)


def test_many_commits_are_compacted_and_nothing_changes(run: Run, things: Things, fingerprint: bytes) -> None:
    with run.writer("me", compact_above=4) as writer:
        for number in range(11):
            writer.commit_table("things", fingerprint, things([number]), "thing_key")
            assert len(commit_files(run)) <= 4
            assert numbers(run, fingerprint) == list(range(number + 1))
        writer.compact()
        assert commit_files(run) == []
        assert len(checkpoint_files(run.store)) == 1
        assert not writer.commit_table("things", fingerprint, things([3]), "thing_key")
    assert numbers(run, fingerprint) == list(range(11))
    assert verify(run).ok


def test_a_takeover_compacts_what_a_former_driver_left(local_run: Run, things: Things, fingerprint: bytes) -> None:
    with local_run.writer("me") as writer:
        for number in range(6):
            writer.commit_table("things", fingerprint, things([number]), "thing_key")
    with local_run.writer("you", compact_above=5):
        assert commit_files(local_run) == []
    assert numbers(local_run, fingerprint) == list(range(6))


def test_readers_see_whole_states_while_commits_are_compacted(
    local_run: Run, things: Things, fingerprint: bytes
) -> None:
    """Numbers are committed in order, so a state is whole when it is 0..n, and never shrinks."""
    seen: list[list[int]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            commits = local_run.view().commits("things", fingerprint)
            seen.append([commit.seq for commit in commits])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with local_run.writer("me", compact_above=2) as writer:
            for number in range(400):
                writer.commit_table("things", fingerprint, things([number]), "thing_key")
                if number > 30 and len({len(state) for state in seen}) > 5:
                    break
    finally:
        done.set()
        reader.join()
    assert all(state == list(range(1, len(state) + 1)) for state in seen)
    sizes = [len(state) for state in seen]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5


def test_a_second_driver_is_refused_with_the_name_of_the_first(run: Run) -> None:
    with run.writer("perceive build", ttl_s=30) as writer:
        with pytest.raises(LeaseHeld, match=r"perceive build on \S+, pid \d+, heard of \d+ s ago"), run.writer("other"):
            pass
        standing = run.holder()
        assert standing is not None
        assert standing.live
        assert standing.claim.epoch == writer.epoch
    standing = run.holder()
    assert standing is not None
    assert not standing.live
    with run.writer("other") as after:
        assert after.epoch == writer.epoch + 1


def test_deleting_the_lease_by_hand_does_not_bring_old_epochs_back(
    run: Run, things: Things, fingerprint: bytes
) -> None:
    for number in range(3):
        with run.writer("me") as writer:
            writer.commit_table("things", fingerprint, things([number]), "thing_key")
    run.store.delete(info.path for info in run.store.files("lease"))
    with run.writer("me") as after:
        assert after.epoch == writer.epoch + 1
        after.commit_table("things", fingerprint, things([3]), "thing_key")
    assert numbers(run, fingerprint) == [0, 1, 2, 3]


class Asleep:
    """A driver that stopped beating without knowing it: its lease looks silent to others."""

    def __init__(self, run: Run) -> None:
        self.context = run.writer("sleeper", ttl_s=60)
        self.writer = self.context.__enter__()
        # The next driver takes over at once, as if this one's time to live had passed.
        lease: Any = self.writer._lease
        lease.release()


def test_a_driver_that_was_taken_over_can_commit_nothing(run: Run, things: Things, fingerprint: bytes) -> None:
    sleeper = Asleep(run)
    sleeper.writer.commit_table("things", fingerprint, things([1]), "thing_key")
    late = write_part(run.store, "things", sleeper.writer.epoch, things([9]), "thing_key")
    with run.writer("new") as writer:
        writer.commit_table("things", fingerprint, things([2]), "thing_key")
        for attempt in (
            lambda: sleeper.writer.commit("things", fingerprint, things([9])["thing_key"], late),
            lambda: sleeper.writer.snapshot({"things": "0" * 32}),
            sleeper.writer.compact,
            sleeper.writer.sweep,
        ):
            with pytest.raises(LeaseLost, match="taken over by epoch 2"):
                attempt()
        assert run.view().snapshot is None
        assert late.path in writer.sweep()
    assert numbers(run, fingerprint) == [1, 2]


def test_a_late_commit_that_slips_through_the_check_is_fenced_off(
    run: Run, things: Things, fingerprint: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver sleeps between its last look at the lease and its write: the write happens, and does not count."""
    sleeper = Asleep(run)
    sleeper.writer.commit_table("things", fingerprint, things([1]), "thing_key")
    lease: Any = sleeper.writer._lease
    with run.writer("new") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(lease, "check", lambda: None)
            assert sleeper.writer.commit_table("things", fingerprint, things([9]), "thing_key")
            assert sleeper.writer.snapshot({"things": "0" * 32}).number == 1
            sleeper.writer.compact()
            assert sleeper.writer.commit_table("things", fingerprint, things([10]), "thing_key")
        writer.commit_table("things", fingerprint, things([2]), "thing_key")
        assert numbers(run, fingerprint) == [1, 2]
        assert run.view().snapshot is None
        current = writer.snapshot({"things": fingerprint.hex()})
        assert current.number == 2
        writer.sweep()
        assert run.view().snapshot == current
    assert numbers(run, fingerprint) == [1, 2]
    assert len(part_files(run)) == 2
    assert verify(run).ok
    assert verify(run).orphans == 0


def test_snapshots_say_what_is_current(run: Run, things: Things, fingerprint: bytes) -> None:
    other = digest_value("another prompt")
    first = {"refine": fingerprint.hex(), "distill/brief/en": fingerprint.hex()}
    with run.writer("build") as writer:
        writer.commit_table("things", fingerprint, things([1, 2]), "thing_key")
        one = writer.snapshot(first, sources={"coco": "abc"}, pointers={"pack": "7"})
        assert run.view().active("refine") == fingerprint
        assert writer.snapshot(first, sources={"coco": "abc"}, pointers={"pack": "7"}) == one
        writer.commit_table("things", other, things([1, 2]), "thing_key")
        two = writer.snapshot({**first, "distill/brief/en": other.hex()}, sources={"coco": "abc"})
        assert two.number == one.number + 1
        assert run.view().active("distill/brief/en") == other
    with run.writer("build again, the setting changed back") as writer:
        assert writer.current() == two
        # The rows are still there: nothing is pending.
        done = writer.view().rows("things", fingerprint, ["thing_key", "input_digest"])
        units = pl.DataFrame(pl.from_arrow(things([1, 2]))).lazy()
        assert len(pending(units, done, ["thing_key", "input_digest"])) == 0
        three = writer.snapshot(first, sources={"coco": "abc"})
    view = run.view()
    assert view.snapshot == three
    assert view.active("distill/brief/en") == fingerprint
    assert verify(run).snapshots == 3


def test_a_removed_row_is_a_tombstone_until_it_comes_back(run: Run, things: Things, fingerprint: bytes) -> None:
    active = {"ingest": fingerprint.hex()}
    frame = pl.DataFrame(pl.from_arrow(things([2])))
    dropped = frame.select(pl.lit("things").alias("table"), pl.col("thing_key").alias("key"), "input_digest")

    def alive() -> list[int]:
        return run.view().live("things", fingerprint, ["number"]).sort("number").collect()["number"].to_list()

    with run.writer("build") as writer:
        writer.commit_table("things", fingerprint, things([1, 2, 3]), "thing_key")
        writer.snapshot(active)
        assert alive() == [1, 2, 3]
        one = writer.snapshot(active, tombstones=dropped)
        assert writer.snapshot(active, tombstones=dropped) == one
        assert alive() == [1, 3]
        assert numbers(run, fingerprint) == [1, 2, 3]
        writer.snapshot(active, tombstones=dropped.clear())
        assert alive() == [1, 2, 3]
        with pytest.raises(ValueError, match="tombstones have the columns"):
            writer.snapshot(active, tombstones=frame)


def test_a_sweep_leaves_no_orphan_and_spares_the_present_epoch(run: Run, things: Things, fingerprint: bytes) -> None:
    with run.writer("killed") as writer:
        writer.commit_table("things", fingerprint, things([1]), "thing_key")
        orphan = write_part(run.store, "things", writer.epoch, things([2]), "thing_key")
    assert verify(run).orphans == 0  # of the newest epoch: it might still be committed
    with run.writer("next") as writer:
        assert verify(run).orphans == 1
        fresh = write_part(run.store, "things", writer.epoch, things([3]), "thing_key")
        assert writer.sweep() == [orphan.path]
        assert writer.commit("things", fingerprint, things([3])["thing_key"], fresh)
    assert numbers(run, fingerprint) == [1, 3]
    assert verify(run).orphans == 0


def test_an_unreadable_commit_is_named(local_run: Run, things: Things, fingerprint: bytes) -> None:
    with local_run.writer("me") as writer:
        writer.commit_table("things", fingerprint, things([1]), "thing_key")
    (path,) = commit_files(local_run)
    local_run.store.write_durable(path, b'{"part": {}}')
    with pytest.raises(RunError, match=path):
        # The fence of the writer above lists nothing yet, so this file is what counts.
        local_run.view()


def test_a_commit_that_fails_half_way_ends_the_driver(
    local_run: Run, things: Things, fingerprint: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it counts is unknown until somebody reads the disk again, and that is the next driver."""
    with local_run.writer("me") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(local_run.store, "_link", _raise_no_space)
            part = write_part(local_run.store, "things", writer.epoch, things([1]), "thing_key")
            with pytest.raises(OSError, match="No space left"):
                writer.commit("things", fingerprint, things([1])["thing_key"], part)
        with pytest.raises(RunError, match="half-way"):
            writer.commit("things", fingerprint, things([1])["thing_key"], part)
    with local_run.writer("again") as writer:
        assert writer.commit_table("things", fingerprint, things([1]), "thing_key")
        writer.sweep()
    assert numbers(local_run, fingerprint) == [1]


def _raise_no_space(path: str, data: bytes) -> bool:
    raise OSError(28, "No space left on device", path)
