"""Holding everything before the first step: nothing is read twice, and nothing that is learned changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.augment import AugmentConfig
from model.config import PamConfig, PerceiverConfig
from model.features import FeatureCache, look
from model.practice import PracticeConfig, write_practice
from model.train import Trainer, train
from model.train_config import BatchConfig, DataConfig, OptimizerConfig, StartConfig, TrainConfig
from model.vision import FrozenSam
from model.world import World
from stages.sam2.nano import NanoConfig, build_nano


@pytest.fixture(scope="module")
def sam() -> FrozenSam:
    torch.manual_seed(0)
    return FrozenSam(build_nano(NanoConfig(image_size=64, embed_dim=16, memory_layers=1)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    write_practice(folder, PracticeConfig(images=4, clips=1, size=64, frames=8))
    return folder


def _config(output: Path, shards: Path, hold: bool) -> TrainConfig:
    llm = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm |= {"num_key_value_heads": 1, "tie_word_embeddings": True}
    fresh = PamConfig(
        sam="nano", perceiver=PerceiverConfig(dim=64, mlp_dim=32, tokens=2), llm=llm, video_frames=2, first_half=False
    )
    data = DataConfig(
        shards=[str(shards)], clip_frames=3, prompt_variants=2, feature_cache="device", hold=hold,
        augment=AugmentConfig(points=0.3, flip=0.5),
    )  # fmt: skip
    return TrainConfig(
        output=output, start=StartConfig(fresh=fresh, vocab_size=400), data=data, batch=BatchConfig(images=6, clips=3),
        micro_images=6, micro_clips=3, optimizer=OptimizerConfig(learning_rate=3e-3), max_steps=5, epochs=9,
        precision="fp32", log_every=1, device="cpu",
    )  # fmt: skip


def _losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_what_is_held_trains_like_what_is_read(shards: Path, sam: FrozenSam, tmp_path: Path) -> None:
    train(_config(tmp_path / "held", shards, hold=True), sam)
    train(_config(tmp_path / "read", shards, hold=False), sam)
    # clips are tracked in other groups, which float32 feels a little
    assert _losses(tmp_path / "held") == pytest.approx(_losses(tmp_path / "read"), rel=1e-3)


def test_after_preparation_no_picture_is_read(shards: Path, sam: FrozenSam, tmp_path: Path) -> None:
    trainer = Trainer(_config(tmp_path, shards, hold=True), World(), sam)
    trainer.prepare()
    data = trainer.data(trainer._plan(0))
    assert trainer.held is not None
    assert len(trainer.held) == 2 * len(trainer.corpus.index)
    trainer.corpus.load = None  # type: ignore[method-assign, assignment]
    seen = [sight for step in range(len(data)) for micro in data[step] for sight in micro.sights]
    assert all(sight.frames is None for sight in seen)
    assert all(sight.cache_key in data.cache for sight in seen)  # type: ignore[operator]


def test_regions_of_one_picture_share_its_encoding(
    shards: Path, sam: FrozenSam, tmp_path: Path, monkeypatch: Any
) -> None:
    trainer = Trainer(_config(tmp_path, shards, hold=False), World(), sam)
    index = trainer.corpus.index.with_row_index("row")
    media = index["media"][0]
    rows = [r["row"] for r in index.iter_rows(named=True) if r["media"] == media and r["task"] == "label"]
    data = trainer.data([])
    data.cache = None
    sights = [data.example(row, 0)[0] for row in rows]
    assert len(sights) > 1
    encoded = []
    encode = sam.encode
    monkeypatch.setattr(sam, "encode", lambda pixels: (encoded.append(len(pixels)), encode(pixels))[1])
    together = look(sam, sights, False, 1)
    assert encoded == [1]
    alone = torch.cat([look(sam, [sight], False, 1).embed for sight in sights])
    torch.testing.assert_close(together.embed, alone, rtol=1e-4, atol=1e-4)


def test_a_cache_serves_the_next_run(shards: Path, sam: FrozenSam, tmp_path: Path, monkeypatch: Any) -> None:
    cache = FeatureCache()
    train(_config(tmp_path / "first", shards, hold=True), sam, cache)
    monkeypatch.setattr(sam, "encode", None)  # nothing is left to encode
    second = train(_config(tmp_path / "second", shards, hold=True), sam, cache)
    assert second.steps == 5
    assert _losses(tmp_path / "first") == _losses(tmp_path / "second")


def _taps_of(config: TrainConfig, sam: FrozenSam, task: str) -> str | None:
    trainer = Trainer(config, World(), sam)
    index = trainer.corpus.index.with_row_index("row")
    return trainer.data([]).example(index.filter(index["task"] == task)["row"][0], 0)[0].cache_key


def test_a_kept_folder_of_taps_serves_no_run_that_sees_otherwise(shards: Path, sam: FrozenSam, tmp_path: Path) -> None:
    config = _config(tmp_path / "out", shards, hold=False)
    fresh, data = config.start.fresh, config.data
    assert fresh is not None
    shown = config.start.model_copy(update={"fresh": fresh.model_copy(update={"video_frames": 3})})
    jittered = data.model_copy(update={"augment": AugmentConfig(points=0.3, flip=0.5, box_jitter=0.3)})
    torch.manual_seed(1)
    other = FrozenSam(build_nano(NanoConfig(image_size=64, embed_dim=16, memory_layers=1)))
    own = {task: _taps_of(config, sam, task) for task in ("label", "video")}
    assert own == {task: _taps_of(config, sam, task) for task in ("label", "video")}
    assert _taps_of(config, other, "label") != own["label"], "another SAM 2"
    assert _taps_of(config.model_copy(update={"start": shown}), sam, "video") != own["video"], "more frames shown"
    fewer = config.model_copy(update={"data": data.model_copy(update={"clip_frames": 4})})
    assert _taps_of(fewer, sam, "video") != own["video"], "other frames of a clip"
    assert _taps_of(config.model_copy(update={"data": jittered}), sam, "label") != own["label"], "another prompt"


def test_holding_needs_a_cache_of_images_too(shards: Path) -> None:
    with pytest.raises(ValueError, match="feature_cache"):
        DataConfig(shards=[str(shards)], hold=True)
    with pytest.raises(ValueError, match="cache_images"):
        DataConfig(shards=[str(shards)], prompt_variants=1, feature_cache="memory", cache_images=False, hold=True)
