"""What people say of captions, as rows of the run: their corrections, and their verdicts, which override policies."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from pipeline.output import VERDICTS, VERDICTS_PRINT
from pipeline.session import Session
from schemas.keys import digest_columns
from stages.review import human_captions, still_said, verdict_rows


def take_verdicts(session: Session, judged: pl.DataFrame) -> int:
    """Commits corrections as further attempts at their captions, then the verdicts; returns how many were taken.

    A verdict on a text that is not the caption's any more is left out.
    """
    judged = still_said(session.corpus().captions, judged)
    for step in session.corpus().captioning:
        session.commit_attempts("review", step, human_captions(step.rows, judged))
    said = verdict_rows(session.corpus().captions, judged)
    if len(said):
        session.writer.commit_table(VERDICTS, VERDICTS_PRINT, said, "caption_key", _units(said))
    session.snapshot(fingerprints={VERDICTS: VERDICTS_PRINT.hex()})
    return len(judged)


def _units(said: pa.Table) -> pa.Array:
    """A verdict that is changed is another commit, which replaces the former."""
    return digest_columns({name: said[name] for name in ("caption_key", "input_digest", "verdict")})
