"""The model class of this package: the public video predictor, taking decoded frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class FrameSource(Protocol):
    """Frames of a video as the model takes them: normalised float tensors (3, S, S)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> torch.Tensor: ...


class Predictor(SAM2VideoPredictor):  # type: ignore[misc]
    """`SAM2VideoPredictor` whose state starts from decoded frames instead of a folder of JPEG files."""

    def init_state_from_frames(
        self, frames: FrameSource | Sequence[torch.Tensor], height: int, width: int
    ) -> dict[str, Any]:
        """An inference state over frames that are read one at a time; height and width of the video in pixels."""
        return {
            "images": frames,
            "num_frames": len(frames),
            "offload_video_to_cpu": False,
            "offload_state_to_cpu": False,
            "video_height": height,
            "video_width": width,
            "device": self.device,
            "storage_device": self.device,
            "point_inputs_per_obj": {},
            "mask_inputs_per_obj": {},
            "cached_features": {},
            "constants": {},
            "obj_id_to_idx": {},
            "obj_idx_to_id": {},
            "obj_ids": [],
            "output_dict_per_obj": {},
            "temp_output_dict_per_obj": {},
            "frames_tracked_per_obj": {},
        }
