"""Checkpoints: which are found, what is said of those that are not, and the weights that come with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.refine.config import RefineConfig
from stages.sam2.checkpoint import CheckpointError, checkpoint_identity, find_checkpoint
from stages.sam2.device import describe_device, resolve_device
from stages.sam2.evaluate import evaluate
from stages.sam2.load import load_model


def test_a_missing_checkpoint_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"path to a \.pt file"):
        find_checkpoint(str(tmp_path / "nothing.pt"))
    other = tmp_path / "weights.pt"
    other.write_bytes(b"")
    with pytest.raises(CheckpointError, match="keep one of the names"):
        find_checkpoint(str(other))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"hf download facebook/sam2\.1-hiera-large"):
        find_checkpoint("facebook/sam2.1-hiera-large")


def test_the_size_of_a_local_file_is_read_from_its_name(tmp_path: Path) -> None:
    path = tmp_path / "my_sam2.1_hiera_base_plus_tuned.pt"
    path.write_bytes(b"x")
    assert find_checkpoint(str(path)).config == "configs/sam2.1/sam2.1_hiera_b+.yaml"


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"nothing": torch.zeros(1)}}, tmp_path / "sam2.1_hiera_tiny.pt")
    with pytest.raises(CheckpointError, match="1 unknown"):
        load_model(str(tmp_path / "sam2.1_hiera_tiny.pt"), torch.device("cpu"))


def test_a_files_identity_is_its_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    a.write_bytes(b"1")
    b.write_bytes(b"1")
    assert checkpoint_identity(str(a)) == checkpoint_identity(str(b))
    b.write_bytes(b"2")
    assert checkpoint_identity(str(a)) != checkpoint_identity(str(b))
    assert checkpoint_identity("facebook/sam2.1-hiera-large") == "facebook/sam2.1-hiera-large"


def test_doctor_names_device_precision_and_checkpoint() -> None:
    told = describe_device(RefineConfig(backend="sam2", checkpoint="nano", device="cpu"))
    assert told["checkpoint"] == "nano (at hand)"
    assert told["precision"] == "fp32"
    assert describe_device(RefineConfig())["backend"] == "grabcut"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no CUDA device"):
        resolve_device("cuda")


def test_the_weights_of_this_package_segment_drawn_scenes() -> None:
    figures = evaluate(load_model("nano", torch.device("cpu")), scenes=6, clips=1, seed=99)
    assert figures["iou"] > 0.88
    assert figures["iou"] > figures["box"] + 0.2
    assert figures["tracked_from_box"] > 0.85


def test_half_precision_gives_the_same_masks() -> None:
    from stages.refine.seeds import Seed
    from stages.sam2.images import FastImages
    from stages.shapes.scene import draw_scene

    model = load_model("nano", torch.device("cpu"))
    scene = draw_scene(np.random.default_rng(4), (256, 256))
    seeds = [Seed(shape.box, (), None) for shape in scene.instances]
    config = RefineConfig(backend="sam2", checkpoint="nano", device="cpu")
    full = FastImages(model, config).refine(scene.image, seeds)
    half = FastImages(model, config.model_copy(update={"precision": "bf16"})).refine(scene.image, seeds)
    ious = [(a.mask & b.mask).sum() / (a.mask | b.mask).sum() for a, b in zip(full, half, strict=True)]
    assert np.mean(ious) > 0.98
