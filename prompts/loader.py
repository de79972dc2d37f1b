"""Loads prompts and renders them.

A prompt is one Markdown file `<id>.md`: YAML front matter, then the sections `# System`, `# User` and `# Repair`, each
a Jinja2 template. A section may include shared passages, files whose name starts with `_`. The hash of a prompt covers
its sections, every passage that they include, and the front matter but for the changelog: all that can change an
answer, and nothing else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml
from pydantic import Field, ValidationError

from schemas.base import Record
from schemas.caption import Language
from schemas.keys import digest_value
from schemas.yaml import load_yaml

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = ("system", "user", "repair")

_FRONT_MATTER = re.compile(r"\A---\n(?P<front>.*?)\n---\n(?P<body>.*)\Z", re.DOTALL)
_HEADING = re.compile(r"^# (System|User|Repair)[ \t]*$", re.MULTILINE)


class PromptError(ValueError):
    """A prompt file that cannot be used; the message names the file and what to change."""


class Change(Record):
    """One line of a prompt's history."""

    version: int
    note: str


class FrontMatter(Record):
    """The head of a prompt file."""

    id: str
    version: int = Field(ge=1)
    task: str
    language: Language
    views: list[str] = []
    schema_name: str = Field(alias="schema")
    max_tokens: int = Field(ge=16)
    changelog: list[Change]


class Turns(Record):
    """A rendered prompt: the system message and the first user message."""

    system: str
    user: str


class Prompt(Record):
    """A prompt file, read and checked. `hash` is 16 bytes; `sources` are the templates by section and passage."""

    id: str
    version: int
    task: str
    language: Language
    views: list[str]
    schema_name: str
    max_tokens: int
    changelog: list[Change]
    sections: dict[str, str]
    passages: dict[str, str]
    hash: bytes

    def render(self, context: Mapping[str, Any]) -> Turns:
        """The messages for one request. Raises `PromptError` when the context lacks a name that a template uses."""
        return Turns(system=self._section("system", context), user=self._section("user", context))

    def repair(self, error: str) -> str:
        """The turn that answers an invalid reply: what was wrong with it, in the words of the validator."""
        return self._section("repair", {"error": error})

    def _section(self, name: str, context: Mapping[str, Any]) -> str:
        try:
            text = _template(self.sections[name], tuple(sorted(self.passages.items()))).render(context)
        except jinja2.UndefinedError as error:
            raise PromptError(f"prompt {self.id!r}, section {name}: {error.message}") from error
        return re.sub(r"\n{3,}", "\n\n", text).strip()


def load(prompt_id: str, folders: Sequence[str | Path] = ()) -> Prompt:
    """The prompt `prompt_id` from the first of `folders` that has it, else from the package.

    Raises `PromptError` for an unknown id or a file that is not a prompt.
    """
    search = [*map(Path, folders), TEMPLATES]
    for folder in search:
        path = folder / f"{prompt_id}.md"
        if path.is_file():
            return _parse(path, search)
    raise PromptError(f"no prompt {prompt_id!r} in {_names(search)}; there are {', '.join(prompt_ids(folders))}")


def for_task(task: str, language: str, folders: Sequence[str | Path] = ()) -> Prompt:
    """The prompt of a task in a language: the file `<task>.<language>.md`."""
    return load(f"{task}.{language}", folders)


def prompt_ids(folders: Sequence[str | Path] = ()) -> list[str]:
    """The ids of all prompts, sorted."""
    search = [*map(Path, folders), TEMPLATES]
    return sorted({path.stem for folder in search for path in folder.glob("*.md") if not path.name.startswith("_")})


def _parse(path: Path, search: Sequence[Path]) -> Prompt:
    parts = _FRONT_MATTER.match(path.read_text(encoding="utf-8"))
    if parts is None:
        raise PromptError(f"{path}: a prompt starts with front matter between two lines of ---")
    try:
        front = FrontMatter.model_validate(load_yaml(parts["front"]))
    except (yaml.YAMLError, ValidationError) as error:
        raise PromptError(f"{path}: the front matter is not valid: {error}") from error
    if front.id != path.stem:
        raise PromptError(f"{path}: its id is {front.id!r}; name the file {front.id}.md or change the id")
    sections = _sections(parts["body"], path)
    passages = dict(_passages(sections.values(), search, path))
    return Prompt(
        **front.model_dump(by_alias=False),
        sections=sections,
        passages=passages,
        hash=_hash(front, sections, passages),
    )


def _sections(body: str, path: Path) -> dict[str, str]:
    pieces = _HEADING.split(body)
    found = {title.lower(): text.strip() for title, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    missing = [name for name in SECTIONS if not found.get(name)]
    if missing:
        raise PromptError(f"{path}: section # {missing[0].title()} is missing or empty")
    return found


def _passages(texts: Any, search: Sequence[Path], path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every passage that the templates include, directly or through one another."""
    waiting, seen = [name for text in texts for name in _included(text, path)], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = next((folder / name for folder in search if (folder / name).is_file()), None)
        if found is None or not name.startswith("_") or Path(name).name != name:
            raise PromptError(f"{path}: includes {name!r}, which is no passage in {_names(search)}")
        text = found.read_text(encoding="utf-8").strip()
        yield name, text
        waiting += _included(text, found)


def _included(text: str, path: Path) -> list[str]:
    try:
        names = jinja2.meta.find_referenced_templates(jinja2.Environment(autoescape=False).parse(text))
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(f"{path}: line {error.lineno} of a section: {error.message}") from error
    return [name for name in names if name]


def _hash(front: FrontMatter, sections: Mapping[str, str], passages: Mapping[str, str]) -> bytes:
    head = front.model_dump(mode="json", exclude={"changelog"})
    return digest_value({"front": head, "sections": dict(sections), "passages": dict(passages)})


@functools.lru_cache(maxsize=256)
def _template(text: str, passages: tuple[tuple[str, str], ...]) -> jinja2.Template:
    """A compiled template; compiling takes as long as a thousand renderings."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(dict(passages)),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(text)


def _names(search: Sequence[Path]) -> str:
    return ", ".join(folder.as_posix() for folder in search)
