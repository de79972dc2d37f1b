"""`verify` names what was damaged; `gc` deletes what no kept snapshot needs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from pipeline.commits import parse_commit_path, parse_part_path
from pipeline.gc import gc
from pipeline.tables import LeaseHeld, Run, write_part
from pipeline.verify import verify
from schemas.keys import digest_value

Things = Callable[..., pa.Table]

OLD, NEW, NEXT = (digest_value(name) for name in ("old prompt", "new prompt", "next prompt"))


def parts(run: Run) -> list[str]:
    return [info.path for info in run.store.files("tables") if parse_part_path(info.path)]


def numbers(run: Run, fingerprint: bytes) -> list[int]:
    return sorted(run.view().rows("things", fingerprint, ["number"]).collect()["number"].to_list())


@pytest.fixture
def built(local_run: Run, things: Things) -> Run:
    """A run whose prompt was changed once: two fingerprints, two snapshots, the first with a tombstone."""
    frame = pl.DataFrame(pl.from_arrow(things([1])))
    dropped = frame.select(pl.lit("things").alias("table"), pl.col("thing_key").alias("key"), "input_digest")
    with local_run.writer("build") as writer:
        writer.commit_table("things", OLD, things([1, 2]), "thing_key")
        writer.commit_table("things", OLD, things([3]), "thing_key")
        writer.snapshot({"distill": OLD.hex()}, tombstones=dropped)
    with local_run.writer("build") as writer:
        writer.commit_table("things", NEW, things([1, 2, 3]), "thing_key")
        writer.snapshot({"distill": NEW.hex()})
    return local_run


def damage(run: Run, path: str) -> None:
    file = Path(run.store.url, path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_sound_run_is_sound(run: Run, things: Things) -> None:
    with run.writer("build") as writer:
        writer.commit_table("things", OLD, things(range(5)), "thing_key")
        writer.snapshot({"distill": OLD.hex()})
    report = verify(run)
    assert report.ok
    assert (report.parts, report.commits, report.rows, report.snapshots, report.orphans) == (1, 1, 5, 1, 0)
    assert report.num_bytes == run.store.files("tables/things/parts")[0].size


def test_a_changed_byte_and_a_missing_part_are_named(built: Run) -> None:
    first, second, _ = parts(built)
    damage(built, first)
    built.store.delete([second])
    problems = {problem.file: problem for problem in verify(built).problems}
    assert set(problems) == {first, second}
    assert "bytes changed after it was committed" in problems[first].what
    assert "missing" in problems[second].what
    assert all("build again" in problem.fix for problem in problems.values())


def test_a_torn_commit_is_named_and_after_its_deletion_the_rows_are_made_anew(built: Run, things: Things) -> None:
    path = next(info.path for info in built.store.files("tables") if parse_commit_path(info.path)[2:] == (2,))
    Path(built.store.url, path).write_text('{"part":')
    (problem,) = verify(built).problems
    assert problem.file == path
    assert "delete it and build again" in problem.fix
    built.store.delete([path])
    with built.writer("build") as writer:
        assert "things" in writer.view().tables
        assert writer.commit_table("things", NEW, things([1, 2, 3]), "thing_key")
        writer.sweep()
    assert numbers(built, NEW) == [1, 2, 3]
    assert verify(built).ok


def test_a_commit_under_a_false_name_is_named(built: Run) -> None:
    path = next(info.path for info in built.store.files("tables") if (parse_commit_path(info.path) or [0])[-1] == 2)
    false = path.replace(parse_commit_path(path)[1], "0" * 32)
    Path(built.store.url, path).rename(Path(built.store.url, false))
    (problem,) = verify(built).problems
    assert problem.file == false
    assert "not the digest of its content" in problem.what


def test_a_broken_snapshot_and_missing_tombstones_are_named(built: Run) -> None:
    first = next(info.path for info in built.store.files("snapshots") if info.name.endswith(".parquet"))
    built.store.delete([first])
    (problem,) = verify(built).problems
    assert problem.file == "snapshots/00000001.json"
    assert first in problem.what
    Path(built.store.url, "snapshots/00000002.json").write_text("{}")
    assert [problem.file for problem in verify(built).problems] == ["snapshots/00000002.json"]


def test_gc_deletes_what_only_old_snapshots_need(built: Run) -> None:
    dry = gc(built, dry_run=True)
    assert len(parts(built)) == 3
    report = gc(built)
    assert report.fingerprints == dry.fingerprints == {"things": [OLD.hex()]}
    assert (report.rows, report.kept_snapshots, report.dropped_snapshots) == (3, [2], [1])
    assert set(dry.files) <= set(report.files)
    assert numbers(built, NEW) == [1, 2, 3]
    assert built.view().commits("things", OLD) == ()
    assert len(parts(built)) == 1
    assert [info.name for info in built.store.files("snapshots")] == ["00000002.json"]
    assert verify(built).ok
    assert gc(built).files == []


def test_gc_keeps_as_many_snapshots_as_asked(built: Run) -> None:
    report = gc(built, keep_snapshots=2)
    assert report.files == []
    assert report.kept_snapshots == [1, 2]
    assert numbers(built, OLD) == [1, 2, 3]
    with pytest.raises(ValueError, match="at least one"):
        gc(built, keep_snapshots=0)


def test_gc_spares_an_interrupted_build(built: Run, things: Things) -> None:
    """Rows paid for since the last snapshot are named by none yet."""
    with built.writer("killed before its snapshot") as writer:
        writer.commit_table("things", NEXT, things([1]), "thing_key")
        orphan = write_part(built.store, "things", writer.epoch, things([2]), "thing_key")
    report = gc(built)
    assert report.fingerprints == {"things": [OLD.hex()]}
    assert orphan.path in report.files
    assert numbers(built, NEXT) == [1]


def test_gc_deletes_nothing_of_a_run_without_snapshot(local_run: Run, things: Things) -> None:
    with local_run.writer("build") as writer:
        writer.commit_table("things", OLD, things([1]), "thing_key")
    assert gc(local_run).files == []
    assert numbers(local_run, OLD) == [1]


def test_gc_is_refused_while_a_driver_works_and_a_dry_run_is_not(built: Run) -> None:
    with built.writer("build"):
        assert gc(built, dry_run=True).fingerprints == {"things": [OLD.hex()]}
        with pytest.raises(LeaseHeld, match="build"):
            gc(built)


def test_what_gc_forgot_can_be_made_again(built: Run, things: Things) -> None:
    gc(built)
    with built.writer("the setting changed back") as writer:
        assert writer.commit_table("things", OLD, things([1, 2]), "thing_key")
        writer.snapshot({"distill": OLD.hex()})
    assert numbers(built, OLD) == [1, 2]
    assert verify(built).ok


def test_gc_on_s3(s3_url: str, s3_options: dict[str, object], things: Things) -> None:
    run = Run.open(s3_url, s3_options)
    with run.writer("build") as writer:
        writer.commit_table("things", OLD, things([1]), "thing_key")
        writer.snapshot({"distill": OLD.hex()})
        writer.commit_table("things", NEW, things([1]), "thing_key")
        writer.snapshot({"distill": NEW.hex()})
    report = gc(run)
    assert report.fingerprints == {"things": [OLD.hex()]}
    assert len(parts(run)) == 1
    assert numbers(run, NEW) == [1]
    assert verify(run).ok
