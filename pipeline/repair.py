"""Rescue: captions that the policy dropped for reasons that can be mended, mended or asked for again."""

from __future__ import annotations

import polars as pl

from pipeline.build import run_phases
from pipeline.engine import ledger_url
from pipeline.flow import pool_of
from pipeline.output import decisions
from pipeline.session import Session
from pipeline.work import Node
from stages.rescue import build_rescue, rescue_plan, rescue_units, strip_openers
from stages.teachers.source import TeacherSource


def rescue(session: Session, max_attempts: int = 3) -> pl.DataFrame:
    """Mends what can be mended, then scores, decides and packs anew; returns the plan that was followed.

    A rescued caption is a further attempt at its row. Captions are asked for with what was wrong with the last one.
    """
    now = session.corpus()
    policy = now.policy
    plan = rescue_plan(now.captions, decisions(now, policy), policy, max_attempts)
    if len(plan):
        _strip(session, plan)
        _ask(session, plan)
        run_phases(session, ("score", "decide", "pack"))
    return plan


def _strip(session: Session, plan: pl.DataFrame) -> None:
    for step in session.corpus().captioning:
        session.commit_attempts("rescue", step, strip_openers(step.rows, plan))


def _ask(session: Session, plan: pl.DataFrame) -> None:
    now, config, nodes = session.corpus(), session.config, []
    source = TeacherSource(config.teacher, ledger_url(config), dict(config.storage_options))
    for (task, language), step in now.distill.items():
        if config.captions.translates(language):
            continue  # a translation follows its English caption
        mine = plan.filter((pl.col("task") == task) & (pl.col("language") == language))
        if not len(mine.filter(pl.col("repair") == "ask")):
            continue
        stage = build_rescue(
            config.teacher, config.captions, task, language, storage_options=config.storage_options, source=source
        )
        units = rescue_units(step.units, mine, step.rows if task == "stream" else None)
        name = f"rescue/{task}/{language}"
        nodes.append(Node(name, stage, stage.table, step.fingerprint, units, pool_of(stage, "distill")))
    session.run_nodes(nodes)
