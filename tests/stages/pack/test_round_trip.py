"""Rows of tables -> a shard on disk -> records: equal, whatever texts, lists and numbers the rows hold."""

from __future__ import annotations

import tarfile
from types import SimpleNamespace
from typing import Any, Literal

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.arrow import to_table
from schemas.base import Row
from schemas.caption import NO_EVENT, TASKS, Caption
from schemas.event import Event
from schemas.geometry import FrameMask, Point, Rle
from schemas.keys import digest_bytes, digest_value
from schemas.mask import Mask
from schemas.media import Media
from schemas.region import Region
from schemas.sample import Sample, SampleCaption, SampleEvent, SampleRegion
from stages.base import checked, with_digest
from stages.pack import PackConfig, PackFrames, PackStage, plan_pack

NOTHING = bytes(16)
TEXTS = ["一只棕色的狗。", "\u2028", "\x00", "🐕‍🦺", '"\\\n\t', "<image>", "", "\ud7ff\ue000", "é" * 300, "\x7f\x1b"]
texts = st.text(max_size=30) | st.sampled_from(TEXTS)
maybe = st.none() | texts
numbers = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
boxes = st.tuples(numbers, numbers, numbers, numbers)
sizes = st.sampled_from([(1, 1), (1, 4097), (3, 1), (1081, 1919)])
rles = st.builds(Rle, size=sizes, counts=st.text("0123456789:;<=>?@PQRSTUVWXYZ[\\]^_`abcdefghijklmno", max_size=50))
tracks = st.lists(
    st.builds(
        FrameMask, frame_index=st.integers(0, 1 << 40), time_s=numbers, visible=st.booleans(), box=st.none() | boxes,
        mask=st.none() | rles, area_share=shares, object_score=st.none() | numbers,
    ),
    max_size=90,
)  # fmt: skip
points = st.none() | st.lists(st.builds(Point, x=numbers, y=numbers, label=st.integers(0, 1)), max_size=3)
captions = st.fixed_dictionaries(
    dict.fromkeys(("label", "definition", "function", "history"), maybe)
    | dict.fromkeys(("text", "teacher", "model", "prompt_id"), texts)
    | {"prompt_hash": st.binary(min_size=16, max_size=16)}
)
languages = st.sampled_from(["en", "zh"])
named = st.tuples(st.sampled_from([task for task in TASKS if task != "stream"]), languages)
streams = st.dictionaries(languages, st.lists(captions, min_size=1, max_size=3))
segments = st.fixed_dictionaries(
    {"box": st.none() | boxes, "mask": st.none() | rles, "frames": st.none() | tracks, "time_s": numbers}
    | {"predicted_iou": st.none() | shares, "stability": shares, "frame_index": st.integers(0, 1 << 40)}
)
events = st.fixed_dictionaries(
    {"start_frame": st.integers(0, 99), "end_frame": st.integers(0, 99), "start_s": numbers, "end_s": numbers}
    | {"absent": st.booleans(), "motion": maybe}
)
regions = st.fixed_dictionaries(
    {
        "facts": st.fixed_dictionaries(
            {"source": texts, "source_id": texts, "licence": maybe, "label": maybe, "box": boxes, "points": points}
        ),
        "segments": st.lists(segments, min_size=1, max_size=3),
        "events": st.lists(events, max_size=3),
        "captions": st.dictionaries(named, captions, min_size=1, max_size=4),
        "streams": streams,
    }
)


def _frame(rows: list[Any], model: type[Row]) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(with_digest(to_table(rows, model), model)))


def _rows(uri: str, data: bytes, drawn: list[dict[str, Any]]) -> SimpleNamespace:
    """The rows of one picture with the drawn regions, and the regions as its record must have them."""
    key = digest_bytes(data)
    place = {"input_digest": NOTHING, "media_key": key}
    media = Media(**place, uri=uri, kind="image", encoding="png", num_bytes=len(data), width=1, height=1, group_key=key)
    made = SimpleNamespace(media=[media], regions=[], masks=[], events=[], captions=[], wanted=[])
    for number, region in enumerate(drawn):
        about = {**place, "region_key": digest_value([key, number])}
        source = {"uri": uri, "kind": "image", "source_media_id": "1", "split": "train"}
        made.regions.append(Region(**about, **source, **region["facts"]))
        for segment, mask in enumerate(region["segments"]):
            part = {"segment": segment, "num_segments": len(region["segments"]), "backend": "sam2"}
            made.masks.append(Mask(**about, **part, mask_key=digest_value([about["region_key"], segment]), **mask))
        for index, event in enumerate(region["events"]):
            facts = {"event_index": index, "num_events": len(region["events"]), "visible_share": 1.0}
            event_key = digest_value([about["region_key"], index])
            made.events.append(Event(**about, **facts, event_key=event_key, backend="motion", **event))
        for (task, language, event_index), caption in _told(region):
            names = {"task": task, "language": language, "event_index": event_index}
            caption_key = digest_value([about["region_key"], task, language, event_index])
            made.captions.append(Caption(**about, caption_key=caption_key, outcome="answer", **names, **caption))
        made.wanted.append(_wanted(about["region_key"], region))
    return made


def _told(region: dict[str, Any]) -> list[tuple[tuple[str, str, int], dict[str, Any]]]:
    """Task, language and event of each caption with its facts, in the order of records."""
    told = {(task, language, NO_EVENT): caption for (task, language), caption in region["captions"].items()}
    for language, chain in region["streams"].items():
        told |= {("stream", language, index): caption for index, caption in enumerate(chain)}
    return sorted(told.items(), key=lambda item: (TASKS.index(item[0][0]), *item[0][1:]))


def _wanted(region_key: bytes, region: dict[str, Any]) -> SampleRegion:
    facts, parts = dict(region["facts"]), region["segments"]
    mask = next((part for part in parts if part["mask"] is not None), parts[0])
    refined = mask["box"] is not None
    prompt = {"box": mask["box"] if refined else facts["box"]}
    prompt |= {"frame_index": mask["frame_index"], "time_s": mask["time_s"]} if refined else {}
    return SampleRegion(
        **{name: facts[name] for name in ("source", "source_id", "licence", "label")},
        **prompt,
        region_key=region_key,
        split="train",
        points=facts["points"] or [],
        mask=mask["mask"],
        frames=[frame for part in parts for frame in part["frames"] or []],
        predicted_iou=mask["predicted_iou"],
        stability=mask["stability"],
        events=[SampleEvent(event_index=index, **event) for index, event in enumerate(region["events"])],
        captions=[
            SampleCaption(task=task, language=language, event_index=event_index, **rest)
            for (task, language, event_index), rest in _told(region)
        ],
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(regions, max_size=3), layout=st.sampled_from(["joined", "split"]))
def test_rows_come_back_equal_from_a_shard(
    tmp_path_factory: Any, drawn: list[dict[str, Any]], layout: Literal["joined", "split"]
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    picture = folder / "a.png"
    picture.write_bytes(b"pixels are not opened: original bytes travel")
    rows = _rows(str(picture), picture.read_bytes(), drawn)
    models = {"media": Media, "regions": Region, "masks": Mask, "events": Event, "captions": Caption}
    frames = PackFrames(**{name: _frame(getattr(rows, name), model) for name, model in models.items()})
    config = PackConfig(validation_fraction=0, layout=layout)
    plan, stage = plan_pack(frames, config), PackStage(config, str(folder))
    shards = [table.to_pylist()[0] for table in checked(stage, plan.fill(plan.units))] if len(plan.units) else []
    assert len(shards) == ((2 if layout == "split" else 1) if drawn else 0)
    for shard in shards:
        if shard["kind"] != "media":
            with tarfile.open(folder / shard["shard"]) as archive:
                (member,) = (member for member in archive if member.name.endswith(".json"))
                sample = Sample.model_validate_json(archive.extractfile(member).read())
            assert sample.media.media_key == rows.media[0].media_key
            assert sample.regions == sorted(rows.wanted, key=lambda region: region.region_key)
