"""How masks are refined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Record

Backend = Literal["grabcut", "sam2"]
Prefer = Literal["auto", "refined", "source"]
Precision = Literal["auto", "fp32", "bf16"]


class RefineConfig(Record):
    """Settings of the refine stage.

    `backend` is `grabcut` (OpenCV, no weights) or `sam2`. `checkpoint` is a Hugging Face id, a path to a SAM 2 `.pt`
    file, or `nano` (the small SAM 2 of this package, trained on drawn shapes). `device` is `auto`, `cpu`, `cuda` or
    `cuda:N`; `precision` `auto` means bf16 on a GPU and fp32 on a CPU. `compile` compiles the image encoder (`auto`:
    on a GPU).

    `two_pass` feeds each first mask back as a prompt. `multimask` lets SAM 2 propose three masks where the prompt is
    one point, chosen by predicted IoU. `prefer` decides between the refined and the source
    mask: `auto` is the rule of `stages.refine.verdict`. `fill_holes` is the largest hole filled, as a share of the
    mask's area. `redetect` is the IoU with a source mask on an annotated frame below which a track counts as drifted
    and is prompted anew from that frame. `jump_area` is the factor of area, `jump_move` the distance in its own sides,
    by which a tracked object must change from one frame to the next to be doubted and tried anew (SAM 2 alone).

    `image_batch`, `region_batch`, `frame_batch` and `workers` (threads that decode and pack; 0: one a core, at most
    16) change speed and memory, never a mask; a batch that does not fit is halved. `gpu_share` workers share a GPU,
    each with its own copy of the model: while one waits for Python, another keeps the device busy.
    """

    backend: Backend = "grabcut"
    checkpoint: str = "facebook/sam2.1-hiera-large"
    device: str = "auto"
    precision: Precision = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    two_pass: bool = False
    multimask: bool = True
    prefer: Prefer = "auto"
    fill_holes: float = Field(default=0.002, ge=0, le=1)
    redetect: float = Field(default=0.5, ge=0, le=1)
    jump_area: float = Field(default=4.0, gt=1)
    jump_move: float = Field(default=1.5, gt=0)
    grabcut_side: int = Field(default=192, ge=32)
    grabcut_steps: int = Field(default=4, ge=1)
    image_batch: int = Field(default=16, ge=1)
    region_batch: int = Field(default=64, ge=1)
    frame_batch: int = Field(default=16, ge=1)
    workers: int = Field(default=0, ge=0)
    gpu_share: int = Field(default=3, ge=1)
