"""Policies over scores: what is kept, why not, and what is said about it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.arrow import arrow_schema, conform
from schemas.caption import Decision
from stages.decide import decide, evaluate
from stages.policy import Policy, PolicyError, load_policy, policy_digest
from stages.yields import changes, kept_shares, overlap, precision_recall, yield_table

POLICIES = sorted((Path(__file__).resolve().parents[2] / "configs/policy").glob("*.yaml"))


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def captions(rows: list[dict[str, Any]]) -> pl.DataFrame:
    base = {"status": "ok", "reason": None, "task": "brief", "language": "en", "source": "coco", "event_index": -1,
            "source_label": None}  # fmt: skip
    filled = [
        {
            "caption_key": key(f"c{i}"),
            "region_key": key(f"r{i}"),
            "digest": key(f"d{i}"),
            "source_label": None,
            **base,
            **row,
        }
        for i, row in enumerate(rows)
    ]
    schema = {
        "reason": pl.String,
        "source_label": pl.String,
        "words": pl.Int64,
        "mark_hits": pl.Int64,
        "hedges": pl.Int64,
    }
    names = {name for row in filled for name in row}
    return pl.DataFrame(filled, schema_overrides={name: kind for name, kind in schema.items() if name in names})


def policy(*checks: dict[str, Any], **more: Any) -> Policy:
    return Policy.model_validate({"name": "test", "checks": checks, **more})


MARKS = {"reason": "mark_leak", "column": "mark_hits", "max": 0}
STUB = {"reason": "stub", "column": "words", "min": 5}


def test_the_first_check_that_drops_is_the_reason_and_all_are_named() -> None:
    frame = captions([{"words": 3, "mark_hits": 2}, {"words": 3, "mark_hits": 0}, {"words": 9, "mark_hits": 0}])
    decided = decide(frame, policy(MARKS, STUB))
    assert decided["status"].to_list() == ["filtered", "filtered", "ok"]
    assert decided["reason"].to_list() == ["mark_leak", "stub", None]
    assert decided["reasons"].to_list() == [["mark_leak", "stub"], ["stub"], []]


def test_decisions_have_the_schema_of_their_record() -> None:
    decided = decide(captions([{"words": 3}]), policy(STUB))
    table = conform(decided.to_arrow(), arrow_schema(Decision))
    assert table["input_digest"].to_pylist() == [key("d0")]


def test_null_neither_passes_nor_fails_unless_the_policy_says_so() -> None:
    frame = captions([{"words": None}, {"words": 3}])
    assert decide(frame, policy(STUB))["status"].to_list() == ["ok", "filtered"]
    assert decide(frame, policy({**STUB, "on_null": "fail"}))["status"].to_list() == ["filtered", "filtered"]
    counted = yield_table(evaluate(frame, policy(STUB))).row(0, named=True)
    assert (counted["ran"], counted["not_run"], counted["hits"], counted["sole_hits"]) == (1, 1, 1, 1)


def test_a_rule_that_was_not_computed_is_reported_as_not_run() -> None:
    evaluation = evaluate(captions([{"words": 3}] * 4), policy(MARKS, STUB))
    marks = yield_table(evaluation).filter(pl.col("reason") == "mark_leak").row(0, named=True)
    assert (marks["ran"], marks["not_run"], marks["hits"], marks["hit_share"]) == (0, 4, 0, None)
    assert evaluation.decisions["reasons"].to_list() == [["stub"]] * 4


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"min": 5}, [5, 6]),
        ({"max": 5}, [4, 5]),
        ({"above": 5}, [6]),
        ({"below": 5}, [4]),
        ({"min": 5, "below": 6}, [5]),
    ],
)
def test_bounds(bounds: dict[str, float], kept: list[int]) -> None:
    frame = captions([{"words": n} for n in (4, 5, 6)])
    decided = decide(frame, policy({"reason": "r", "column": "words", **bounds}))
    assert frame.filter(decided["status"] == "ok")["words"].to_list() == kept


def test_overrides_by_task_language_and_source() -> None:
    check = {
        **STUB,
        "only": {"task": ["brief", "stream"]},
        "overrides": [
            {"when": {"language": "zh"}, "min": 8},
            {"when": {"source": "lvis"}, "skip": True},
            {"when": {"source": "lvis", "task": "stream"}, "min": 2},
        ],
    }
    rows = [
        ({"words": 4}, "filtered"),
        ({"words": 7, "language": "zh"}, "filtered"),
        ({"words": 7}, "ok"),
        ({"words": 1, "source": "lvis"}, "ok"),
        ({"words": 1, "source": "lvis", "task": "stream"}, "filtered"),
        ({"words": 3, "source": "lvis", "task": "stream"}, "ok"),
        ({"words": 1, "task": "label"}, "ok"),
        ({"words": 4, "source": None}, "filtered"),
    ]
    decided = decide(captions([row for row, _ in rows]), policy(check))
    assert decided["status"].to_list() == [status for _, status in rows]


def test_an_override_may_bound_another_side_where_others_stay_open() -> None:
    check = {**STUB, "overrides": [{"when": {"language": "zh"}, "max": 9}]}
    frame = captions([{"words": 99}, {"words": 99, "language": "zh"}, {"words": 2, "language": "zh"}])
    assert decide(frame, policy(check))["status"].to_list() == ["ok", "filtered", "filtered"]


def test_a_rank_is_a_place_within_a_class() -> None:
    frame = captions(
        [{"words": n, "source_label": "dog"} for n in (10, 20, 30, 40, 50)]
        + [{"words": n, "source_label": "cat"} for n in (1, 2, 3)]
        + [{"words": 9, "source_label": "lone"}, {"words": None, "source_label": "dog"}]
    )
    check = {"reason": "low", "column": "words", "rank_by": ["source_label"], "min": 0.2}
    dropped = frame.filter(decide(frame, policy(check))["status"] == "filtered")
    assert sorted(dropped["words"].to_list()) == [1, 10]
    with pytest.raises(PolicyError, match="nosuch"):
        decide(frame, policy({**check, "rank_by": ["nosuch"]}))


def test_flags_are_recorded_and_kept() -> None:
    decided = decide(captions([{"words": 3, "mark_hits": 0}, {"words": 3, "mark_hits": 1}]),
                     policy({**STUB, "action": "flag"}, MARKS))  # fmt: skip
    assert decided["status"].to_list() == ["ok", "filtered"]
    assert decided["reason"].to_list() == [None, "mark_leak"]
    assert decided["reasons"].to_list() == [["stub"], ["mark_leak", "stub"]]


def test_a_policy_may_have_any_number_of_checks() -> None:
    frame = captions([{"words": words, "mark_hits": 0} for words in (0, 1, 63, 64, 150, 199, 200)])
    checks = [{"reason": f"under_{limit}", "column": "words", "min": limit} for limit in range(1, 201)]
    found = evaluate(frame, policy(*checks))
    expected = [[f"under_{limit}" for limit in range(1, 201) if words < limit] for words in frame["words"]]
    assert found.decisions["reasons"].to_list() == expected
    assert found.decisions["reason"].to_list() == [reasons[0] if reasons else None for reasons in expected]
    told = {row["reason"]: row for row in yield_table(found).to_dicts()}
    assert [told[f"under_{limit}"]["hits"] for limit in (1, 64, 65, 128, 129, 200)] == [1, 3, 4, 4, 4, 6]
    assert [told[f"under_{limit}"]["sole_hits"] for limit in (199, 200)] == [0, 1]
    assert found.hits.column("under_150").to_list() == [True, True, True, True, False, False, False]


def test_captions_that_failed_or_were_blocked_stay_so_and_add_up() -> None:
    frame = captions([
        {"status": "failed", "reason": "refused", "words": None},
        {"status": "blocked", "reason": "earlier_event", "words": None},
        {"words": 3},
        {"words": 9},
    ])  # fmt: skip
    evaluation = evaluate(frame, policy({**STUB, "on_null": "fail"}))
    assert evaluation.decisions["status"].to_list() == ["failed", "blocked", "filtered", "ok"]
    assert evaluation.decisions["reasons"].to_list() == [["refused"], ["earlier_event"], ["stub"], []]
    row = kept_shares(evaluation).row(0, named=True)
    assert (row["captions"], row["kept"], row["filtered"], row["failed"], row["blocked"]) == (4, 1, 1, 1, 1)


def test_a_chain_is_cut_after_its_first_event_that_is_not_kept() -> None:
    chain = {"task": "stream", "region_key": key("r")}
    frame = captions([
        {**chain, "event_index": 2, "words": 9},
        {**chain, "event_index": 0, "words": 9},
        {**chain, "event_index": 1, "words": 1},
        {**chain, "event_index": 2, "words": 9, "language": "zh"},
        {"task": "stream", "region_key": key("s"), "event_index": 2, "words": 9},
    ])  # fmt: skip
    decided = decide(frame, policy(STUB))
    assert decided["status"].to_list() == ["blocked", "ok", "filtered", "ok", "ok"]
    assert decided["reason"][0] == "earlier_event"
    uncut = decide(frame, policy(STUB, cut_chains=False))
    assert uncut["status"].to_list() == ["ok", "ok", "filtered", "ok", "ok"]


def test_caps_keep_a_seeded_draw_of_each_class() -> None:
    frame = captions([{"words": 9, "source_label": "dog" if i % 2 else "cat"} for i in range(40)] + [{"words": 1}])
    capped = policy(STUB, caps=[{"by": ["source_label"], "max": 5, "seed": 3}])
    decided = decide(frame, capped)
    assert decided["status"].value_counts().sort("status").rows() == [("filtered", 31), ("ok", 10)]
    assert decided["reason"].value_counts().sort("reason").rows() == [(None, 10), ("class_cap", 30), ("stub", 1)]
    shuffled = decide(frame.sample(fraction=1, shuffle=True, seed=1), capped)
    assert set(shuffled.filter(pl.col("status") == "ok")["caption_key"]) == set(
        decided.filter(pl.col("status") == "ok")["caption_key"]
    )
    other = decide(frame, policy(STUB, caps=[{"by": ["source_label"], "max": 5, "seed": 4}]))
    assert other["status"].to_list() != decided["status"].to_list()


def test_captions_without_a_class_are_in_none_that_is_full() -> None:
    frame = captions([{"words": 9, "source_label": "dog" if i < 8 else None} for i in range(40)])
    decided = decide(frame, policy(STUB, caps=[{"by": ["source_label"], "max": 5}]))
    assert decided["reason"].to_list().count("class_cap") == 3


def test_no_captions_at_all() -> None:
    evaluation = evaluate(captions([{"words": 3}]).clear(), policy(STUB))
    assert len(evaluation.decisions) == 0
    assert yield_table(evaluation)["hits"].to_list() == [0]


def test_yield_by_scope_and_overlap() -> None:
    frame = captions([{"words": 3, "mark_hits": 1}, {"words": 3, "mark_hits": 0, "source": "lvis"}])
    evaluation = evaluate(frame, policy(MARKS, STUB))
    table = yield_table(evaluation, by=("source",)).filter(pl.col("reason") == "stub")
    assert table.select("source", "hits", "sole_hits").rows() == [("coco", 1, 0), ("lvis", 1, 1)]
    assert overlap(evaluation).rows() == [("mark_leak", "stub", 1)]


def test_changes_between_two_policies() -> None:
    frame = captions([{"words": 3}, {"words": 6}, {"words": 9}])
    before, after = decide(frame, policy(STUB)), decide(frame, policy({**STUB, "min": 8}))
    assert changes(before, after).rows() == [("ok", None, "filtered", "stub", 1)]
    assert len(changes(before, before)) == 0


def test_precision_and_recall_against_planted_defects() -> None:
    frame = captions([{"words": 3}, {"words": 3}, {"words": 9}, {"words": 9}])
    truth = pl.DataFrame({"caption_key": [key("c0"), key("c2")], "defect": ["short", "wrong_colour"]})
    table = precision_recall(decide(frame, policy(STUB)), truth)
    overall = table.row(0, named=True)
    assert (overall["planted"], overall["found"], overall["dropped"]) == (2, 1, 2)
    assert (overall["precision"], overall["recall"]) == (0.5, 0.5)
    assert dict(table.select("defect", "recall").rows()) == {"overall": 0.5, "short": 1.0, "wrong_colour": 0.0}


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_the_policies_that_come_with_the_engine_are_valid(path: Path) -> None:
    assert load_policy(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nchecks: [{reason: a, column: mark_hit, max: 0}]", "did you mean 'mark_hits'"),
        ("name: x\nchecks: [{reason: a, column: words, maxx: 0}]", "did you mean 'max'"),
        ("name: x\nchecks: [{reason: a, column: words}]", "sets none of"),
        ("name: x\nchecks: [{reason: a, column: words, min: 1}, {reason: a, column: words, max: 9}]", "given twice"),
        ("name: x\nchecks: [{reason: a, column: words, min: 1, only: {task: breif}}]", "brief"),
        ("- a", "mapping"),
        ("name: [", "not YAML"),
    ],
)
def test_a_bad_policy_names_its_file_and_the_fix(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(PolicyError, match=message) as raised:
        load_policy(file)
    assert "mine.yaml" in str(raised.value)


def test_the_digest_of_a_policy_ignores_descriptions_only() -> None:
    assert policy_digest(policy(STUB)) == policy_digest(policy({**STUB, "about": "stubs"}, about="x"))
    assert policy_digest(policy(STUB)) != policy_digest(policy({**STUB, "min": 6}))
