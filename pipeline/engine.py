"""The steps of a configuration over a run: for each row-wise stage its units, its current rows, what is pending."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline import corpus
from pipeline.config import EngineConfig
from pipeline.tables import View, pending
from schemas.arrow import arrow_schema, no_rows
from schemas.base import Row
from schemas.caption import Caption, Language, Task
from schemas.event import Event
from schemas.keys import digest_value, set_digest
from schemas.mask import Mask
from schemas.media import Media, MediaRef, Probe
from schemas.region import Region, Selection
from stages.base import Stage, fingerprint
from stages.chunk import build_chunk
from stages.distill.build import build_distill
from stages.distill.imported import ImportedStage, read_imported
from stages.media.probe import NOTHING_TAKEN_DOWN, ProbeStage, TakenDown
from stages.policy import Policy, load_policy
from stages.refine.stage import build_refine
from stages.score.base import ScoreStage, rule_prints
from stages.score.duplicates import TABLE as CORPUS_TABLE
from stages.score.duplicates import CorpusScores, DuplicatesConfig, corpus_settings
from stages.score.groups import active_groups, build_score
from stages.teachers.source import TeacherSource

_BADNESS = {"ok": 0, "filtered": 1, "blocked": 2, "failed": 3}
LEDGER = "ledger"
RETRIED = ("failed", "blocked")


@dataclass(frozen=True)
class Counts:
    """The accounts of one stage; they must add up."""

    total: int = 0
    ok: int = 0
    filtered: int = 0
    failed: int = 0
    blocked: int = 0
    pending: int = 0

    @property
    def balanced(self) -> bool:
        return self.total == self.ok + self.filtered + self.failed + self.blocked + self.pending

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def as_dict(self) -> dict[str, int]:
        """For people and machines: `in`, then each status, then `pending`."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"in": values.pop("total"), **values}


@dataclass(frozen=True)
class Step:
    """A row-wise stage of a run: its name (`distill/brief/en`), its units now, and the rows that answer them."""

    name: str
    stage: Stage
    units: pa.Table
    rows: pl.DataFrame

    @cached_property
    def fingerprint(self) -> bytes:
        return fingerprint(self.stage)

    def pending(self, retry: bool = False) -> pa.Table:
        """Units without rows; with `retry` those that failed or were blocked too, carrying their attempts."""
        on = [self.stage.unit_field, "input_digest"]
        light = pl.DataFrame(pl.from_arrow(self.units.select(on))).with_row_index("row")
        done = self.rows
        if retry:
            done = done.filter(~pl.col("status").is_in(RETRIED).any().over(on))
        left = pending(light.lazy(), done.lazy(), on, self.stage.count_field).sort("row")
        units = self.units.take(left["row"].to_arrow())
        if retry and len(units):
            tries = self.rows.group_by(on).agg(pl.col("attempts").max())
            attempts = left.join(tries, on=on, how="left", maintain_order="left")["attempts"].fill_null(0)
            units = units.drop(["attempts"]) if "attempts" in units.column_names else units
            units = units.append_column("attempts", attempts.cast(pl.Int64).to_arrow())
        return units

    def counts(self) -> Counts:
        """Units by the status of their rows; a unit of several rows is as bad as its worst."""
        key = self.stage.unit_field
        waiting = pl.DataFrame({key: self.pending()[key].to_pylist()}, schema={key: pl.Binary})
        worst = pl.col("status").replace_strict(_BADNESS, return_dtype=pl.Int8).max()
        states = self.rows.join(waiting, on=key, how="anti").group_by(key).agg(worst.alias("state"))
        tally = dict(states.group_by("state").len().iter_rows())
        by_status = {name: tally.get(rank, 0) for name, rank in _BADNESS.items()}
        return Counts(total=len(self.units), pending=len(waiting), **by_status)


def frame_of(
    view: View, table: str, fingerprints: Iterable[bytes], model: type[Row], live: bool = False
) -> pl.DataFrame:
    """The rows of a table as a frame with the record's columns; empty where the run has none."""
    return lazy_of(view, table, fingerprints, model, live).collect()


def lazy_of(
    view: View, table: str, fingerprints: Iterable[bytes], model: type[Row], live: bool = False
) -> pl.LazyFrame:
    """`frame_of`, of which no more is read than what is asked of it."""
    prints = list(fingerprints)
    schema = arrow_schema(model)
    if not prints or not view.commits(table, prints):
        return pl.DataFrame(pl.from_arrow(no_rows(schema))).lazy()
    return (view.live if live else view.rows)(table, prints, schema=schema)


def answering(rows: pl.DataFrame, units: pa.Table, unit_field: str) -> pl.DataFrame:
    """The rows that were made from these units as they are now."""
    on = [unit_field, "input_digest"]
    wanted = pl.DataFrame(pl.from_arrow(units.select(on)))
    return rows.join(wanted, on=on, how="semi")


@dataclass(frozen=True)
class Stages:
    """The stage objects of a configuration."""

    probe: Stage
    refine: Stage
    chunk: Stage
    distill: dict[tuple[Task, Language], Stage]
    imported: Stage
    score: dict[str, Stage]


def ledger_url(config: EngineConfig) -> str:
    """Where a run keeps its ledger."""
    return f"{config.run.rstrip('/')}/{LEDGER}"


def build_stages(
    config: EngineConfig, forgive_before: float = 0.0, taken_down: TakenDown = NOTHING_TAKEN_DOWN
) -> Stages:
    """Every row-wise stage of a configuration, not yet opened.

    Teachers' attempts from before `forgive_before` (seconds since 1970) do not count against a request any more.
    Media that were `taken_down` are not probed.
    """
    ledger = ledger_url(config)
    asked = [config.default_asked(), *config.asked().values()]
    pairs = {(task, language) for ask in asked for task in ask.tasks or () for language in ask.languages}
    pairs |= {(task, language) for language in config.captions.languages for task in corpus.VIDEO_TASKS}
    pairs |= {(task, "en") for task, language in pairs if config.captions.translates(language)}
    # One source: in each worker all stages ask through one back end and one ledger.
    source = TeacherSource(config.teacher, ledger, dict(config.storage_options), forgive_before)
    return Stages(
        probe=ProbeStage(config.storage_options, taken_down),
        refine=build_refine(config.refine),
        chunk=build_chunk(config.chunk, config.teacher, source=source),
        distill={
            pair: build_distill(
                config.teacher, config.captions, *pair, storage_options=config.storage_options, source=source
            )
            for pair in sorted(pairs)
        },
        imported=ImportedStage(),
        score={
            group: build_score(group, config.score, config.storage_options, ledger, forgive_before)
            for group in active_groups(config.score)
        },
    )


def source_fingerprint(name: str) -> bytes:
    """The fingerprint of a source's rows; its adapter's version and settings are in its rows' input digests."""
    return digest_value({"stage": "ingest", "source": name})


def fingerprints_of(config: EngineConfig, stages: Stages) -> dict[str, str]:
    """The fingerprints (hexadecimal) of everything whose rows are made one by one, by name."""
    named = {"probe": stages.probe, "refine": stages.refine, "chunk": stages.chunk, "import": stages.imported}
    named |= {f"distill/{task}/{language}": stage for (task, language), stage in stages.distill.items()}
    named |= {f"score/{group}": stage for group, stage in stages.score.items()}
    found = {name: fingerprint(stage).hex() for name, stage in named.items()}
    for stage in stages.score.values():
        found |= rule_prints(stage) if isinstance(stage, ScoreStage) else {}
    sources = {f"ingest/{source.name}": source_fingerprint(source.name).hex() for source in config.sources}
    return {**found, **sources, "media": MEDIA_FINGERPRINT.hex()}


MEDIA_FINGERPRINT = digest_value({"stage": "media", "version": 1})


@dataclass
class Corpus:
    """The current rows of a run under a configuration, read from one view and computed when first asked for."""

    config: EngineConfig
    stages: Stages
    view: View
    where: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def policy(self) -> Policy:
        return load_policy(self.config.policy)

    @cached_property
    def probes(self) -> pl.DataFrame:
        return frame_of(self.view, "probes", [fingerprint(self.stages.probe)], Probe)

    def _sources(self) -> list[bytes]:
        return [source_fingerprint(source.name) for source in self.config.sources]

    @cached_property
    def refs(self) -> pl.DataFrame:
        return frame_of(self.view, "media_refs", self._sources(), MediaRef, live=True)

    @cached_property
    def all_media(self) -> pl.DataFrame:
        """Every media that was ever probed; groups and shards go by these."""
        rows = frame_of(self.view, "media", [MEDIA_FINGERPRINT], Media)
        return rows.unique("media_key", keep="last", maintain_order=True)

    @cached_property
    def media(self) -> pl.DataFrame:
        return self.all_media.join(self.refs.filter(pl.col("status") == "ok"), on="media_key", how="semi")

    @cached_property
    def regions(self) -> pl.DataFrame:
        return self.scan_regions().collect()

    def scan_regions(self) -> pl.LazyFrame:
        """The regions, of which no more is read than what is asked of them: their geometry is most of their bytes."""
        rows = lazy_of(self.view, "regions", self._sources(), Region, live=True)
        for column, value in self.where.items():
            rows = rows.filter(pl.col(column).cast(pl.String) == value)
        return rows

    def select_fingerprint(self) -> bytes:
        """How the selection of this set of regions is made."""
        whole = {"stage": "select", "version": 1, "settings": self.config.select.model_dump(mode="json")}
        rows = self.scan_regions().select("region_key", "digest").collect()
        inputs = set_digest(rows["region_key"].to_arrow(), rows["digest"].to_arrow())
        return digest_value({**whole, "inputs": inputs, "media": set_digest(self.media["digest"].to_arrow())})

    @cached_property
    def selection(self) -> pl.DataFrame:
        return frame_of(self.view, "selection", [self.select_fingerprint()], Selection)

    @cached_property
    def located(self) -> pl.DataFrame:
        return corpus.located(self.regions, self.media, self.selection)

    def step(self, name: str, stage: Stage, units: pa.Table, model: type[Row]) -> Step:
        rows = frame_of(self.view, stage.table, [fingerprint(stage)], model)
        return Step(name, stage, units, answering(rows, units, stage.unit_field))

    @cached_property
    def refine(self) -> Step:
        stage = self.stages.refine
        return self.step("refine", stage, corpus.refine_units(self.located, stage.unit), Mask)

    @cached_property
    def masked(self) -> pl.DataFrame:
        return corpus.masked(self.located, self.refine.rows)

    @cached_property
    def chunk(self) -> Step:
        stage = self.stages.chunk
        return self.step("chunk", stage, corpus.chunk_units(self.masked, stage.unit), Event)

    def distill_units(self, pair: tuple[Task, Language], masked: pl.DataFrame, events: pl.DataFrame) -> pa.Table:
        """Units of one task and language from these masked regions and events."""
        wanted = self._asked(pair, masked)
        return corpus.distill_units(wanted, events, *pair, self.stages.distill[pair].unit)

    def translation_units(self, pair: tuple[Task, Language], captions: pl.DataFrame) -> pa.Table:
        """Units of one task in a language into which these English captions are translated."""
        wanted = self._asked(pair, self.masked)
        return corpus.translation_units(wanted, captions, *pair, self.stages.distill[pair].unit)

    def _asked(self, pair: tuple[Task, Language], masked: pl.DataFrame) -> pl.DataFrame:
        """The regions of which this is asked: what has been imported is not."""
        wanted = corpus.asked_of(masked, self.config.asked(), self.config.default_asked(), *pair)
        there = self.brought.filter((pl.col("task") == pair[0]) & (pl.col("language") == pair[1]))
        return wanted.join(there, on=["source", "source_id"], how="anti", maintain_order="left")

    @cached_property
    def distill(self) -> dict[tuple[Task, Language], Step]:
        steps: dict[tuple[Task, Language], Step] = {}
        translated = self.config.captions.translates
        for pair, stage in sorted(self.stages.distill.items(), key=lambda item: translated(item[0][1])):
            if translated(pair[1]):
                units = self.translation_units(pair, steps[pair[0], "en"].rows)
            else:
                units = self.distill_units(pair, self.masked, self.chunk.rows)
            steps[pair] = self.step(f"distill/{pair[0]}/{pair[1]}", stage, units, Caption)
        return steps

    @cached_property
    def brought(self) -> pl.DataFrame:
        """The captions that sources bring along (`stages.distill.imported`)."""
        files = {source.name: source.captions.imported for source in self.config.sources}
        return read_imported({name: path for name, path in files.items() if path}, self.config.storage_options)

    @cached_property
    def imported(self) -> Step:
        stage = self.stages.imported
        units = corpus.imported_units(self.masked, self.chunk.rows, self.brought, stage.unit)
        return self.step("distill/imported", stage, units, Caption)

    @property
    def captioning(self) -> list[Step]:
        """All steps that make captions: those that ask for them, and the imported ones where there are any."""
        return [*self.distill.values(), *([self.imported] if len(self.brought) else [])]

    @cached_property
    def captions(self) -> pl.DataFrame:
        """The current captions of all tasks and languages, all statuses."""
        empty = pl.DataFrame(pl.from_arrow(no_rows(arrow_schema(Caption))))
        return pl.concat([empty, *(step.rows for step in self.captioning)])

    @cached_property
    def score(self) -> dict[str, Step]:
        others = any("neighbour_texts" in stage.unit.model_fields for stage in self.stages.score.values())
        wide = corpus.score_frame(self.captions, self.masked, self.chunk.rows, others)
        steps = {}
        for group, stage in self.stages.score.items():
            reads = [
                name for name in stage.unit.model_fields if name not in ("caption_key", "region_key", "input_digest")
            ]
            steps[group] = self.step(f"score/{group}", stage, corpus.score_units(wide, stage.unit, reads), stage.row)
        return steps

    def corpus_fingerprint(self, config: DuplicatesConfig) -> bytes:
        """How the captions of the whole corpus are compared with each other."""
        captions = set_digest(self.captions["caption_key"].to_arrow(), self.captions["digest"].to_arrow())
        return digest_value({**corpus_settings(config), "captions": captions})

    @cached_property
    def corpus_scores(self) -> pl.DataFrame:
        """Scores that compare captions with each other; empty where they are not configured or not made yet."""
        config = self.config.score.duplicates
        prints = [] if config is None else [self.corpus_fingerprint(config)]
        return frame_of(self.view, CORPUS_TABLE, prints, CorpusScores)

    @cached_property
    def scored(self) -> pl.DataFrame:
        """Captions of all statuses with their region's source and label and every score column."""
        facts = self.located.select("region_key", "source", source_label="label")
        frame = self.captions.join(facts, on="region_key", how="left", maintain_order="left")
        known = set(Row.model_fields) | {"region_key"}
        for rows in (*(step.rows for step in self.score.values()), self.corpus_scores):
            columns = [name for name in rows.columns if name not in known]
            frame = frame.join(rows.select(columns), on="caption_key", how="left", maintain_order="left")
        return frame

    def scored_digest(self) -> bytes:
        """The digest of all captions and scores that a decision is taken from."""
        parts: list[Any] = [set_digest(self.captions["caption_key"].to_arrow(), self.captions["digest"].to_arrow())]
        parts.append([[r[0], r[1]] for r in self.captions.group_by("status").len().sort("status").iter_rows()])
        for group, step in self.score.items():
            keys = set_digest(step.rows["caption_key"].to_arrow(), step.rows["input_digest"].to_arrow())
            parts.append([group, step.fingerprint, keys])
        if self.config.score.duplicates is not None:
            parts.append(["corpus", self.corpus_fingerprint(self.config.score.duplicates), len(self.corpus_scores)])
        return digest_value(parts)
