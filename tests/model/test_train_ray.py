"""`perceive train` on the workers of Ray Train: one of them is killed, and the curve is that of one worker alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from model import checkpoint
from model.practice import PracticeConfig, write_practice
from model.train import train
from model.train_config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 16


def _settings(output: Path, shards: Path) -> dict[str, Any]:
    llm = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm |= {"num_key_value_heads": 1, "tie_word_embeddings": True}
    perceiver = {"dim": 64, "mlp_dim": 32, "tokens": 2}
    fresh = {"sam": "nano", "perceiver": perceiver, "llm": llm, "video_frames": 2}
    return {
        "output": str(output), "stage": "2", "start": {"fresh": fresh, "vocab_size": 400},
        "data": {"shards": [str(shards)], "clip_frames": 3, "prompt_variants": 1, "feature_cache": "memory"},
        "batch": {"images": 8, "clips": 4}, "micro_images": 3, "micro_clips": 2,
        "optimizer": {"learning_rate": 3e-3}, "max_steps": STEPS, "epochs": 9, "precision": "fp32", "log_every": 1,
        "save_every": 3, "device": "cpu",
    }  # fmt: skip


def _losses(output: Path) -> list[float]:
    file = output / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()] if file.exists() else []


def _workers(mark: str) -> list[int]:
    """The processes of Ray Train's workers that carry this mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                mine = mark.encode() in (folder / "environ").read_bytes()
                if mine and b"RayTrainWorker" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def test_two_ray_workers_one_of_them_killed_train_as_one_worker_does(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_practice(shards, PracticeConfig(images=5, clips=1, size=64, frames=8))
    alone = train(TrainConfig.model_validate(_settings(tmp_path / "one", shards)))
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(_settings(tmp_path / "two", shards) | {"ray_workers": 2}), encoding="utf-8")
    mark = uuid.uuid4().hex
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "PERCEIVE_TEST_MARK": mark}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "jobs", "train", str(config), "--json"]
    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    at = random.randint(4, STEPS - 6)
    deadline = time.monotonic() + 400
    while len(_losses(tmp_path / "two")) < at:
        assert job.poll() is None, f"ended before step {at}: {job.communicate()[1][-3000:]}"
        assert time.monotonic() < deadline, f"step {at} never came"
        time.sleep(0.02)
    workers = _workers(mark)
    assert len(workers) == 2
    os.kill(random.choice(workers), signal.SIGKILL)
    out, err = job.communicate(timeout=500)
    assert job.returncode == 0, err[-3000:]
    assert "going on from" in err + out, f"killed at step {at}, and no worker resumed"
    done = json.loads(out)
    assert done["steps"] == STEPS
    assert done["last_loss"] == pytest.approx(alone.last_loss, abs=1e-3), f"killed at step {at}"
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), abs=1e-3)
    pam, _ = checkpoint.load(done["checkpoint"])
    assert pam.config.video_frames == 2
