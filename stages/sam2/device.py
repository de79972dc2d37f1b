"""On what device and in what precision SAM 2 runs."""

from __future__ import annotations

import torch


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises `ValueError` for a GPU that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"refine.device is {device}, but this machine has no CUDA device: use auto or cpu")
    return chosen


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32
