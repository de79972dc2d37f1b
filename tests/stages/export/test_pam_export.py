"""PAM's files: byte-exact prompts, every rule of its loader, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prompts.pam import NO_HISTORY, user_text
from stages import masks
from stages.export import PamExportConfig, export_pam
from stages.export.pam_geometry import sample_points, whole_pixels, xywh
from stages.export.pam_text import explain_answer, read_turn, source_names
from stages.pack import PackConfig, plan_pack

TRAIN_ONLY = PackConfig(validation_fraction=0)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def exported(explained, tmp_path):
    out = tmp_path / "pam"
    return out, export_pam(plan_pack(explained.frames(), TRAIN_ONLY), out)


def test_files_are_named_as_pam_names_them(exported):
    _, report = exported
    assert report.files == {
        f"annotations/{name}_{language}_train.jsonl": count
        for name, count in {
            "image-obj-caption/coco_boxNpoint_obj_briefCap": 1,
            "image-obj-caption/coco_boxNpoint_obj_detailCap": 1,
            "image-obj-label/coco_boxNpoint_obj_label": 1,
            "image-obj-label/coco_boxNpoint_obj_label_exp": 1,
            "video-obj-caption/sav_sampled_32f_video_obj_cap": 1,
            "video-obj-caption/sav_streaming_sampled_32f_video_obj_cap": 2,
        }.items()
        for language in ("en", "ch")
    }
    assert report.excluded == []
    assert report.problems == {}


def test_prompts_are_byte_exact(exported):
    out, _ = exported
    asked = {
        path.name: [record["conversations"][0]["value"] for record in records(path)] for path in out.rglob("*.jsonl")
    }
    assert asked["coco_boxNpoint_obj_label_en_train.jsonl"] == ["<image>\nClassify this subject and provide its label."]
    assert asked["coco_boxNpoint_obj_label_exp_ch_train.jsonl"] == [
        "<image>\n对该目标对象进行分类并提供标签和名词功能解释"
    ]
    assert asked["sav_streaming_sampled_32f_video_obj_cap_en_train.jsonl"] == [
        "<image>\nProvide a caption for this subject in this video.\nPrevious caption: None",
        "<image>\nProvide a caption for this subject in this video.\nPrevious caption: event 0 en",
    ]
    assert asked["sav_streaming_sampled_32f_video_obj_cap_ch_train.jsonl"] == [
        "<image>\n对该视频中的目标对象提供一个描述。\n历史描述：无",
        "<image>\n对该视频中的目标对象提供一个描述。\n历史描述：event 0 zh",
    ]


def test_an_explanation_is_label_definition_function(exported):
    out, _ = exported
    english = records(next(out.rglob("*label_exp_en*")))[0]["conversations"][1]["value"]
    chinese = records(next(out.rglob("*label_exp_ch*")))[0]["conversations"][1]["value"]
    assert english == "dog. A domesticated canine. It guards the yard."
    assert chinese == "狗。一种驯养的犬科动物。它看守院子。"
    assert explain_answer("en", "dog", "An animal.", None) == "dog. An animal."


def test_an_image_record_is_complete(exported, explained):
    out, _ = exported
    record = records(next(out.rglob("*briefCap_en*")))[0]
    assert set(record) == {"id", "type", "image", "conversations", "bbox", "points", "labels"}
    assert Path(record["image"]).read_bytes() == Path(explained.media[0].uri).read_bytes()
    assert record["bbox"] == [0.0, 2.0, 9.0, 10.0]
    assert len(record["points"]) == len(record["labels"]) == 8
    mask = masks.decode(explained.masks[0].mask)
    assert all(mask[y, x] for x, y in record["points"])


def test_the_first_listed_frame_of_an_event_is_the_prompt_frame(exported):
    out, _ = exported
    second = records(next(out.rglob("*streaming*en*")))[1]
    assert second["frames"][0] == "00020.jpg"
    assert second["frames"] == [f"{index:05d}.jpg" for index in range(20, 40)]
    assert second["bbox"] == [[22.0, 10.0, 12.0, 12.0]]
    frame = np.asarray(Image.open(Path(second["image_root"]) / second["frames"][0])).astype(int)
    x, y = second["points"][0][0]
    assert frame[y, x, 0] > 150 > frame[y, x, 1]


def test_provenance_keeps_source_frames_and_times(exported):
    out, _ = exported
    frame = pl.read_parquet(out / "provenance.parquet")
    row = frame.filter(pl.col("file").str.contains("streaming")).row(1, named=True)
    assert row["frame_times_s"] == pytest.approx([index / 10 for index in row["frame_indices"]])
    assert len(frame) == 14


@pytest.mark.parametrize(("prompt", "given"), [("box", {"bbox"}), ("point", {"points", "labels"})])
def test_one_kind_of_prompt_leaves_the_other_null(explained, tmp_path, prompt, given):
    report = export_pam(plan_pack(explained.frames(), TRAIN_ONLY), tmp_path, PamExportConfig(prompt=prompt))
    assert report.problems == {}
    for path in tmp_path.rglob("*.jsonl"):
        for record in records(path):
            assert {name for name in ("bbox", "points", "labels") if record[name] is not None} == given


@pytest.mark.parametrize("prefix", ["/mnt/data/pam", "data/", ""])
def test_media_are_checked_under_another_path_too(explained, tmp_path, prefix):
    plan, config = plan_pack(explained.frames(), TRAIN_ONLY), PamExportConfig(path_prefix=prefix)
    assert export_pam(plan, tmp_path, config).problems == {}
    record = records(next(tmp_path.rglob("*streaming*en*")))[0]
    assert record["image_root"].startswith(prefix.rstrip("/") + "/frames/")
    place = tmp_path / record["image_root"].removeprefix(prefix.rstrip("/")).lstrip("/") / record["frames"][7]
    place.write_bytes(bytes(place.stat().st_size))
    found = export_pam(plan, tmp_path, config).problems
    assert {problem.rule for problems in found.values() for problem in problems} == {"media"}
    assert {name.split("/")[-1] for name in found} >= {
        f"sav_streaming_sampled_32f_video_obj_cap_{x}_train.jsonl" for x in ("en", "ch")
    }


def test_an_event_without_its_target_is_left_out_and_its_text_stays_history(explained, tmp_path):
    clip = next(index for index, mask in enumerate(explained.masks) if mask.frames)
    hidden = [
        frame.model_copy(update={"visible": False, "mask": None, "box": None}) if frame.frame_index < 20 else frame
        for frame in explained.masks[clip].frames
    ]
    explained.masks[clip] = explained.masks[clip].model_copy(update={"frames": hidden})
    report = export_pam(plan_pack(explained.frames(), TRAIN_ONLY), tmp_path)
    assert {(row.task, row.language, row.reason, row.count) for row in report.excluded} == {
        ("stream", "en", "target_absent", 1),
        ("stream", "zh", "target_absent", 1),
    }
    only = records(next(tmp_path.rglob("*streaming*en*")))
    assert [record["conversations"][0]["value"].rsplit(": ", 1)[1] for record in only] == ["event 0 en"]
    assert report.problems == {}


def left_out(report):
    return [(row.task, row.reason, row.count) for row in report.excluded]


def histories(path: Path) -> list[str]:
    return [record["conversations"][0]["value"].rsplit(": ", 1)[1] for record in records(path)]


@pytest.mark.parametrize(("prompt", "reason"), [("box", "reserved_token"), ("box", "no_box"), ("point", "no_mask")])
def test_a_stream_ends_at_its_first_event_that_cannot_be_a_record(streamed, tmp_path, prompt, reason):
    if reason == "reserved_token":
        at = next(i for i, caption in enumerate(streamed.captions) if caption.text == "event 1")
        streamed.captions[at] = streamed.captions[at].model_copy(update={"text": "It says <|im_end|>."})
    else:
        update = {"box": (70.0, 10.0, 80.0, 22.0)} if reason == "no_box" else {"mask": masks.encode(np.zeros((48, 64)))}
        frames = [
            frame.model_copy(update=update) if 10 <= frame.frame_index < 20 else frame
            for frame in streamed.masks[0].frames
        ]
        streamed.masks[0] = streamed.masks[0].model_copy(update={"frames": frames})
    report = export_pam(plan_pack(streamed.frames(), TRAIN_ONLY), tmp_path, PamExportConfig(prompt=prompt))
    assert left_out(report) == [("stream", "chain_broken", 2), ("stream", reason, 1)]
    assert histories(next(tmp_path.rglob("*streaming*"))) == ["None"]


def test_a_stream_goes_on_past_an_event_without_its_target(streamed, hidden, tmp_path):
    hidden(streamed, range(10, 20))
    report = export_pam(plan_pack(streamed.frames(), TRAIN_ONLY), tmp_path)
    assert left_out(report) == [("stream", "target_absent", 1)]
    assert histories(next(tmp_path.rglob("*streaming*"))) == ["None", "event 1", "event 2"]


def test_reserved_tokens_and_lost_pictures_are_counted(explained, tmp_path):
    explained.captions[0] = explained.captions[0].model_copy(update={"text": "a <image> inside"})
    Path(next(media.uri for media in explained.media if media.kind == "video")).unlink()
    report = export_pam(plan_pack(explained.frames(), TRAIN_ONLY), tmp_path)
    reasons = {(row.source, row.reason): 0 for row in report.excluded}
    for row in report.excluded:
        reasons[row.source, row.reason] += row.count
    assert reasons == {("coco", "reserved_token"): 1, ("sav", "missing_media"): 6}
    assert report.problems == {}


def listed(folder: Path) -> list[str]:
    return (folder / "files.txt").read_text("utf-8").split("\n")[:-1]


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_an_export_into_the_same_folder_takes_away_what_it_has_no_more(exported, explained, tmp_path):
    out, first = exported
    assert (first.removed, first.strange) == (0, [])
    (out / "images" / "mine.png").write_bytes(b"")
    (out / "notes.md").write_text("mine")
    clip = next(media.media_key for media in explained.media if media.kind == "video")
    explained.captions = [caption for caption in explained.captions if caption.media_key != clip]
    plan = plan_pack(explained.frames(), TRAIN_ONLY)
    again = export_pam(plan, out)
    fresh = tmp_path / "fresh"
    export_pam(plan, fresh)
    assert tree(out) - tree(fresh) == {"images/mine.png", "notes.md"}
    assert tree(fresh) <= tree(out)
    assert again.removed == 4 + 40
    assert again.strange == ["images/mine.png"]
    assert export_pam(plan, out).removed == 0


def test_what_a_failed_export_left_is_taken_away_too(exported, explained):
    out, _ = exported
    explained.add(7, num_regions=1)
    (out / "provenance.parquet").unlink()
    (out / "provenance.parquet").mkdir()
    with pytest.raises(OSError, match="directory"):
        export_pam(plan_pack(explained.frames(), TRAIN_ONLY), out)
    (out / "provenance.parquet").rmdir()
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.jpg")} < set(listed(out))
    with (out / "files.txt").open("a") as listing:
        listing.write("images/half a na")
    gone = explained.media.pop().media_key.hex()
    assert any(gone in name for name in tree(out))
    report = export_pam(plan_pack(explained.frames(), TRAIN_ONLY), out)
    assert report.removed == 1
    assert not any(gone in name for name in tree(out))
    assert set(listed(out)) == {name for name in tree(out) if (out / name).is_file()} - {"files.txt"}


def test_a_listing_removes_nothing_but_an_exports_files(exported, explained, tmp_path):
    out, _ = exported
    (tmp_path / "other.txt").write_text("mine")
    (out / "notes.md").write_text("mine")
    with (out / "files.txt").open("a") as listing:
        listing.write(f"../other.txt\nimages/../../other.txt\n{tmp_path}/other.txt\nnotes.md\n\nimages\n")
    assert export_pam(plan_pack(explained.frames(), TRAIN_ONLY), out).removed == 0
    assert (tmp_path / "other.txt").is_file()
    assert (out / "notes.md").is_file()


def test_sources_become_safe_and_distinct_file_names():
    names = source_names(["coco", "../../etc", "LVIS", "lvis", "a b", "a/b", "", "x" * 300, "狗"])
    assert names["coco"] == "coco"
    assert len({name.casefold() for name in names.values()}) == len(names)
    for name in names.values():
        assert name == Path(name).name
        assert name.isascii()
        assert len(name) < 80


@given(st.binary(min_size=16, max_size=16), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12))
def test_points_lie_inside_and_are_one_or_enough(seed, count, height, width):
    pixels = np.zeros((20, 20), bool)
    pixels[3 : 3 + height, 5 : 5 + width] = True
    points = sample_points(masks.encode(pixels), max(count, 4), seed, 4)
    assert len(points) == 1 or len(points) >= 4
    assert len({tuple(point) for point in points}) == len(points)
    assert all(pixels[y, x] for x, y in points)
    assert points == sample_points(masks.encode(pixels), max(count, 4), seed, 4)


@given(st.tuples(*[st.floats(-50, 150, allow_nan=False) for _ in range(4)]), st.integers(1, 100), st.integers(1, 100))
def test_exported_boxes_have_whole_pixels(box, width, height):
    found = xywh(box, width, height)
    if found is not None:
        assert whole_pixels(found)
        assert 0 <= found[0] <= width
        assert found[0] + found[2] <= width + 0.01
        assert found[1] + found[3] <= height + 0.01


@given(st.sampled_from(["en", "zh"]), st.text(min_size=1).filter(lambda text: text == text.strip("\n") != "None"))
def test_a_history_comes_back_whatever_it_holds(language, history):
    asked = read_turn(user_text("stream", language, history), video=True)
    assert (asked.task, asked.language, asked.history) == (
        ("video", language, None) if history == NO_HISTORY[language] else ("stream", language, history)
    )
