"""The demonstration's last part: a nano PAM learns from the run's shards, and is compared with one that cannot learn.

Both see the same pictures, texts, steps and seed; the second's captions stand at wrong targets. What the first knows
beyond the second it has learned from how captions and targets belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import yaml

from model import checkpoint
from model.corpus import ShardCorpus
from model.evaluate import EvalConfig, Report, predict, score, write_answers, write_report
from model.generate import GenerationConfig
from model.inference import PAM
from model.train import TrainResult, train
from model.train_config import TrainConfig
from model.vision import FrozenSam, load_sam

_TOKENS = 96


@dataclass(frozen=True)
class DemoResult:
    """Training and validation of the nano PAM and of its control."""

    learned: Report
    control: Report
    training: TrainResult
    control_training: TrainResult


def demo_config(output: Path, shards: Sequence[str], seconds: float) -> TrainConfig:
    """`configs/nano_demo.yaml` with these shards, output and time."""
    raw = yaml.safe_load((files("configs") / "nano_demo.yaml").read_text(encoding="utf-8"))
    raw |= {"output": output, "max_seconds": seconds}
    raw["data"] |= {"shards": list(shards), "feature_cache": str(output.parent / "taps")}
    return TrainConfig.model_validate(raw)


def train_and_validate(
    train_shards: Sequence[str],
    validation_shards: Sequence[str],
    output: Path,
    seconds: float = 100.0,
    limit: int = 48,
    threads: int = 2,
    sam: FrozenSam | None = None,
) -> DemoResult:
    """Trains the nano PAM for `seconds`, its control for as many steps, and validates both on held-out shards.

    Writes `learned/`, `control/` (each with model and metrics), answers and reports below `output`. One process, CPU.
    `limit` held-out captions of each task and language are asked.
    """
    torch.set_num_threads(threads)
    eye = sam or load_sam("nano")
    config = demo_config(output / "learned", train_shards, seconds)
    training = train(config, eye)
    shuffled = config.data.model_copy(update={"shuffle_captions": True})
    control = config.model_copy(
        update={"output": output / "control", "data": shuffled, "max_seconds": None, "max_steps": training.steps}
    )
    control_training = train(control, eye)
    held = ShardCorpus(validation_shards, clip_frames=config.data.clip_frames)
    reports = []
    for name, result in (("learned", training), ("shuffled captions", control_training)):
        pam, tokenizer = checkpoint.load(result.checkpoint)
        answering = PAM(pam, eye, tokenizer, GenerationConfig(max_new_tokens=_TOKENS))
        answers = predict(answering, held, EvalConfig(limit=limit, batch=24))
        report = score(answers, name)
        write_answers(result.checkpoint.parent / "answers.jsonl", answers)
        write_report(result.checkpoint.parent, report)
        reports.append(report)
    return DemoResult(reports[0], reports[1], training, control_training)
