"""Filtering anew: another policy over the scores that there are, what it changes, and the decision sets of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from pipeline.config import EngineConfig
from pipeline.engine import Corpus, build_stages, frame_of
from pipeline.flow import asks
from pipeline.looking import open_corpus
from pipeline.output import DECISIONS, commit_decisions, decision_fingerprint, decisions_table, verdicts_of
from pipeline.scored import read, remembered
from pipeline.tables import Run, View, Writer
from schemas.caption import Decision
from stages.decide import NEEDED, Evaluation, evaluate
from stages.policy import Policy, PolicyError, load_policy

_HEX = 12


@dataclass(frozen=True)
class DecisionSet:
    """One set of decisions of a run: which policy took it, when, and how many captions it kept and did not."""

    policy: str
    fingerprint: str
    created: str
    counts: dict[str, int]
    current: bool

    @property
    def name(self) -> str:
        """As people name it: the policy, and the beginning of the fingerprint."""
        return f"{self.policy}@{self.fingerprint[:_HEX]}"


@dataclass(frozen=True)
class Refiltered:
    """What a policy says of a run's captions, beside the set that it is compared with (None: there was none)."""

    evaluation: Evaluation
    before: DecisionSet | None
    before_rows: pl.DataFrame | None
    unscored: int
    """Captions that lack the scores of some group that the configuration runs."""


def decision_sets(view: View) -> list[DecisionSet]:
    """The decision sets that a run holds, oldest first; reads no rows."""
    current = view.active("decide")
    found = []
    for table in sorted(name for name in view.tables if name.startswith(DECISIONS)):
        for print_ in view.fingerprints(table):
            (*_, commit) = view.commits(table, print_)
            policy = table.removeprefix(DECISIONS)
            counts = dict(view.written(table, print_))
            found.append(DecisionSet(policy, print_.hex(), commit.created, counts, print_ == current))
    return sorted(found, key=lambda one: one.created)


def find_set(view: View, name: str) -> DecisionSet:
    """The set of this name (`default@3f2a`, `default` for its latest, or the beginning of a fingerprint).

    Raises `PolicyError` naming the sets that there are.
    """
    policy, _, start = name.rpartition("@")
    sets = decision_sets(view)
    chosen = [one for one in sets if policy in ("", one.policy) and one.fingerprint.startswith(start)]
    chosen = chosen or [one for one in sets if one.policy == name]
    if not chosen:
        known = ", ".join(one.name for one in sets) or "none yet"
        raise PolicyError(f"there is no decision set {name!r}; there are {known}")
    return chosen[-1]


def rows_of(view: View, chosen: DecisionSet) -> pl.DataFrame:
    """The decisions of a set."""
    return frame_of(view, f"{DECISIONS}{chosen.policy}", [bytes.fromhex(chosen.fingerprint)], Decision)


def preview(config: EngineConfig, policy: Policy, against: str | None = None) -> Refiltered:
    """What a policy would decide over the scores that there are; needs no lease and writes nothing."""
    now = open_corpus(config)
    return _compared(now, evaluate(_frame(now, policy), policy, verdicts_of(now)), against, _unscored(now))


def refilter(config: EngineConfig, against: str | None = None) -> Refiltered | None:
    """Decides by the configuration's policy where everything is scored, and makes the set current.

    None where something is still to be scored or the scores have not been gathered yet: `perceive filter` then runs
    the stages score and decide. Raises `LeaseHeld`.
    """
    live = config.runtime()
    run = Run.open(live.run, live.storage_options)
    policy = load_policy(live.policy)
    with run.writer("perceive filter", ttl_s=live.runner.lease_ttl_s) as writer:
        now = Corpus(live, build_stages(live), writer.view())
        scored = remembered(now)
        if scored is None:
            return None
        evaluation = evaluate(read(scored, _columns(policy)), policy, verdicts_of(now))
        compared = _compared(now, evaluation, against, 0)
        print_ = decision_fingerprint(policy, now)
        if not now.view.commits(decisions_table(policy), print_):
            commit_decisions(writer, policy, print_, evaluation.decisions)
        _make_current(writer, print_, policy)
    return compared


def _make_current(writer: Writer, print_: bytes, policy: Policy) -> None:
    before = writer.current()
    assert before is not None  # what is scored has been written by a build, which leaves a snapshot
    writer.snapshot(
        {**before.fingerprints, "decide": print_.hex()},
        before.sources,
        writer.view().tombstones(),
        {**before.pointers, "policy": policy.name},
    )


def _frame(now: Corpus, policy: Policy) -> pl.DataFrame:
    scored = remembered(now)
    return now.scored if scored is None else read(scored, _columns(policy))


def _columns(policy: Policy) -> Iterator[str]:
    """What deciding reads."""
    ranked = (name for check in policy.checks for name in check.rank_by)
    capped = (name for cap in policy.caps for name in cap.by)
    checked = (check.column for check in policy.checks)
    yield from dict.fromkeys([*NEEDED, "reason", "source", "source_label", *checked, *ranked, *capped])


def _compared(now: Corpus, evaluation: Evaluation, against: str | None, unscored: int) -> Refiltered:
    view = now.view
    before = find_set(view, against) if against else next((one for one in decision_sets(view) if one.current), None)
    rows = None if before is None else rows_of(view, before)
    return Refiltered(evaluation, before, rows, unscored)


def _unscored(now: Corpus) -> int:
    if remembered(now) is not None:
        return 0
    steps = [step for step in now.score.values() if not asks(step.stage)]
    keys = [step.pending()["caption_key"].to_pylist() for step in steps]
    return len({key for found in keys for key in found})
