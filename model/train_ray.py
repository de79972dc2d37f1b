"""The same loop on the workers of Ray Train: DDP for stages 1 and 1.5, FSDP2 for stage 2, gloo or NCCL.

Workers keep their own checkpoints in the output folder, which all of them must reach (a shared file system on several
nodes). A worker that dies takes the group down; Ray Train starts it again and it goes on from the last checkpoint.
"""

from __future__ import annotations

import os
from typing import Any

from model.train import Trainer, TrainResult
from model.train_config import TrainConfig
from model.world import join_world


def train_with_ray(config: TrainConfig) -> TrainResult:
    """Runs `config.ray_workers` workers; connects to the cluster of `RAY_ADDRESS` or starts an embedded one.

    Raises Ray Train's error when the workers fail more than `max_failures` times.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    started = not ray.is_initialized()
    if started:
        cpus = max(4, int(config.ray_workers * config.cpus_per_worker) + 2)
        if "RAY_ADDRESS" in os.environ:
            ray.init()
        else:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False)
    # the cluster's GPUs count, not this process's: a driver often runs on a machine without
    gpu = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= config.ray_workers
    output = config.output.absolute()
    scaling = ScalingConfig(
        num_workers=config.ray_workers,
        use_gpu=gpu,
        resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1.0} if gpu else {}),
    )
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config.model_copy(update={"output": output}).model_dump_json()},
        scaling_config=scaling,
        run_config=RunConfig(
            name="ray", storage_path=str(output), failure_config=FailureConfig(max_failures=config.max_failures)
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
    )
    # what the first worker returned; Ray's own stubs know neither this nor that a loop may return anything
    try:
        result: Any = trainer.fit()
    finally:
        if started:
            ray.shutdown()
    made: TrainResult = result.return_value
    return made


def _worker(settings: dict[str, Any]) -> Any:
    config = TrainConfig.model_validate_json(settings["config"]).model_copy(update={"ray_workers": 1})
    with join_world(config.device) as world:
        return Trainer(config, world).run()
