"""The training loop: what learns, that workers and interruptions do not matter, and what it leaves behind."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.config import PamConfig, PerceiverConfig
from model.corpus import ShardCorpus
from model.inference import PAM
from model.optim import DivergedError, NanGuard, part_of, rate, unfreeze
from model.pam import Pam
from model.plan import MixtureConfig
from model.practice import PracticeConfig, write_practice
from model.progress import Journal
from model.train import Trainer, train
from model.train_config import (
    STAGE_PARTS,
    BatchConfig,
    DataConfig,
    OptimizerConfig,
    StartConfig,
    TrainConfig,
    TrainError,
)
from model.vision import FrozenSam
from model.world import World
from stages.sam2.nano import NanoConfig, build_nano

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = """
import sys, torch
from model.train import train
from model.train_config import TrainConfig
from model.vision import FrozenSam
from stages.sam2.nano import NanoConfig, build_nano
torch.manual_seed(0)
torch.set_num_threads(1)
sam = FrozenSam(build_nano(NanoConfig(image_size=64, embed_dim=16, memory_layers=1)))
config = TrainConfig.model_validate_json(open(sys.argv[1]).read())
print(train(config, sam).last_loss)
"""


def _sam() -> FrozenSam:
    torch.manual_seed(0)
    return FrozenSam(build_nano(NanoConfig(image_size=64, embed_dim=16, memory_layers=1)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_practice(folder, PracticeConfig(images=5, clips=1, size=64, frames=8))
    return folder


def _config(output: Path, shards: Path, **changes: Any) -> TrainConfig:
    llm = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm |= {"num_key_value_heads": 1, "tie_word_embeddings": True}
    fresh = PamConfig(sam="nano", perceiver=PerceiverConfig(dim=64, mlp_dim=32, tokens=2), llm=llm, video_frames=2)
    settings: dict[str, Any] = {
        "output": output,
        "stage": "2",
        "start": StartConfig(fresh=fresh, vocab_size=400),
        "data": DataConfig(shards=[str(shards)], clip_frames=3, prompt_variants=1, feature_cache="memory"),
        "batch": BatchConfig(images=8, clips=4),
        "micro_images": 3,
        "micro_clips": 2,
        "optimizer": OptimizerConfig(learning_rate=3e-3),
        "max_steps": 8,
        "epochs": 9,
        "precision": "fp32",
        "log_every": 1,
        "save_every": 3,
        "device": "cpu",
    }
    return TrainConfig(**settings | changes)


def _losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["1", "1.5", "2"])
def test_gradients_reach_exactly_what_a_stage_names(stage: Any, shards: Path, tmp_path: Path) -> None:
    trainer = Trainer(_config(tmp_path, shards, stage=stage), World(), _sam())
    pam = trainer.wrapped.pam
    kinds = set()
    for step in trainer.data(trainer._plan(0)):
        for part in step:
            kinds.add(part.video)
            trainer.forward(part)[0].backward()
    assert kinds == ({False} if stage == "1" else {False, True}), "stage 1 sees images only"
    reached = {name for name, p in pam.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    named = {name for name, _ in pam.named_parameters() if part_of(name) in STAGE_PARTS[stage]}
    clips_only = {"projector.frame_newline", "perceiver.proj.weight", "perceiver.proj.bias"} if stage == "1" else set()
    # the softmax over keys does not feel a bias that all keys share
    flat = {name for name in named if name.endswith("k_proj.bias")}
    assert reached - flat == named - clips_only - flat
    assert all(p.grad is None for p in trainer.sam.parameters())


def test_training_learns_saves_and_is_ready_for_use(shards: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = _config(tmp_path / "out", shards, max_steps=25, sample_every=20, samples=2, save_every=100)
    result = train(config, _sam())
    assert result.last_loss < 0.9 * result.first_loss
    assert result.steps == 25
    assert len(_losses(tmp_path / "out")) == 25
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [20, 20]
    assert all(s["wanted"] for s in samples)
    from model import checkpoint

    pam, own = checkpoint.load(result.checkpoint)
    answer = PAM(pam, _sam(), own)
    picture = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy()
    assert isinstance(answer.describe(picture, box=(5, 5, 40, 40), task="label").text, str)


def test_samples_begin_where_the_answer_begins_whatever_has_a_loss(shards: Path, tmp_path: Path) -> None:
    wanted = []
    for published in (False, True):
        out = tmp_path / str(published)
        train(_config(out, shards, max_steps=2, sample_every=2, published_labels=published), _sam())
        samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
        wanted.append([(sample["row"], sample["wanted"]) for sample in samples])
    assert wanted[0] == wanted[1]


def test_all_epochs_are_trained_whatever_their_draws(shards: Path, tmp_path: Path) -> None:
    mixture = MixtureConfig(tasks={"label": 0.5, "brief": 0.5, "explain": 0, "detailed": 0, "video": 0, "stream": 0})
    data = DataConfig(
        shards=[str(shards)], clip_frames=3, prompt_variants=1, feature_cache="memory", hold=True, mixture=mixture
    )
    batch = BatchConfig(images=2, clips=1, seed=3)
    trainer = Trainer(_config(tmp_path, shards, data=data, batch=batch, epochs=6, max_steps=None), World(), _sam())
    lengths = [len(trainer._plan(epoch)) for epoch in range(6)]
    assert min(lengths) < lengths[0]
    assert trainer.run().steps == 6 * lengths[0]


class _Follower(World):
    """A worker whose first worker's clock says three seconds a step."""

    clock = itertools.count(3.0, 3.0)

    def share(self, value: Any) -> Any:
        return next(self.clock) if isinstance(value, float) else value


def test_with_a_time_limit_all_workers_go_by_the_first_workers_clock(shards: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1.0e-3, warmup=0.0)
    config = _config(tmp_path, shards, max_steps=9, max_seconds=10, optimizer=optimizer)
    assert Trainer(config, _Follower(), _sam()).run().steps == 4
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == pytest.approx([rate(optimizer, at) for at in (0, 0.3, 0.6, 0.9)])


def test_a_resumed_run_follows_the_same_curve(shards: Path, tmp_path: Path) -> None:
    data = DataConfig(shards=[str(shards)], clip_frames=3)
    whole = train(_config(tmp_path / "whole", shards, data=data), _sam())
    with pytest.raises(_PulledPlugError):
        train(_config(tmp_path / "parts", shards, data=data), _PulledPlug(_sam(), 18))
    assert 3 <= len(_losses(tmp_path / "parts")) < 8
    parts = train(_config(tmp_path / "parts", shards, data=data), _sam())
    assert _losses(tmp_path / "parts") == pytest.approx(_losses(tmp_path / "whole"), abs=1e-6)
    assert parts.last_loss == pytest.approx(whole.last_loss, abs=1e-6)


def test_a_checkpoint_of_another_run_is_refused_by_name_or_dropped(shards: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "out", shards, max_steps=2)
    train(config, _sam())
    assert train(config.model_copy(update={"max_steps": 3}), _sam()).steps == 3, "a longer run of its own goes on"
    mixture = MixtureConfig(tasks={"label": 2.0})
    data = config.data.model_copy(update={"mixture": mixture})
    other = config.model_copy(update={"data": data, "batch": BatchConfig(images=6, clips=4)})
    with pytest.raises(TrainError, match=r"of another run: batch, mixture differ\. .*output.*start_over"):
        train(other, _sam())
    begun = train(other.model_copy(update={"start_over": True}), _sam())
    assert begun.steps == 2
    rows = [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2]
    assert train(other.model_copy(update={"start_over": True, "max_steps": 3}), _sam()).steps == 3
    assert len(_losses(tmp_path / "out")) == 3, "its own checkpoint is not dropped: it goes on"


def _spoilt(shards: Path, folder: Path) -> Path:
    """The same shards with one picture cut short."""
    folder.mkdir()
    spoilt = 0
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as source, tarfile.open(folder / shard.name, "w") as target:
            for info in source:
                data = source.extractfile(info).read()  # type: ignore[union-attr]
                if info.name.endswith(".jpg") and not spoilt:
                    spoilt, data = 1, data[:50]
                info.size = len(data)
                target.addfile(info, io.BytesIO(data))
    return folder


@pytest.mark.parametrize("hold", [False, True])
def test_an_unreadable_picture_is_left_out_counted_and_named(
    shards: Path, tmp_path: Path, hold: bool, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = _spoilt(shards, tmp_path / "shards")
    data = DataConfig(shards=[str(spoilt)], clip_frames=3, prompt_variants=1, feature_cache="memory", hold=hold)
    corpus = ShardCorpus([str(spoilt)])
    lost = corpus.index.filter(corpus.index["media"] == corpus.index["media"][0])
    config = _config(
        tmp_path / "out", spoilt, data=data, epochs=1, max_steps=None, bad_captions=len(lost), save_every=2
    )
    result = train(config, _sam())
    assert result.lost_captions == len(lost)
    assert caplog.text.count("is left out: ") == len(lost)
    assert "not a readable image" in caplog.text
    assert result.last_loss > 0
    strict = config.model_copy(update={"output": tmp_path / "strict", "bad_captions": len(lost) - 1})
    with pytest.raises(TrainError, match=rf"{len(lost)} captions cannot be read, more than bad_captions"):
        train(strict, _sam())
    with pytest.raises(TrainError, match="captions cannot be read"):
        train(strict, _sam())  # what was lost before its checkpoint is not forgotten


class _PulledPlugError(Exception):
    """What stands for a power cut."""


class _PulledPlug(FrozenSam):
    """A SAM 2 that fails for good after some calls."""

    def __init__(self, sam: FrozenSam, calls: int) -> None:
        super().__init__(sam.sam)
        self.calls = calls

    def encode(self, pixels: torch.Tensor) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise _PulledPlugError
        return super().encode(pixels)


def test_tensorboard_is_written_where_it_is_and_missed_where_it_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed = find_spec("tensorboard") is not None
    for wanted, written in (("auto", installed), (True, installed), (False, False)):
        caplog.clear()
        Journal(tmp_path / str(wanted), 0, wanted).metrics({"step": 1, "loss": 1.0})
        assert (tmp_path / str(wanted) / "tensorboard").is_dir() == written
        assert ("not installed" in caplog.text) == (wanted is True and not installed)


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=0.1, final_share=0.1)
    assert [round(rate(config, p), 3) for p in (0, 0.05, 0.1, 0.55, 1.0)] == [0.0, 0.5, 1.0, 0.55, 0.1]


def test_steps_without_a_number_are_not_taken_and_end_the_run() -> None:
    guard = NanGuard(limit=2)
    assert guard.take(1.0, 1.0, 0, [])
    assert not guard.take(float("nan"), 1.0, 1, [4])
    assert guard.take(1.0, 1.0, 2, [])
    assert not guard.take(1.0, float("inf"), 3, [4])
    with pytest.raises(DivergedError, match=r"rows \[7\]"):
        guard.take(float("nan"), 1.0, 4, [7])
    assert guard.skipped == 3


def test_every_parameter_belongs_to_a_part(tiny_pam: Pam) -> None:
    everything = {name for name, _ in tiny_pam.named_parameters()}
    parts = [set(unfreeze(tiny_pam, [part])) for part in ("perceiver", "projector", "newlines", "llm")]
    assert set.union(*parts) == everything
    assert sum(map(len, parts)) == len(everything)
    assert len(parts[2]) == 3


@pytest.mark.parametrize("name", ["train_stage1", "train_stage1_5", "train_stage2", "nano_gpu", "nano_demo"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    config = TrainConfig.model_validate(yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text()))
    assert config.data.shards


def _run(config: TrainConfig, folder: Path, workers: int = 1) -> list[str]:
    (folder / "worker.py").write_text(WORKER)
    (folder / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, str(folder / "worker.py"), str(folder / "config.json")]
    if workers > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        command = [sys.executable, *launcher, *command[1:]]
    return command


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
@pytest.mark.parametrize("shard_model", [False, True], ids=["ddp", "fsdp2"])
def test_two_workers_train_as_one_does(shards: Path, tmp_path: Path, shard_model: bool) -> None:
    # three clips for two workers, one at a time: the second has nothing to learn in its last pass
    uneven: dict[str, Any] = {"max_steps": 6, "batch": BatchConfig(images=8, clips=3), "micro_clips": 1}
    uneven |= {"bad_captions": 99}
    spoilt = _spoilt(shards, tmp_path / "spoilt")
    alone = train(_config(tmp_path / "one", spoilt, **uneven), _sam())
    config = _config(tmp_path / "two", spoilt, shard_model=shard_model, sample_every=6, samples=2, **uneven)
    done = subprocess.run(_run(config, tmp_path, 2), env=_environment(), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), abs=1e-3)
    assert alone.last_loss == pytest.approx(_losses(tmp_path / "two")[-1], abs=1e-3)
    last = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lost_captions"] == alone.lost_captions > 0
    samples = (tmp_path / "two" / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 1, "two were asked for, and the first cannot be read"
    from model import checkpoint

    ours, theirs = (checkpoint.load(tmp_path / name / "model")[0].state_dict() for name in ("one", "two"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_loss(shards: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "out", shards, max_steps=40, save_every=2)
    whole = train(config.model_copy(update={"output": tmp_path / "whole"}), _sam())
    victim = subprocess.Popen(_run(config, tmp_path), env=_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("checkpoints/step-*")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        assert victim.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert len(_losses(tmp_path / "out")) < 40
    result = train(config, _sam())
    assert result.last_loss == pytest.approx(whole.last_loss, abs=1e-5)
    assert _losses(tmp_path / "out") == pytest.approx(_losses(tmp_path / "whole"), abs=1e-5)
