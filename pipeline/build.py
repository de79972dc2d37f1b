"""Building a run from its configuration: the phases in order, under the lease; and its accounts."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import orjson
import polars as pl
import yaml

from pipeline.config import EngineConfig
from pipeline.engine import Corpus, Counts, build_stages
from pipeline.flow import refine_to_distill, score_captions
from pipeline.forget import finish_forgetting
from pipeline.intake import ingest, select_regions
from pipeline.output import decide_captions, decisions
from pipeline.packing import pack_kept, packed_counts
from pipeline.session import BuildResult, Progress, Session, Silent
from pipeline.tables import Run

PHASES = ("ingest", "select", "refine", "chunk", "distill", "score", "decide", "pack")
CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"


class UnbalancedError(Exception):
    """The accounts of a stage do not add up: a defect, never a matter of the data."""


def build(
    config: EngineConfig,
    phases: Sequence[str] = PHASES,
    progress: Progress | None = None,
    limit: int | None = None,
    where: Mapping[str, str] | None = None,
    retry: bool = False,
    free: bool = False,
    budget_usd: float | None = None,
) -> BuildResult:
    """Does what is pending in these phases and nothing else; raises `UnbalancedError` if a row got lost.

    `limit` bounds the units of each stage, `where` the regions (column to value); `retry` takes failed and blocked
    units again; `free` asks no teacher; `budget_usd` is the most that the replies in the run's ledger may have cost in
    all: what they do not pay for stays pending, and `BudgetReached` is raised. Raises `LeaseHeld` while another build
    holds the run.
    """
    with session_of(config, progress, limit, where, retry, free, budget_usd) as session:
        run_phases(session, phases)
    return session.result


@contextmanager
def session_of(
    config: EngineConfig,
    progress: Progress | None = None,
    limit: int | None = None,
    where: Mapping[str, str] | None = None,
    retry: bool = False,
    free: bool = False,
    budget_usd: float | None = None,
) -> Iterator[Session]:
    """Holds the run for a build made of `run_phases`; checks and logs the accounts at its end, like `build`."""
    live = config.runtime()
    run = Run.open(live.run, live.storage_options)
    with run.writer("perceive build", ttl_s=live.runner.lease_ttl_s) as writer:
        finish_forgetting(writer)
        writer.store.write_durable(CONFIG_FILE, config_text(config))
        session = Session(live, writer, progress or Silent(), limit, where or {}, retry, free, budget_usd)
        try:
            yield session
        finally:
            session.close()
        session.result.stages = balance(accounts(session.corpus()))
        _log_run(session, session.result.stages)


def run_phases(session: Session, names: Sequence[str]) -> None:
    """The named phases in the order of `PHASES`; refine, chunk and distill run overlapped."""
    unknown = [name for name in names if name not in PHASES]
    if unknown:
        raise ValueError(f"there is no stage {unknown[0]!r}; there are {', '.join(PHASES)}")
    flow = [name for name in names if name in ("refine", "chunk", "distill")]
    steps = [
        ("ingest", ingest),
        ("select", select_regions),
        ("+".join(flow), lambda session: refine_to_distill(session, flow)),
        ("score", score_captions),
        ("decide", decide_captions),
        ("pack", pack_kept),
    ]
    for name, phase in steps:
        if name and (name in names or name == "+".join(flow)):
            session.progress.phase(name)
            began = time.monotonic()
            phase(session)
            session.result.seconds[name] = round(time.monotonic() - began, 3)


def accounts(now: Corpus) -> dict[str, Counts]:
    """What became of every unit of every stage, stages with parts (`distill/brief/en`) also summed up."""
    regions = now.regions
    found = {
        "ingest": _by_status(regions["status"], len(regions)),
        "select": _by_status(now.selection["status"], len(regions)),
        "refine": now.refine.counts(),
        "chunk": now.chunk.counts(),
    }
    for name, steps in (("distill", now.captioning), ("score", list(now.score.values()))):
        parts = {step.name: step.counts() for step in steps}
        found[name] = sum(parts.values(), Counts())
        found |= parts
    decided = decisions(now, now.policy)
    found["decide"] = _by_status(decided["status"], len(now.captions))
    found["pack"] = packed_counts(now)
    return found


def _by_status(column: pl.Series, total: int) -> Counts:
    tally = dict(column.value_counts().iter_rows())
    named = {name: int(tally.get(name, 0)) for name in ("ok", "filtered", "failed", "blocked")}
    return Counts(total=total, pending=total - len(column), **named)


def balance(counts: dict[str, Counts]) -> dict[str, Counts]:
    """The counts, checked: in = ok + filtered + failed + blocked + pending for every stage."""
    wrong = [f"{name} {count.as_dict()}" for name, count in counts.items() if not count.balanced]
    if wrong:
        raise UnbalancedError(f"the accounts do not add up: {'; '.join(wrong)}")
    return counts


def status(config: EngineConfig) -> dict[str, Counts]:
    """The accounts of a run as it is now; needs no lease and writes nothing."""
    live = config.runtime()
    return balance(accounts(Corpus(live, build_stages(live), Run.open(live.run, live.storage_options).view())))


def config_text(config: EngineConfig) -> bytes:
    """The configuration as it is kept beside the run: paths resolved, secrets still `${NAMED}`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).encode()


def _log_run(session: Session, counts: Mapping[str, Counts]) -> None:
    """`run.json`: the builds of this run, with versions and timings, newest last."""
    store = session.writer.store
    before: list[Any] = orjson.loads(store.read(RUN_FILE))["builds"] if store.exists(RUN_FILE) else []
    result = session.result
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "epoch": session.writer.epoch,
        "versions": {name: _version(name) for name in ("perceive-engine", "ray", "torch", "polars", "pyarrow")},
        "python": platform.python_version(),
        "rows": result.done,
        "seconds": result.seconds,
        "stages": {name: count.as_dict() for name, count in counts.items()},
        "pack": result.pack_id,
    }
    store.write_durable(RUN_FILE, orjson.dumps({"builds": [*before[-99:], entry]}, option=orjson.OPT_INDENT_2))


def _version(name: str) -> str | None:
    """The installed version; None for a working tree that was sent to where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
