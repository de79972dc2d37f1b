"""Reading configuration: YAML and `--set a.b=c` into a frozen pydantic model, with errors a person can act on.

Relative paths are resolved against the file that names them; `${VAR}` is replaced from the environment only where a
secret is used; unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from schemas.base import LocalPath
from schemas.yaml import load_yaml

M = TypeVar("M", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class ConfigError(Exception):
    """A configuration that cannot be used; the message names the file, the key and the fix."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; raises `ConfigError` naming the file (and line) when it cannot be read."""
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such configuration file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, this is a {type(loaded).__name__}")
    return loaded


def overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with `a.b=c` applied in order; `c` is read as YAML, list items are named by their number.

    Raises `ConfigError` for an override without `=` or one that steps into a scalar.
    """
    result: dict[str, Any] = _copy(values)
    for override in overrides:
        dotted, sign, text = override.partition("=")
        if not sign or not dotted:
            raise ConfigError(f"--set {override}: write it as key.subkey=value")
        try:
            value = load_yaml(text) if text else None
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from error
        _assign(result, dotted.split("."), value, override)
    return result


def parse(values: Mapping[str, Any], model: type[M], where: str, base: Path | None = None) -> M:
    """Validates values as `model`. `where` names them in errors, `base` is the folder of relative paths."""
    unknown = list(_unknown_keys(values, model, ()))
    if unknown:
        raise ConfigError(f"{where}: " + "; ".join(unknown))
    try:
        return model.model_validate(_resolved(values, model, base))
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in item['loc']) or 'value'}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def load(path: Path, model: type[M], overrides: Sequence[str] = ()) -> M:
    """A configuration file as a model."""
    values = overridden(read_yaml(path), overrides)
    return parse(values, model, str(path), path.resolve().parent)


def expand_secret(value: str) -> str:
    """`${VAR}` replaced from the environment; raises `ConfigError` naming a variable that is not set."""

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"the environment variable {name} is not set; the configuration refers to it")
        return os.environ[name]

    return _VARIABLE.sub(look_up, value)


def expanded(value: Any) -> Any:
    """`expand_secret` over every text in nested mappings and lists."""
    if isinstance(value, str):
        return expand_secret(value)
    if isinstance(value, Mapping):
        return {key: expanded(item) for key, item in value.items()}
    return [expanded(item) for item in value] if isinstance(value, list | tuple) else value


def resolve_path(value: str, base: Path | None) -> str:
    """A relative local path made absolute against `base`; URLs and absolute paths stay."""
    if base is None or "://" in value or "::" in value or Path(value).is_absolute():
        return value
    tail = "/" if value.endswith("/") else ""
    return str((base / value).resolve()) + tail


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _assign(target: Any, steps: list[str], value: Any, override: str) -> None:
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(target, list):
            if not step.isdigit() or int(step) >= len(target):
                raise ConfigError(f"--set {override}: {step!r} is not one of the {len(target)} items")
            key: Any = int(step)
        elif isinstance(target, dict):
            key = step
        else:
            raise ConfigError(f"--set {override}: {'.'.join(steps[:depth])} is a value, not a group of keys")
        if last:
            target[key] = value
        else:
            if isinstance(target, dict) and target.get(key) is None:
                target[key] = {}
            target = target[key]


def _models_in(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model inside an annotation and how it is nested: `one`, `list` or `dict`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, "one"
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        for arg in args:
            found = _models_in(arg)
            if found[0] is not None:
                return found
    if origin in (list, tuple) and args:
        return _models_in(args[0])[0], "list"
    if origin is dict:
        return _models_in(args[1])[0], "dict"
    return None, "one"


def _nested(values: Mapping[str, Any], model: type[BaseModel]) -> Iterator[tuple[str, str, Any, type[BaseModel]]]:
    """(field, position, value, model) for every nested mapping of the values."""
    for name, info in model.model_fields.items():
        inner, shape = _models_in(info.annotation)
        value = values.get(name)
        if inner is None or value is None:
            continue
        if shape == "list" and isinstance(value, list):
            yield from ((name, str(i), item, inner) for i, item in enumerate(value) if isinstance(item, Mapping))
        elif shape == "dict" and isinstance(value, Mapping):
            yield from ((name, str(k), item, inner) for k, item in value.items() if isinstance(item, Mapping))
        elif shape == "one" and isinstance(value, Mapping):
            yield name, "", value, inner


def _unknown_keys(values: Mapping[str, Any], model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    known = list(model.model_fields) + [info.alias for info in model.model_fields.values() if info.alias]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            yield f"unknown key {'.'.join((*path, str(key)))!r}, {hint}"
    for name, position, value, inner in _nested(values, model):
        yield from _unknown_keys(value, inner, (*path, name, position) if position else (*path, name))


def _is_path(info: FieldInfo) -> bool:
    return "LocalPath" in repr(info.annotation) or any(isinstance(marker, LocalPath) for marker in info.metadata)


def _resolved(values: Mapping[str, Any], model: type[BaseModel], base: Path | None) -> dict[str, Any]:
    result: dict[str, Any] = _copy(values)
    for name, info in model.model_fields.items():
        value = result.get(name)
        if _is_path(info):
            if isinstance(value, str):
                result[name] = resolve_path(value, base)
            elif isinstance(value, list):
                result[name] = [resolve_path(item, base) if isinstance(item, str) else item for item in value]
            elif isinstance(value, dict):
                result[name] = {k: resolve_path(v, base) if isinstance(v, str) else v for k, v in value.items()}
    for name, position, value, inner in list(_nested(result, model)):
        done = _resolved(value, inner, base)
        if not position:
            result[name] = done
        elif isinstance(result[name], list):
            result[name][int(position)] = done
        else:
            result[name][position] = done
    return result
