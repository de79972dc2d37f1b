"""What learns, at which rate, and when a step is not taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from model.pam import Pam
from model.train_config import OptimizerConfig, Part

_NEWLINES = ("projector.image_newline", "projector.semT_newline", "projector.frame_newline")


def part_of(name: str) -> Part:
    """The part to which a parameter of `Pam` belongs."""
    if name in _NEWLINES:
        return "newlines"
    head = name.split(".", 1)[0]
    if head == "perceiver":
        return "perceiver"
    return "projector" if head == "projector" else "llm"


def unfreeze(pam: Pam, parts: Sequence[Part]) -> list[str]:
    """Lets exactly the parameters of these parts learn; returns their names."""
    learning = []
    for name, parameter in pam.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
        if parameter.requires_grad:
            learning.append(name)
    return learning


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what learns; vectors and biases without weight decay."""
    learning = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=config.betas, fused=True)


def rate(config: OptimizerConfig, progress: float) -> float:
    """The learning rate at `progress` in [0, 1] of the run."""
    if config.warmup and progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    rest = min(max((progress - config.warmup) / (1 - config.warmup), 0.0), 1.0)
    share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * rest))
    return config.learning_rate * share


class DivergedError(Exception):
    """Several steps in a row had a loss or gradient that is no number."""


class NanGuard:
    """Counts steps that are not taken because loss or gradient are not finite; too many in a row end the run."""

    def __init__(self, limit: int) -> None:
        self.limit, self.streak, self.skipped = limit, 0, 0

    def take(self, loss: float, gradient: float, step: int, rows: Sequence[int]) -> bool:
        """Whether the step may be taken. Raises DivergedError after `limit` bad steps in a row."""
        if math.isfinite(loss) and math.isfinite(gradient):
            self.streak = 0
            return True
        self.streak += 1
        self.skipped += 1
        if self.streak >= self.limit:
            raise DivergedError(
                f"{self.streak} steps in a row up to step {step} had loss {loss} and gradient norm {gradient}; "
                f"captions of the last: rows {list(rows)[:8]}. Lower the learning rate or look at these rows"
            )
        return False
