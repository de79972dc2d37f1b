"""SAM 2 models from checkpoints, on a device, ready to predict."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from stages.sam2.checkpoint import CheckpointError, find_checkpoint
from stages.sam2.nano import build_nano
from stages.sam2.predictor import Predictor

_OVERRIDES = [
    "++model._target_=stages.sam2.predictor.Predictor",
    "++model.binarize_mask_from_pts_for_mem_enc=true",
    "++model.fill_hole_area=0",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
]


def load_model(checkpoint: str, device: torch.device) -> Predictor:
    """The model of `checkpoint` (see `find_checkpoint`) with fp32 weights on `device`, in eval mode.

    Raises `CheckpointError` where the weights are missing or do not fit.
    """
    found = find_checkpoint(checkpoint)
    if found.config is None:
        model = build_nano()
        weights = load_file(found.path)
        weights = {name: tensor.float() for name, tensor in weights.items()}
    else:
        model = build_public(found.config)
        content = torch.load(found.path, map_location="cpu", weights_only=True)
        weights = content.get("model", content)
    problems = model.load_state_dict(weights, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise CheckpointError(
            f"{found.path} does not fit {found.config or 'the nano configuration'}: "
            f"{len(problems.missing_keys)} tensors missing, {len(problems.unexpected_keys)} unknown, the first "
            f"{(problems.missing_keys + problems.unexpected_keys)[0]}"
        )
    return model.to(device).eval()  # type: ignore[no-any-return]


def build_public(config: str, overrides: tuple[str, ...] = ()) -> Predictor:
    """A model of one of the sam2 package's configurations with random weights, on the CPU, in eval mode."""
    from sam2.build_sam import build_sam2_video_predictor

    model: Predictor = build_sam2_video_predictor(
        config, device="cpu", apply_postprocessing=False, hydra_overrides_extra=[*_OVERRIDES, *overrides]
    )
    return model
