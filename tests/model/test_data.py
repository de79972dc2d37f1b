"""Shards to batches: what is read, in which order, and with which prompts."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.augment import (
    NO_AUGMENTATION,
    AugmentConfig,
    ask,
    draw_prompt,
    flip_example,
    flip_text,
    jitter_box,
    points_inside,
)
from model.corpus import CorpusError, ShardCorpus
from model.data import Reading, StepData, batches
from model.jsonl import JsonlCorpus
from model.plan import BatchConfig, MixtureConfig, plan_epoch
from model.practice import PracticeConfig, write_practice
from model.setup import Joined, ShuffledCaptions
from model.templates import IGNORE
from stages import masks


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("practice")
    write_practice(folder, PracticeConfig(images=6, clips=2, size=96, frames=24, per_shard=3, languages=("en", "zh")))
    return folder


@pytest.fixture(scope="module")
def corpus(shards: Path) -> ShardCorpus:
    return ShardCorpus([str(shards)])


def _rows(corpus: Any, task: str, language: str = "en") -> list[int]:
    index = corpus.index.with_row_index("row")
    return index.filter((index["task"] == task) & (index["language"] == language))["row"].to_list()


def test_every_caption_is_read_with_its_pixels_and_prompt(corpus: ShardCorpus) -> None:
    index = corpus.index
    assert set(index["task"]) == {"label", "explain", "brief", "detailed", "video", "stream"}
    assert index["video"].to_list() == [task in ("video", "stream") for task in index["task"]]
    example = corpus.load(_rows(corpus, "brief")[0])
    (frame,) = example.read([0])
    assert frame.shape == (96, 96, 3)
    assert masks.box_of(masks.decode(example.mask)) == example.box
    assert example.text.endswith("of the scene.")
    chinese = corpus.load(_rows(corpus, "label", "zh")[0])
    assert not chinese.text.isascii()


def test_a_clip_begins_where_its_target_is_seen_and_stays_in_its_event(corpus: ShardCorpus, shards: Path) -> None:
    for row in _rows(corpus, "stream"):
        example = corpus.load(row)
        assert example.box is not None
        assert 1 <= example.count <= 24
        assert len(example.read(range(example.count))) == example.count
    few = ShardCorpus([str(shards)], clip_frames=5)
    video = few.load(_rows(few, "video")[0])
    assert video.count == 5


def test_a_stream_example_carries_the_previous_caption(corpus: ShardCorpus) -> None:
    histories = [corpus.load(row).history for row in _rows(corpus, "stream")]
    texts = {corpus.load(row).text for row in _rows(corpus, "stream")}
    assert None in histories
    assert any(history in texts for history in histories if history)


def test_shards_that_are_no_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no \*\.tar shards"):
        ShardCorpus([str(tmp_path)])
    (tmp_path / "broken.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(CorpusError, match=r"broken\.tar"):
        ShardCorpus([str(tmp_path)])


def test_the_split_layout_reads_like_the_joined_one(shards: Path, corpus: ShardCorpus, tmp_path: Path) -> None:
    for name in ("media", "packs/p/train"):
        (tmp_path / name).mkdir(parents=True)
    with (
        tarfile.open(tmp_path / "media" / "m.tar", "w") as pixels,
        tarfile.open(tmp_path / "packs/p/train" / "c.tar", "w") as records,
    ):
        for shard in sorted(shards.glob("*.tar")):
            with tarfile.open(shard) as source:
                for info in source:
                    (records if info.name.endswith("json") else pixels).addfile(info, source.extractfile(info))
    listing = {"shardlist": [{"url": "c.tar"}]}, {"shardlist": [{"url": "../../../media/m.tar"}]}
    for name, content in zip(("index", "index-media"), listing, strict=True):
        (tmp_path / "packs/p/train" / f"{name}.json").write_text(json.dumps(content))
    split = ShardCorpus([str(tmp_path / "packs/p/train")])
    assert split.index.equals(corpus.index)
    row = _rows(corpus, "detailed")[3]
    np.testing.assert_array_equal(split.load(row).read([0])[0], corpus.load(row).read([0])[0])
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/split-layout", recursive=True)
    far = ShardCorpus(["memory://split-layout/packs/p/train"])
    assert far.index.equals(corpus.index)
    np.testing.assert_array_equal(far.load(row).read([0])[0], corpus.load(row).read([0])[0])


def _repacked(shards: Path, folder: Path, side: int) -> None:
    """Another pack of the same media: their captions say so, and the pictures are of one colour."""
    folder.mkdir(parents=True)
    picture = io.BytesIO()
    Image.new("RGB", (side, side), (0, 200, 0)).save(picture, "PNG")
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as source, tarfile.open(folder / shard.name, "w") as target:
            for info in source:
                data = source.extractfile(info).read() if info.name.endswith("json") else picture.getvalue()  # type: ignore[union-attr]
                if info.name.endswith("json"):
                    record = json.loads(data)
                    for region in record["regions"]:
                        for caption in region["captions"]:
                            caption["text"] = "again: " + caption["text"]
                    data = json.dumps(record).encode()
                else:
                    info.name = info.name.rsplit(".", 1)[0] + ".png"
                info.size = len(data)
                target.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("ways", ["two", "glob", "tars"])
def test_packs_of_the_same_media_each_keep_their_captions_and_pictures(
    shards: Path, corpus: ShardCorpus, tmp_path: Path, ways: str
) -> None:
    first, second = tmp_path / "packs/a/train", tmp_path / "packs/b/train"
    shutil.copytree(shards, first)
    _repacked(shards, second, 96)
    named = {"two": [str(first), str(second)], "glob": [str(tmp_path / "packs/*/train")]}
    both = ShardCorpus(named.get(ways, [str(tmp_path / "packs/*/train/*.tar")]))
    count = len(corpus.index)
    assert len(both.index) == 2 * count
    for row in range(0, count, 3):
        own, again = both.load(row), both.load(count + row)
        assert own.text == corpus.load(row).text
        assert again.text == "again: " + own.text
        assert own.count == again.count
        np.testing.assert_array_equal(own.read([0])[0], corpus.load(row).read([0])[0])
        assert (again.read([own.count - 1])[0] == (0, 200, 0)).all()


def test_an_epoch_shows_each_caption_once_in_batches_of_one_kind(corpus: ShardCorpus) -> None:
    batches = BatchConfig(images=8, clips=4)
    steps = plan_epoch(corpus.index, 0, batches, MixtureConfig())
    video = corpus.index["video"].to_numpy()
    shown = [row for step in steps for row in step.rows]
    assert set(shown) == set(range(len(corpus.index)))
    assert all((video[list(step.rows)] == step.video).all() for step in steps)
    assert {len(step.rows) for step in steps if not step.video} == {8}
    assert len(shown) - len(corpus.index) < 8 + 4, "only the last batch of a kind is filled up"
    assert plan_epoch(corpus.index, 0, batches, MixtureConfig()) == steps
    assert plan_epoch(corpus.index, 1, batches, MixtureConfig()) != steps


def test_length_grouping_saves_padding(corpus: ShardCorpus) -> None:
    steps = plan_epoch(corpus.index, 0, BatchConfig(images=8, clips=1), MixtureConfig())
    length = corpus.index["length"].to_numpy()
    spread = np.mean([np.ptp(length[list(s.rows)]) for s in steps if not s.video])
    rng = np.random.default_rng(0)
    images = np.flatnonzero(~corpus.index["video"].to_numpy())
    mixed = np.mean([np.ptp(length[rng.choice(images, 8)]) for _ in range(50)])
    assert spread < mixed / 3


def test_mixture_weights_say_how_often(corpus: ShardCorpus) -> None:
    mixture = MixtureConfig(tasks={"label": 3, "video": 0, "stream": 0}, languages={"zh": 0})
    steps = plan_epoch(corpus.index, 0, BatchConfig(images=1, clips=1), mixture)
    shown = corpus.index[[row for step in steps for row in step.rows]]
    counts = dict(shown.group_by("task").len().iter_rows())
    assert set(shown["language"]) == {"en"}
    assert counts["label"] == 3 * counts["brief"]
    assert "video" not in counts
    with pytest.raises(ValueError, match="leave no caption"):
        plan_epoch(corpus.index, 0, BatchConfig(), MixtureConfig(languages={"en": 0, "zh": 0}))


def test_epochs_of_uneven_draws_have_one_length_where_it_is_asked_for(corpus: ShardCorpus) -> None:
    mixture, batches = MixtureConfig(tasks={"label": 0.5, "brief": 1.5}), BatchConfig(images=4, clips=1)
    drawn = [plan_epoch(corpus.index, epoch, batches, mixture) for epoch in range(12)]
    assert len({len(steps) for steps in drawn}) > 1, "halves are drawn by chance"
    for epoch, steps in enumerate(drawn):
        cut = plan_epoch(corpus.index, epoch, batches, mixture, count=len(drawn[0]))
        assert len(cut) == len(drawn[0])
        assert cut == [steps[at % len(steps)] for at in range(len(cut))]


def test_hard_negatives_stand_beside_their_neighbours(corpus: ShardCorpus) -> None:
    mixture = MixtureConfig(tasks=dict.fromkeys(("explain", "brief", "detailed", "video", "stream"), 0))
    steps = plan_epoch(corpus.index, 0, BatchConfig(images=1000, clips=1), mixture, hard_negatives=1.0)
    rows = list(steps[0].rows)
    media, label = corpus.index["media"], corpus.index["label"]
    pairs = sum(media[a] == media[b] and label[a] != label[b] for a, b in itertools.pairwise(rows))
    assert pairs > len(set(rows)) // 2


def _data(corpus: Any, tokenizer: Any, rank: int = 0, ranks: int = 1, **reading: Any) -> StepData:
    steps = plan_epoch(corpus.index, 0, BatchConfig(images=8, clips=4), MixtureConfig())
    settings = Reading(64, AugmentConfig(flip=0.5, paraphrase=0.5, masks=0.2), **reading)
    return StepData(corpus, steps, tokenizer, settings, 3, 2, rank, ranks)


def _digest(steps: list[Any]) -> list[Any]:
    out = []
    for step in steps:
        for part in step:
            for sight, ids, row in zip(part.sights, part.ids, part.rows, strict=True):
                prompt = sight.prompt
                mask = None if prompt.mask is None else prompt.mask.tobytes()
                out.append((row, tuple(ids), prompt.box, prompt.points, mask, sight.frames.tobytes()))
    return out


def test_ranks_share_the_steps_and_a_resumed_epoch_goes_on_exactly(corpus: ShardCorpus, tokenizer: Any) -> None:
    whole = list(batches(_data(corpus, tokenizer), 0))
    rest = list(batches(_data(corpus, tokenizer), 5))
    assert _digest(rest) == _digest(whole[5:])
    two = [list(batches(_data(corpus, tokenizer, rank, 2), 0)) for rank in range(2)]
    for at, step in enumerate(whole):
        assert sorted(_digest([two[0][at], two[1][at]]), key=str) == sorted(_digest([step]), key=str)


def _words(step: list[Any]) -> list[int]:
    return [i for micro in step for labels in micro.labels for i in labels if i != IGNORE]


def test_every_rank_makes_as_many_passes_and_no_word_counts_twice(corpus: ShardCorpus, tokenizer: Any) -> None:
    steps = plan_epoch(corpus.index, 0, BatchConfig(images=5, clips=1), MixtureConfig())
    steps = [next(s for s in steps if s.video == kind) for kind in (False, True)]
    settings = Reading(64, AugmentConfig())
    alone = StepData(corpus, steps, tokenizer, settings, 1, 1)
    ranks = [StepData(corpus, steps, tokenizer, settings, 1, 1, rank, 3) for rank in range(3)]
    for at in range(len(steps)):
        parts = [data[at] for data in ranks]
        assert len({len(step) for step in parts}) == 1, "ranks that make fewer passes let the others wait for ever"
        words = [sorted(_words(made)) for made in ([micro for step in parts for micro in step], alone[at])]
        assert words[0] == words[1]


@pytest.mark.slow
def test_loader_processes_change_nothing(corpus: ShardCorpus, tokenizer: Any) -> None:
    alone = list(batches(_data(corpus, tokenizer), 7))
    ahead = list(batches(_data(corpus, tokenizer), 7, workers=2))
    assert _digest(ahead) == _digest(alone)


def test_fixed_variants_draw_the_same_prompts_again(corpus: ShardCorpus, tokenizer: Any) -> None:
    data = _data(corpus, tokenizer, variants=2)
    row = _rows(corpus, "label")[0]
    prompts = {}
    for seed in range(30):
        sight = data.example(row, seed)[0]
        prompts.setdefault(sight.cache_key, []).append((sight.prompt.box, sight.prompt.points))
    assert all(len({str(p) for p in found}) == 1 for found in prompts.values())
    assert len(prompts) == 2, "a variant is mirrored always or never, so that its taps are found again"


def test_points_are_drawn_inside_the_mask_and_boxes_move_a_little(corpus: ShardCorpus) -> None:
    example = corpus.load(_rows(corpus, "label")[0])
    inside = masks.decode(example.mask)
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(40):
        prompt = draw_prompt(example, AugmentConfig(points=1.0), rng)
        counts.add(len(prompt.points))
        assert all(inside[int(y), int(x)] for x, y in prompt.points)
    assert counts == {1, 2, 3, 4}
    assert len(points_inside(inside, 4, rng)) == 4
    tiny = np.zeros((5, 5), bool)
    tiny[2, 3] = True
    assert points_inside(tiny, 4, rng) == [(3.5, 2.5)] * 4
    with pytest.raises(ValueError, match="empty mask"):
        points_inside(np.zeros((5, 5), bool), 1, rng)
    assert draw_prompt(example, NO_AUGMENTATION, rng).box == example.box


@given(st.tuples(*[st.floats(0, 90)] * 2), st.tuples(*[st.floats(1, 60)] * 2), st.integers(0, 99))
def test_a_jittered_box_stays_in_the_picture_and_is_never_empty(
    corner: tuple[float, float], side: tuple[float, float], seed: int
) -> None:
    box = (*corner, min(corner[0] + side[0], 100.0), min(corner[1] + side[1], 100.0))
    x0, y0, x1, y1 = jitter_box(box, 0.4, (100, 100), np.random.default_rng(seed))
    assert 0 <= x0 < x1 <= 100
    assert 0 <= y0 < y1 <= 100


def test_flipping_swaps_left_and_right_in_both_languages_or_refuses() -> None:
    assert flip_text("The Left star moves to the right.", "en") == "The Right star moves to the left."
    assert flip_text("It is bright and turns clockwise.", "en") == "It is bright and turns counterclockwise."
    assert flip_text("位于场景左上方，向右移动", "zh") == "位于场景右上方，向左移动"
    assert flip_text('A sign that says "left"', "en") is None
    assert flip_text("牌子上的文字", "zh") is None
    assert flip_text("It turns Anticlockwise, then counter-clockwise.", "en") == "It turns Clockwise, then clockwise."
    assert flip_text("先顺时针转动，再逆时针转动", "zh") == "先逆时针转动，再顺时针转动"


@pytest.mark.parametrize(
    "text",
    [
        "He left the room.",
        "A dog that left a trail on the right side.",
        "The bag was left behind and has been left open.",
        "She has left.",
        "It stops right now.",
        "Two bars at a right angle, and a right-angled one.",
        "A cat sits right behind the vase.",
        "Everything is all right.",
    ],
)
def test_left_and_right_that_say_no_side_are_not_swapped(text: str) -> None:
    assert flip_text(text, "en") is None


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("A star in the upper left, to the right of a ring.", "A star in the upper right, to the left of a ring."),
        ("It moves up left for 2 seconds.", "It moves up right for 2 seconds."),
        ("It is left of the door.", "It is right of the door."),
        ("Its right arm hangs down, its left one is raised.", "Its left arm hangs down, its right one is raised."),
        ("The road runs from left to right.", "The road runs from right to left."),
        ("The leftmost of three", "The rightmost of three"),
    ],
)
def test_left_and_right_that_say_a_side_are_swapped(text: str, mirrored: str) -> None:
    assert flip_text(text, "en") == mirrored


def test_about_three_metres_have_no_left_and_right() -> None:
    assert flip_text("长约三米左右，位于左侧", "zh") is None


@given(st.text(alphabet="leftrighdow 左右,.", max_size=60), st.sampled_from(["en", "zh"]))
def test_flipping_twice_gives_the_text_back(text: str, language: Any) -> None:
    once = flip_text(text, language)
    if once is None:
        assert any(part in text for part in ("左右", "右左", "left", "right", "word"))
    else:
        assert flip_text(once, language) == text


def test_a_mirrored_example_shows_the_mirrored_target(corpus: ShardCorpus) -> None:
    example = corpus.load(_rows(corpus, "brief")[1])
    mirrored = flip_example(example)
    np.testing.assert_array_equal(mirrored.read([0])[0], example.read([0])[0][:, ::-1])
    assert masks.box_of(masks.decode(mirrored.mask)) == mirrored.box
    quoted = dataclasses.replace(example, text='it reads "A"')
    assert flip_example(quoted) is None


def test_questions_are_pams_own_unless_paraphrased(corpus: ShardCorpus) -> None:
    example, rng = corpus.load(_rows(corpus, "brief")[0]), np.random.default_rng(0)
    own = "<image>\nProvide a concise caption for this subject."
    assert ask(example, AugmentConfig(), rng) == own
    assert ask(example, AugmentConfig(paraphrase=1.0), rng) != own
    chinese = corpus.load(_rows(corpus, "brief", "zh")[0])
    assert ask(chinese, AugmentConfig(paraphrase=1.0), rng) == "<image>\n对该目标对象提供一个概括的描述"


def _native(folder: Path) -> list[dict[str, Any]]:
    Image.new("RGB", (40, 30), "red").save(folder / "a.jpg")
    frames = [f"{at:05d}.jpg" for at in range(16)]
    for name in frames:
        Image.new("RGB", (40, 30), "blue").save(folder / name)
    ask = "<image>\nProvide a caption for this subject in this video.\nPrevious caption: It stops."
    image = {"type": "image", "image": "a.jpg", "bbox": [5, 6, 10, 12], "points": None, "labels": None}
    clip = {"type": "video", "image_root": ".", "frames": frames, "bbox": None, "points": [[[8, 9]]], "labels": [[1]]}
    return [image | _said("<image>\n对该目标对象进行分类并提供标签", "方块"), clip | _said(ask, "It goes.")]


def _said(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_pam_native_files_are_read_as_they_are(tmp_path: Path, tokenizer: Any, corpus: ShardCorpus) -> None:
    file = tmp_path / "x_box_obj_label_ch.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in _native(tmp_path)), encoding="utf-8")
    native = JsonlCorpus([file], tmp_path)
    assert native.index.select("video", "task", "language").rows() == [(False, "label", "zh"), (True, "video", "en")]
    image, clip = native.load(0), native.load(1)
    assert image.box == (5.0, 6.0, 15.0, 18.0)
    assert image.size == (30, 40)
    assert clip.count == 16
    both = Joined([corpus, native])
    data = _data(both, tokenizer)
    _, ids, labels = data.example(len(corpus.index) + 1, 0)
    assert tokenizer.decode([i for i in labels if i != IGNORE]) == "It goes.<|im_end|>"
    assert "Previous caption: It stops.<|im_end|>" in tokenizer.decode([i for i in ids if i >= 0])


def test_records_of_files_with_one_name_do_not_share_their_taps(tmp_path: Path, tokenizer: Any) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), colour).save(tmp_path / name / "a.jpg")
        record = _native(tmp_path)[0] | {"image": f"{name}/a.jpg"}
        (tmp_path / name / "train.jsonl").write_text(json.dumps(record), encoding="utf-8")
    both = JsonlCorpus([tmp_path / "a/train.jsonl", tmp_path / "b/train.jsonl"], tmp_path)
    data = StepData(both, [], tokenizer, Reading(64, NO_AUGMENTATION, variants=1), 1, 1)
    first, second = data.example(0, 0)[0], data.example(1, 0)[0]
    assert first.prompt == second.prompt
    assert first.cache_key != second.cache_key
    assert both.index["media"].n_unique() == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "text"}, "type is image or video"),
        ({"bbox": None}, "neither bbox nor points"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "1 points need as many labels"),
        ({"points": [[1, 2]]}, "points and labels come together"),
        ({"bbox": [5, 6, 10]}, "a box is x, y, width, height"),
        ({"image": None}, "image is one path"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "one human and one gpt"),
    ],
)
def test_a_bad_pam_record_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = _native(tmp_path)[0]
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | change))
    with pytest.raises(CorpusError, match=rf"bad\.jsonl, record 2: .*{message}"):
        JsonlCorpus([tmp_path / "bad.jsonl"], tmp_path)


def test_the_control_gives_every_target_the_caption_of_another(corpus: ShardCorpus) -> None:
    shuffled = ShuffledCaptions(corpus)
    rows = _rows(corpus, "brief")
    own, other = [corpus.load(r).text for r in rows], [shuffled.load(r).text for r in rows]
    assert sorted(own) == sorted(other)
    assert sum(a == b for a, b in zip(own, other, strict=True)) < len(rows) / 4
    assert corpus.load(rows[0]).box == shuffled.load(rows[0]).box
