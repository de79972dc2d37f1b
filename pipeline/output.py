"""The way out: a policy's decisions."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.engine import Corpus, frame_of
from pipeline.flow import asks
from pipeline.scored import remember, remembered
from pipeline.session import Session
from pipeline.tables import Writer
from schemas.arrow import arrow_schema, conform
from schemas.caption import Decision, HumanVerdict
from schemas.keys import digest_value
from stages.base import with_digest
from stages.decide import decide
from stages.policy import Policy, policy_digest

DECISIONS = "decisions/"


VERDICTS = "verdicts"
VERDICTS_PRINT = digest_value({"stage": "review", "version": 1})


def decision_fingerprint(policy: Policy, now: Corpus) -> bytes:
    """How the decisions on these captions and scores are taken, people's verdicts among them."""
    scored = remembered(now)
    inputs: list[Any] = [now.scored_digest() if scored is None else scored.content]
    if commits := now.view.commits(VERDICTS, VERDICTS_PRINT):
        inputs.append(sorted(commit.name for commit in commits))
    return digest_value({"stage": "decide", "version": 3, "policy": policy_digest(policy), "inputs": inputs})


def verdicts_of(now: Corpus) -> pl.DataFrame:
    """What people have said of captions."""
    return frame_of(now.view, VERDICTS, [VERDICTS_PRINT], HumanVerdict)


def decisions_table(policy: Policy) -> str:
    return f"{DECISIONS}{policy.name}"


def decisions(now: Corpus, policy: Policy) -> pl.DataFrame:
    """The current decisions; empty where they have not been taken."""
    return frame_of(now.view, decisions_table(policy), [decision_fingerprint(policy, now)], Decision)


def decide_captions(session: Session) -> None:
    """Evaluates the policy over all scores, unless it has been over these."""
    now = session.corpus()
    policy = now.policy
    remember(session, now, [group for group, step in now.score.items() if asks(step.stage)])
    print_ = decision_fingerprint(policy, now)
    if len(now.captions) and not session.writer.view().commits(decisions_table(policy), print_):
        rows = commit_decisions(session.writer, policy, print_, decide(now.scored, policy, verdicts_of(now)))
        session.tally_rows("decide", rows)
    session.snapshot(fingerprints={"decide": print_.hex()}, pointers={"policy": policy.name})


def commit_decisions(writer: Writer, policy: Policy, print_: bytes, decided: pl.DataFrame) -> pa.Table:
    """Commits a set of decisions and returns its rows; making it current is the snapshot's matter."""
    rows = with_digest(conform(decided.to_arrow(), arrow_schema(Decision)), Decision)
    writer.commit_table(decisions_table(policy), print_, rows, "caption_key")
    return rows
