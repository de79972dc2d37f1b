"""The store: durable, atomic, honest about what a file system cannot do."""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import pytest

from pipeline.store import Store, StoreError


@pytest.fixture
def store(place: Any) -> Store:
    return Store(place.url, place.storage_options)


def test_what_is_written_is_read(store: Store) -> None:
    store.write_durable("a/b/one", b"1")
    store.write_durable("a/two", b"22")
    store.write_durable("a/two", b"222")
    assert store.read("a/two") == b"222"
    assert store.read_many(["a/two", "a/b/one"]) == [b"222", b"1"]
    assert store.sha256("a/b/one") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    with store.open("a/two") as stream:
        assert stream.read(2) == b"22"
    assert store.exists("a/two")
    assert not store.exists("a/three")


def test_a_listing_is_recursive_sorted_and_sees_other_processes(store: Store) -> None:
    assert store.files("a") == []
    store.write_durable("a/z", b"1")
    other: Store = pickle.loads(pickle.dumps(store))
    assert [info.path for info in other.files("a")] == ["a/z"]
    store.write_durable("a/b/c", b"333")
    store.write_durable("ab", b"not below a")
    listing = other.files("a")
    assert [(info.path, info.size, info.name) for info in listing] == [("a/b/c", 3, "c"), ("a/z", 1, "z")]
    assert all(abs(info.mtime - store.clock()) < 60 for info in listing)
    store.delete(["a/z", "a/never/there"])
    assert [info.path for info in other.files("a")] == ["a/b/c"]


def test_a_missing_file_is_said_to_be_missing(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    store.write_durable("something", b"1")
    with pytest.raises(FileNotFoundError):
        store.read_many(["something", "nothing"])


def test_of_many_creators_one_succeeds(store: Store) -> None:
    outcomes = []
    barrier = threading.Barrier(6)

    def create(number: int) -> None:
        barrier.wait()
        outcomes.append((store.create_if_absent("claims/1", f"{number}".encode()), number))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for created, number in outcomes if created]
    assert len(outcomes) == 6
    assert store.read("claims/1") == f"{winners[0]}".encode()
    assert len(winners) == 1


def test_an_answer_lost_on_the_way_does_not_turn_a_creation_into_a_refusal(store: Store) -> None:
    assert store.create_if_absent("claims/1", b"my own token")
    assert store.create_if_absent("claims/1", b"my own token")
    assert not store.create_if_absent("claims/1", b"another token")


def test_the_clock_is_the_storage_s_own_and_leaves_nothing(store: Store) -> None:
    assert abs(store.clock() - time.time()) < 60
    assert store.files("lease") == []


def test_a_relative_path_means_the_same_in_another_working_directory(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("runs/one")
    store.write_durable("a", b"1")
    data = pickle.dumps(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(data).read("a") == b"1"
    assert store.address("a") == str(tmp_path / "runs/one/a")


def test_a_file_url_is_a_local_disk(tmp_path: Any) -> None:
    store = Store(f"file://{tmp_path}/run")
    store.write_durable("a", b"1")
    assert (tmp_path / "run" / "a").read_bytes() == b"1"


def test_storage_without_atomic_creation_is_refused(monkeypatch: pytest.MonkeyPatch, place: Any) -> None:
    """What a server that ignores If-None-Match does: every creation succeeds."""
    store = Store(place.url, place.storage_options)

    def overwrites(path: str, data: bytes) -> bool:
        store.write_durable(path, data)
        return True

    monkeypatch.setattr(store, "_link" if store.local else "_put_if_absent", overwrites)
    with pytest.raises(StoreError, match="does not create files atomically"):
        store.clock()
