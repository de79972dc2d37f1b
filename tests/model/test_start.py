"""What a run starts from: a pretrained language model, and the settings that Ray's workers get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint
from model.checkpoint import CheckpointError
from model.config import PamConfig, PerceiverConfig
from model.practice import PracticeConfig, write_practice
from model.train import Trainer, train
from model.train_config import BatchConfig, DataConfig, StartConfig, TrainConfig, TrainError
from model.train_ray import absolute, on_gpus
from model.vision import FrozenSam
from model.world import World
from stages.sam2.nano import NanoConfig, build_nano

SHAPE = PamConfig(sam="nano", perceiver=PerceiverConfig(dim=64, mlp_dim=32, tokens=2), video_frames=2)


@pytest.fixture(scope="module")
def sam() -> FrozenSam:
    torch.manual_seed(0)
    return FrozenSam(build_nano(NanoConfig(image_size=64, embed_dim=16, memory_layers=1)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_practice(folder, PracticeConfig(images=3, clips=0, size=64))
    return folder


@pytest.fixture(scope="module")
def qwen(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 as `save_pretrained` leaves it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=448, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, rope_theta=5000.0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("qwen")
    Qwen2ForCausalLM(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def _config(output: Path, shards: Path, start: StartConfig) -> TrainConfig:
    return TrainConfig(
        output=output, stage="1", start=start, data=DataConfig(shards=[str(shards)]),
        batch=BatchConfig(images=4, clips=1), max_steps=2, precision="fp32", device="cpu",
    )  # fmt: skip


def test_stage_1_starts_from_a_pretrained_language_model(
    qwen: Path, shards: Path, sam: FrozenSam, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config = _config(tmp_path / "out", shards, StartConfig(llm=str(qwen), fresh=SHAPE))
    result = train(config, sam)
    whole, own = AutoModelForCausalLM.from_pretrained(str(qwen)).eval(), checkpoint.load(result.checkpoint)
    pam, tokenizer = own
    ids = torch.tensor([tokenizer.encode("a red square on the left")])
    with torch.no_grad():
        torch.testing.assert_close(pam.llm(ids).logits, whole(ids).logits)  # frozen in stage 1, its rotary base too
    assert pam.config.perceiver == SHAPE.perceiver
    assert pam.config.llm["rope_theta"] == 5000.0
    fresh = Trainer(_config(tmp_path / "new", shards, config.start), World(), sam).wrapped.pam
    assert not torch.equal(fresh.projector.image_newline, pam.projector.image_newline), "the projectors have learned"


def test_what_is_no_qwen_is_refused(qwen: Path, shards: Path, sam: FrozenSam, tmp_path: Path, tokenizer: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = tmp_path / "llama"
    LlamaForCausalLM(
        LlamaConfig(vocab_size=448, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(str(other))
    tokenizer.save_pretrained(str(other))
    for llm, message in ((other, "not llama"), (tmp_path / "none", "no language model")):
        with pytest.raises(CheckpointError, match=message):
            Trainer(_config(tmp_path / "out", shards, StartConfig(llm=str(llm), fresh=SHAPE)), World(), sam)


def test_a_start_has_one_language_model() -> None:
    shape = SHAPE.model_copy(update={"llm": {"hidden_size": 32}})
    assert StartConfig(llm="Qwen/Qwen2.5-3B-Instruct").fresh is None
    with pytest.raises(ValueError, match="not both"):
        StartConfig(llm="Qwen/Qwen2.5-3B-Instruct", fresh=shape)
    with pytest.raises(ValueError, match="exactly one"):
        StartConfig(llm="Qwen/Qwen2.5-3B-Instruct", released="Perceive-Anything/PAM-3B")
    with pytest.raises(ValueError, match=r"fresh\.llm"):
        StartConfig(fresh=SHAPE)


def test_ray_workers_have_a_gpu_each_or_none(shards: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, shards, StartConfig(llm="x")).model_copy(update={"ray_workers": 4, "device": "auto"})
    assert on_gpus(config, 4)
    assert not on_gpus(config, 0)
    assert not on_gpus(config.model_copy(update={"device": "cpu"}), 4)
    with pytest.raises(TrainError, match="4 need a GPU each, and the cluster has 3"):
        on_gpus(config, 3)
    with pytest.raises(TrainError, match="the cluster has 0"):
        on_gpus(config.model_copy(update={"device": "cuda"}), 0)


def test_ray_workers_get_paths_that_hold_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    data = DataConfig(
        shards=["packs/*/train", "s3://bucket/train", "/abs/train"], jsonl=[Path("a.jsonl")], jsonl_root=Path("media"),
        prompt_variants=1, feature_cache="taps",
    )  # fmt: skip
    start = StartConfig(llm="Qwen/Qwen2.5-3B-Instruct", fresh=SHAPE, tokenizer="tok")
    made = absolute(TrainConfig(output=Path("out"), start=start, data=data))
    assert made.output == tmp_path / "out"
    assert made.data.shards == [str(tmp_path / "packs/*/train"), "s3://bucket/train", "/abs/train"]
    assert made.data.jsonl == [tmp_path / "a.jsonl"]
    assert made.data.jsonl_root == tmp_path / "media"
    assert made.data.feature_cache == str(tmp_path / "taps")
    assert (made.start.llm, made.start.tokenizer) == ("Qwen/Qwen2.5-3B-Instruct", str(tmp_path / "tok"))
    assert made.start.fresh == SHAPE
    earlier = TrainConfig(output=Path("out"), start=StartConfig(checkpoint=Path("model")), data=data)
    assert absolute(earlier).start.checkpoint == tmp_path / "model"
    kept = data.model_copy(update={"feature_cache": "device"})
    assert absolute(earlier.model_copy(update={"data": kept})).data.feature_cache == "device"
