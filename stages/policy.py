"""Policies: which scores speak against a caption, read from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from schemas.caption import Language, Task
from schemas.keys import digest_value
from schemas.yaml import load_yaml
from stages.score.groups import all_columns

Action = Literal["drop", "flag"]
Repair = Literal["ask", "strip_opener"]
BOUNDS = ("min", "max", "above", "below")


class PolicyError(ValueError):
    """A policy that cannot be applied; the message names the file, the check and the fix."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class Scope(BaseModel):
    """Captions by task, language and source; what is left empty matches all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Annotated[tuple[Task, ...], BeforeValidator(_as_tuple)] = ()
    language: Annotated[tuple[Language, ...], BeforeValidator(_as_tuple)] = ()
    source: Names = ()

    def matches(self, source: str | None, task: str, language: str) -> bool:
        return (
            (not self.task or task in self.task)
            and (not self.language or language in self.language)
            and (not self.source or source in self.source)
        )


class Bounds(BaseModel):
    """What a score must be: at least `min`, at most `max`, greater than `above`, less than `below`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

    def given(self) -> dict[str, float]:
        """The bounds that are set."""
        return {name: value for name in BOUNDS if (value := getattr(self, name)) is not None}


class Override(Bounds):
    """Other bounds for a scope; a bound that is not named keeps the check's. `skip` leaves the check out there."""

    when: Scope
    skip: bool = False


class Check(Bounds):
    """One sentence of a policy: captions (of the scope `only`) whose `column` lies outside the bounds get `reason`.

    `on_null` says what a score that did not run does. `action: flag` records the reason and keeps the caption.
    `repair` says that `rescue` may put the caption right, by asking the teacher again or by stripping its opener.
    Of several overrides that match, the last one wins. `rank_by` bounds not the score but its place among the scores
    of captions that are equal in these columns, from 0 (lowest) to 1: scores of image-text models differ by class.
    """

    reason: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    column: str
    about: str = ""
    only: Scope = Scope()
    overrides: tuple[Override, ...] = ()
    rank_by: Names = ()
    on_null: Literal["pass", "fail"] = "pass"
    action: Action = "drop"
    repair: Repair | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Check:
        if not self.given() and not any(override.given() for override in self.overrides):
            raise ValueError(f"check {self.reason!r} sets none of {', '.join(BOUNDS)}")
        return self

    def bounds(self, source: str | None, task: str, language: str) -> dict[str, float] | None:
        """The bounds that hold for captions of a scope, or None where the check does not apply."""
        if not self.only.matches(source, task, language):
            return None
        matching = [override for override in self.overrides if override.when.matches(source, task, language)]
        if not matching:
            return self.given() or None
        return None if matching[-1].skip else (self.given() | matching[-1].given()) or None


class Cap(BaseModel):
    """At most `max` kept captions for each value of the columns `by`; which ones is a seeded draw over their keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(default="class_cap", pattern=r"^[a-z][a-z0-9_]*$")
    by: Names = ("source_label", "task", "language")
    max: int = Field(gt=0)
    seed: int = 0
    only: Scope = Scope()


class Policy(BaseModel):
    """What is kept. Checks speak in their order: the first that drops a caption is its reason.

    `cut_chains`: after a stream's first event that is not kept, later events of its chain are `blocked`, so that kept
    history is always the text of a kept event.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    about: str = ""
    checks: tuple[Check, ...] = ()
    caps: tuple[Cap, ...] = ()
    cut_chains: bool = True

    @model_validator(mode="after")
    def _reasons_differ(self) -> Policy:
        reasons = [check.reason for check in self.checks] + [cap.reason for cap in self.caps]
        if doubled := sorted({reason for reason in reasons if reasons.count(reason) > 1}):
            raise ValueError(f"reasons must differ; {', '.join(doubled)} is given twice")
        return self


def load_policy(path: str | Path) -> Policy:
    """Reads and validates a policy file. Raises `PolicyError` naming the file and what is wrong in it."""
    try:
        data = load_yaml(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise PolicyError(f"there is no policy file {path}") from None
    except yaml.YAMLError as error:
        raise PolicyError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise PolicyError(f"{path} holds no policy: it must be a mapping with `name` and `checks`")
    try:
        policy = Policy.model_validate(data)
        validate_policy(policy)
    except ValidationError as error:
        raise PolicyError(f"{path}: {_first(error)}") from None
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None
    return policy


def validate_policy(policy: Policy, columns: Iterable[str] | None = None) -> None:
    """Raises `PolicyError`, with the nearest name, for a check of a column that no rule fills."""
    known = list(all_columns() if columns is None else columns)
    for check in policy.checks:
        if check.column not in known:
            raise PolicyError(f"check {check.reason!r} reads column {check.column!r}, {_nearest(check.column, known)}")


def policy_digest(policy: Policy) -> bytes:
    """What a decision set was made by: the digest of everything in the policy but descriptions."""
    plain = policy.model_dump(mode="json", exclude={"about": True, "checks": {"__all__": {"about"}}})
    return digest_value(plain)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"which no rule fills; did you mean {near[0]!r}?" if near else f"which no rule fills; there are {known}"


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        fields = {
            *Policy.model_fields,
            *Check.model_fields,
            *Override.model_fields,
            *Scope.model_fields,
            *Cap.model_fields,
        }
        near = difflib.get_close_matches(str(first["loc"][-1]), sorted(fields), n=1, cutoff=0.4)
        message = "unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{where}: {message}" if where else message
