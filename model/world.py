"""One process or many: ranks, the device, how the model is wrapped, and its whole state for a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.pam import Pam


@dataclass(frozen=True)
class World:
    """This process among the workers of a training run."""

    rank: int = 0
    ranks: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def total(self, *values: Tensor | float) -> list[float]:
        """Sums over all workers."""
        sums = torch.tensor([float(v) for v in values], dtype=torch.float64, device=self.device)
        if self.ranks > 1:
            dist.all_reduce(sums)
        return [float(v) for v in sums.tolist()]

    def wait(self) -> None:
        """Returns when every worker is here."""
        if self.ranks > 1:
            dist.barrier()

    def share(self, value: Any) -> Any:
        """The first worker's value, on all."""
        if self.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, on all, in the order of their ranks."""
        if self.ranks == 1:
            return [value]
        box: list[Any] = [None] * self.ranks
        dist.all_gather_object(box, value)
        return box


def pick_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, `cuda` as well; `cuda:N` is that GPU on every worker."""
    if name not in ("auto", "cuda"):
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cuda" if name == "cuda" else "cpu")


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The world of this process: a process group that is there already (Ray Train), torchrun's, or a single process."""
    place = pick_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), place)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        try:
            yield World(dist.get_rank(), dist.get_world_size(), place)
        finally:
            dist.destroy_process_group()
    else:
        yield World(device=place)


class Wrapped:
    """A PAM as the workers train it: alone, replicated (DDP) or sharded (FSDP2)."""

    def __init__(self, pam: Pam, world: World, sharded: bool, bf16: bool) -> None:
        self.pam, self.world, self.sharded = pam.to(world.device), world, sharded
        self.module: nn.Module = self.pam
        if sharded:
            _shard(self.pam, world, bf16)
        elif world.ranks > 1:
            ids = [world.device] if world.device.type == "cuda" else None
            # an image leaves the video parts without gradients
            self.module = nn.parallel.DistributedDataParallel(self.pam, device_ids=ids, find_unused_parameters=True)

    def accumulate(self, last: bool) -> Any:
        """A context in which gradients stay local unless this is the step's last micro-batch."""
        if self.sharded:
            self.pam.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        if self.world.ranks > 1 and not last:
            return self.module.no_sync()  # type: ignore[operator]
        return nullcontext()

    def gradients(self, scale: float, limit: float) -> float:
        """Turns gradients averaged over the workers into `scale` x their sum, clips, returns the norm before it."""
        found = [p.grad for p in self.pam.parameters() if p.grad is not None]
        torch._foreach_mul_(found, scale * self.world.ranks)
        norm = nn.utils.clip_grad_norm_([p for p in self.pam.parameters() if p.grad is not None], limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def state(self) -> dict[str, Any]:
        """All weights on the CPU under `Pam`'s names. Every worker calls it; sharded, only the first gets them."""
        if not self.sharded:
            return {name: value.detach().cpu().clone() for name, value in self.pam.state_dict().items()}
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(self.pam, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse; every worker gives the whole state."""
        if not self.sharded:
            self.pam.load_state_dict(state)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(self.pam, state, options=StateDictOptions(full_state_dict=True))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's whole state on the CPU."""
        if not self.sharded:
            return optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(self.pam, optimizer, options=options)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """The inverse of `optimizer_state`."""
        if not self.sharded:
            optimizer.load_state_dict(state)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        set_optimizer_state_dict(self.pam, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _shard(pam: Pam, world: World, bf16: bool) -> None:
    """FSDP2: each layer of the language model its own unit, the rest one; sums of gradients in float32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.ranks,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    for layer in pam.llm.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(pam, mesh=mesh, mp_policy=policy)
