"""A planted key, an echoed header and a signed URL, looked for in everything that a run writes and shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.looking import open_corpus

KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"  # nothing about it looks like a key
PLANTED = (KEY, "planted5ignature", "AKIAPLANTED", "Bearer")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_key_header_or_signed_url_is_written_or_shown(
    make_world: Any, teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    """Online and in batch jobs every third request fails with an error that repeats its key and a signed URL."""

    def verdict(chat: Any, first: int = 8) -> str:
        """An endpoint that has answered nothing before would not be asked any more."""
        return "echo" if len(server.chats) > first and int(chat.identity[:4], 16) % 3 == 0 else "answer"

    server = teacher_server(verdict=verdict, batch_verdict=lambda chat, row: verdict(chat, 0))
    world = make_world(tmp_path, images=4)
    teacher = {"backend": "openai", "model": "gpt-4o", "base_url": server.url, "api_key_env": "PLANTED_KEY"}
    world.settings["teacher"] = {**teacher, "limits": {"tries": 2, "first_wait_s": 0.01, "in_flight": 4}}
    world.settings["runner"] = {"worker_logs": True, "workers": {"cpu": 1}}
    world.save()
    shown = []

    def perceive(*arguments: str) -> int:
        environment = {**os.environ, "PLANTED_KEY": KEY, "OPENAI_LOG": "debug", "PYTHONPATH": str(Path.cwd())}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "jobs", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        shown.append(done.stdout + done.stderr)
        return done.returncode

    path = str(world.path)
    assert perceive("build", path) == 0, shown[-1]
    assert server.chats[0].authorization == f"Bearer {KEY}"
    failed = open_corpus(world.config()).captions.filter(pl.col("status") == "failed")
    assert failed["message"].str.contains("Incorrect API key provided").any(), "errors are kept, without their secrets"
    batch = ("run=batch", "teacher.backend=openai_batch", "teacher.batch.wait_s=1.0", "teacher.batch.poll_s=0.1")
    assert perceive("build", path, *(part for setting in batch for part in ("--set", setting))) == 0, shown[-1]
    failed = open_corpus(world.config(*batch)).captions.filter(pl.col("status") == "failed")
    assert failed["message"].str.contains("Incorrect API key provided").any()
    assert perceive("report", path) == 0
    assert perceive("cache", "export", path, str(tmp_path / "ledger.jsonl")) == 0
    assert perceive("plan", path) == 0
    no_key = ("--set", "teacher.api_key_env=UNSET_KEY", "--set", "teacher.decoding.seed=7")
    assert perceive("run", "distill", path, *no_key) == 1
    assert "UNSET_KEY" in shown[-1]
    shown.append(json.dumps(world.config().model_dump(mode="json")))
    written = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for secret in PLANTED:
        assert not [text[max(0, text.index(secret) - 200) :][:400] for text in shown if secret in text]
        assert not [file for file, data in written.items() if secret.encode() in data]
