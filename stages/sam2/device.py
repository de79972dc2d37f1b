"""On what device and in what precision SAM 2 runs, and what `perceive doctor` says of it."""

from __future__ import annotations

from pathlib import Path

import torch

from stages.refine.config import RefineConfig
from stages.sam2.checkpoint import CONFIGS, NANOS


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


def describe_device(config: RefineConfig) -> dict[str, str]:
    """What refinement will use: back end, checkpoint and whether it is at hand, device, precision. Fetches nothing."""
    if config.backend == "grabcut":
        return {"backend": "grabcut", "checkpoint": "none needed", "device": "cpu", "precision": "none"}
    try:
        device = resolve_device(config.device)
    except ValueError as error:
        return {"backend": "sam2", "checkpoint": checkpoint_state(config.checkpoint), "device": f"error: {error}"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    return {
        "backend": "sam2",
        "checkpoint": checkpoint_state(config.checkpoint),
        "device": name,
        "precision": "bf16" if resolve_dtype(config.precision, device) == torch.bfloat16 else "fp32",
        "compiled": str(config.compile == "on" or (config.compile == "auto" and device.type == "cuda")).lower(),
    }


def checkpoint_state(name: str) -> str:
    """The checkpoint and where it is, or that it is missing."""
    if name in CONFIGS:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, CONFIGS[name][1])
        return f"{name} ({'in the cache' if isinstance(found, str) else 'not in the cache: fetched at the first use'})"
    path = NANOS[name] if name in NANOS else Path(name).expanduser()
    return f"{name} ({'at hand' if path.is_file() else f'missing: {path}'})"
