"""The same loop on the workers of Ray Train: DDP for stages 1 and 1.5, FSDP2 for stage 2, gloo or NCCL.

Workers keep their own checkpoints in the output folder, which all of them must reach (a shared file system on several
nodes). A worker that dies takes the group down; Ray Train starts it again and it goes on from the last checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from model.train import Trainer, TrainResult
from model.train_config import TrainConfig, TrainError
from model.world import join_world


def train_with_ray(config: TrainConfig) -> TrainResult:
    """Runs `config.ray_workers` workers; connects to the cluster of `RAY_ADDRESS` or starts an embedded one.

    Raises Ray Train's error when the workers fail more than `max_failures` times, TrainError for too few GPUs.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        cpus = max(4, int(config.ray_workers * config.cpus_per_worker) + 2)
        if "RAY_ADDRESS" in os.environ:
            ray.init()
        else:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False)
    try:
        # the cluster's GPUs count, not this process's: a driver often runs on a machine without
        gpu = on_gpus(config, int(ray.cluster_resources().get("GPU", 0)))
        return _fit(absolute(config), gpu)
    finally:
        if started:
            ray.shutdown()


def _fit(config: TrainConfig, gpu: bool) -> TrainResult:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    scaling = ScalingConfig(
        num_workers=config.ray_workers,
        use_gpu=gpu,
        resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1.0} if gpu else {}),
    )
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config.model_dump_json()},
        scaling_config=scaling,
        run_config=RunConfig(
            name="ray", storage_path=str(config.output), failure_config=FailureConfig(max_failures=config.max_failures)
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
    )
    # what the first worker returned; Ray's own stubs know neither this nor that a loop may return anything
    result: Any = trainer.fit()
    made: TrainResult = result.return_value
    return made


def on_gpus(config: TrainConfig, gpus: int) -> bool:
    """Whether the workers have a GPU each, in a cluster of so many. Raises TrainError when only some would have."""
    if config.device == "cpu" or (gpus == 0 and config.device == "auto"):
        return False
    if gpus < config.ray_workers:
        raise TrainError(
            f"ray_workers: {config.ray_workers} need a GPU each, and the cluster has {gpus}: lower ray_workers, or set "
            "device: cpu"
        )
    return True


def absolute(config: TrainConfig) -> TrainConfig:
    """The configuration with its local paths made absolute: workers start in folders of their own.

    URLs stay, and names that are no file or folder here (Hugging Face ids, `nano`).
    """
    start, data = config.start, config.data
    fresh = start.fresh and start.fresh.model_copy(update={"sam": _here(start.fresh.sam)})
    names = {name: _here(getattr(start, name)) for name in ("released", "llm", "tokenizer")}
    kept = data.feature_cache
    paths = {
        "shards": [_path(shard) for shard in data.shards],
        "jsonl": [file.absolute() for file in data.jsonl],
        "jsonl_root": data.jsonl_root.absolute(),
        "feature_cache": kept if kept in (None, "memory", "device") else _path(str(kept)),
    }
    begun = names | {"fresh": fresh, "checkpoint": start.checkpoint and start.checkpoint.absolute()}
    return config.model_copy(
        update={
            "output": config.output.absolute(),
            "start": start.model_copy(update=begun),
            "data": data.model_copy(update=paths),
        }
    )


def _path(text: str) -> str:
    return text if "://" in text or "::" in text else str(Path(text).absolute())


def _here(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def _worker(settings: dict[str, Any]) -> Any:
    config = TrainConfig.model_validate_json(settings["config"]).model_copy(update={"ray_workers": 1})
    with join_world(config.device) as world:
        return Trainer(config, world).run()
