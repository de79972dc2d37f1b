"""The last step: the shards of what the present decisions keep, and the account of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import polars as pl

from pipeline.engine import Corpus, Counts, frame_of, ledger_url
from pipeline.output import decision_fingerprint, decisions
from pipeline.session import Session
from pipeline.store import Store
from pipeline.work import Node
from schemas.caption import Usage
from schemas.keys import digest_columns, digest_value, set_digest
from stages.base import fingerprint
from stages.decide import evaluate
from stages.pack import build_pack, finish_pack, pack_effort, plan_pack
from stages.pack.card import Story
from stages.pack.finish import MANIFEST
from stages.pack.forget import PACKS
from stages.pack.frames import PackFrames
from stages.pack.plan import MEDIA_FOLDER
from stages.pack.records import Packed
from stages.policy import Policy, policy_digest
from stages.teachers.cache import Bought, by_model
from stages.yields import yield_table

_SHARDS_AT_ONCE = 64
_INPUTS, _PLANNED, _WRITTEN = "pack_inputs", "pack_planned", "pack_written"


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


def pack_inputs(now: Corpus, policy: Policy) -> str:
    """The digest of all that a pack is made from: where it is as it was, the pack is the one that there is."""
    stage = build_pack(now.config.pack, now.config.run, now.config.storage_options)
    seen = [step.fingerprint for step in (now.refine, now.chunk, *now.captioning)]
    names = ("media_key", "uri", "group_key", "encoding", "orientation", "fps", "digest")
    media = digest_columns({name: now.media[name].to_arrow() for name in names})
    tables = [
        (now.regions, "region_key"),
        (now.refine.rows, "mask_key"),
        (now.chunk.rows, "event_key"),
        (now.captions, "caption_key"),
    ]
    rows = [set_digest(frame[key].to_arrow(), frame["digest"].to_arrow()) for frame, key in tables]
    settings = [fingerprint(stage), now.config.pack.model_dump(mode="json"), decision_fingerprint(policy, now)]
    return digest_value([*settings, *seen, *rows, set_digest(media), now.select_fingerprint()]).hex()


def pack_kept(session: Session) -> None:
    """Writes the shards that the present decisions ask for and that do not exist yet.

    Where nothing has changed since the current pack was finished and all of its files are in place, nothing is planned.
    Shards that are gone, or not as long as they were, are written anew. With `retry`, so are shards that lack samples
    (their media could not be read).
    """
    now = session.corpus()
    policy = now.policy
    inputs = pack_inputs(now, policy)
    stage = build_pack(session.config.pack, session.writer.store.url, session.config.storage_options)
    print_ = fingerprint(stage)
    pointers = now.view.snapshot.pointers if now.view.snapshot else {}
    if _is_finished(session.writer.store, pointers, inputs) and not session.retry:
        session.result.pack_id = pointers["pack"]
        session.snapshot(fingerprints={"pack": print_.hex()})
        return
    packed = frame_of(now.view, stage.table, [print_], Packed)
    plan = plan_pack(pack_frames(now, policy), session.config.pack, packed, decided_by=policy_digest(policy).hex())
    waiting = plan.pending(packed, session.retry, _sizes(session.writer.store, plan.pack_id))
    for start in range(0, len(waiting), _SHARDS_AT_ONCE):
        units = plan.fill(waiting.slice(start, _SHARDS_AT_ONCE))
        session.run_nodes([Node("pack", stage, stage.table, print_, units)])
    written = 0
    if len(plan.units):
        rows = frame_of(session.writer.view(), stage.table, [print_], Packed)
        root, options = session.writer.store.url, session.config.storage_options
        manifest = finish_pack(root, plan, rows, options, story_of(now, policy), details_of(now, policy))
        written = sum(row["captions"] for row in manifest["counts"])  # those whose pixels are there
        session.result.pack = {**manifest, "effort": pack_effort(plan, rows, waiting)}
        session.result.pack_id = plan.pack_id
    facts = {_INPUTS: inputs, _PLANNED: str(plan.num_captions), _WRITTEN: str(written)}
    session.snapshot(fingerprints={"pack": print_.hex()}, pointers={"pack": plan.pack_id, **facts})


def _is_finished(store: Store, pointers: Mapping[str, str], inputs: str) -> bool:
    """Whether the current pack is made from these inputs and lies there whole."""
    if pointers.get(_INPUTS) != inputs:
        return False
    return pointers[_PLANNED] == "0" or _in_place(store, pointers["pack"])


def _in_place(store: Store, pack_id: str) -> bool:
    """Whether a pack's manifest is there and every file that it lists has its size."""
    folder = f"{PACKS}/{pack_id}"
    try:
        manifest = orjson.loads(store.read(f"{folder}/{MANIFEST}"))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return False
    listed = {shard["shard"]: shard["num_bytes"] for shard in manifest["shards"]}
    listed |= {f"{folder}/{file['path']}": file["num_bytes"] for file in manifest["files"]}
    return listed.items() <= _sizes(store, pack_id).items()


def _sizes(store: Store, pack_id: str) -> dict[str, int]:
    """The bytes of every file of a pack and of all media shards, by path in the run."""
    return {info.path: info.size for folder in (f"{PACKS}/{pack_id}", MEDIA_FOLDER) for info in store.files(folder)}


def packed_counts(now: Corpus) -> Counts:
    """Captions that the policy keeps, on their way into the pack.

    `ok` are in the current pack, `filtered` kept out by what packing asks beside the policy (an unbroken chain, a mask
    that was accepted), `failed` planned into shards whose media could not be read.
    """
    policy = now.policy
    kept = int((decisions(now, policy)["status"] == "ok").sum())
    pointers = now.view.snapshot.pointers if now.view.snapshot else {}
    if not kept or not _is_finished(now.view.store, pointers, pack_inputs(now, policy)):
        return Counts(total=kept, pending=kept)
    planned, written = int(pointers[_PLANNED]), int(pointers[_WRITTEN])
    return Counts(total=kept, ok=written, filtered=kept - planned, failed=planned - written)


def story_of(now: Corpus, policy: Policy) -> Story:
    """What the card tells of the captions: the yield of each check, what the teachers cost."""
    evaluation = evaluate(now.scored, policy)
    shown = yield_table(evaluation).to_dicts() if policy.checks else []
    bought = by_model(ledger_url(now.config), now.config.storage_options)
    cost = cost_of(now.captions, bought)
    return Story(policy=f"{policy.name} ({policy_digest(policy).hex()})", yields=shown, cost=cost)


def details_of(now: Corpus, policy: Policy) -> pl.DataFrame:
    """How each caption that the policy keeps was asked for, what it cost, and the scores that the checks look at.

    A score is null where its rule did not run.
    """
    columns = sorted({check.column for check in policy.checks} & set(now.scored.columns))
    kept = decisions(now, policy).filter(pl.col("status") == "ok")
    scored = now.scored.lazy().join(kept.lazy().select("caption_key"), on="caption_key", how="semi")
    cost = [pl.col("usage").struct.field(name) for name in Usage.model_fields]
    made = ["region_key", "task", "language", "event_index", "views", "decoding", "finish_reason"]
    return scored.select(pl.col(made), *cost, pl.col(columns).cast(pl.Float64)).collect()


def cost_of(captions: pl.DataFrame, bought: Mapping[tuple[str, str], Bought]) -> list[dict[str, Any]]:
    """The rows of a card's cost, from all captions of a run and what its ledger holds by teacher and model.

    A reply that several captions share is bought once; the others' calls are `saved`.
    """
    counted = captions.group_by("teacher", "model").agg(
        captions=pl.len(),
        saved=pl.col("request_digest").count() - pl.col("request_digest").drop_nulls().n_unique(),
    )
    told = {(teacher, model): (captions, saved) for teacher, model, captions, saved in counted.iter_rows()}
    rows = []
    for teacher, model in sorted({*told, *bought}):
        part = bought.get((teacher, model), Bought())
        captions_of, saved = told.get((teacher, model), (0, 0))
        money = part.usage.cost_usd
        rows.append(
            {
                "teacher": teacher,
                "model": model,
                "captions": captions_of,
                "replies": part.replies,
                "saved": saved,
                "prompt_tokens": part.usage.prompt_tokens,
                "completion_tokens": part.usage.completion_tokens,
                "cost_usd": None if money is None else round(money, 6),
            }
        )
    return rows
