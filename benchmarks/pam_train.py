"""Speed of training: a short stage 2 (everything but SAM 2 learns) with random weights of a released size.

    python benchmarks/pam_train.py --size 1.5b --out OUT

Tokens are rows of the language model's sequences (visual and text). MFU counts 6 FLOP a weight of its matrices and
token (the vocabulary only where there are labels) and 6 x layers x width x length for causal attention, over the whole
step: decoding, SAM 2 and the optimizer are in the time and not in the FLOPs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from model.augment import AugmentConfig
from model.config import PAM_SIZES, PamConfig, PerceiverConfig
from model.data import batches
from model.plan import BatchConfig
from model.practice import PracticeConfig, write_practice
from model.train import Trainer
from model.train_config import DataConfig, OptimizerConfig, StartConfig, TrainConfig
from model.vision import FrozenSam
from model.world import World

PEAK = 989e12
"""Dense bfloat16 FLOP/s of an H200 by its datasheet."""
_TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def flops(llm: dict[str, Any], rows: int, length: int, labels: int) -> float:
    """Forward and backward FLOPs of the language model for `rows` tokens in sequences of `length`."""
    hidden, layers = llm["hidden_size"], llm["num_hidden_layers"]
    width = hidden // llm["num_attention_heads"] * llm["num_key_value_heads"]
    matrices = layers * (2 * hidden * hidden + 2 * hidden * width + 3 * hidden * llm["intermediate_size"])
    attention = 6 * layers * hidden * length * rows
    return 6.0 * matrices * rows + attention + 6.0 * hidden * llm.get("vocab_size", 0) * labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "1.5b", "3b"], default="1.5b")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro", type=int, default=16)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--commit", default="")
    parser.add_argument("--work", type=Path, default=Path("/tmp/pam_train"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = args.size == "tiny"
    write_practice(args.work / "shards", PracticeConfig(images=48, per_shard=4), 1 if tiny else 12)
    dim = 64 if tiny else 256
    start = PamConfig(sam="nano", perceiver=PerceiverConfig(dim=dim), llm=_TINY if tiny else PAM_SIZES[args.size])
    config = TrainConfig(
        output=args.work / "run",
        stage="2",
        start=StartConfig(fresh=start, vocab_size=512),
        data=DataConfig(
            shards=[str(args.work / "shards")], loader_workers=args.workers, augment=AugmentConfig(points=0)
        ),
        batch=BatchConfig(images=args.batch),
        micro_images=args.micro,
        optimizer=OptimizerConfig(learning_rate=1e-5),
        precision="bf16" if device.type == "cuda" else "fp32",
        gradient_checkpointing=True,
    )
    sam = _sam(tiny, device)
    with device:
        trainer = Trainer(config, World(device=device), sam)
    figures = run(trainer, args.steps)
    head = {"benchmark": "pam_train", "size": args.size, "date": date.today().isoformat(), "commit": args.commit}
    head |= {"hardware": torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "torch": torch.__version__}
    head |= {"batch": args.batch, "micro_batch": args.micro, "gradient_checkpointing": True}
    text = json.dumps(head | figures, indent=2)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"pam_train_{args.size}.json").write_text(text + "\n")


def _sam(tiny: bool, device: torch.device) -> FrozenSam:
    if tiny:
        from stages.sam2.nano import build_nano

        return FrozenSam(build_nano().to(device))
    from stages.sam2.load import build_public

    return FrozenSam(build_public("configs/sam2.1/sam2.1_hiera_l.yaml").to(device), half_encoder=device.type == "cuda")


def run(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Medians over the steps after the first three."""
    times, rows, labels, losses, lengths = [], 0, 0, [], []
    began = time.perf_counter()
    for number, micro in enumerate(batches(trainer.data(trainer._plan(0)), 0, trainer.config.data.loader_workers)):
        loss, _, tokens = trainer._step(micro, 0.5)
        if trainer.world.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if number >= 3:
            times.append(now - began)
            losses.append(loss)
            grid = trainer.sam.grid[0] * trainer.sam.grid[1] // 4
            visual = grid + trainer.wrapped.pam.config.perceiver.tokens + 2
            lengths += [len(ids) - 1 + visual for part in micro for ids in part.ids]
            rows += sum(len(ids) - 1 + visual for part in micro for ids in part.ids)
            labels += tokens
        began = now
        if number + 1 >= steps:
            break
    step = statistics.median(times)
    done = flops(trainer.wrapped.pam.config.llm, rows, int(statistics.mean(lengths)), labels) / len(times)
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return {
        "step_s": round(step, 3),
        "tokens_per_second": round(rows / len(times) / step, 1),
        "examples_per_second": round(trainer.config.batch.images / step, 2),
        "sequence_length": round(statistics.mean(lengths)),
        "mfu": round(done / step / PEAK, 4),
        "peak_memory_gb": None if memory is None else round(memory, 1),
        "first_loss": round(losses[0], 3),
        "last_loss": round(losses[-1], 3),
    }


if __name__ == "__main__":
    main()
