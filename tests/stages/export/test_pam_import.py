"""PAM's annotations come in: regions for ingest, captions for the tables, chains from their histories."""

from __future__ import annotations

import json

import polars as pl
import pytest
import yaml

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
    path.write_text(json.dumps(stream[1]) + "\n", "utf-8")
    report = import_pam([path], tmp_path / "in")
    assert (report.captions, report.skipped) == (0, {"no_chain": 1})
