"""vLLM for real, on CPU, with a tiny random model: the engine in a process, in a run's workers, and behind HTTP.

`make test-vllm` makes the environment that these need and runs them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from stages.distill import CaptionsConfig, build_distill
from stages.distill.answers import BriefAnswer, CombinedAnswer
from stages.shapes.config import ShapesConfig
from stages.shapes.images import write_images
from stages.teachers.chat import TeacherSetupError
from stages.teachers.config import CapabilitiesConfig, LimitsConfig, TeacherConfig
from stages.teachers.engine import EngineTeacher
from stages.teachers.online import OnlineTeacher
from stages.teachers.protocol import Decoding, Message, Reply, TeacherRequest
from stages.teachers.weights import warm
from stages.views.config import ViewConfig
from stages.views.encode import to_picture

SCRIPT = Path(__file__).with_name("vllm_engine.py")
real_vllm = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1500)]


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(TeacherSetupError, match=r"perceive-engine\[vllm\]"):
        EngineTeacher(TeacherConfig(backend="vllm", model="m"))


def test_weights_are_read_once_a_node_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "locks"))
    (tmp_path / "locks").mkdir()
    model = tmp_path / "model"
    model.mkdir()
    (model / "a.safetensors").write_bytes(bytes(3_000_000))
    (model / "b.safetensors").write_bytes(bytes(1000))
    (model / "notes.txt").write_bytes(bytes(5))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: warm(str(model), None), range(4))) == [3_001_000] * 4
    assert len(list((tmp_path / "locks").iterdir())) == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((OSError, ValueError)):
        warm("nobody/has-this-model", None)


def test_what_the_engine_is_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.teachers.engine._load", lambda: None)
    engine = {"tensor_parallel_size": 4, "num_gpus": 1, "options": {"max_num_seqs": 32, "dtype": "float16"}}
    config = TeacherConfig(backend="vllm", model="m", revision="r", engine=engine)
    given = EngineTeacher(config).arguments()
    assert (given["tensor_parallel_size"], given["max_num_seqs"], given["revision"]) == (4, 32, "r")
    assert given["dtype"] == "float16", "options go last"
    stage = build_distill(config, CaptionsConfig(), "brief", "en", "l")
    assert stage.resources.num_gpus == 4


def test_an_engine_has_shut_down_when_its_last_teacher_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed after it has closed: what the engine has not done by then it does not do."""
    told: list[str] = []

    class Engine:
        @staticmethod
        def from_engine_args(_arguments: Any) -> Engine:
            return Engine()

        def shutdown(self) -> None:
            time.sleep(0.2)
            told.append("down")

    names = SimpleNamespace(AsyncLLM=Engine, AsyncEngineArgs=dict)
    monkeypatch.setattr("stages.teachers.engine._load", lambda: names)

    async def run() -> None:
        two = [EngineTeacher(TeacherConfig(backend="vllm", model=str(tmp_path))) for _ in range(2)]
        for teacher in two:
            await teacher.start()
        await two[0].stop()
        assert not told, "another still uses it"
        await two[1].stop()

    asyncio.run(run())
    assert told == ["down"]


@pytest.fixture(scope="module")
def told(vllm_python: Path, vllm_environment: dict[str, str], tiny_model: Path) -> dict[str, Any]:
    """What the script in `vllm_engine.py` printed, by its words in capitals."""
    command = [str(vllm_python), str(SCRIPT), str(tiny_model)]
    done = subprocess.run(command, env=vllm_environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    words = ("REPLIES", "SECONDS", "REFUSED", "DEATH")
    return {line[0]: json.loads(line[1]) for line in lines if line[0] in words}


class TestTheEngineInAProcess:
    pytestmark = real_vllm

    def test_it_answers_in_the_schema_with_its_usage(self, told: dict[str, Any]) -> None:
        replies = told["REPLIES"]
        assert {reply["outcome"] for reply in replies} <= {"answer", "truncated", "invalid"}
        assert sum(reply["outcome"] == "answer" for reply in replies) >= 12
        assert all("caption" in json.loads(r["text"]) for r in replies if r["outcome"] == "answer")
        assert all(reply["usage"]["prompt_tokens"] > 16 for reply in replies)

    def test_a_request_that_it_refuses_is_unavailable_and_says_why(self, told: dict[str, Any]) -> None:
        assert told["REFUSED"]["outcome"] == "unavailable"
        assert "4096" in told["REFUSED"]["message"]

    def test_its_death_ends_every_request_at_once(self, told: dict[str, Any]) -> None:
        raised = Counter(told["DEATH"]["raised"])
        assert set(raised) <= {"EngineDied", "answer"}, "a short reply may come before the kill"
        assert raised["EngineDied"] >= 8
        assert told["DEATH"]["seconds"] < 30


class TestARunWithTheEngineInItsWorkers:
    pytestmark = real_vllm

    def test_a_killed_engine_is_replaced_and_no_row_is_lost(
        self, vllm_python: Path, vllm_environment: dict[str, str], tiny_model: Path, tmp_path: Path
    ) -> None:
        drawn = write_images(tmp_path / "world", ShapesConfig(images=20, clips=0, size=(160, 120), objects=(2, 3)))
        options = {"enforce_eager": True, "max_num_seqs": 4, "limit_mm_per_prompt": {"image": 2}}
        engine = {"num_gpus": 0, "max_model_len": 4096, "dtype": "bfloat16", "options": options}
        settings = {
            "run": "run",
            "sources": [{"format": "coco", "annotations": str(drawn.annotations[0]), "media": str(drawn.media)}],
            "select": {"min_side": 8},
            "teacher": {
                "backend": "vllm",
                "model": str(tiny_model),
                "engine": engine,
                # vLLM's CPU build dies of a seed where a prompt is taken in by pieces ("does not use offset").
                "decoding": {"temperature": 1.0, "max_tokens": 1024, "seed": None},
                "limits": {"in_flight": 4, "timeout_s": 300},
            },
            "captions": {"tasks": ["brief"], "languages": ["en"]},
            "runner": {"workers": {"cpu": 1, "net": 1}},
        }
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        command = [str(vllm_python), "-m", "jobs", "run"]
        for stage in ("ingest", "select", "refine"):
            subprocess.run([*command, stage, str(config)], check=True, env=vllm_environment, timeout=600)
        build = subprocess.Popen([*command, "distill", str(config), "--json"], env=vllm_environment, stdout=-1)
        kill_once_it_answers(tmp_path / "run" / "ledger", build)
        out, _ = build.communicate(timeout=1200)
        assert build.returncode == 0
        counts = json.loads(out)["stages"]["distill/brief/en"]
        assert counts["in"] > 30
        assert counts["pending"] == 0
        assert counts["ok"] + counts["failed"] == counts["in"]
        assert counts["ok"] > 0.5 * counts["in"], "a model of random weights answers most requests in the schema"
        assert "error" not in json.loads(out)["reasons"].get("distill/brief/en", {}), (
            "rows fail by their own answers only"
        )


def kill_once_it_answers(ledger: Path, build: subprocess.Popen[bytes]) -> None:
    """Kills the engine's process below a build as soon as its first replies are in the ledger."""
    while not any(path.stat().st_size for path in ledger.glob("*.wal")):
        time.sleep(0.05)
        assert build.poll() is None
    engines = [pid for pid, (name, session) in processes().items() if "Engine" in name and session]
    assert engines
    for pid in engines:
        os.kill(pid, signal.SIGKILL)


def processes() -> dict[int, tuple[str, bool]]:
    """Name by process id, and whether the process was started by this one, directly or not."""
    found: dict[int, tuple[str, int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        found[int(entry.name)] = (name, int(rest.split()[1]))

    def mine(pid: int) -> bool:
        while pid in found and pid != os.getpid():
            pid = found[pid][1]
        return pid == os.getpid()

    return {pid: (name, mine(pid)) for pid, (name, _) in found.items()}


@pytest.fixture(scope="module")
def served(
    vllm_python: Path, vllm_environment: dict[str, str], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A `vllm serve` of the tiny model: its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    structured = {"backend": "xgrammar", "disable_any_whitespace": True}
    command = [
        str(vllm_python.with_name("vllm")), "serve", str(tiny_model), "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", "teacher", "--dtype", "bfloat16", "--max-model-len", "4096", "--max-num-seqs", "16",
        "--enforce-eager", "--limit-mm-per-prompt", '{"image":2}',
        "--structured-outputs-config", json.dumps(structured),
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=vllm_environment, stdout=out, stderr=out, start_new_session=True)
    try:
        for _ in range(4000):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1", server
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def ask(url: str, answer: Any = BriefAnswer, count: int = 16, max_tokens: int = 1024, **more: Any) -> list[Reply]:
    limits = LimitsConfig(in_flight=16, tries=2, first_wait_s=0.1, timeout_s=120)
    can = CapabilitiesConfig(token_field="max_tokens", image_detail=False, **more)
    config = TeacherConfig(backend="openai", model="teacher", base_url=url, limits=limits, capabilities=can)

    def request(number: int) -> TeacherRequest:
        picture = to_picture(np.full((112, 112, 3), 8 * number, np.uint8), ViewConfig(), encoded=True)
        turns = (Message("system", "Describe."), Message("user", f"Thing {number}.", (picture,)))
        decoding = Decoding(temperature=1.0, seed=number)
        return TeacherRequest(model="teacher", messages=turns, answer=answer, max_tokens=max_tokens, decoding=decoding)

    async def run() -> list[Reply]:
        teacher = OnlineTeacher(config)
        await teacher.start()
        try:
            return list(await asyncio.gather(*(teacher.ask(request(number)) for number in range(count))))
        finally:
            await teacher.stop()

    return asyncio.run(run())


class TestVllmServe:
    pytestmark = real_vllm

    @pytest.mark.parametrize("structured", ["json_schema", "structured_outputs"])
    def test_the_http_client_gets_answers_in_the_schema(self, served: Any, structured: str) -> None:
        replies = ask(served[0], structured=structured)
        assert Counter(reply.outcome for reply in replies)["answer"] >= 12, replies
        assert all(reply.usage.prompt_tokens > 16 and reply.usage.completion_tokens for reply in replies)

    def test_all_parts_of_a_combined_answer_come_in_one_reply(self, served: Any) -> None:
        replies = ask(served[0], CombinedAnswer, count=4, max_tokens=3500)
        answers = [CombinedAnswer.model_validate_json(r.text or "") for r in replies if r.outcome == "answer"]
        assert answers, replies
        assert all(answer.brief and answer.detailed for answer in answers)

    def test_without_a_schema_noise_is_invalid_and_never_an_answer(self, served: Any) -> None:
        assert {reply.outcome for reply in ask(served[0], count=4, structured="none")} <= {"invalid", "truncated"}

    def test_an_unknown_model_says_what_to_look_at(self, served: Any) -> None:
        config = TeacherConfig(backend="openai", model="other", base_url=served[0])

        async def run() -> None:
            teacher = OnlineTeacher(config)
            await teacher.start()
            turns = (Message("user", "Hello."),)
            asked = TeacherRequest(model="other", messages=turns, answer=BriefAnswer, max_tokens=8, decoding=Decoding())
            try:
                await teacher.ask(asked)
            finally:
                await teacher.stop()

        with pytest.raises(TeacherSetupError, match="serve the model 'other'"):
            asyncio.run(run())

    def test_a_server_that_is_killed_makes_requests_unavailable(self, served: Any) -> None:
        url, server = served
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)
        assert {reply.outcome for reply in ask(url, count=2)} == {"unavailable"}
