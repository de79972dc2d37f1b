"""Trains the nano PAM on practice shards and answers held-out ones: does a PAM of this build learn to see?

    python benchmarks/pam_nano.py --config configs/nano_gpu.yaml --out OUT --seconds 180

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

from model.corpus import ShardCorpus
from model.evaluate import EvalConfig, predict, read_answers, score, write_answers, write_report
from model.generate import GenerationConfig
from model.inference import PAM
from model.practice import PracticeConfig, write_practice
from model.train import train
from model.train_config import TrainConfig
from model.vision import FrozenSam, load_sam
from schemas.caption import Task


def draw(folder: Path, images: int, clips: int, held_images: int, held_clips: int, processes: int) -> None:
    """Training and held-out shards below `folder`."""
    train_config = PracticeConfig(images=images, clips=clips, seed=1, per_shard=100)
    write_practice(folder / "train", train_config, processes)
    write_practice(
        folder / "held", PracticeConfig(images=held_images, clips=held_clips, seed=2, per_shard=40), processes
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of shards drawn before, or where to draw them")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--held-images", type=int, default=160)
    parser.add_argument("--held-clips", type=int, default=60)
    parser.add_argument("--limit", type=int, default=400, help="held-out captions a task")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument("--random-sam", action="store_true", help="a nano SAM 2 with random weights (trials only)")
    parser.add_argument("--score", type=Path, help="only score an answers.jsonl")
    args = parser.parse_args()
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
    config = TrainConfig.model_validate(
        yaml.safe_load(args.config.read_text()) | {"output": args.out / "run", "max_seconds": args.seconds}
    )
    config = config.model_copy(update={"data": config.data.model_copy(update={"shards": [str(data / "train")]})})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.random_sam:
        from stages.sam2.nano import build_nano

        sam = FrozenSam(build_nano().to(device))
    else:
        assert config.start.fresh is not None, "the configuration names its SAM 2 in start.fresh"
        sam = load_sam(config.start.fresh.sam, device)
    result = train(config, sam)
    print(result)
    from model import checkpoint

    pam, tokenizer = checkpoint.load(result.checkpoint, device)
    answering = PAM(pam, sam, tokenizer, GenerationConfig(max_new_tokens=110))
    began = time.monotonic()
    held = ShardCorpus([str(data / "held")], clip_frames=config.data.clip_frames)
    learned = [task for task in get_args(Task) if config.data.mixture.tasks.get(task, 1.0) > 0]
    asked = EvalConfig(tasks=learned, limit=args.limit, batch=200 if device == "cuda" else 16)
    answers = predict(answering, held, asked)
    print(f"{len(answers)} answers in {time.monotonic() - began:.0f} s")
    write_answers(args.out / "answers.jsonl", answers)
    try:
        report = score(answers, "nano PAM")
    except ImportError as missing:
        print(f"not scored here: {missing}")
        report = score_words(answers)
    print(json.dumps(report, indent=2) if isinstance(report, dict) else json.dumps(report.overall, indent=2))


def score_words(answers: list) -> dict[str, float | None]:
    """Label, colour, position and motion words alone, which need no scorer package."""
    from model import metrics

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
