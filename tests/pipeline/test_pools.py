"""How many workers a run takes: what the configuration says, else what the cluster has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from pipeline.work import Capacity, Node, Pool, PoolSpec, RunnerConfig
from schemas.base import Key, Record, Row
from stages.base import Resources, Stage

LAPTOP = Capacity(cpus=10, gpus=0, cores=2)
NODE_OF_8_GPUS = Capacity(cpus=104, gpus=8, cores=96)


class Unit(Record):
    key: Key


class Needs(Stage):
    """A stage that only says what its workers need."""

    name = "needs"
    version = 1
    table = "needs"
    unit = Unit
    row = Row
    unit_field = "key"
    group_by = ("key",)
    batch_groups = 1

    def __init__(self, cpus: float = 1, gpus: float = 0) -> None:
        self.resources = Resources(num_cpus=cpus, num_gpus=gpus)

    def settings(self) -> dict[str, Any]:
        return {}

    def process(self, units: pa.Table) -> Iterator[pa.Table]:
        yield units


def sizes(there: Capacity, needs: dict[str, Stage], **config: Any) -> dict[str, int]:
    nodes = [Node(name, stage, "needs", b"", pa.table({}), pool=name) for name, stage in needs.items()]
    return {spec.name: spec.workers for spec in RunnerConfig(**config).pools(nodes, there)}


def test_a_laptop_has_a_cpu_worker_a_core_and_one_for_the_network() -> None:
    assert sizes(LAPTOP, {"cpu": Needs(), "net": Needs()}) == {"cpu": 2, "net": 1}


def test_every_gpu_gets_its_workers_and_cpu_workers_the_cores_that_are_left() -> None:
    needs = {"gpu-refine": Needs(cpus=4, gpus=1), "cpu": Needs(), "net": Needs()}
    assert sizes(NODE_OF_8_GPUS, needs) == {"gpu-refine": 8, "cpu": 71, "net": 1}


def test_several_workers_share_a_gpu() -> None:
    assert sizes(Capacity(17, 1, 16), {"gpu-refine": Needs(cpus=4 / 3, gpus=1 / 3)}) == {"gpu-refine": 3}


def test_pools_with_gpus_share_them_evenly() -> None:
    needs = {"gpu-refine": Needs(gpus=1), "gpu-distill": Needs(gpus=2)}
    assert sizes(NODE_OF_8_GPUS, needs) == {"gpu-refine": 4, "gpu-distill": 2}


def test_the_configuration_has_the_last_word() -> None:
    needs = {"gpu-refine": Needs(gpus=1), "cpu": Needs(), "net": Needs()}
    workers = {"gpu-refine": 2, "cpu": 5, "net": 3}
    assert sizes(NODE_OF_8_GPUS, needs, workers=workers) == workers


@pytest.mark.parametrize("there", [LAPTOP, Capacity(cpus=1, gpus=0, cores=1)])
def test_a_pool_is_never_empty(there: Capacity) -> None:
    assert min(sizes(there, {"gpu-refine": Needs(cpus=4, gpus=1), "cpu": Needs(cpus=2)}).values()) == 1


def test_a_lane_has_its_worker_and_another_one_when_that_is_gone() -> None:
    pool = Pool(PoolSpec("net", workers=2, slots=2, num_cpus=1, num_gpus=0))

    def take(lane: int | None = None) -> int | None:
        number = pool.pick(lane)
        if number is not None:
            pool.workers[number] = object()
            pool.load[number] += 1
        return number

    anyone = take()
    first, second = take(0), take(1)
    assert {first, second} == {1, 2}
    assert first == anyone, "a worker that no lane has yet, before a new one"
    assert take(0) is None, "its worker is full, and no other will do"
    assert take(1) == second
    pool.drop(first)
    assert take(0) == 3
    assert len(pool.workers) == 2
