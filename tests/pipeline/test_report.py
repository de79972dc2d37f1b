"""The report says what the tables say, shows hostile text as text, and needs nothing from outside."""

from __future__ import annotations

import json
import re
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import cv2
import fsspec
import numpy as np
import polars as pl
import pytest

from pipeline.inspect import InspectError, inspect, render
from pipeline.looking import pack_manifest
from pipeline.report import render_report, report_data, write_report
from pipeline.tables import Run
from schemas.arrow import to_table
from schemas.caption import Caption, Decision, Usage
from schemas.event import Event
from schemas.geometry import FrameMask
from schemas.keys import digest_value
from schemas.mask import Mask
from schemas.media import Media
from schemas.region import Region, Selection
from stages.masks import encode
from stages.policy import Policy
from stages.shapes.clips import write_mp4

HOSTILE = "</script><script>alert('x')</script><img src=http://example.org/x onerror=alert(1)>\"'&"


def key(*parts) -> bytes:
    return digest_value(list(parts))


def frame(rows, model) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(to_table(rows, model)))


def make_tables(folder: Path, count: int = 6) -> dict[str, pl.DataFrame]:
    """`count` regions on one photo: every third caption is rejected, the last region's mask is."""
    image = np.full((90, 120, 3), 200, np.uint8)
    cv2.circle(image, (50, 45), 20, (30, 60, 200), -1)
    path = folder / "photo.png"
    cv2.imwrite(str(path), image)
    mask = encode(cv2.circle(np.zeros((90, 120), np.uint8), (50, 45), 20, 1, -1))
    same = {"input_digest": bytes(16)}
    media = Media(
        **same,
        media_key=key("m"),
        uri=str(path),
        kind="image",
        encoding="png",
        num_bytes=10,
        width=120,
        height=90,
        group_key=key("m"),
    )
    regions, selection, masks, captions, decisions = [], [], [], [], []
    for i in range(count):
        region = key("r", i)
        source = ("coco", "lvis")[i % 2]
        regions.append(
            Region(
                **same,
                region_key=region,
                media_key=key("m"),
                uri=str(path),
                kind="image",
                source=source,
                source_id=str(i),
                source_media_id="1",
                split="val",
                box=(28.0, 24.0, 72.0, 66.0),
                label=HOSTILE if i == 0 else f"circle {i}",
            )
        )
        selection.append(Selection(**same, region_key=region, source=source))
        bad = {"status": "filtered", "reason": "mask_unstable"} if i == count - 1 else {}
        masks.append(
            Mask(
                **same,
                mask_key=key("k", i),
                region_key=region,
                media_key=key("m"),
                mask=mask,
                box=(30, 25, 71, 66),
                stability=i / count,
                backend="grabcut",
                **bad,
            )
        )
        if bad:
            continue
        for task in ("brief", "detailed"):
            captions.append(
                Caption(
                    **same,
                    caption_key=key("c", i, task),
                    region_key=region,
                    media_key=key("m"),
                    task=task,
                    language="en",
                    text=HOSTILE if i == 0 else f"A red circle number {i}.",
                    outcome="answer",
                    teacher="measured",
                    model="none",
                    prompt_id="p",
                    prompt_hash=key("p"),
                    usage=Usage(prompt_tokens=10, completion_tokens=5, cost_usd=0.001),
                )
            )
            kept = {"status": "filtered", "reason": "repetition", "reasons": ["repetition"]} if i % 3 == 2 else {}
            decisions.append(
                Decision(**same, caption_key=key("c", i, task), region_key=region, policy="default", **kept)
            )
    return {
        "media": frame([media], Media),
        "regions": frame(regions, Region),
        "selection": frame(selection, Selection),
        "masks": frame(masks, Mask),
        "captions": frame(captions, Caption),
        "decisions": frame(decisions, Decision),
        "scores/repetition": pl.DataFrame(
            {"caption_key": [row.caption_key for row in captions], "repeat_share": [0.1] * len(captions)}
        ),
    }


@pytest.fixture
def tables(tmp_path):
    return make_tables(tmp_path)


class Tags(HTMLParser):
    """Start tags with their attributes, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_funnel_adds_up(tables):
    data = report_data(tables, title="t", funnel={"distill": {"in": 12, "ok": 10, "pending": 2}})
    total = {row.stage: row for row in data.funnel if row.source is None}
    assert (total["ingest"].rows_in, total["ingest"].ok) == (6, 6)
    assert (total["refine"].ok, total["refine"].filtered) == (5, 1)
    assert (total["distill"].rows_in, total["distill"].ok, total["distill"].pending) == (12, 10, 2)
    assert (total["decide"].ok, total["decide"].filtered) == (8, 2)
    refined = {row.source: row.rows_in for row in data.funnel if row.stage == "refine"}
    assert refined == {None: 6, "coco": 3, "lvis": 3}
    for row in data.funnel:
        assert row.rows_in == row.ok + row.filtered + row.failed + row.blocked + row.pending


def test_reasons_yield_cost_and_distributions(tables):
    data = report_data(tables, title="t", planned_usd=0.5)
    reasons = {(row.stage, row.reason, row.task): row.count for row in data.reasons}
    assert reasons == {
        ("refine", "mask_unstable", None): 1,
        ("decide", "repetition", "brief"): 1,
        ("decide", "repetition", "detailed"): 1,
    }
    assert {(row.rule, row.source, row.task, row.judged, row.rejected) for row in data.yields} == {
        ("repetition", "coco", "brief", 3, 1),
        ("repetition", "coco", "detailed", 3, 1),
    }
    assert data.costs[0].actual_usd == pytest.approx(0.01)
    assert data.costs[1].planned_usd == 0.5
    assert {histogram.name for histogram in data.histograms} == {"stability", "repeat_share"}
    assert [sum(histogram.counts) for histogram in data.lengths] == [5, 5]


def test_histograms_show_the_limits_of_the_policy(tables):
    check = {"reason": "repetition", "column": "repeat_share", "max": 0.25, "action": "drop"}
    policy = Policy.model_validate({"name": "p", "checks": [check]})
    data = report_data(tables, title="t", policy=policy)
    drawn = {histogram.name: histogram.bounds for histogram in data.histograms}
    assert drawn == {"stability": [], "repeat_share": [("repetition (max 0.25)", 0.25)]}
    page = render_report(data)
    assert page.count('class="bound" x1') == 1
    assert "repetition (max 0.25)" in page


def test_histograms_are_drawn_apart_where_captions_have_other_limits(tables):
    """All of a column's captions are in one figure for each set of limits: an override's, a check's of one task."""
    score = pl.Series("repeat_share", np.linspace(0, 0.9, len(tables["captions"])))
    tables["scores/repetition"] = tables["captions"].select("caption_key", "region_key").with_columns(score)
    check = {
        "reason": "repetition", "column": "repeat_share", "max": 0.25, "action": "drop",
        "overrides": [{"when": {"task": "brief", "source": "lvis"}, "max": 0.5}],
    }  # fmt: skip
    only = {"reason": "bare", "column": "repeat_share", "min": 0.1, "only": {"task": "detailed"}}
    policy = Policy.model_validate({"name": "p", "checks": [check, only]})
    drawn = {
        tuple(name for name, _ in histogram.bounds): histogram
        for histogram in report_data(tables, title="t", policy=policy).histograms
        if histogram.name == "repeat_share"
    }
    assert {limits: (histogram.group, sum(histogram.counts)) for limits, histogram in drawn.items()} == {
        ("repetition (max 0.25)",): ("repetition · brief en of coco", 3),
        ("repetition (max 0.5)",): ("repetition · brief en of lvis", 2),
        ("repetition (max 0.25)", "bare (min 0.1)"): ("repetition · detailed en", 5),
    }
    assert len({tuple(histogram.edges) for histogram in drawn.values()}) == 1, "over one range"


def test_a_score_of_one_task_has_no_empty_figure_for_the_others(tables):
    words = pl.when(pl.col("task") == "brief").then(5).alias("words")
    tables["scores/text"] = tables["captions"].select("caption_key", "region_key", words)
    check = {"reason": "brief_length", "column": "words", "min": 4, "only": {"task": "brief"}}
    policy = Policy.model_validate({"name": "p", "checks": [check]})
    found = [each for each in report_data(tables, title="t", policy=policy).histograms if each.name == "words"]
    assert [(each.bounds, sum(each.counts), each.missing) for each in found] == [([("brief_length (min 4)", 4)], 5, 0)]


def test_hostile_text_stays_text_and_nothing_is_fetched(tables, tmp_path):
    page = render_report(report_data(tables, title=HOSTILE, notes=[HOSTILE]))
    tags = Tags(page)
    assert sum(tag == "script" for tag, _ in tags.found) == 1
    for tag, attributes in tags.found:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import", page)
    assert "&lt;/script&gt;" in page


def test_every_region_is_shown_with_its_mask_and_its_fate(tables, tmp_path):
    data = report_data(tables, title="t")
    assert len(data.regions) == 6
    assert {card.source_id: card.kept for card in data.regions} == {
        "0": True, "1": True, "2": False, "3": True, "4": True, "5": False,
    }  # fmt: skip
    assert {reason for card in data.regions for reason in card.reasons} == {"repetition", "mask_unstable"}
    for card in data.regions:
        assert card.picture.mask.startswith("M")
        assert card.picture.box.startswith("M28.0 24.0")
    path = write_report(data, tmp_path / "out" / "report.html")
    assert Path(path).read_text("utf-8") == render_report(data)


def test_the_gallery_is_bounded_and_shows_both_fates(tmp_path):
    data = report_data(make_tables(tmp_path, 40), title="t", max_regions=10)
    assert len(data.regions) == 10
    assert 3 <= sum(card.kept for card in data.regions) <= 7


def test_every_reason_has_its_example_also_where_it_comes_with_a_frequent_one(tmp_path):
    """One caption in forty is dropped for a second reason, another is kept with a flag; a few cards show both."""
    tables = make_tables(tmp_path, 40)
    judged = tables["decisions"].with_row_index("row")
    rare = int(judged.filter(pl.col("status") == "filtered")["row"][5])
    flagged = int(judged.filter(pl.col("status") == "ok")["row"][7])
    also = pl.concat_list("reasons", pl.lit("zz_rare"))
    tables["decisions"] = judged.with_columns(
        reasons=pl.when(pl.col("row") == rare).then(also)
        .when(pl.col("row") == flagged).then(pl.lit(["wrong_label"])).otherwise("reasons")
    ).drop("row")  # fmt: skip
    cards = report_data(tables, title="t", max_regions=8).regions
    shown = {(reason, card.kept) for card in cards for reason in card.reasons}
    assert {("repetition", False), ("zz_rare", False), ("wrong_label", True), ("mask_unstable", False)} <= shown


def test_a_missing_picture_is_said_not_hidden(tables, tmp_path):
    (tmp_path / "photo.png").unlink()
    data = report_data(tables, title="t")
    assert all(card.picture is None for card in data.regions)
    assert "missing_media" in render_report(data)


def clip_tables(uri: str) -> dict[str, pl.DataFrame]:
    """One kept region of a clip of a moving square, ten frames at 5 fps."""
    same = {"input_digest": bytes(16), "media_key": key("v"), "kind": "video", "uri": uri}
    media = Media(
        **same, encoding="mp4", num_bytes=10, width=64, height=48, group_key=key("v"), num_frames=10, fps=5.0
    )  # fmt: skip
    region = Region(
        **same, region_key=key("r"), source="sav", source_id="1", source_media_id="1", split="val",
        box=(4.0, 8.0, 16.0, 20.0), label="square",
    )  # fmt: skip
    square = encode(np.pad(np.ones((12, 12), np.uint8), ((8, 28), (4, 48))))
    frames = [
        FrameMask(frame_index=index, time_s=index / 5, visible=True, box=(4.0, 8.0, 16.0, 20.0), mask=square)
        for index in range(10)
    ]
    mask = Mask(
        input_digest=bytes(16), media_key=key("v"), mask_key=key("k"), region_key=key("r"), mask=square,
        box=(4.0, 8.0, 16.0, 20.0), frames=frames, backend="sam2",
    )  # fmt: skip
    return {"media": frame([media], Media), "regions": frame([region], Region), "masks": frame([mask], Mask)}


def test_a_clip_on_an_object_store_is_shown_by_the_runs_options(tmp_path, s3_url, s3_options):
    write_mp4(tmp_path / "film.mp4", np.full((10, 48, 64, 3), 90, np.uint8), fps=5)
    store = fsspec.filesystem("s3", **s3_options)
    store.put_file(str(tmp_path / "film.mp4"), f"{s3_url}/film.mp4")
    tables = clip_tables(f"{s3_url}/film.mp4")
    (card,) = report_data(tables, title="t", storage_options=s3_options).regions
    assert (card.picture.width, card.picture.note) == (64, "0.00 s")
    assert [cell.note for cell in card.storyboard] == ["0.00 s", "0.40 s", "0.80 s", "1.00 s", "1.40 s", "1.80 s"]


class Refusing(BaseHTTPRequestHandler):
    """A store that names its files and gives none."""

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self):
        self.send_error(503)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_store_that_refuses_costs_the_picture_not_the_report(tables, kind):
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}/film"
    tables = clip_tables(uri) if kind == "video" else tables | {"media": tables["media"].with_columns(uri=pl.lit(uri))}
    try:
        data = report_data(tables, title="t")
    finally:
        server.shutdown()
        server.server_close()
    assert data.regions
    for card in data.regions:
        assert card.picture is None
        assert "503" in card.facts["picture"]
    assert "503" in render_report(data)


def test_a_clip_that_has_become_shorter_is_said(tmp_path):
    write_mp4(tmp_path / "film.mp4", np.full((4, 48, 64, 3), 90, np.uint8), fps=5)
    (card,) = report_data(clip_tables(str(tmp_path / "film.mp4")), title="t").regions
    assert card.picture is None
    assert "4 frames" in card.facts["picture"]


def test_the_shards_are_those_of_the_current_pack(tmp_path, tables):
    """Packs a, b, a again: the snapshot points at a, whatever was written last; a media shard is b's as well."""
    run = Run.open(str(tmp_path / "run"))
    fields = {"split": "train", "num_samples": 1, "num_captions": 2, "num_bytes": 3, "sha256": "0" * 64}
    for name in "ab":
        shards = [{**fields, "shard": each} for each in (f"packs/{name}/train/jpg-000000.tar", "media_shards/x.tar")]
        run.store.write_durable(f"packs/{name}/manifest.json", json.dumps({"shards": shards}).encode())
    assert pack_manifest(run.view()) is None
    with run.writer("test") as writer:
        for name in "aba":
            writer.snapshot({"things": name * 32}, pointers={"pack": name})
    data = report_data(tables, title="t", pack=pack_manifest(run.view()))
    assert [row.shard for row in data.shards] == ["media_shards/x.tar", "packs/a/train/jpg-000000.tar"]
    assert "packs/b" not in render_report(data)


def test_an_empty_run_has_a_report():
    assert "No stage has run yet" in render_report(report_data({}, title="t"))


def test_inspect_tells_one_region_whole_life(tables):
    region = tables["regions"]["region_key"][2]
    index = pl.DataFrame(
        {
            "region_key": [region.hex()] * 2,
            "shard": ["packs/p/train/jpg-000000.tar"] * 2,
            "sample": [3, 3],
            "split": ["train"] * 2,
        }
    )
    report = inspect(tables, region.hex()[:10], {"p": index})
    assert report.region_key == region.hex()
    assert [row["task"] for row in report.captions] == ["brief", "detailed"]
    assert report.captions[0]["decision"]["reason"] == "repetition"
    assert report.captions[0]["scores"]["repetition"]["repeat_share"] == 0.1
    assert report.shards == [{"pack_id": "p", "shard": "packs/p/train/jpg-000000.tar", "sample": 3, "split": "train"}]
    assert type(report).model_validate_json(report.model_dump_json()) == report
    by_caption = inspect(tables, report.captions[1]["caption_key"])
    assert by_caption.region_key == report.region_key


def test_inspect_renders_for_a_terminal(tables):
    from rich.console import Console

    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(inspect(tables, tables["regions"]["region_key"][5].hex())))
    text = console.export_text()
    assert "mask_unstable" in text
    assert "in no shard" in text


def test_inspect_draws_a_videos_events_in_time(tables):
    from rich.console import Console

    region = tables["regions"]["region_key"][0]
    spans = [(0.0, 1.5, False, "still"), (1.5, 2.0, True, "absent"), (2.0, 3.0, False, "moving left")]
    events = [
        Event(
            event_key=key("e", i), region_key=region, media_key=key("m"), event_index=i, num_events=3,
            start_frame=0, end_frame=0, start_s=start, end_s=end, visible_share=1.0, absent=absent, motion=motion,
            backend="motion", input_digest=bytes(16),
        )
        for i, (start, end, absent, motion) in enumerate(spans)
    ]  # fmt: skip
    console = Console(record=True, width=80, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(inspect({**tables, "events": frame(events, Event)}, region.hex())))
    lines = console.export_text().split("timeline\n")[1].splitlines()
    bars = [line[line.index(" s ") + 5 :] for line in lines[:3]]
    assert [bar[:30].rstrip() for bar in bars] == ["━" * 15, " " * 15 + "·" * 5, " " * 20 + "━" * 10]
    assert [bar[30:].strip() for bar in bars] == ["still", "absent", "moving left"]
    assert "0.0 - 1.5 s" in lines[0]


@pytest.mark.parametrize(("asked", "says"), [("zz", "hexadecimal"), ("0000000000", "begins with")])
def test_inspect_refuses_unknown_keys(tables, asked, says):
    with pytest.raises(InspectError, match=says):
        inspect(tables, asked)


def test_inspect_lists_the_regions_of_a_media(tables):
    with pytest.raises(InspectError, match="6 regions fit"):
        inspect(tables, key("m").hex())
