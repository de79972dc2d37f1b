"""Whatever sources write, nothing leaves the folder, nothing collides, and records come back equal."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.base import SCHEMA_VERSION
from schemas.geometry import FrameMask, Point, Rle
from schemas.sample import Sample, SampleCaption, SampleEvent, SampleMedia, SampleRegion
from stages.pack import PackConfig, finish_pack, plan_pack
from stages.pack.names import member_name, portable_uri
from stages.pack.stage import record
from stages.pack.tar import write_tar

HOSTILE = [
    "../x",
    "/etc/passwd",
    "a\x00b",
    "\n",
    "..",
    "x" * 5000,
    "CON",
    "Ä/ä",
    "A",
    "a",
    "狗\u202e",
    "|&;`$(x)",
    "{}",
]


def test_hostile_names_stay_inside_and_collide_with_nothing(new_corpus, write, tmp_path):
    corpus = new_corpus("hostile")
    for number, name in enumerate(HOSTILE):
        corpus.add(number, num_regions=1)
        corpus.regions[-1] = corpus.regions[-1].model_copy(
            update={"source": name, "source_id": name, "label": name, "licence": name, "source_media_id": name}
        )
        corpus.captions[-1] = corpus.captions[-1].model_copy(update={"text": name})
    root = tmp_path / "inner" / "run"
    plan = plan_pack(corpus.frames(), PackConfig(layout="joined", validation_fraction=0.3))
    finish_pack(str(root), plan, write(plan, root))
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and root not in path.parents]
    assert {path.parent for path in outside} == {tmp_path / "hostile"}
    names: list[str] = []
    read: list[Sample] = []
    for path in root.rglob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                assert member.isfile()
                assert Path(member.name).name == member.name
                names.append(member.name)
                if member.name.endswith(".json"):
                    read.append(Sample.model_validate_json(archive.extractfile(member).read()))
    assert len({name.casefold() for name in names}) == len(names) == 2 * len(HOSTILE)
    written = [region for sample in read for region in sample.regions]
    assert sorted(region.source_id for region in written) == sorted(HOSTILE)
    assert {caption.text for region in written for caption in region.captions} >= set(HOSTILE)
    texts = pl.read_parquet(root / plan.folder / "regions.parquet")["source"].unique().to_list()
    assert sorted(texts) == sorted(HOSTILE)
    card = (root / plan.folder / "README.md").read_text("utf-8")
    assert card.count("\n---\n") == 1


@pytest.mark.parametrize("extension", ["../x", "jpg/../x", "", "exe", "JPG", "000000.jpg", "json\n", "jpg.json"])
def test_member_names_are_keys_and_known_extensions(extension):
    with pytest.raises(ValueError, match="no member name"):
        member_name(bytes(16), extension)


def test_a_key_of_another_length_is_no_name(tmp_path):
    with pytest.raises(ValueError, match="no member name"):
        write_tar(str(tmp_path / "x.tar"), [(b"../../etc/passwd!", "json", b"{}")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "portable"),
    [
        ("/home/me/photos/a.jpg", "a.jpg"),
        ("file:///home/me/a.jpg", "a.jpg"),
        ("zip://in/a.jpg::file:///home/me/x.zip", "a.jpg"),
        ("/home/me/clips/v/", "v"),
        ("s3://bucket/a/b.jpg", "s3://bucket/a/b.jpg"),
        ("https://me:secret@example.org/a.jpg?token=1#x", "https://example.org/a.jpg"),
        ("zip://a.jpg::s3://bucket/x.zip", "a.jpg"),
    ],
)
def test_records_say_nothing_of_the_machine(uri, portable):
    assert portable_uri(uri) == portable


def test_sizes_are_parsed_and_unknown_settings_refused():
    assert int(PackConfig(max_shard_bytes="500MB").max_shard_bytes) == 500_000_000
    assert int(PackConfig(max_shard_bytes="2GiB").max_shard_bytes) == 2 << 30
    for bad in ({"max_shard_bytes": 0}, {"max_shard_bytes": "much"}, {"shard_size": 3}, {"validation_fraction": 1}):
        with pytest.raises(ValidationError):
            PackConfig(**bad)


keys = st.binary(min_size=16, max_size=16)
numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=40) | st.sampled_from(["一只棕色的狗。", "\u2028", "\x00", "🐕‍🦺", '"\\\n', "<image>"])
optional_text = st.none() | texts
boxes = st.tuples(numbers, numbers, numbers, numbers)
rles = st.builds(Rle, size=st.tuples(st.integers(1, 1 << 20), st.integers(1, 1 << 20)), counts=texts)
events = st.builds(
    SampleEvent, event_index=st.integers(0, 9), start_frame=st.integers(0, 1 << 40), end_frame=st.integers(0, 1 << 40),
    start_s=numbers, end_s=numbers, absent=st.booleans(), motion=optional_text,
)  # fmt: skip
captions = st.builds(
    SampleCaption, task=st.sampled_from(["label", "explain", "brief", "detailed", "video", "stream"]), text=texts,
    language=st.sampled_from(["en", "zh"]), event_index=st.integers(-1, 9), label=optional_text,
    definition=optional_text, function=optional_text, history=optional_text, teacher=texts, model=texts,
    prompt_id=texts, prompt_hash=keys,
)  # fmt: skip
frame_masks = st.builds(
    FrameMask, frame_index=st.integers(0, 1 << 40), time_s=numbers, visible=st.booleans(), box=st.none() | boxes,
    mask=st.none() | rles, area_share=numbers, object_score=st.none() | numbers,
)  # fmt: skip
regions = st.builds(
    SampleRegion, region_key=keys, source=texts, source_id=texts, split=texts, licence=optional_text,
    label=optional_text, frame_index=st.integers(0, 1 << 40), time_s=numbers, box=st.none() | boxes,
    points=st.lists(st.builds(Point, x=numbers, y=numbers, label=st.integers(0, 1)), max_size=4),
    mask=st.none() | rles, frames=st.lists(frame_masks, max_size=40), events=st.lists(events, max_size=4),
    captions=st.lists(captions, max_size=4), predicted_iou=st.none() | numbers, stability=st.none() | numbers,
    seed_agreement=st.none() | numbers, mask_source=st.none() | st.sampled_from(["refined", "source"]),
)  # fmt: skip
media = st.builds(
    SampleMedia, media_key=keys, uri=texts, kind=st.sampled_from(["image", "video"]), width=st.integers(1, 1 << 20),
    height=st.integers(1, 1 << 20), encoding=texts, num_frames=st.integers(1, 1 << 40), fps=st.none() | numbers,
    frame_indices=st.lists(st.integers(0, 1 << 40), max_size=5), frame_times_s=st.just([]),
)  # fmt: skip
samples = st.builds(Sample, schema_version=st.just(SCHEMA_VERSION), media=media, regions=st.lists(regions, max_size=3))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(sample=samples, times=st.lists(numbers, max_size=5))
def test_records_come_back_equal_from_a_shard(tmp_path_factory, sample, times):
    path = tmp_path_factory.mktemp("trip") / "x.tar"
    data = record(sample, times)
    write_tar(str(path), [(sample.media.media_key, "json", data)])
    with tarfile.open(path) as archive:
        (member,) = archive.getmembers()
        read = archive.extractfile(member).read()
    wanted = sample.model_copy(update={"media": sample.media.model_copy(update={"frame_times_s": times})})
    assert Sample.model_validate_json(read) == wanted
    assert json.loads(read) == wanted.model_dump(mode="json")
    assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (0, 0, 0, "", "", 0o644)
