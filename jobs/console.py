"""What every command shares: options, where a run is, output for people and for machines, errors in one line."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import orjson
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from pipeline.config import EngineConfig, load_config
from pipeline.engine import Counts
from pipeline.settings import ConfigError
from pipeline.work import NodeCounts

_ELSEWHERE = (
    ("model.checkpoint", "CheckpointError"),
    ("model.corpus", "CorpusError"),
    ("model.judges", "JudgeError"),
    ("model.optim", "DivergedError"),
    ("model.train_config", "TrainError"),
    ("stages.base", "CannotGoOn"),
    ("stages.base", "TransientError"),
    ("stages.base", "UnitError"),
    ("stages.teachers.logs", "LedgerError"),
)
"""Errors that are looked up only where they can have been raised: importing the model takes seconds."""

P = ParamSpec("P")
R = TypeVar("R")

out = Console()
err = Console(stderr=True)

ConfigOrRun = Annotated[
    Path, typer.Argument(metavar="CONFIG_OR_RUN", help="A run's configuration file, or its folder.")
]
Overrides = Annotated[list[str], typer.Option("--set", metavar="a.b=c", help="Override one setting; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Limit = Annotated[int | None, typer.Option(help="At most this many units of each stage.")]
Budget = Annotated[
    str | None,
    typer.Option(help="Stop before the run's replies have cost more than this in all, for example 50USD."),
]
Where = Annotated[list[str], typer.Option("--where", metavar="column=value", help="Only regions with this value.")]


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turns what a person can mend into one line on stderr and exit code 1; defects keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err)])
        try:
            return command(*args, **kwargs)
        except _mendable() as error:
            err.print(f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error

    return wrapped


def _plain(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace("[", r"\[")


def _mendable() -> tuple[type[BaseException], ...]:
    from pipeline.build import UnbalancedError
    from pipeline.forget import UnknownMediaError
    from pipeline.tables import LeaseHeld, LeaseLost, RunError
    from pipeline.work import WorkerError
    from prompts.loader import PromptError
    from stages.ingest.base import SourceError
    from stages.policy import PolicyError

    known: list[type[BaseException]] = [
        ConfigError, LeaseHeld, LeaseLost, RunError, WorkerError, SourceError, PolicyError, PromptError,
        UnbalancedError, UnknownMediaError, FileNotFoundError,
    ]  # fmt: skip
    for module, name in _ELSEWHERE:
        if module in sys.modules:
            known.append(getattr(sys.modules[module], name))
    if "pipeline.runner" in sys.modules:
        runner = sys.modules["pipeline.runner"]
        known += [runner.RunStopped, runner.RunStalled, runner.DoesNotFit]
    return tuple(known)


def find_config(where: Path, overrides: list[str]) -> EngineConfig:
    """The configuration of a path: a YAML file, or a run's folder with its `config.yaml`. Raises `ConfigError`."""
    path = where / "config.yaml" if where.is_dir() else where
    return load_config(path, overrides)


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """`["source=coco"]` as a mapping. Raises `ConfigError` for a text without `=`."""
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise ConfigError(f"{option} {wrong[0]}: write it as column=value")
    return dict(text.split("=", 1) for text in texts)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode() + "\n")


@contextmanager
def only_json(json: bool) -> Iterator[None]:
    """With `--json`, what libraries print meanwhile (Ray when a worker dies) goes to stderr, away from the object."""
    with redirect_stdout(sys.stderr) if json else nullcontext():
        yield


@contextmanager
def told(logger: str, silent: bool) -> Iterator[None]:
    """What this logger says of its progress (not only its warnings) goes to stderr meanwhile, unless `silent`."""
    log = logging.getLogger(logger)
    before = log.level
    if not silent:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)


def accounts_table(counts: Mapping[str, Counts], title: str = "") -> Table:
    """The accounts as a table for people."""
    table = Table(title=title or None, header_style="bold", title_justify="left")
    table.add_column("stage")
    for name in ("in", "ok", "filtered", "failed", "blocked", "pending"):
        table.add_column(name, justify="right")
    for name, count in counts.items():
        values = [str(value) if value else "[dim]-[/]" for value in count.as_dict().values()]
        indent = "  " if "/" in name else ""
        table.add_row(indent + name, *values)
    return table


class Lines:
    """Progress as lines on stderr, at most one every few seconds; kind to logs and terminals alike."""

    def __init__(self, every_s: float = 5.0) -> None:
        self._every_s = every_s
        self._last = 0.0

    def phase(self, name: str) -> None:
        err.print(f"[bold]{name}[/]")

    def tick(self, counts: Mapping[str, NodeCounts]) -> None:
        now = time.monotonic()
        if now - self._last < self._every_s:
            return
        self._last = now
        for name, count in counts.items():
            if count.pending and count.rows:
                bad = sum(number for status, number in count.status.items() if status != "ok")
                err.print(f"  {name}: {count.rows} rows, {count.pending} units to go, {bad} not ok", highlight=False)
