"""The run's lease: one driver at a time, by fencing epochs.

`lease/<epoch>.json` is created only if absent; whoever creates it holds that epoch, until an `<epoch>.released.json`
appears or its heartbeat (`<epoch>.beat.json`, replaced every quarter of its time to live) falls silent. A driver that
was only asleep may wake up after its lease was taken: it cannot be stopped, so what it writes then must not count.
That part, the fence, is in `pipeline.commits`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from pipeline.store import FileInfo, Store
from schemas.base import Record
from stages.failpoints import failpoint

FOLDER = "lease"
DEFAULT_TTL_S = 60.0
_KEPT_CLAIMS = 8
_NAME = re.compile(r"(\d{8})(\.beat|\.released)?\.json")

log = logging.getLogger(__name__)


class LeaseHeld(Exception):
    """Another driver works on this run; the message names it."""


class LeaseLost(Exception):
    """This driver fell silent for longer than its time to live, and another one has taken the run over."""


class Claim(Record):
    """Who holds an epoch. `machine` tells which process ids `pid` is among; `started` tells reused ids apart."""

    epoch: int
    holder: str
    host: str
    machine: str
    pid: int
    started: str | None
    ttl_s: float
    token: str


@dataclass(frozen=True)
class Standing:
    """The newest claim on a run, and the seconds since it was last heard of; `released` if its holder has ended."""

    claim: Claim
    silent_s: float
    released: bool

    @property
    def live(self) -> bool:
        return not self.released and self.silent_s <= self.claim.ttl_s and not _died(self.claim)


class Lease:
    """The right to commit to a run, held from `acquire` to `release`."""

    def __init__(self, store: Store, claim: Claim, claimed_at: float) -> None:
        self.epoch = claim.epoch
        self.claim = claim
        self.claimed_at = claimed_at
        self._store = store
        self._stop = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._beat_on, name="lease-heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, store: Store, holder: str, ttl_s: float = DEFAULT_TTL_S, at_least: int = 1) -> Lease:
        """Takes the run's lease with an epoch of `at_least` or more.

        Raises `LeaseHeld` while another driver is alive, and `StoreError` where the storage cannot keep drivers apart.
        """
        now = store.clock()
        files = _files(store)
        standing = _standing(store, files, now)
        if standing is not None and standing.live:
            raise LeaseHeld(_held(store, standing))
        claim = _claim(max(_highest(files) + 1, at_least), holder, ttl_s)
        path = _path(claim.epoch)
        if not store.create_if_absent(path, _json(claim)) or _highest(_files(store)) > claim.epoch:
            raise LeaseHeld(f"{store.url} was taken by another driver a moment ago; see `perceive status`")
        failpoint("lease.claimed")
        return cls(store, claim, next(info.mtime for info in _files(store) if info.path == path))

    def check(self) -> None:
        """Raises `LeaseLost` if a newer epoch has been claimed."""
        highest = _highest(_files(self._store))
        if highest > self.epoch:
            raise LeaseLost(
                f"{self._store.url}: epoch {self.epoch} ({self.claim.holder}) was taken over by epoch {highest};"
                " what this driver has not committed yet is left to the other one"
            )

    def release(self) -> None:
        """Ends the heartbeat and gives the run to whoever comes next."""
        self._stop.set()
        self._thread.join()
        self._store.create_if_absent(f"{FOLDER}/{self.epoch:08d}.released.json", _json(self.claim))

    def sweepable(self) -> list[str]:
        """Lease files of epochs long past."""
        oldest = self.epoch - _KEPT_CLAIMS
        return [info.path for info in _files(self._store) if _epoch(info) < oldest]

    def _beat(self) -> None:
        self._store.write_durable(f"{FOLDER}/{self.epoch:08d}.beat.json", _json(self.claim))

    def _beat_on(self) -> None:
        while not self._stop.wait(self.claim.ttl_s / 4):
            try:
                self._beat()
            except OSError as error:  # a network fault: the next beat may pass, and `check` decides in any case
                log.warning("the heartbeat of %s failed: %s", self._store.url, error)


def standing(store: Store) -> Standing | None:
    """Who holds the run, if anybody ever did. Writes only the probe that reads the storage's clock."""
    return _standing(store, _files(store), store.clock())


def _standing(store: Store, files: list[FileInfo], now: float) -> Standing | None:
    epoch = _highest(files)
    if epoch == 0:
        return None
    mine = {info.path: info.mtime for info in files if _epoch(info) == epoch}
    claim = Claim.model_validate_json(store.read(_path(epoch)))
    return Standing(claim, now - max(mine.values()), f"{FOLDER}/{epoch:08d}.released.json" in mine)


def _files(store: Store) -> list[FileInfo]:
    return [info for info in store.files(FOLDER) if _NAME.fullmatch(info.name)]


def _epoch(info: FileInfo) -> int:
    return int(info.name[:8])


def _highest(files: list[FileInfo]) -> int:
    """The newest claimed epoch; a beat or a release whose claim has been swept does not count."""
    claims = [_epoch(info) for info in files if len(info.name) == len("00000000.json")]
    return max(claims, default=0)


def _path(epoch: int) -> str:
    return f"{FOLDER}/{epoch:08d}.json"


def _json(claim: Claim) -> bytes:
    return claim.model_dump_json(indent=1).encode()


def _claim(epoch: int, holder: str, ttl_s: float) -> Claim:
    return Claim(
        epoch=epoch,
        holder=holder,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_process_start(os.getpid()),
        ttl_s=ttl_s,
        token=uuid.uuid4().hex,
    )


def _held(store: Store, standing: Standing) -> str:
    claim = standing.claim
    return (
        f"{store.url} is held by {claim.holder} on {claim.host}, pid {claim.pid}, heard of {standing.silent_s:.0f} s"
        f" ago; stop that driver, or wait until it has been silent for {claim.ttl_s:.0f} s"
    )


def _died(claim: Claim) -> bool:
    """Whether the holder ran among this process's neighbours and is no more."""
    if claim.machine != _machine():
        return False
    if claim.started is not None:
        return _process_start(claim.pid) != claim.started
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _machine() -> str:
    """Host, boot and process-id namespace: containers may share a host name, but then not the namespace."""
    parts = [socket.gethostname()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(file)
        if path.is_symlink():
            parts.append(str(path.readlink()))
        elif path.exists():
            parts.append(path.read_text().strip())
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """The start time of a process in clock ticks since boot; None where there is no such process or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]  # a zombie writes no more
