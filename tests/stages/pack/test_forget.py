"""A media is taken out of shards without a trace and without touching its neighbours."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from stages.pack import PackConfig, finish_pack, plan_pack
from stages.pack.forget import forget_media, shard_members, strip_media


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


@pytest.mark.parametrize("layout", ["joined", "split"])
def test_forgetting(corpus, write, tmp_path, layout):
    config = PackConfig(layout=layout, max_shard_bytes="16kB", validation_fraction=0)
    first = plan_pack(corpus.frames(), config)
    rows = write(first, tmp_path)
    finish_pack(str(tmp_path), first, rows)
    corpus.reject(corpus.captions[30].caption_key)
    second = plan_pack(corpus.frames(), config, rows)
    rows = write(second, tmp_path, rows)  # most of its shards are links to those of the first
    gone = corpus.media[0].media_key
    tables = dict(corpus.frames())
    held = shard_members(str(tmp_path), rows["shard"].to_list())
    doomed = forget_media(tables, rows, held, gone)
    assert {name: len(keys) for name, keys in doomed.rows.items()} == {
        "media": 1, "regions": 2, "selection": 2, "masks": 2, "captions": 4, "decisions": 4,
    }  # fmt: skip
    before = {path: members(path) for path in tmp_path.rglob("*.tar")}
    facts = strip_media(str(tmp_path), doomed.shards, gone)
    assert len(facts) == (2 if layout == "joined" else 3)
    for path, was in before.items():
        kept = {name: data for name, data in was.items() if not name.startswith(gone.hex())}
        assert (members(path) if path.exists() else {}) == kept
    raw = gone.hex().encode()
    assert not any(raw in path.read_bytes() for path in tmp_path.rglob("*.tar"))


def test_a_shard_of_one_media_is_deleted(new_corpus, write, tmp_path):
    corpus = new_corpus("one")
    key = corpus.add(0)
    plan = plan_pack(corpus.frames(), PackConfig())
    rows = write(plan, tmp_path)
    facts = strip_media(str(tmp_path), rows["shard"].to_list(), key)
    assert list(facts.values()) == [None]
    assert not list(tmp_path.rglob("*.tar"))


def test_an_unknown_media_is_refused(corpus):
    frames = dict(corpus.frames())
    with pytest.raises(LookupError, match="no table and no shard"):
        forget_media(frames, frames["media"].clear(), {}, bytes(16))
