"""PAM's annotations come in: regions for ingest, captions for the tables, chains from their histories."""

from __future__ import annotations

import json

import polars as pl
import pytest
import yaml

from pipeline.corpus import imported_units
from prompts.pam import user_text
from stages.distill.imported import ImportedStage, ImportedUnit
from stages.export import export_pam, import_config, import_pam
from stages.pack import PackConfig, plan_pack


@pytest.fixture
def files(explained, tmp_path):
    export_pam(plan_pack(explained.frames(), PackConfig(validation_fraction=0)), tmp_path / "pam")
    return sorted((tmp_path / "pam").rglob("*.jsonl"))


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_what_was_exported_comes_back(explained, files, tmp_path):
    report = import_pam(files, tmp_path / "in")
    assert (report.records, report.captions, report.skipped, report.problems) == (14, 14, {}, {})
    captions = pl.read_parquet(tmp_path / "in" / "captions.parquet")
    assert sorted(captions.select("task", "language", "event_index").rows()) == sorted(
        (caption.task, caption.language, caption.event_index) for caption in explained.captions
    )
    texts = {caption.text for caption in explained.captions if caption.task not in ("explain",)}
    assert texts <= set(captions["text"])
    stream = captions.filter((pl.col("task") == "stream") & (pl.col("language") == "en")).sort("event_index")
    assert stream["history"].to_list() == [None, "event 0 en"]
    assert stream.select("start_frame", "end_frame").rows() == [(0, 19), (20, 39)]


def test_records_of_one_target_are_one_region(files, tmp_path):
    report = import_pam(files, tmp_path / "in")
    regions = lines(tmp_path / "in" / "regions.jsonl")
    assert report.regions == len(regions) == 2
    image = next(region for region in regions if not region["media"].endswith("/"))
    assert image["box"] == [0.0, 2.0, 9.0, 12.0]
    assert image["label"] == "dog"
    assert image["hints"] == [{"kind": "label", "language": "zh", "text": "狗"}]
    clip = next(region for region in regions if region["media"].endswith("/"))
    assert [(point["frame_index"], point["box"]) for point in clip["track"]] == [
        (0, [2.0, 10.0, 14.0, 22.0]),
        (20, [22.0, 10.0, 34.0, 22.0]),
    ]


def test_pictures_are_found_by_the_tail_of_their_path(explained, files, tmp_path):
    written = tmp_path / "elsewhere.jsonl"
    records = [record for path in files for record in lines(path)]
    for record in records:
        for name in {"image", "image_root"} & set(record):
            record[name] = "/mnt/release" + record[name].removeprefix(str(tmp_path / "pam"))
    written.write_text("\n".join(map(json.dumps, records)), "utf-8")
    import_pam([written], tmp_path / "in", [str(tmp_path / "pam")], fps=10)
    regions = lines(tmp_path / "in" / "regions.jsonl")
    assert sorted(region["media"].split("/")[0] for region in regions) == ["frames", "images"]
    assert all((tmp_path / "pam" / region["media"]).exists() for region in regions)
    # Only the frames that were exported are there: they are counted by their places in the folder.
    clip = next(region for region in regions if region["media"].endswith("/"))
    names = sorted(path.name for path in (tmp_path / "pam" / clip["media"]).iterdir())
    assert [point["frame_index"] for point in clip["track"]] == [0, names.index("00020.jpg")]


def test_streams_keep_their_events_for_chunking(files, tmp_path):
    import_pam(files, tmp_path / "in", fps=10)
    (clip,) = lines(tmp_path / "in" / "spans.jsonl")
    assert clip["spans"] == [[0.0, 2.0], [2.0, 4.0]]
    config = yaml.safe_load(import_config(tmp_path / "in", ["photos"], "run"))
    assert config["chunk"]["file"] == "spans.jsonl"
    assert config["sources"][0]["captions"] == {"imported": "captions.parquet"}


def test_bad_and_foreign_records_are_counted_and_unknown_keys_kept(files, tmp_path):
    good = lines(next(path for path in files if "briefCap_en" in path.name))[0]
    foreign = json.loads(json.dumps(good))
    foreign["conversations"][0]["value"] = "<image>\nDescribe."
    extra = good | {"score": {"a": [1, "狗"]}, "id": "2"}
    path = tmp_path / "mixed.jsonl"
    rows = [good | {"points": []}, foreign, extra, good]
    path.write_text("\n".join(map(json.dumps, rows)) + "\nnot json\n", "utf-8")
    report = import_pam([path], tmp_path / "in")
    assert report.skipped == {"invalid": 1, "unknown_prompt": 1, "repeated": 1}
    assert report.unknown_keys == {"score": 1}
    kept = pl.read_parquet(tmp_path / "in" / "captions.parquet")
    assert json.loads(kept["extra"][0]) == {"score": {"a": [1, "狗"]}}
    assert kept["where"][0] == "mixed.jsonl:3"
    assert {problem.rule for problem in report.problems[str(path)]} >= {"json", "points"}


def test_a_history_that_nothing_answers_makes_no_chain(files, tmp_path):
    stream = lines(next(path for path in files if "streaming" in path.name and "_en_" in path.name))
    path = tmp_path / "half.jsonl"
    foreign = {name: value for name, value in stream[1].items() if name != "id"}
    path.write_text(json.dumps(foreign) + "\n", "utf-8")
    report = import_pam([path], tmp_path / "in")
    assert (report.captions, report.skipped) == (0, {"no_chain": 1})


def events(folder):
    """Region, event, history and text of the streams that came in."""
    captions = pl.read_parquet(folder / "captions.parquet").filter(pl.col("task") == "stream")
    return captions.sort("source_id", "event_index").select("source_id", "event_index", "history", "text").rows()


def told(text, history, left, start, name=None, top=10):
    """A record of ten frames from `start` about a target of 20 x 20 px at `left`."""
    frames = [f"{min(start + index, start + 9):05d}.jpg" for index in range(16)]
    return {
        **({"id": name} if name else {}),
        "type": "video",
        "image_root": "/clips/street",
        "frames": frames,
        "conversations": [
            {"from": "human", "value": user_text("stream", "en", history)},
            {"from": "gpt", "value": text},
        ],
        "bbox": [[left, top, 20, 20]],
        "points": None,
        "labels": None,
    }


def brought(records, tmp_path, name="a.jsonl"):
    """The report, and each stream as the left edge of its region and its texts."""
    (tmp_path / name).write_text("\n".join(map(json.dumps, records)), "utf-8")
    report = import_pam([tmp_path / name], tmp_path / "in")
    left = {region["id"]: region["box"][0] for region in lines(tmp_path / "in" / "regions.jsonl")}
    chains: dict[float, list[str]] = {}
    for source_id, index, _, text in events(tmp_path / "in"):
        chains.setdefault(left[source_id], []).append(text)
        assert index == len(chains[left[source_id]]) - 1
    return report, chains


WALKS = "A person walks."


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_two_people_told_in_the_same_words_keep_their_own_events(tmp_path, named, swapped):
    ids = [f"{digit * 32}-stream-en-{index}" if named else None for index in range(2) for digit in "ab"]
    # Where ids tell, even targets that change places are told apart.
    lefts = [100, 0] if named else [5, 110]
    records = [
        told(WALKS, None, 0, 0, ids[0]),
        told(WALKS, None, 100, 0, ids[1]),
        told("It sits.", WALKS, lefts[0], 10, ids[2]),
        told("It runs.", WALKS, lefts[1], 10, ids[3]),
    ]
    report, chains = brought([*records[:2], *records[:1:-1]] if swapped else records, tmp_path)
    assert chains == {0.0: [WALKS, "It sits."], 100.0: [WALKS, "It runs."]}
    assert report.skipped == {}


def test_targets_that_cannot_be_told_apart_are_counted_not_guessed(tmp_path):
    records = [
        told(WALKS, None, 0, 0),
        told(WALKS, None, 100, 0),
        told("It sits.", WALKS, 45, 10),
        told("It runs.", WALKS, 55, 10),
        told("It sleeps.", "It sits.", 45, 20),
    ]
    report, chains = brought(records, tmp_path, "streaming.jsonl")
    assert chains == {0.0: [WALKS], 100.0: [WALKS]}
    assert report.skipped == {"ambiguous_chain": 2, "no_chain": 1}


def test_two_records_do_not_both_go_on_from_one_that_is_near_to_both(tmp_path):
    records = [
        told(WALKS, None, 0, 0),
        told(WALKS, None, 100, 0),
        told("It sits.", WALKS, 10, 10),
        told("It runs.", WALKS, 12, 10),
    ]
    report, chains = brought(records, tmp_path, "streaming.jsonl")
    assert chains == {0.0: [WALKS], 100.0: [WALKS]}
    assert report.skipped == {"ambiguous_chain": 2}


def in_chinese(record, history):
    turns = [{"from": "human", "value": user_text("stream", "zh", history)}, {"from": "gpt", "value": "人。"}]
    return record | {"conversations": turns}


@pytest.mark.parametrize(("start", "skipped"), [(10, {}), (12, {"other_cut": 2})])
def test_a_shorter_stream_in_another_language_follows_the_cut_of_the_longest(tmp_path, start, skipped):
    english = [told(WALKS, None, 0, 0), told("It sits.", WALKS, 5, 10), told("It sleeps.", "It sits.", 5, 20)]
    chinese = [in_chinese(told("", None, 0, 0), None), in_chinese(told("", None, 5, start), "人。")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, chinese + english)), "utf-8")
    report = import_pam([tmp_path / "a.jsonl"], tmp_path / "in")
    assert (report.regions, report.skipped) == (1, skipped)
    captions = pl.read_parquet(tmp_path / "in" / "captions.parquet")
    counted = dict(captions.group_by("language").len().iter_rows())
    assert counted == {"en": 3, "zh": 2} if not skipped else {"en": 3}
    # Where the run has cut these three events, all of them fit.
    regions = pl.DataFrame({"source": ["pam"], "source_id": captions["source_id"][:1]}).with_columns(
        region_key=pl.lit(bytes(16)), media_key=pl.lit(bytes(16))
    )
    events = pl.DataFrame({"region_key": [bytes(16)] * 3, "num_events": [3] * 3})
    units = imported_units(regions, events, captions.with_columns(source=pl.lit("pam")), ImportedUnit)
    (rows,) = ImportedStage().process(units)
    assert rows["status"].to_pylist() == ["ok"] * len(captions)


def test_two_targets_with_one_box_do_not_share_a_stream(tmp_path):
    """Two sources may know one target under two keys: their streams have the same place, and the longest is told."""
    ids = [f"{digit * 32}-stream-en-{index}" for digit in "ab" for index in range(2)]
    records = [
        told(WALKS, None, 0, 0, ids[0]),
        told("A man.", None, 0, 0, ids[2]),
        told("He sits.", "A man.", 5, 10, ids[3]),
    ]
    report, chains = brought(records, tmp_path)
    assert (chains, report.skipped) == ({0.0: ["A man.", "He sits."]}, {"repeated": 1})


def test_a_text_that_is_told_twice_in_one_stream_stays_in_order(tmp_path):
    records = [
        told(WALKS, None, 0, 0),
        told(WALKS, WALKS, 30, 10),
        told(WALKS, WALKS, 60, 20),
        told("It sits.", WALKS, 90, 30),
    ]
    report, chains = brought(records[::-1], tmp_path)
    assert (chains, report.skipped) == ({0.0: [WALKS, WALKS, WALKS, "It sits."]}, {})


def test_a_record_that_comes_twice_is_counted_and_its_stream_stays_whole(tmp_path):
    records = [told(WALKS, None, 0, 0), told("It sits.", WALKS, 5, 10)]
    report, chains = brought(records * 2, tmp_path)
    assert (chains, report.skipped) == ({0.0: [WALKS, "It sits."]}, {"repeated": 2})


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_what_is_exported_around_an_absent_target_comes_back(streamed, hidden, tmp_path, gone):
    hidden(streamed, range(10 * gone, 10 * gone + 10))
    export_pam(plan_pack(streamed.frames(), PackConfig(validation_fraction=0)), tmp_path / "pam")
    report = import_pam(sorted((tmp_path / "pam").rglob("*.jsonl")), tmp_path / "in")
    assert (report.records, report.captions, report.skipped) == (4, 4, {})
    found = [row[1:] for row in events(tmp_path / "in")]
    kept = [index for index in range(4) if index != gone]
    assert found == [
        (place, f"event {index - 1}" if index else None, f"event {index}") for place, index in enumerate(kept)
    ]
    (clip,) = lines(tmp_path / "in" / "spans.jsonl")
    assert len(clip["spans"]) == 3


@pytest.mark.parametrize("named", [False, True])
def test_a_stream_of_one_event_stays_a_stream_beside_the_whole_clip(streamed, tmp_path, named):
    """Both records have the same box: they are told apart by the id, or by the name of the file."""
    streamed.captions = [caption for caption in streamed.captions if caption.event_index < 1]
    export_pam(plan_pack(streamed.frames(), PackConfig(validation_fraction=0)), tmp_path / "pam")
    files = sorted((tmp_path / "pam").rglob("*.jsonl"))
    for path in [] if named else files:
        path.write_text("".join(json.dumps(record | {"id": "7"}) + "\n" for record in lines(path)), "utf-8")
    report = import_pam(files, tmp_path / "in", fps=10)
    assert (report.regions, report.captions, report.skipped) == (1, 2, {})
    captions = pl.read_parquet(tmp_path / "in" / "captions.parquet").sort("task")
    assert captions.select("task", "event_index", "text").rows() == [
        ("stream", 0, "event 0"),
        ("video", -1, "whole clip"),
    ]
    (clip,) = lines(tmp_path / "in" / "spans.jsonl")
    assert clip["spans"] == [[0.0, 1.0]]
