"""The demonstration's last part: a nano PAM learns from the run's shards, and is compared with one that cannot learn.

Both see the same pictures, texts, steps and seed; the second's captions stand at wrong targets. What the first knows
beyond the second it has learned from how captions and targets belong together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import yaml

from model.corpus import ShardCorpus
from model.evaluate import EvalConfig, Report, answering, predict, score, write_answers, write_report
from model.features import FeatureCache
from model.practice import PracticeConfig, write_practice
from model.train import TrainResult, train
from model.train_config import TrainConfig
from model.vision import FrozenSam, load_sam
from schemas.caption import Task

_TOKENS = 40
_TASKS: list[Task] = ["label", "brief"]
_HELD_SEED = 1
"""Seed of the held-out scenes; the training scenes have 0."""


@dataclass(frozen=True)
class DemoResult:
    """Training and validation of the nano PAM and of its control; `seconds` of all that, drawing included."""

    learned: Report
    control: Report
    training: TrainResult
    control_training: TrainResult
    seconds: float


def demo_config(output: Path, shards: Sequence[str], seconds: float) -> TrainConfig:
    """`configs/nano_demo.yaml` with these shards, output and time."""
    raw = yaml.safe_load((files("configs") / "nano_demo.yaml").read_text(encoding="utf-8"))
    raw |= {"output": output, "max_seconds": seconds}
    raw["data"] |= {"shards": list(shards)}
    return TrainConfig.model_validate(raw)


def train_and_validate(
    train_shards: Sequence[str],
    validation_shards: Sequence[str],
    output: Path,
    seconds: float = 90.0,
    scenes: int = 480,
    held_scenes: int = 60,
    limit: int = 120,
    threads: int = 2,
    sam: FrozenSam | None = None,
    steps: int | None = None,
) -> DemoResult:
    """Trains the nano PAM for `seconds`, its control for as many steps, and validates both on held-out shards.

    With `steps` both train for so many, however long that takes, and `seconds` says nothing.
    A demonstration's shards are few: `scenes` drawn practice scenes are added to the training shards and `held_scenes`
    others to the validation shards. Writes `practice/`, `learned/`, `control/` (each with model and metrics), answers
    and reports below `output`. One process for the model, CPU. `limit` held-out captions of each task are asked.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    train_paths = [*train_shards, *_practice(output / "practice" / "train", scenes, 0, threads)]
    held_paths = [*validation_shards, *_practice(output / "practice" / "held", held_scenes, _HELD_SEED, threads)]
    config = demo_config(output / "learned", train_paths, seconds)
    assert config.start.fresh is not None, "nano_demo.yaml begins with a fresh model"
    eye, cache = sam or load_sam(config.start.fresh.sam), FeatureCache()
    if steps is not None:
        config = config.model_copy(update={"max_seconds": None, "max_steps": steps})
    training = train(config, eye, cache)
    shuffled = config.data.model_copy(update={"shuffle_captions": True})
    control = config.model_copy(
        update={"output": output / "control", "data": shuffled, "max_seconds": None, "max_steps": training.steps}
    )
    control_training = train(control, eye, cache)
    held = ShardCorpus(held_paths, clip_frames=config.data.clip_frames)
    asked = EvalConfig(tasks=_TASKS, limit=limit, batch=40)
    reports = []
    for name, result in (("learned", training), ("shuffled captions", control_training)):
        answers = predict(answering(result.checkpoint, eye, _TOKENS), held, asked)
        report = score(answers, name, similarity=False)
        write_answers(result.checkpoint.parent / "answers.jsonl", answers)
        write_report(result.checkpoint.parent, report)
        reports.append(report)
    return DemoResult(reports[0], reports[1], training, control_training, time.monotonic() - began)


def _practice(folder: Path, scenes: int, seed: int, processes: int) -> list[str]:
    if not scenes:
        return []
    drawn = PracticeConfig(images=scenes, seed=seed, per_shard=-(-scenes // processes))
    return [str(path) for path in write_practice(folder, drawn, processes)]
