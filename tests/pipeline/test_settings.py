"""Configuration files: overrides, unknown keys, relative paths, secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.settings import ConfigError, expanded, load, overridden, parse, resolve_path
from schemas.base import PathStr, Record


class Inner(Record):
    min_side: int = 32
    ratio: float = 0.5


class Source(Record):
    annotations: PathStr


class Config(Record):
    run: PathStr
    select: Inner = Inner()
    sources: tuple[Source, ...] = ()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_resolved_against_the_file_and_urls_stay(tmp_path: Path) -> None:
    config = load(write(tmp_path, "run: runs/a\nsources: [{annotations: data/x.json}]"), Config)
    assert config.run == str(tmp_path / "runs/a")
    assert config.sources[0].annotations == str(tmp_path / "data/x.json")
    assert resolve_path("s3://bucket/run", tmp_path) == "s3://bucket/run"
    assert resolve_path("clips/", tmp_path).endswith("/clips/")


def test_overrides_reach_nested_keys_and_list_items(tmp_path: Path) -> None:
    path = write(tmp_path, "run: a\nsources: [{annotations: x.json}]")
    config = load(path, Config, ["select.min_side=48", "sources.0.annotations=/y.json"])
    assert config.select.min_side == 48
    assert config.sources[0].annotations == "/y.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: a\nselect: {min_sid: 3}", "unknown key 'select.min_sid', did you mean 'min_side'"),
        ("run: a\nsources: [{annotation: x}]", "unknown key 'sources.0.annotation', did you mean 'annotations'"),
        ("run: a\nselect: {min_side: wide}", "select.min_side: Input should be a valid integer"),
        ("- a\n- b", "a configuration is a mapping of keys, this is a list"),
        ("run: [", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_the_key_and_the_fix(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, Config)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such configuration file"):
        load(tmp_path / "none.yaml", Config)


@pytest.mark.parametrize("override", ["select.min_side", "=3", "run.deeper=3", "sources.7.annotations=x"])
def test_an_override_that_cannot_be_applied_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        overridden({"run": "a", "sources": [{"annotations": "x"}]}, [override])


def test_overriding_leaves_the_given_values_alone() -> None:
    values = {"select": {"min_side": 1}}
    assert overridden(values, ["select.min_side=2"]) == {"select": {"min_side": 2}}
    assert values == {"select": {"min_side": 1}}


def test_secrets_are_read_from_the_environment_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_KEY", "hidden")
    assert expanded({"key": "${BUCKET_KEY}", "nested": ["a-${BUCKET_KEY}"]}) == {
        "key": "hidden",
        "nested": ["a-hidden"],
    }
    with pytest.raises(ConfigError, match="NOT_THERE is not set"):
        expanded("${NOT_THERE}")


def test_parse_names_where_the_values_came_from() -> None:
    with pytest.raises(ConfigError, match=r"somewhere: run: Field required"):
        parse({}, Config, "somewhere")
