"""Chains of streaming captions in a run: what a failure blocks, what a change asks again, what other views show."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.config import load_config
from pipeline.looking import open_corpus
from pipeline.output import decisions
from stages.masks import box_of
from stages.shapes.clip import draw_clip
from stages.shapes.clips import write_mp4

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

FPS, SECONDS = 12, 3
CUTS = {"left": [0.0, 0.75, 1.5, 2.25, 3.0], "right": [0.0, 1.0, 2.0, 3.0]}
BROKEN = ("left", 2)


def perceive(*args: object) -> Any:
    """What a command prints for machines."""
    result = CliRunner().invoke(app, [*(str(arg) for arg in args), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def of_chat(chat: Any) -> tuple[str, int]:
    """The target's name and the event that a request is about."""
    name = chat.text.split("call the target: ")[1].split(".")[0]
    return name, int(chat.text.split("This is event ")[1].split(" ")[0]) - 1


def streams(chats: list[Any]) -> list[Any]:
    return [chat for chat in chats if "This is event " in chat.text]


def write_spans(folder: Path, cuts: dict[str, list[float]]) -> None:
    lines = [{"source_id": name, "spans": list(itertools.pairwise(edges))} for name, edges in cuts.items()]
    (folder / "spans.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def server(teacher_server: Callable[..., Any]) -> Any:
    """A teacher whose texts name target, event and take, and which refuses one event until it is told not to."""
    made = teacher_server()
    made.take = 1

    def answer(chat: Any) -> dict[str, str]:
        if "This is event " not in chat.text:
            return {"caption": "The shape moves slowly over the ground and then it comes to rest beside the other one."}
        name, event = of_chat(chat)
        return {"caption": f"The {name} shape does act {event} of take {made.take}."}

    made.answer = answer
    made.verdict = lambda c: "refused" if "This is event " in c.text and of_chat(c) == BROKEN else "answer"
    return made


@pytest.fixture
def config(tmp_path: Path, server: Any) -> Path:
    """A video with two targets, their boxes on some frames, and events from a file."""
    clip = draw_clip(12, frames=FPS * SECONDS, size=(128, 128), fps=FPS, objects=(2, 2), camera=0.0, leave=0.0)
    assert clip.masks.any(axis=(2, 3)).all(), "a target leaves"
    (tmp_path / "videos").mkdir()
    write_mp4(tmp_path / "videos" / "clip.mp4", clip.frames, FPS)
    lines = []
    for number, name in enumerate(CUTS):
        track = [{"frame_index": i, "box": box_of(clip.masks[i, number])} for i in range(0, len(clip.frames), 5)]
        lines.append({"media": "clip.mp4", "id": name, "label": name, "track": track})
    (tmp_path / "regions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_spans(tmp_path, CUTS)
    settings = {
        "run": "run",
        "sources": [{"format": "regions", "annotations": "regions.jsonl", "media": "videos"}],
        "select": {"min_side": 4},
        "chunk": {"backend": "file", "file": "spans.jsonl", "merge": False},
        "teacher": {"backend": "openai", "model": "m", "base_url": server.url},
        "captions": {"tasks": ["video", "stream"], "languages": ["en"]},
    }
    path = tmp_path / "video.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def chains(config: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each chain in order."""
    rows = open_corpus(load_config(config)).captions
    regions = open_corpus(load_config(config)).regions.select("region_key", "source_id")
    told = rows.filter(pl.col("task") == "stream").join(regions, on="region_key").sort("source_id", "event_index")
    return {str(name): part.to_dicts() for (name,), part in told.group_by("source_id", maintain_order=True)}


def check_history(rows: list[dict[str, Any]]) -> None:
    assert [row["history"] for row in rows] == [None, *(row["text"] for row in rows[:-1])]


def test_a_chain_breaks_is_completed_and_follows_its_events(config: Path, server: Any) -> None:
    perceive("build", config)
    fates = {name: [row["status"] for row in rows] for name, rows in chains(config).items()}
    assert fates == {"left": ["ok", "ok", "failed", "blocked"], "right": ["ok"] * 3}
    for chat in streams(server.chats):
        name, event = of_chat(chat)
        assert (f"The {name} shape does act {event - 1} of take 1." in chat.text) == (event > 0)
        assert len(chat.images) == 1

    asked = len(server.chats)
    perceive("build", config)
    assert len(server.chats) == asked, "what failed is not tried again by itself"

    server.verdict, server.take = lambda chat: "answer", 2
    perceive("retry-failed", config)
    again = server.chats[asked:]
    assert [of_chat(chat) for chat in again] == [("left", 2), ("left", 3)]
    assert "act 1 of take 1" in again[0].text
    assert "act 2 of take 2" in again[1].text
    done = chains(config)
    assert {row["status"] for rows in done.values() for row in rows} == {"ok"}
    for rows in done.values():
        check_history(rows)

    asked, server.take = len(server.chats), 3
    write_spans(config.parent, {**CUTS, "left": [0.0, 0.75, 1.6, 2.25, 3.0]})
    perceive("build", config)
    again = streams(server.chats[asked:])
    assert [of_chat(chat) for chat in again] == [("left", 1), ("left", 2), ("left", 3)]
    takes = {name: [row["text"].split("take ")[1] for row in rows] for name, rows in chains(config).items()}
    assert takes == {"left": ["1.", "3.", "3.", "3."], "right": ["1."] * 3}
    check_history(chains(config)["left"])


def test_views_of_clips_are_compared_on_the_users_own_teacher(config: Path, server: Any, tmp_path: Path) -> None:
    perceive("build", config, "--set", "captions.tasks=[video]")
    asked, page = len(server.chats), tmp_path / "views.html"
    shown = ["--view", "storyboard", "--view", "clip_frames"]
    rows = perceive("ablate", "views", config, "--task", "video", *shown, "--out", page)
    assert [(row["view"], row["answered"]) for row in rows] == [("storyboard", 2), ("clip_frames", 2)]
    assert rows[1]["tokens"] > rows[0]["tokens"]
    # The storyboards' answers are in the ledger of the build.
    assert [len(chat.images) for chat in server.chats[asked:]] == [8, 8]
    assert page.read_text("utf-8").count("<img") == 2 * (1 + 8)


def test_rescue_takes_a_chain_up_where_the_policy_stopped_it(config: Path, server: Any) -> None:
    policy = config.with_name("marks.yaml")
    policy.write_text("name: marks\nchecks:\n  - {reason: mark_leak, column: mark_hits, max: 0, repair: ask}\n")
    config.write_text(config.read_text() + "policy: marks.yaml\n", encoding="utf-8")
    plain, leak = server.answer, "A red outline is drawn around the left shape."
    server.verdict = lambda chat: "answer"
    server.answer = lambda c: {"caption": leak} if streams([c]) and of_chat(c) == ("left", 1) else plain(c)
    perceive("build", config)
    fates = {name: fates_of(config, rows) for name, rows in chains(config).items()}
    assert fates["right"] == [("ok", None)] * 3
    assert fates["left"] == [
        ("ok", None), ("filtered", "mark_leak"), ("blocked", "earlier_event"), ("blocked", "earlier_event"),
    ]  # fmt: skip

    asked, server.take, server.answer = len(server.chats), 2, plain
    said = perceive("rescue", config)
    assert {"reason": "mark_leak", "repair": "ask", "captions": 1} in said["rescued"]
    again = server.chats[asked:]
    assert [of_chat(chat) for chat in again] == [("left", 1), ("left", 2), ("left", 3)]
    assert leak in again[0].text, "the teacher is shown its dropped answer"
    assert "act 0 of take 1" in again[0].text
    done = chains(config)
    assert {fate for rows in done.values() for fate in fates_of(config, rows)} == {("ok", None)}
    check_history(done["left"])
    assert [row["attempts"] for row in done["left"]] == [1, 2, 2, 2]
    assert perceive("rescue", config)["rescued"] == []
    assert len(server.chats) == asked + 3


def fates_of(config: Path, rows: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """What the policy decided on these captions."""
    now = open_corpus(load_config(config))
    made = {row["caption_key"]: (row["status"], row["reason"]) for row in decisions(now, now.policy).to_dicts()}
    return [made[row["caption_key"]] for row in rows]
