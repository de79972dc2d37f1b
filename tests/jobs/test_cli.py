"""The command line says what is wrong in one line, speaks JSON to machines, and needs no Ray to look."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from jobs.cli import app
from pipeline.tables import Run as Tables
from prompts.loader import TEMPLATES
from schemas.keys import digest_value
from stages.shapes.config import ShapesConfig
from stages.shapes.images import write_images
from stages.teachers.ledger import Ledger
from stages.teachers.segments import Entry

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    runner = CliRunner()
    return lambda *args: runner.invoke(app, [str(arg) for arg in args])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    drawn = write_images(tmp_path / "world", ShapesConfig(images=2, clips=0, size=(96, 96)))
    settings = {
        "run": "run",
        "sources": [{"format": "coco", "annotations": str(drawn.annotations[0]), "media": str(drawn.media)}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_every_command_has_help(run: Run) -> None:
    listed = run("--help").output
    for command in ("build", "status", "retry-failed", "filter", "pack", "inspect", "verify", "gc", "doctor", "report"):
        assert command in listed
        assert run(command, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("selekt.min_side=3", "did you mean 'select'"),
        ("refine.backend=magic", "refine.backend"),
        ("policy=nowhere.yaml", "built in are default.yaml"),
        ("teacher.backend=openai", "needs the name of a model"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_1(run: Run, config: Path, override: str, said: str) -> None:
    result = run("status", config, "--set", override)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_configuration_is_named(run: Run, tmp_path: Path) -> None:
    result = run("build", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "there is no such configuration file" in result.stderr


def test_a_source_that_cannot_be_read_is_named(run: Run, config: Path) -> None:
    result = run("run", "ingest", config, "--set", "sources.0.annotations=/nowhere/x.json")
    assert result.exit_code == 1
    assert "/nowhere/x.json" in result.stderr


def test_status_of_a_run_that_has_not_begun_is_all_zero(run: Run, config: Path) -> None:
    result = run("status", config, "--json")
    assert result.exit_code == 0
    stages = json.loads(result.stdout)["stages"]
    assert {"ingest", "select", "refine", "chunk", "distill", "score", "decide", "pack"} <= set(stages)
    assert all(value == 0 for counts in stages.values() for value in counts.values())


def test_looking_loads_no_ray(run: Run, config: Path) -> None:
    before = "ray" in sys.modules
    run("status", config, "--json")
    assert ("ray" in sys.modules) == before


def test_doctor_tells_what_is_missing(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    assert run("doctor", config, "--json").exit_code == 0
    text = config.read_text() + "teacher: {backend: openai, model: some-vlm, api_key_env: TEACHER_KEY}\n"
    config.write_text(text, encoding="utf-8")
    result = run("doctor", config, "--json")
    assert result.exit_code == 1
    missing = [finding["found"] for finding in json.loads(result.stdout) if finding["state"] == "missing"]
    assert missing == ["TEACHER_KEY is not set"]


def test_prompts_are_listed_and_shown(run: Run) -> None:
    listed = json.loads(run("prompts", "list", "--json").stdout)
    assert {"brief.en", "brief.zh", "stream.en"} <= {prompt["id"] for prompt in listed}
    shown = run("prompts", "show", "brief.en").stdout
    assert "## system" in shown


def test_a_prompt_of_ones_own_is_shown_without_a_configuration(run: Run, tmp_path: Path) -> None:
    text = (TEMPLATES / "brief.en.md").read_text(encoding="utf-8")
    (tmp_path / "brief.en.md").write_text(text.replace("# User\n", "# User\nSay it in rhyme.\n"), encoding="utf-8")
    assert "Say it in rhyme." in run("prompts", "show", "brief.en", "--prompts", tmp_path).stdout
    assert "Say it in rhyme." not in run("prompts", "show", "brief.en").stdout
    hashes = [
        {prompt["id"]: prompt["hash"] for prompt in json.loads(run("prompts", "list", "--json", *more).stdout)}
        for more in ((), ("--prompts", tmp_path))
    ]
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == {"brief.en"}
    refused = run("prompts", "show", "brief.en", "--out", tmp_path / "x")
    assert refused.exit_code == 1
    assert "name the configuration" in refused.stderr


def test_preview_draws_the_first_regions(run: Run, config: Path, tmp_path: Path) -> None:
    result = run("preview", config, "--out", tmp_path / "p.png")
    assert result.exit_code == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def bought(folder: Path) -> None:
    """A ledger of an answer and an invalid attempt before it."""
    ledger = Ledger(str(folder))
    ledger.open()
    for at, outcome in enumerate(("invalid", "answer")):
        said = {"request": digest_value("a"), "outcome": outcome, "teacher": "openai", "model": "m", "created_s": at}
        ledger.append(Entry.model_validate(said)).result()
    ledger.close()


def test_the_ledger_is_cleared_only_while_nobody_builds(run: Run, config: Path, tmp_path: Path) -> None:
    bought(tmp_path / "run" / "ledger")
    with Tables.open(str(tmp_path / "run")).writer("perceive build"):
        for command in (("gc",), ("close", "--host", "node-7")):
            refused = run("cache", command[0], config, *command[1:])
            assert refused.exit_code == 1
            assert "held by perceive build" in refused.stderr
    assert run("cache", "gc", config).stdout == "2 replies before, 1 after\n"


def test_logs_of_a_host_that_is_gone_are_closed_by_name(run: Run, config: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "ledger"
    bought(ledger)
    (segment,) = ledger.glob("*.seg")
    segment.rename(ledger / f"{1:020d}-node_7-42-abcdef01.wal")
    refused = run("cache", "gc", config)
    assert refused.exit_code == 1
    assert "--host node_7" in refused.stderr
    assert "whose logs" in run("cache", "close", config).stderr
    for whose in (("--host", "node-7"), ("--all",)):
        assert "1 logs closed" in run("cache", "close", config, *whose).stdout
        assert run("cache", "gc", config).exit_code == 0
        (segment,) = ledger.glob("*.seg")
        segment.rename(ledger / f"{2:020d}-node_8-42-abcdef02.wal")
