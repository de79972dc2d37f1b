"""Streaming captions through a model behind HTTP: each request has the right pictures and the right history."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from schemas.arrow import from_table, to_table
from schemas.caption import Caption
from schemas.geometry import FrameMask
from schemas.keys import digest_value
from stages.base import checked
from stages.distill import CaptionsConfig, build_distill
from stages.distill.units import EarlierCaption, StreamUnit
from stages.masks import box_of, encode
from stages.shapes.clips import write_mp4
from stages.teachers.config import BatchConfig, LimitsConfig, TeacherConfig

EVENTS, LENGTH = 4, 12
SHADES = (40, 90, 140, 190)
"""The background's grey in each event: what a picture shows says of which event it is."""


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> list[list[StreamUnit]]:
    path = tmp_path_factory.mktemp("stream") / "clip.mp4"
    frames = [np.full((96, 96, 3), SHADES[i // LENGTH], np.uint8) for i in range(EVENTS * LENGTH)]
    mask = np.zeros((96, 96), bool)
    mask[30:60, 30:60] = True
    for frame in frames:
        frame[mask] = (220, 30, 30)
    write_mp4(path, frames, 24)
    track = [
        FrameMask(
            frame_index=i,
            time_s=i / 24,
            visible=True,
            box=box_of(mask),
            mask=encode(mask),
            area_share=float(mask.mean()),
        )
        for i in range(len(frames))
    ]
    return [[unit(str(path), track, number, event) for event in range(EVENTS)] for number in range(3)]


def unit(uri: str, track: list[FrameMask], number: int, event: int) -> StreamUnit:
    region = digest_value(["chain", number])
    first, last = event * LENGTH, (event + 1) * LENGTH - 1
    return StreamUnit(
        caption_key=digest_value([region, event]), region_key=region, media_key=digest_value(uri), task="stream",
        language="en", event_index=event, uri=uri, kind="video", source="test", label=f"square {number}", width=96,
        height=96, frames=track, num_events=EVENTS, start_frame=first, end_frame=last, start_s=first / 24,
        end_s=last / 24, visible_share=1.0, absent=False, motion="still", input_digest=digest_value([number, event]),
    )  # fmt: skip


def of_chat(chat: Any) -> tuple[str, int]:
    """The label and the event that a request is about."""
    label = chat.text.split("call the target: ")[1].split(".")[0]
    return label, int(chat.text.split("This is event ")[1].split(" ")[0]) - 1


def tell(chat: Any) -> dict[str, str]:
    label, event = of_chat(chat)
    return {"caption": f"The {label} does its act number {event}."}


def run(config: TeacherConfig, units: list[StreamUnit], ledger: Path) -> list[Caption]:
    stage = build_distill(config, CaptionsConfig(), "stream", "en", str(ledger))
    stage.open()
    try:
        table = pa.concat_tables(checked(stage, to_table(units, StreamUnit)))
    finally:
        stage.close()
    rows = {row.caption_key: row for row in from_table(table, Caption)}
    return [rows[one.caption_key] for one in units]


def online(server: Any) -> TeacherConfig:
    return TeacherConfig(backend="openai", model="m", base_url=server.url, limits=LimitsConfig(first_wait_s=0.01))


def test_every_request_has_the_pictures_of_its_event_and_the_caption_before_it(
    teacher_server: Callable[..., Any], chains: Any, tmp_path: Path
) -> None:
    server = teacher_server(answer=tell)
    rows = run(online(server), [one for chain in chains for one in chain], tmp_path)
    assert {row.status for row in rows} == {"ok"}
    assert len(server.chats) == len(rows)
    for chat in server.chats:
        label, event = of_chat(chat)
        (sheet,) = chat.images
        picture = cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_GRAYSCALE)
        shares = [(abs(picture.astype(int) - shade) < 8).mean() for shade in SHADES]
        assert int(np.argmax(shares)) == event
        for other in range(EVENTS):
            told = f"The {label} does its act number {other}."
            assert (told in chat.text) == (other == event - 1)
        assert "keyframes" in chat.text
    assert [row.history for row in rows[:EVENTS]] == [None, *(row.text for row in rows[: EVENTS - 1])]


def test_a_failure_blocks_the_rest_of_its_chain_only_and_a_retry_completes_it(
    teacher_server: Callable[..., Any], chains: Any, tmp_path: Path
) -> None:
    server = teacher_server(answer=tell, verdict=lambda c: "refused" if of_chat(c) == ("square 1", 2) else "answer")
    rows = run(online(server), [one for chain in chains for one in chain], tmp_path)
    by_chain = [[row.status for row in rows[start : start + EVENTS]] for start in (0, EVENTS, 2 * EVENTS)]
    assert by_chain == [["ok"] * 4, ["ok", "ok", "failed", "blocked"], ["ok"] * 4]
    assert rows[EVENTS + 2].reason == "refused"
    server.verdict = lambda chat: "answer"
    told = [EarlierCaption(event_index=i, text=rows[EVENTS + i].text) for i in range(2)]
    rest = [one.model_copy(update={"earlier": told}) for one in chains[1][2:]]
    stage = build_distill(online(server), CaptionsConfig(), "stream", "en", str(tmp_path), forgive_before=2**40)
    stage.open()
    table = pa.concat_tables(checked(stage, to_table(rest, StreamUnit)))
    stage.close()
    assert table["status"].to_pylist() == ["ok", "ok"]
    assert rows[EVENTS + 1].text in server.chats[-2].text


def test_batch_jobs_run_chains_in_waves_by_event(
    teacher_server: Callable[..., Any], chains: Any, tmp_path: Path
) -> None:
    server = teacher_server(answer=tell)
    config = TeacherConfig(
        backend="openai_batch", model="m", base_url=server.url, batch=BatchConfig(wait_s=0.5, poll_s=0.02)
    )
    rows = run(config, [one for chain in chains for one in chain], tmp_path)
    assert {row.status for row in rows} == {"ok"}
    waves = [len(server.files[batch["input_file_id"]].splitlines()) for batch in server.batches.values()]
    assert waves == [len(chains)] * EVENTS


def test_chains_run_side_by_side_without_a_thread_each(
    teacher_server: Callable[..., Any], chains: Any, tmp_path: Path
) -> None:
    server = teacher_server(answer=tell, latency_s=2.0)
    stage = build_distill(online(server), CaptionsConfig(), "stream", "en", str(tmp_path))
    stage.open()
    before = threading.active_count()
    many = []
    for number in range(24):
        region = digest_value(["many", number])
        for one in chains[0][:2]:
            update = {
                "region_key": region,
                "caption_key": digest_value([region, one.event_index]),
                "label": f"m{number}",
            }
            many.append(one.model_copy(update=update))
    most = 0
    for table in checked(stage, to_table(many, StreamUnit)):
        assert len(table) == 2
        most = max(most, threading.active_count())
    stage.close()
    assert server.most_in_flight > 4
    assert most - before < 40
