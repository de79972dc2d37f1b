"""The distil stage with a model behind real HTTP: what is sent, what comes back, what faults and kills cost."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.arrow import from_table, to_table
from schemas.caption import Caption
from schemas.keys import digest_value
from schemas.region import Hint
from stages.base import BudgetSpent, Drained, checked
from stages.distill import CaptionsConfig, build_distill
from stages.distill.stage import DistillStage
from stages.distill.units import CaptionUnit
from stages.masks import encode
from stages.shapes.scene import draw_scene
from stages.teachers.budget import Account
from stages.teachers.config import BatchConfig, CapabilitiesConfig, LimitsConfig, TeacherConfig
from stages.teachers.ledger import GROUP_REPLIES
from stages.teachers.logs import LedgerError
from stages.teachers.pricing import price_of
from stages.teachers.segments import read_records
from stages.teachers.source import TeacherSource

LIMITS = LimitsConfig(in_flight=32, tries=10, first_wait_s=0.01, longest_wait_s=0.1, timeout_s=1.0)


def teacher(server: Any, **more: Any) -> TeacherConfig:
    return TeacherConfig(**{"backend": "openai", "model": "m", "base_url": server.url, "limits": LIMITS} | more)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], list[CaptionUnit]]:
    """Makes units of drawn photos: `images` photos with `regions` units each (masks may repeat, keys do not)."""
    folder = tmp_path_factory.mktemp("photos")

    def make(images: int, regions: int) -> list[CaptionUnit]:
        units = []
        for index in range(images):
            scene = draw_scene(np.random.default_rng(index), (160, 120))
            path = folder / f"{index}.png"
            cv2.imwrite(str(path), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
            for number in range(regions):
                instance = scene.instances[number % len(scene.instances)]
                region = digest_value([index, number])
                units.append(
                    CaptionUnit(
                        caption_key=digest_value([region, "brief"]), region_key=region, media_key=digest_value(index),
                        task="brief", language="en", uri=str(path), kind="image", source="shapes",
                        label=f"{instance.look.kind} {index}-{number}", width=160, height=120,
                        mask=encode(instance.mask), box=instance.box, input_digest=region,
                        hints=[Hint(kind="phrase", language="en", text="the one on the left")],
                    )
                )  # fmt: skip
        return units

    return make


def run(
    units: list[CaptionUnit], config: TeacherConfig, ledger: Path, captions: CaptionsConfig | None = None
) -> list[Caption]:
    stage = build_distill(config, captions or CaptionsConfig(), units[0].task, units[0].language, str(ledger))
    stage.open()
    try:
        table = pa.concat_tables(checked(stage, to_table(units, stage.unit)))
    finally:
        stage.close()
    rows = {row.caption_key: row for row in from_table(table, Caption)}
    return [rows[unit.caption_key] for unit in units]


def test_a_request_holds_prompt_source_and_both_pictures(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path
) -> None:
    server = teacher_server()
    (unit,) = drawn(1, 1)
    (row,) = run([unit], teacher(server), tmp_path)
    (chat,) = server.chats
    assert unit.label in chat.text
    assert "the one on the left" in chat.text
    assert "5 to 25 words" in chat.text
    shown = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in chat.images]
    assert [picture.shape for picture in shown] == [shown[0].shape] * 2
    assert shown[1].mean() > shown[0].mean() + 20, "the second picture is faded to white around the target"
    assert (row.teacher, row.model, row.views) == ("openai", "m", ["crop_mask"])
    assert row.usage.prompt_tokens == server.prompt_tokens
    assert row.text
    assert row.request_digest


def test_each_outcome_has_its_own_rule(teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def verdict(chat: Any) -> str:
        rule = chat.text.split("call the target: ")[1].split(" ")[1].split(".")[0]
        seen[rule] += 1
        if rule in ("0-3",):
            return "invalid"
        return (
            {"0-0": "truncated", "0-1": "invalid", "0-2": "refused"}.get(rule, "answer")
            if seen[rule] == 1
            else "answer"
        )

    server = teacher_server(verdict=verdict)
    rows = run(drawn(1, 5), teacher(server), tmp_path)
    assert [row.status for row in rows] == ["ok", "ok", "ok", "failed", "ok"]
    assert [row.attempts for row in rows] == [2, 2, 2, 2, 1]
    assert rows[3].reason == "invalid"
    assert "caption" in (rows[3].message or "")
    by_rule = {rule: [c for c in server.chats if f" {rule}." in c.text] for rule in ("0-0", "0-1", "0-2")}
    assert [chat.body["max_completion_tokens"] for chat in by_rule["0-0"]] == [128, 256]
    repaired = by_rule["0-1"][1].body["messages"]
    assert [message["role"] for message in repaired] == ["system", "user", "assistant", "user"]
    assert "could not be used" in repaired[-1]["content"]
    assert rows[2].views == ["full_mask"]
    assert "whole photograph" in by_rule["0-2"][1].text


def test_failed_attempts_are_not_made_again_until_they_are_forgiven(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path
) -> None:
    server = teacher_server(verdict=lambda chat: "refused")
    units = drawn(1, 2)
    assert {row.status for row in run(units, teacher(server), tmp_path)} == {"failed"}
    asked = len(server.chats)
    assert {row.status for row in run(units, teacher(server), tmp_path)} == {"failed"}
    assert len(server.chats) == asked
    server.verdict = lambda chat: "answer"
    stage = build_distill(
        teacher(server), CaptionsConfig(), "brief", "en", str(tmp_path), forgive_before=time.time() + 1
    )
    stage.open()
    table = pa.concat_tables(checked(stage, to_table(units, stage.unit)))
    stage.close()
    assert set(table["status"].to_pylist()) == {"ok"}


def test_what_an_endpoint_is_sent_is_part_of_what_was_asked(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path
) -> None:
    server = teacher_server(verdict=lambda chat: "answer" if "response_format" in chat.body else "invalid")
    loose, usual = CapabilitiesConfig(structured="none"), CapabilitiesConfig()
    units = drawn(1, 2)
    assert {row.reason for row in run(units, teacher(server, capabilities=loose), tmp_path)} == {"invalid"}
    assert {row.status for row in run(units, teacher(server, capabilities=usual), tmp_path)} == {"ok"}
    bought = len(server.chats)
    served = CapabilitiesConfig(token_field="max_tokens", image_detail=False)
    assert {row.status for row in run(units, teacher(server, capabilities=served), tmp_path)} == {"ok"}
    assert len(server.chats) == bought, "another name of the token limit asks for nothing else"


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, "{}"),
        ({"extra_body": {"top_k": 3}}, '{"top_k": 3}'),
        ({"token_field": "max_tokens", "image_detail": False}, "{}"),
        ({"structured": "none", "strict": False}, '{"capabilities": {"structured": "none"}, "extra_body": {}}'),
        ({"sampling": False, "extra_body": {"k": 3}}, '{"capabilities": {"sampling": false}, "extra_body": {"k": 3}}'),
    ],
)
def test_a_ledger_from_before_capabilities_counted_stays_good_where_they_are_the_defaults(
    settings: dict[str, Any], options: str
) -> None:
    config = TeacherConfig(backend="openai", model="m", capabilities=CapabilitiesConfig(**settings))
    assert config.request_options() == options


def test_combined_tasks_buy_one_reply_a_region(teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path) -> None:
    server = teacher_server()
    units = drawn(2, 2)
    combined = CaptionsConfig(combined=True)
    texts = {}
    for task in ("label", "explain", "brief", "detailed"):
        of_task = [unit.model_copy(update={"task": task}) for unit in units]
        texts[task] = run(of_task, teacher(server), tmp_path, combined)
    assert len(server.chats) == len(units)
    assert all(row.status == "ok" for rows in texts.values() for row in rows)
    assert [row.label for row in texts["label"]] == [row.label for row in texts["explain"]]
    assert texts["brief"][0].text != texts["detailed"][0].text


def test_combined_tasks_that_are_open_together_buy_one_reply_a_region(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path
) -> None:
    """As a worker has them: the stages of one run arrive together, are all open, and have several batches in flight."""
    server = teacher_server(latency_s=0.05)
    config, tasks = teacher(server), ("label", "explain", "brief", "detailed")
    source = TeacherSource(config, str(tmp_path))
    made = [build_distill(config, CaptionsConfig(combined=True), task, "en", source=source) for task in tasks]
    stages = pickle.loads(pickle.dumps(made))
    units = drawn(3, 2)

    def captions(stage: DistillStage) -> list[str]:
        of_task = [unit.model_copy(update={"task": stage.recipe.task}) for unit in units]
        rows = [table["status"].to_pylist() for table in checked(stage, to_table(of_task, stage.unit))]
        return [status for part in rows for status in part]

    for stage in stages:
        stage.open()
    with ThreadPoolExecutor(3) as pool:
        at_once = list(pool.map(captions, stages[:3]))
    assert [*at_once, captions(stages[3])] == [["ok"] * len(units)] * len(tasks)
    for stage in stages:
        stage.close()
    assert len(server.chats) == len(units)


def test_a_stage_that_is_drained_finishes_what_it_has_asked_and_asks_no_more(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path
) -> None:
    server = teacher_server(latency_s=0.3)
    units = drawn(20, 1)
    stage = build_distill(
        teacher(server, limits=LIMITS.model_copy(update={"in_flight": 2})),
        CaptionsConfig(), "brief", "en", str(tmp_path),
    )  # fmt: skip
    stage.open()
    rows: list[dict[str, Any]] = []

    def take() -> None:
        for table in stage.process(to_table(units, stage.unit)):
            rows.extend(table.to_pylist())
            stage.drain()

    with pytest.raises(Drained):
        take()
    stage.close()
    assert 0 < len(rows) < len(units)
    assert len(rows) == len(server.chats) == sum(server.delivered.values())
    assert {row["status"] for row in rows} == {"ok"}


def test_a_ledger_that_cannot_be_written_stops_the_buying(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path
) -> None:
    server = teacher_server()
    units = drawn(8, 1)
    config = teacher(server, limits=LIMITS.model_copy(update={"in_flight": 1}))
    stage = build_distill(config, CaptionsConfig(), "brief", "en", str(tmp_path))
    stage.open()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for _ in range(3):
            with pytest.raises(LedgerError):
                list(checked(stage, to_table(units, stage.unit)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = sum(1 for wal in tmp_path.glob("*.wal") for _ in read_records(wal.open("rb")))
    assert kept >= 1
    assert len(server.chats) == kept + 1, "one reply found that it could not be kept, and none was bought after it"


@pytest.mark.parametrize("backend", ["openai", "openai_batch"])
def test_a_budget_is_not_exceeded_and_a_later_run_goes_on(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path, backend: str
) -> None:
    server = teacher_server(latency_s=0.005, fault_share=0.2, faults=("cut", "500", "schema"))
    price = price_of("gpt-4o")

    def bill() -> float:
        return price.cost(server.prompt_tokens, server.completion_tokens, batch=backend == "openai_batch") or 0.0

    batch = BatchConfig(max_requests=8, wait_s=0.02, poll_s=0.01)
    config = teacher(server, backend=backend, model="gpt-4o", batch=batch)
    units = drawn(20, 3)
    run(units[:3], config, tmp_path)
    cap = bill() / 3 * 20
    stage = build_distill(config, CaptionsConfig(), "brief", "en", str(tmp_path))
    before = bill()
    stage.fund(Account(cap))
    stage.open()
    rows: list[pa.Table] = []
    with pytest.raises(BudgetSpent):
        rows.extend(checked(stage, to_table(units, stage.unit)))
    stage.close()
    assert 0.5 * cap < bill() - before <= cap
    billed = Counter(server.billed)
    assert {row.status for row in run(units, config, tmp_path)} <= {"ok", "failed"}
    again = {asked for asked, count in server.billed.items() if asked in billed and count > billed[asked]}
    assert len(again) <= server.faults_served["cut"], "what was answered is not bought again"


def test_a_budget_needs_a_price(drawn: Any, tmp_path: Path) -> None:
    config = TeacherConfig(backend="openai", model="house-model", base_url="http://127.0.0.1:9/v1")
    stage = build_distill(config, CaptionsConfig(), "brief", "en", str(tmp_path))
    with pytest.raises(ValueError, match=r"house-model.*teacher\.prices"):
        stage.fund(Account(1.0))
    build_distill(TeacherConfig(), CaptionsConfig(), "brief", "en").fund(Account(0.0))


CHILD = """
import sys
import pyarrow.parquet as pq
from stages.base import checked
from stages.distill import CaptionsConfig, build_distill
from stages.teachers.config import TeacherConfig

folder = sys.argv[1]
config = TeacherConfig.model_validate_json(open(folder + "/teacher.json").read())
stage = build_distill(config, CaptionsConfig(), "brief", "en", folder + "/ledger")
stage.open()
for table in checked(stage, pq.read_table(folder + "/units.parquet")):
    for status, reason in zip(table["status"].to_pylist(), table["reason"].to_pylist(), strict=True):
        print(status, reason, flush=True)
stage.close()
"""


@pytest.mark.slow
def test_two_thousand_regions_a_third_of_the_replies_bad_and_a_kill_in_the_middle(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path
) -> None:
    server = teacher_server(latency_s=0.02, fault_share=0.3, keep_chats=False)
    units = drawn(100, 20)
    limits = LIMITS.model_copy(update={"timeout_s": 10.0})
    (tmp_path / "teacher.json").write_text(teacher(server, limits=limits).model_dump_json())
    pq.write_table(to_table(units, CaptionUnit), tmp_path / "units.parquet")

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)

    child = start()
    while len(server.delivered) < 900:
        time.sleep(0.005)
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    second = start()
    told, _ = second.communicate(timeout=240)
    assert second.returncode == 0
    rows = Counter(line.split()[0] for line in told.splitlines())
    assert sum(rows.values()) == len(units), "every region has its row"
    assert set(rows) <= {"ok", "failed"}
    assert rows["ok"] >= 0.97 * len(units)
    assert "failed None" not in told, "a row that failed says why"
    assert len(server.faults_served) == 6
    bought_again = sum(count - 1 for count in server.delivered.values())
    assert bought_again <= limits.in_flight + GROUP_REPLIES
    third = start()
    third.communicate(timeout=240)
    assert sum(count - 1 for count in server.delivered.values()) == bought_again, "an answer was bought twice"


def test_no_key_reaches_a_ledger_a_row_or_a_message(
    teacher_server: Callable[..., Any], drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    secret = "sk-planted-secret-0123456789"
    monkeypatch.setenv("PLANTED", secret)
    caplog.set_level("DEBUG")
    server = teacher_server(
        verdict=lambda chat: "refused" if " 0-0." in chat.text else "answer", fault_share=0.3, faults=("500", "drop")
    )
    config = teacher(server, api_key_env="PLANTED")
    rows = run(drawn(1, 5), config, tmp_path)
    rows += run(drawn(1, 2), teacher(server, api_key_env="PLANTED", base_url="http://127.0.0.1:9/v1"), tmp_path / "b")
    assert server.chats[0].authorization == f"Bearer {secret}"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert written
    captured = capfd.readouterr()
    shown = caplog.text + captured.out + captured.err + json.dumps([row.model_dump(mode="json") for row in rows])
    settings = build_distill(config, CaptionsConfig(), "brief", "en", "x").settings()
    assert secret not in shown
    assert secret.encode() not in written
    assert secret not in json.dumps(settings)
