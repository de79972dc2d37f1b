"""Trains the nano PAM on practice shards and answers held-out ones: does a PAM of this build learn to see?

    python benchmarks/pam_nano.py --config configs/nano_gpu.yaml --out OUT

Draws training and held-out shards of the shapes world (different seeds), trains, and writes `answers.jsonl` and the
nano's weights. Where the scorers are installed the table is printed too; else score the answers elsewhere:

    python benchmarks/pam_nano.py --score OUT/answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import get_args

import torch
import yaml

from model import metrics
from model.answers import Answer
from model.corpus import ShardCorpus
from model.evaluate import EvalConfig, answering, predict, read_answers, score, write_answers, write_report
from model.practice import PracticeConfig, write_practice
from model.train import train
from model.train_config import TrainConfig
from model.vision import FrozenSam, load_sam
from schemas.caption import Task
from stages.sam2.nano import build_nano


def draw(folder: Path, images: int, clips: int, held_images: int, held_clips: int, processes: int) -> None:
    """Training and held-out shards below `folder`."""
    train_config = PracticeConfig(images=images, clips=clips, seed=1, per_shard=100)
    write_practice(folder / "train", train_config, processes)
    write_practice(
        folder / "held", PracticeConfig(images=held_images, clips=held_clips, seed=2, per_shard=40), processes
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of shards drawn before, or where to draw them")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--held-images", type=int, default=160)
    parser.add_argument("--held-clips", type=int, default=120)
    parser.add_argument("--limit", type=int, default=400, help="held-out captions a task")
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument("--random-sam", action="store_true", help="a nano SAM 2 with random weights (trials only)")
    parser.add_argument("--score", type=Path, help="only score an answers.jsonl")
    return parser.parse_args()


def eye(config: TrainConfig, device: str, random: bool) -> FrozenSam:
    """The SAM 2 that the configuration names, or one of its size with random weights."""
    if random:
        return FrozenSam(build_nano().to(device))
    assert config.start.fresh is not None, "the configuration names its SAM 2 in start.fresh"
    return load_sam(config.start.fresh.sam, device)


def learn_and_answer(args: argparse.Namespace, data: Path) -> list[Answer]:
    """Trains on the drawn shards and answers the held-out captions of the tasks that were learnt."""
    config = TrainConfig.model_validate(
        yaml.safe_load(args.config.read_text()) | {"output": args.out / "run", "max_seconds": args.seconds}
    )
    config = config.model_copy(update={"data": config.data.model_copy(update={"shards": [str(data / "train")]})})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sam = eye(config, device, args.random_sam)
    result = train(config, sam)
    print(result)
    pam = answering(result.checkpoint, sam, 110, device)
    began = time.monotonic()
    held = ShardCorpus([str(data / "held")], clip_frames=config.data.clip_frames)
    learned = [task for task in get_args(Task) if config.data.mixture.tasks.get(task, 1.0) > 0]
    asked = EvalConfig(tasks=learned, limit=args.limit, batch=200 if device == "cuda" else 16)
    answers = predict(pam, held, asked)
    print(f"{len(answers)} answers in {time.monotonic() - began:.0f} s")
    return answers


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.score:
        report = score(read_answers(args.score), "nano PAM")
        write_report(args.score.parent, report)
        print(json.dumps(report.overall, indent=2))
        return
    data = args.data or args.out / "shards"
    if not (data / "done").exists():
        began = time.monotonic()
        draw(data, args.images, args.clips, args.held_images, args.held_clips, args.processes)
        (data / "done").write_text("")
        print(f"drew {args.images} pictures and {args.clips} clips in {time.monotonic() - began:.0f} s")
    if args.draw_only:
        return
    answers = learn_and_answer(args, data)
    write_answers(args.out / "answers.jsonl", answers)
    try:
        found = score(answers, "nano PAM").overall
    except ImportError as missing:
        print(f"not scored here: {missing}")
        found = score_words(answers)
    print(json.dumps(found, indent=2))


def score_words(answers: list[Answer]) -> dict[str, float | None]:
    """Label, colour, position and motion words alone, which need no scorer package."""
    out = {}
    for name, tasks in (
        ("label", ("label",)),
        ("colour", ("brief", "detailed")),
        ("position", ("brief",)),
        ("motion", ("stream",)),
    ):
        some = [a for a in answers if a.task in tasks]
        predicted, wanted = [a.predicted for a in some], [a.wanted for a in some]
        if name == "label":
            hits = [float(metrics.clean(a) == metrics.clean(b)) for a, b in zip(predicted, wanted, strict=True)]
        else:
            hits = metrics.word_hits(predicted, wanted, metrics.LEXICONS[name]["en"], "en")
        out[name] = metrics.mean(hits)
    return out


if __name__ == "__main__":
    main()
