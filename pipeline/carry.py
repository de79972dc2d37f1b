"""Scores are carried over rule by rule: when one rule of a group changes, that rule alone is scored again.

A group's rows have one fingerprint, made of all its rules'. Each snapshot also names every rule's own fingerprint
(`score/text/hedges`), so that a build can tell which columns of earlier rows still hold: these are copied, the changed
rules are run by themselves, and both become rows of the group's new fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from pipeline.engine import Step, answering, frame_of
from pipeline.session import Session
from pipeline.snapshot import path_of, read_snapshot
from schemas.arrow import arrow_schema, conform
from stages.base import fingerprint, with_digest
from stages.score.base import ScoreStage, rule_prints

_ON = ["caption_key", "input_digest"]


@dataclass(frozen=True)
class Carry:
    """Earlier rows of a group whose rules `kept` still hold, and the step that scores the `changed` ones anew."""

    group: Step
    earlier: pl.DataFrame
    kept: tuple[str, ...]
    changed: Step | None

    def rows(self, session: Session) -> pa.Table:
        """The group's rows made of what is kept and what was scored anew; units that were not are left out."""
        stage = self.group.stage
        assert isinstance(stage, ScoreStage)
        columns = [column for rule in stage.rules if rule.name in self.kept for column in rule.columns]
        frame = self.earlier.select(*_ON, "region_key", "status", "reason", "attempts", *columns)
        if self.changed is not None:
            sub = self.changed.stage
            assert isinstance(sub, ScoreStage)
            new = frame_of(session.writer.view(), sub.table, [self.changed.fingerprint], sub.row)
            filled = [column for rule in sub.rules for column in rule.columns]
            again = new.select(*_ON, *filled, _status="status", _reason="reason")
            frame = frame.join(again, on=_ON, how="inner", maintain_order="left")
            frame = frame.with_columns(status="_status", reason="_reason").drop("_status", "_reason")
        return with_digest(conform(frame.to_arrow(), arrow_schema(stage.row)), stage.row)


def carries(session: Session, steps: Mapping[str, Step]) -> list[Carry]:
    """What can be carried over, group by group: nothing where no unit is pending or no rule holds."""
    found = []
    for group, step in steps.items():
        if isinstance(step.stage, ScoreStage):
            pending = step.pending()
            if len(pending) and (carry := _carry(session, group, step, step.stage, pending)):
                found.append(carry)
    return found


def _carry(session: Session, group: str, step: Step, stage: ScoreStage, pending: pa.Table) -> Carry | None:
    view = session.writer.view()
    prints = rule_prints(stage)
    if not set(view.fingerprints(stage.table)) - {step.fingerprint}:
        return None
    for number in reversed(session.writer.snapshots()):
        named = read_snapshot(session.writer.store, path_of(number)).fingerprints
        before = named.get(f"score/{group}")
        if before is None or before == step.fingerprint.hex():
            continue
        if not view.commits(stage.table, bytes.fromhex(before)):
            continue
        kept = tuple(rule.name for rule in stage.rules if _same(named, prints, f"score/{group}/{rule.name}"))
        rows = frame_of(view, stage.table, [bytes.fromhex(before)], stage.row).filter(pl.col("status") == "ok")
        earlier = answering(rows, pending, "caption_key")
        return _with_changed(session, step, stage, pending, earlier, kept) if kept and len(earlier) else None
    return None


def _same(before: Mapping[str, str], now: Mapping[str, str], name: str) -> bool:
    return before.get(name) == now[name]


def _with_changed(
    session: Session, step: Step, stage: ScoreStage, pending: pa.Table, earlier: pl.DataFrame, kept: tuple[str, ...]
) -> Carry:
    names = tuple(rule.name for rule in stage.rules if rule.name not in kept)
    if not names:
        return Carry(step, earlier, kept, None)
    sub = stage.only(names)
    light = pl.DataFrame(pl.from_arrow(pending.select(_ON))).with_row_index("row")
    units = pending.take(light.join(earlier.select(_ON), on=_ON, how="semi")["row"].to_arrow())
    rows = frame_of(session.writer.view(), sub.table, [fingerprint(sub)], sub.row)
    changed = Step(f"{step.name}/{'+'.join(names)}", sub, units, answering(rows, units, "caption_key"))
    return Carry(step, earlier, kept, changed)
