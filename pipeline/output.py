"""The way out: a policy's decisions, and the shards of what it keeps."""

from __future__ import annotations

import polars as pl

from pipeline.engine import Corpus, frame_of
from pipeline.session import Session
from pipeline.work import Node
from schemas.arrow import arrow_schema, conform
from schemas.caption import Decision
from schemas.keys import digest_value
from stages.base import fingerprint, with_digest
from stages.decide import decide
from stages.pack import build_pack, finish_pack, plan_pack
from stages.pack.frames import PackFrames
from stages.pack.records import Packed
from stages.policy import Policy, policy_digest

_SHARDS_AT_ONCE = 64


def decision_fingerprint(policy: Policy, now: Corpus) -> bytes:
    """How the decisions on these captions and scores are taken."""
    settings = {"stage": "decide", "version": 1, "policy": policy_digest(policy)}
    return digest_value({**settings, "inputs": now.scored_digest()})


def decisions_table(policy: Policy) -> str:
    return f"decisions/{policy.name}"


def decisions(now: Corpus, policy: Policy) -> pl.DataFrame:
    """The current decisions; empty where they have not been taken."""
    return frame_of(now.view, decisions_table(policy), [decision_fingerprint(policy, now)], Decision)


def decide_captions(session: Session) -> None:
    """Evaluates the policy over all scores, unless it has been over these."""
    now = session.corpus()
    policy = now.policy
    print_, table = decision_fingerprint(policy, now), decisions_table(policy)
    if len(now.captions) and not session.writer.view().commits(table, print_):
        rows = with_digest(conform(decide(now.scored, policy).to_arrow(), arrow_schema(Decision)), Decision)
        session.writer.commit_table(table, print_, rows, "caption_key")
        session.tally_rows("decide", rows)
    session.snapshot(fingerprints={"decide": print_.hex()}, pointers={"policy": policy.name})


def pack_frames(now: Corpus, policy: Policy) -> PackFrames:
    """What packing reads: all current rows of the run."""
    return PackFrames(
        media=now.media,
        regions=now.regions,
        masks=now.refine.rows,
        captions=now.captions,
        events=now.chunk.rows,
        decisions=decisions(now, policy),
        selection=now.selection,
    )


def pack_kept(session: Session) -> None:
    """Writes the shards that the present decisions ask for and that do not exist yet."""
    now = session.corpus()
    policy = now.policy
    stage = build_pack(session.config.pack, session.writer.store.url, session.config.storage_options)
    print_ = fingerprint(stage)
    packed = frame_of(now.view, stage.table, [print_], Packed)
    plan = plan_pack(pack_frames(now, policy), session.config.pack, packed)
    waiting = plan.pending(packed)
    for start in range(0, len(waiting), _SHARDS_AT_ONCE):
        units = plan.fill(waiting.slice(start, _SHARDS_AT_ONCE))
        session.run_nodes([Node("pack", stage, stage.table, print_, units)])
    if len(plan.units):
        rows = frame_of(session.writer.view(), stage.table, [print_], Packed)
        session.result.pack = finish_pack(session.writer.store.url, plan, rows, session.config.storage_options)
        session.result.pack_id = plan.pack_id
    session.snapshot(fingerprints={"pack": print_.hex()}, pointers={"pack": plan.pack_id})
