"""Packing: from kept captions to WebDataset shards (order of calls: `stages.pack.plan`)."""

from __future__ import annotations

from typing import Any

from stages.pack.config import PackConfig
from stages.pack.finish import PackIncompleteError, finish_pack, pack_effort, sampling_index, verify_pack
from stages.pack.frames import PackFrames
from stages.pack.plan import PackPlan, plan_pack
from stages.pack.records import Packed, PackUnit
from stages.pack.stage import PackStage

__all__ = [
    "PackConfig",
    "PackFrames",
    "PackIncompleteError",
    "PackPlan",
    "PackStage",
    "PackUnit",
    "Packed",
    "build_pack",
    "finish_pack",
    "pack_effort",
    "plan_pack",
    "sampling_index",
    "verify_pack",
]


def build_pack(config: PackConfig, root: str, storage_options: dict[str, Any] | None = None) -> PackStage:
    """The stage that writes shards below `root`, the run's folder."""
    return PackStage(config, root, storage_options)
