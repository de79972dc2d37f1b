"""The row-wise stages: refine feeds chunk and distill while it runs; scores follow when captions are whole."""

from __future__ import annotations

from collections.abc import Callable, Collection

import polars as pl
import pyarrow as pa

from pipeline import corpus
from pipeline.carry import carries
from pipeline.engine import Corpus, Step, frame_of
from pipeline.session import Session
from pipeline.work import Node
from schemas.arrow import arrow_schema, no_rows
from schemas.caption import Caption, Language, Task
from schemas.event import Event
from stages.base import AsyncStage, Stage
from stages.distill.video import StreamStage
from stages.score.duplicates import TABLE as CORPUS_TABLE
from stages.score.duplicates import corpus_scores

Derive = Callable[[pa.Table], pa.Table]


def refine_to_distill(session: Session, names: Collection[str]) -> None:
    """Runs refine, chunk and distill, those that are named, overlapped."""
    now = session.corpus()
    with_refine, with_chunk, with_distill = (name in names for name in ("refine", "chunk", "distill"))
    nodes: list[Node] = []
    refining = False
    if with_refine:
        nodes.append(_node(session, now.refine))
        refining = bool(len(nodes[0].units))
    chunking = refining
    if with_chunk:
        nodes.append(_node(session, now.chunk, "refine" if refining else None, _chunk_of(session, now)))
        chunking = refining or bool(len(nodes[-1].units))
    if with_distill:
        for pair, step in now.distill.items():
            if session.config.captions.translates(pair[1]):
                english = f"distill/{pair[0]}/en"
                nodes.append(_node(session, step, english, _translation_of(session, now, pair)))
                continue
            after = None
            if chunking:
                after = "chunk" if pair[0] in corpus.VIDEO_TASKS and with_chunk else "refine" if refining else None
            nodes.append(_node(session, step, after, _distill_of(session, now, pair, after)))
    session.run_nodes(nodes)
    if with_distill:
        commit_imported(session)
    session.snapshot()


def commit_imported(session: Session) -> None:
    """Makes rows of the captions that sources bring along; asks nobody."""
    now = session.corpus()
    if len(now.brought):
        session.run_nodes([_node(session, now.imported)])
        session.snapshot()


def score_captions(session: Session) -> None:
    """Runs every rule group over captions that lack its scores, and compares captions with each other.

    Where single rules of a group have changed, these alone are run, and the other scores are carried over.
    """
    if carried := carries(session, session.corpus().score):
        session.run_nodes([_node(session, carry.changed) for carry in carried if carry.changed is not None])
        for carry in carried:
            stage = carry.group.stage
            session.writer.commit_table(stage.table, carry.group.fingerprint, carry.rows(session), "caption_key")
    steps = session.corpus().score.values()
    session.run_nodes([_node(session, step) for step in steps if not (session.free and asks(step.stage))])
    _compare(session)
    session.snapshot()


def asks(stage: Stage) -> bool:
    """Whether a stage asks a teacher."""
    return isinstance(stage, AsyncStage) and stage.waits


def _compare(session: Session) -> None:
    config, now = session.config.score.duplicates, session.corpus()
    if config is None or not len(now.captions):
        return
    print_ = now.corpus_fingerprint(config)
    if not now.view.commits(CORPUS_TABLE, print_):
        rows = corpus_scores(now.captions, config)
        session.writer.commit_table(CORPUS_TABLE, print_, rows, "caption_key")
        session.tally_rows("score/corpus", rows)
    session.snapshot(fingerprints={"score/corpus": print_.hex()})


def pool_of(stage: Stage, name: str) -> str:
    """GPU stages have a pool each, those that wait on a network share one, all others share the CPUs."""
    if stage.resources.num_gpus:
        return f"gpu-{name.partition('/')[0]}"
    return "net" if asks(stage) else "cpu"


def _node(session: Session, step: Step, after: str | None = None, derive: Derive | None = None) -> Node:
    stage = step.stage
    units = step.pending(session.retry)
    if isinstance(stage, StreamStage):
        units = corpus.with_earlier(units, step.rows, stage.unit)
    return Node(
        name=step.name,
        stage=stage,
        table=stage.table,
        fingerprint=step.fingerprint,
        units=session.limited(units, stage),
        pool=pool_of(stage, step.name),
        after=after,
        derive=derive if after else None,
    )


def _masked_by(now: Corpus, rows: pa.Table) -> pl.DataFrame:
    masks = pl.DataFrame(pl.from_arrow(rows))
    mine = now.located.join(masks.select("region_key"), on="region_key", how="semi")
    return corpus.masked(mine, masks)


def _fresh(step: Step, units: pa.Table) -> pa.Table:
    """Units that have no rows yet: a mask made again may be the mask that it was."""
    return Step(step.name, step.stage, units, step.rows).pending()


def _chunk_of(session: Session, now: Corpus) -> Derive:
    def derive(rows: pa.Table) -> pa.Table:
        return _fresh(now.chunk, corpus.chunk_units(_masked_by(now, rows), session.stages.chunk.unit))

    return derive


def _translation_of(session: Session, now: Corpus, pair: tuple[Task, Language]) -> Derive:
    step = now.distill[pair]
    # Of any English text: one that comes out as it was under another prompt is translated already.
    done = frame_of(now.view, step.stage.table, [step.fingerprint], Caption)

    def derive(rows: pa.Table) -> pa.Table:
        units = session.corpus().translation_units(pair, pl.DataFrame(pl.from_arrow(rows)))
        return Step(step.name, step.stage, units, done).pending()

    return derive


def _distill_of(session: Session, now: Corpus, pair: tuple[Task, Language], after: str | None) -> Derive:
    none = pl.DataFrame(pl.from_arrow(no_rows(arrow_schema(Event))))

    def from_masks(rows: pa.Table) -> pa.Table:
        return _fresh(now.distill[pair], now.distill_units(pair, _masked_by(now, rows), none))

    def from_events(rows: pa.Table) -> pa.Table:
        events = pl.DataFrame(pl.from_arrow(rows))
        masked = session.corpus().masked.join(events.select("region_key"), on="region_key", how="semi")
        return _fresh(now.distill[pair], now.distill_units(pair, masked, events))

    return from_events if after == "chunk" else from_masks
