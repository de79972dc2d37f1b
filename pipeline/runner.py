"""The runner: nodes of stages over pools of Ray workers. The only module that knows Ray.

Plain actors with bounded hand-outs rather than Ray Data: on two cores they start in a third of the time, cannot
starve each other of CPU slots, and let the driver commit, bisect and release GPUs itself. Workers write parts; the
driver, which holds the lease, commits them. A node feeds the nodes that follow it as soon as its rows are committed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError

from pipeline.schedule import Batch, Fault, Retry, after_fault, count_groups, cut, groups_per_batch, parted
from pipeline.work import Capacity, Node, NodeCounts, Piece, Pool, PoolSpec, RunnerConfig, Work, WorkerError, uncovered
from stages.base import (
    BudgetSpent,
    CannotGoOn,
    Drained,
    Funds,
    Outage,
    StageContractError,
    TransientError,
    WorkerLost,
    failed_rows,
)
from stages.teachers.budget import Account

log = logging.getLogger("perceive.runner")

_START_TRIES = 4
_MORE_LOGICAL_CPUS = 8
_RAISE_IT = "Raise runner.stall_timeout_s if one batch may take longer."
_DEATHS = (ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError)


class RunStopped(Exception):
    """The run was asked to stop; what had finished is committed, the rest is pending."""


class BudgetReached(RunStopped):
    """The money that the run may spend is at its end; what was answered is committed, the rest is pending."""


class RunStalled(Exception):
    """No batch has finished within the configured time."""


class DoesNotFit(Exception):
    """The workers that the run asks for cannot be placed on the cluster."""


class _WorkerBody:
    """One process that runs batches of the stages of its pool and writes their parts."""

    def __init__(self) -> None:
        self._work: Work | None = None
        self._source: list[Any] = []
        self._loading = threading.Lock()

    @ray.method(num_returns="streaming")
    def run(self, source: list[Any], node: str, units: pa.Table) -> Iterator[Piece]:
        """Runs a batch of the runner whose work `source` refers to; it is fetched with that runner's first batch.

        Every call carries the reference: were the work handed over by a call of its own, that call could be overtaken
        by as many batches as the worker has slots, which would wait for it for ever.
        """
        yield from self._work_of(source).pieces(node, units)

    def drain(self, source: list[Any]) -> None:
        """Begins nothing more of this runner's; what is begun goes on to its end."""
        self._work_of(source).drain()

    def _work_of(self, source: list[Any]) -> Work:
        with self._loading:
            if self._work is None or self._source != source:
                self.close()
                self._work, self._source = ray.get(source[0]), source
            return self._work

    def close(self) -> None:
        if self._work is not None:
            self._work.close()


_Worker: Any = ray.remote(_WorkerBody)
_Account: Any = ray.remote(Account)


class _SharedFunds:
    """An account that all workers of a build draw from."""

    def __init__(self, usd: float) -> None:
        self._account = _Account.options(num_cpus=0).remote(usd)

    def draw(self, least: float) -> float:
        taken: float = ray.get(self._account.draw.remote(least))
        return taken

    def give_back(self, usd: float) -> None:
        ray.get(self._account.give_back.remote(usd))


class Cluster:
    """A connection to Ray for the length of a build: to `RAY_ADDRESS`, or to an embedded Ray that it starts.

    Workers of CPU pools outlive a runner here, so that a build of five phases starts its processes once.
    """

    def __init__(self, config: RunnerConfig) -> None:
        self._config = config
        self._spare: dict[PoolSpec, list[Any]] = {}
        self._mine = False
        self._funds: Funds | None = None

    def connect(self) -> None:
        """Connects, or starts Ray; does nothing when that has been done (by anybody in this process)."""
        if ray.is_initialized():
            return
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {"PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        address = os.environ.get("RAY_ADDRESS")
        where: dict[str, Any] = {"address": address} if address else self._embedded()
        for tries_left in reversed(range(_START_TRIES)):
            try:
                ray.init(
                    **where,
                    runtime_env={"env_vars": env},
                    logging_level=logging.ERROR,
                    log_to_driver=self._config.worker_logs,
                )
                break
            except Exception as error:  # Ray has no type of its own for a node that is slow to start
                if address or not tries_left or "timed out during startup" not in str(error):
                    raise
                log.warning("Ray was slow to start on this busy machine; starting it again")
                ray.shutdown()
        self._mine = True

    def _embedded(self) -> dict[str, Any]:
        # Pools bound the load; logical CPUs only have to be enough for all pools of all phases side by side.
        cpus = self._config.cpus() + _MORE_LOGICAL_CPUS
        options: dict[str, Any] = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
        if self._config.num_gpus != "auto":
            options["num_gpus"] = self._config.num_gpus
        return options

    def capacity(self) -> Capacity:
        """What the connected cluster has. On an existing cluster `num_cpus: auto` means all of it."""
        total = ray.cluster_resources()
        cpus = total.get("CPU", 0.0)
        whole = "RAY_ADDRESS" in os.environ and self._config.num_cpus == "auto"
        return Capacity(cpus=cpus, gpus=total.get("GPU", 0.0), cores=cpus if whole else self._config.cpus())

    def funds(self, usd: float) -> Funds:
        """One account of `usd` dollars for all phases of a build; later calls give the same one."""
        self.connect()
        if self._funds is None:
            self._funds = _SharedFunds(usd)
        return self._funds

    def take(self, spec: PoolSpec) -> Any:
        """A worker of this kind: a spare one, or a new one."""
        spare = self._spare.get(spec, [])
        return spare.pop() if spare else self._start(spec)

    def give_back(self, spec: PoolSpec, worker: Any) -> None:
        """Keeps an idle CPU worker for the next phase; lets go of one that holds a GPU."""
        if spec.num_gpus:
            ray.wait([worker.close.remote()], timeout=self._config.stop_grace_s)
            ray.kill(worker)
        else:
            self._spare.setdefault(spec, []).append(worker)

    def close(self) -> None:
        """Ends the spare workers, and Ray where it was started here."""
        if ray.is_initialized():
            for worker in [worker for workers in self._spare.values() for worker in workers]:
                ray.wait([worker.close.remote()], timeout=self._config.stop_grace_s)
                ray.kill(worker)
        self._spare.clear()
        if self._mine:
            ray.shutdown()
            self._mine = False

    @staticmethod
    def _start(spec: PoolSpec) -> Any:
        # Where batches run beside each other there is a hand free for `drain`.
        hands = spec.slots + 1 if spec.slots > 1 else 1
        options: dict[str, Any] = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus, "max_concurrency": hands}
        if spec.memory_bytes:
            options["memory"] = spec.memory_bytes
        return _Worker.options(**options).remote()


@dataclass
class _Flight:
    """A batch on its way: the worker that has it and the pieces that it has yielded."""

    batch: Batch
    worker: int
    patience_s: float = 0.0
    pieces: list[Piece] = field(default_factory=list)


class Runner:
    """Runs nodes to their end. One use; `counts` may be read while it runs."""

    def __init__(
        self,
        work: Work,
        nodes: Sequence[Node],
        commit: Callable[[Node, Piece], None],
        cluster: Cluster,
        config: RunnerConfig,
        read: Callable[[Piece], pa.Table],
        tick: Callable[[Mapping[str, NodeCounts]], None] = lambda _counts: None,
    ) -> None:
        self._work, self._config, self._commit, self._read, self._tick = work, config, commit, read, tick
        self._cluster = cluster
        self._source: list[Any] = []
        self._nodes = {node.name: node for node in nodes}
        self._pools: dict[str, Pool] = {}
        self._flying: dict[Any, _Flight] = {}
        self._retry = Retry(first_wait_s=config.retry_wait_s)
        self._stop = threading.Event()
        self._last_finish = time.monotonic()
        self._away = ""
        self._unpaid: set[str] = set()
        self._drained: set[tuple[str, int]] = set()
        self.counts = {node.name: NodeCounts() for node in nodes}

    def run(self) -> dict[str, NodeCounts]:
        """Runs until nothing is pending. Raises `RunStopped` after SIGINT or SIGTERM, `BudgetReached` where only what
        the budget does not pay for is left, `RunStalled`, `DoesNotFit`,
        `WorkerError` when a stage cannot open, `StageContractError` on a stage that loses units."""
        if not any(len(node.units) for node in self._nodes.values()):
            return self.counts
        with self._signals():
            self._cluster.connect()
            there = self._cluster.capacity()
            self._pools = {spec.name: Pool(spec) for spec in self._config.pools(list(self._nodes.values()), there)}
            self._check_fit(there)
            self._share_limits()
            self._source = [ray.put(self._work)]
            for node in self._nodes.values():
                self._enqueue(node, node.units)
            try:
                self._loop()
            finally:
                self._release_all()
        if self._stop.is_set():
            raise RunStopped("stopped on request; run the same command again to go on")
        if self._unpaid:
            left = sum(self.counts[name].pending for name in self._unpaid)
            raise BudgetReached(
                f"stopped before the budget: {left} units of {', '.join(sorted(self._unpaid))} are left"
            )
        return self.counts

    def _share_limits(self) -> None:
        """Tells stages that ask a teacher how many workers ask beside each other, before they travel there."""
        asking = [node for node in self._nodes.values() if node.stage.asks]
        workers = sum(self._pools[name].spec.workers for name in {node.pool for node in asking})
        for node in asking:
            node.stage.share(workers)

    def _loop(self) -> None:
        while self._flying or (not self._stop.is_set() and any(pool.queue for pool in self._pools.values())):
            if self._stop.is_set():
                self._drain()
            else:
                self._dispatch()
            if self._flying:
                ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=1.0)
                for stream in ready:
                    self._advance(stream)
            else:
                time.sleep(0.05)
            self._release_drained()
            self._tick(self.counts)
            if self._overdue():
                return

    def _drain(self) -> None:
        """Tells workers that have several batches, most of whose units may still wait for their turn."""
        for pool in self._pools.values():
            for number, worker in pool.workers.items():
                if pool.spec.slots > 1 and (pool.spec.name, number) not in self._drained:
                    worker.drain.remote(self._source)
                    self._drained.add((pool.spec.name, number))

    def _overdue(self) -> bool:
        """Whether a stop has waited long enough for what is in flight; raises `RunStalled` where nothing moves."""
        still = time.monotonic() - self._last_finish
        if self._stop.is_set():
            return still > self._config.stop_grace_s
        patience = max((flight.patience_s for flight in self._flying.values()), default=0.0)
        if still > max(self._config.stall_timeout_s, patience):
            waiting = sorted({flight.batch.node for flight in self._flying.values()})
            raise RunStalled(f"nothing has finished for {still:.0f} s; in flight: {waiting}. {self._away or _RAISE_IT}")
        return False

    def _enqueue(self, node: Node, units: pa.Table) -> None:
        if not len(units):
            return
        if node.name in self._unpaid:
            self.counts[node.name].pending += len(units)
            return
        stage, pool = node.stage, self._pools[node.pool]
        by, most = stage.group_by, max(stage.most_groups, self._config.most_groups)
        hands = pool.spec.workers * (1 if stage.most_groups else pool.spec.slots)
        size = groups_per_batch(count_groups(units, by), hands, stage.batch_groups, most)
        parts = parted(units, by, pool.spec.workers if stage.shares_requests else 1)
        for lane, part in enumerate(parts):
            own = lane if len(parts) > 1 else None
            pool.queue.extend(Batch(node.name, table, lane=own) for table in cut(part, by, size))
        self.counts[node.name].pending += len(units)

    def _dispatch(self) -> None:
        now = time.monotonic()
        for pool in self._pools.values():
            for _ in range(len(pool.queue)):
                batch = pool.queue.popleft()
                if batch.not_before > now:
                    pool.queue.append(batch)
                    continue
                number = pool.pick(batch.lane)
                if number is None and batch.lane is None:
                    pool.queue.appendleft(batch)  # all workers are full
                    break
                if number is None:
                    pool.queue.append(batch)
                    continue
                if number not in pool.workers:
                    pool.workers[number] = self._cluster.take(pool.spec)
                pool.load[number] += 1
                stream = pool.workers[number].run.remote(self._source, batch.node, batch.units)
                patience_s = self._nodes[batch.node].stage.patience_s(batch.units)
                self._flying[stream] = _Flight(batch, number, patience_s)

    def _advance(self, stream: Any) -> None:
        flight = self._flying[stream]
        node = self._nodes[flight.batch.node]
        try:
            piece = ray.get(next(stream))
        except StopIteration:
            self._land(stream)
            self._moved()
            self._feed(node, flight.pieces)
        except (StageContractError, WorkerError):
            raise
        except CannotGoOn as error:  # while the worker closed what it had open before
            raise WorkerError(f"{node.name} cannot start: {_cause(error)}") from error
        except BudgetSpent:
            self._unfunded(stream)
        except Drained:
            self._land(stream)
            self._moved()
            self._feed(node, flight.pieces)
        except _DEATHS as error:
            self._fault(stream, Fault.DEATH, str(error).splitlines()[0])
        except WorkerLost as error:
            self._fault(stream, Fault.DEATH, _cause(error))
        except Outage as error:
            self._fault(stream, Fault.OUTAGE, _cause(error))
        except TransientError as error:
            self._fault(stream, Fault.TRANSIENT, _cause(error))
        except Exception as error:
            self._fault(stream, Fault.ERROR, _cause(error))
        else:
            self._commit(node, piece)
            flight.pieces.append(piece)
            self.counts[node.name].add(piece)
            self._moved()

    def _land(self, stream: Any, dead: bool = False) -> None:
        flight = self._flying.pop(stream)
        pool = self._pools[self._nodes[flight.batch.node].pool]
        if dead and flight.worker in pool.workers:
            ray.kill(pool.drop(flight.worker))  # one that has lost its engine lives on and holds a GPU
        elif flight.worker in pool.load:
            pool.load[flight.worker] -= 1

    def _moved(self) -> None:
        self._last_finish, self._away = time.monotonic(), ""

    def _may_still_get(self, pool: Pool) -> bool:
        """Whether work upstream may yet fill this pool's queue; where not, its workers (and GPUs) go free."""
        active = {flight.batch.node for flight in self._flying.values()}
        active |= {batch.node for other in self._pools.values() for batch in other.queue}
        todo, reachable = list(active), set(active)
        while todo:
            above = todo.pop()
            below = [n.name for n in self._nodes.values() if n.after == above and n.name not in reachable]
            reachable.update(below)
            todo += below
        return any(self._nodes[name].pool == pool.spec.name for name in reachable)

    def _fault(self, stream: Any, fault: Fault, message: str) -> None:
        flight = self._flying[stream]
        node = self._nodes[flight.batch.node]
        left = uncovered(flight.batch.units, flight.pieces, node)
        self._land(stream, dead=fault is Fault.DEATH)
        if fault is Fault.OUTAGE:
            self._away = message  # nothing has moved: an outage that does not end is a stall
        else:
            self._moved()
        self._feed(node, flight.pieces)
        if not len(left):
            return
        log.warning("%s: %d units failed (%s): %s", node.name, len(left), fault.value, message)
        remaining = replace(flight.batch, units=left)
        again = after_fault(remaining, node.stage.group_by, fault, time.monotonic(), self._retry)
        if again:
            self._pools[node.pool].queue.extend(again)
            return
        piece = self._work.write(node.name, left, failed_rows(node.stage, left, fault.value, message))
        self._commit(node, piece)
        self.counts[node.name].add(piece)

    def _unfunded(self, stream: Any) -> None:
        """Leaves what a node has not asked yet: the money is at its end."""
        flight = self._flying[stream]
        node = self._nodes[flight.batch.node]
        self._land(stream)
        self._moved()
        self._feed(node, flight.pieces)
        self._unpaid.add(node.name)
        pool = self._pools[node.pool]
        kept = [batch for batch in pool.queue if batch.node != node.name]
        pool.queue.clear()
        pool.queue.extend(kept)

    def _feed(self, node: Node, pieces: list[Piece]) -> None:
        below = [child for child in self._nodes.values() if child.after == node.name and child.derive]
        if not below or not pieces:
            return
        rows = pa.concat_tables([self._read(piece) for piece in pieces])
        for child in below:
            assert child.derive is not None
            self._enqueue(child, child.derive(rows))

    def _check_fit(self, there: Capacity) -> None:
        total = {"CPU": there.cpus, "GPU": there.gpus}
        wanted = {
            "CPU": sum(pool.spec.num_cpus * pool.spec.workers for pool in self._pools.values()),
            "GPU": sum(pool.spec.num_gpus * pool.spec.workers for pool in self._pools.values()),
        }
        short = {name: (need, total[name]) for name, need in wanted.items() if need > total[name] + 1e-6}
        if short:
            numbers = ", ".join(f"{need:g} {name} wanted, {have:g} there" for name, (need, have) in short.items())
            raise DoesNotFit(
                f"the workers do not fit the cluster: {numbers}; lower runner.workers or the stages' needs"
            )

    def _release_drained(self) -> None:
        """Lets the workers (and GPUs) of pools go into which no work can come any more."""
        for pool in self._pools.values():
            if pool.workers and not pool.queue and not any(pool.load.values()) and not self._may_still_get(pool):
                for number in list(pool.workers):
                    self._cluster.give_back(pool.spec, pool.drop(number))

    def _release_all(self) -> None:
        """After an error or a stop: what is still at work ends now; idle workers are kept."""
        for pool in self._pools.values():
            for number in list(pool.workers):
                idle = not pool.load[number]
                worker = pool.drop(number)
                if idle:
                    self._cluster.give_back(pool.spec, worker)
                else:
                    ray.kill(worker)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM let what is in flight finish; a second one ends the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, _frame: FrameType | None) -> None:
            log.warning("stopping on %s", signal.Signals(number).name)
            self._stop.set()
            signal.signal(number, before[number])

        before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _cause(error: Exception) -> str:
    """The innermost line of a remote error, which is what a person needs to read."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}"[:500]
