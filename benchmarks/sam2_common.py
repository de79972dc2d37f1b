"""What the SAM 2 benchmarks share: weights, photos and a video on disk, mask outlines, and the report's heading."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.sam2.load import build_public
from stages.sam2.nano import build_nano
from stages.shapes.scene import draw_scene

CONFIGS = {"large": "configs/sam2.1/sam2.1_hiera_l.yaml", "tiny": "configs/sam2.1/sam2.1_hiera_t.yaml"}


def random_checkpoint(size: str, folder: Path) -> Path:
    """A checkpoint of random weights in the format of the published ones: a network's speed does not depend on them."""
    if size == "nano":
        torch.manual_seed(0)
        save_file(build_nano().state_dict(), folder / "nano_random.safetensors")
        return folder / "nano_random.safetensors"
    path = folder / f"sam2.1_hiera_{size}_random.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save({"model": build_public(CONFIGS[size]).state_dict()}, path)
    return path


def with_outlines(logits: Tensor, boxes: Tensor) -> Tensor:
    """Logits (r, s, s) of the same cost but of ellipses in the boxes (r, 4; fractions of the image).

    Packing a mask costs by its outline, and a network with random weights draws noise; every way that is compared
    packs these instead.
    """
    centre = (torch.arange(logits.shape[-1], device=logits.device) + 0.5) / logits.shape[-1]
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    across = (centre - middle[:, :1]) / half[:, :1]
    down = (centre - middle[:, 1:]) / half[:, 1:]
    ellipse = 8 * (1 - across[:, None, :] ** 2 - down[:, :, None] ** 2)
    return ellipse + 0 * torch.nan_to_num(logits)


def boxes_for(index: int, count: int) -> np.ndarray:
    """`count` boxes (count, 4) as fractions of the image, of a tenth to a third of each side."""
    rng = np.random.default_rng((7, index))
    sides = rng.uniform(0.1, 0.33, (count, 2))
    corner = rng.uniform(0, 1 - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def write_photos(folder: Path, count: int, width: int, height: int) -> list[str]:
    """JPEG files of drawn scenes with grain, about as large as photos of that size."""
    paths = []
    for index in range(count):
        path = folder / f"{width}x{height}_{index}.jpg"
        if not path.exists():
            image = draw_scene(np.random.default_rng(index), (width, height)).image
            cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
        paths.append(str(path))
    return paths


@contextmanager
def public_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inference as a user of the package would set it up: inference mode, and autocast with its cache of weights."""
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


def heading(title: str) -> str:
    """Title, date, commit and hardware, for the top of a result."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = os.environ.get("COMMIT") or found.stdout.strip() or "unknown"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{title}\n{now}, commit {commit}, {device}, {os.cpu_count()} cores, torch {torch.__version__}\n"


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a piece of work, the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
