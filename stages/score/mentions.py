"""What texts say of their targets and of other things, as columns: each distinct text is read once for each target."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import polars as pl

from schemas.caption import Language
from stages.score import chinese, english, english_colours
from stages.score.names import Hints, Names, classes_of, neighbour_names, target_names

_WHOLE = ("brief", "detailed", "video")


class Said(NamedTuple):
    """What one text says of its target: colours as bits over the colour table (0: none), how many there are (None:
    it is not named), whether it is named, and the known classes that the text is about."""

    colours: int
    number: int | None
    named: bool
    classes: frozenset[str]


class Reader:
    """Reads texts of one language. It remembers what it has read, and is meant to live for one batch."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language
        self._words: dict[str, english.Words] = {}
        self._said: dict[tuple[str, str | None, Hints], Said] = {}

    def said(self, text: str, label: str | None, hints: Hints) -> Said:
        """What a text says of a target with this label."""
        key = (text, label, hints)
        if key not in self._said:
            target = target_names(label, hints, self.language)
            self._said[key] = self._english(text, target) if self.language == "en" else self._chinese(text, target)
        return self._said[key]

    def near(self, text: str, label: str | None, hints: Hints, neighbours: Iterable[str]) -> tuple[int, bool]:
        """How many of the neighbours a text names, and whether its first noun phrase is about one, not the target."""
        target = target_names(label, hints, self.language)
        others = [thing for name in sorted(set(neighbours)) if (thing := self._other(name, target)).all]
        if self.language == "zh":
            named = [thing for thing in others if chinese.find(text, thing)]
            place = chinese.subject(text, [target, *named]) if named else None
            return len(named), bool(place)
        words = self._read(text)
        named = [thing for thing in others if next(english.mentions(words, thing), None)]
        if not named:
            return 0, False
        phrase = english.subject(words)
        if phrase and any(phrase.start <= found.start < phrase.end for found in english.mentions(words, target)):
            return len(named), False
        return len(named), any(english.about(words, phrase, thing) for thing in named)

    def names(self, text: str, thing: Names) -> bool:
        """Whether a text names a thing."""
        if self.language == "zh":
            return chinese.find(text, thing) is not None
        return next(english.mentions(self._read(text), thing), None) is not None

    def _other(self, name: str, target: Names) -> Names:
        thing = neighbour_names(name, self.language)
        mine = set(target.all)
        if not mine.intersection(thing.all):
            return thing
        if thing.all and thing.all[0] in mine:
            return Names((), frozenset(), {})
        starts = {first: ways for first, ways in thing.starts.items() if first not in target.starts}
        return Names(tuple(name for name in thing.all if name not in mine), thing.classes, starts)

    def _read(self, text: str) -> english.Words:
        if text not in self._words:
            self._words[text] = english.read(text)
        return self._words[text]

    def _english(self, text: str, target: Names) -> Said:
        words = self._read(text)
        first = next(english.mentions(words, target), None)
        classes = classes_of(english.head_of(words, english.subject(words)), "en")
        number = english.number_of(words, first) if first else None
        return Said(english_colours.colours_of(words, target), number, first is not None, classes)

    def _chinese(self, text: str, target: Names) -> Said:
        span = chinese.find(text, target)
        number = chinese.number_of(text, span) if span else None
        return Said(chinese.colours_of(text, target), number, span is not None, frozenset())


def hints_of(hints: list[dict[str, str]] | None) -> Hints:
    """Hints of a unit's column as a value that can be remembered."""
    return tuple((hint["kind"], hint["language"], hint["text"]) for hint in hints) if hints else ()


def target_colours(units: pl.DataFrame, language: Language) -> pl.Series:
    """The colours that each text says of its target, as bit masks; 0 where it says none."""
    reader = Reader(language)
    rows = units.select("text", "source_label", "hints").iter_rows()
    told = [reader.said(text, label, hints_of(hints)).colours if text else 0 for text, label, hints in rows]
    return pl.Series("_colours", told, pl.Int64)


def readings(units: pl.DataFrame, language: Language) -> pl.DataFrame:
    """What the rules of `stages.score.target` read, a row a unit: columns of `_COLUMNS`."""
    reader = Reader(language)
    fields = ("text", "source_label", "hints", "neighbours", "siblings", "task", "event_index", "label")
    rows = [_reading(reader, *row) for row in units.select(fields).iter_rows()]
    return pl.DataFrame(rows, schema=_COLUMNS, orient="row")


_COLUMNS: dict[str, Any] = {
    "_label_matches": pl.Int64, "_label_contradicts": pl.Int64, "_own": pl.Int64, "_near": pl.Int64,
    "_about_other": pl.Int64, "_number": pl.Int64, "_colour_conflict": pl.Float64, "_count_conflict": pl.Float64,
    "_name_conflict": pl.Float64,
}  # fmt: skip


def _reading(
    reader: Reader, text: str | None, source_label: str | None, hints: list[dict[str, str]] | None,
    neighbours: list[str] | None, siblings: list[dict[str, Any]] | None, task: str, event: int, label: str | None,
) -> tuple[Any, ...]:  # fmt: skip
    known = hints_of(hints)
    target = target_names(source_label, known, reader.language)
    given = text if task == "label" else label
    matches = contradicts = None
    if given and target.all:
        matches, contradicts = _of_label(reader, given.replace("_", " "), source_label, known, neighbours or [])
    if text is None or not target.all:
        return (matches, contradicts, None, None, None, None, None, None, None)
    said = reader.said(text, source_label, known)
    near, about_other = reader.near(text, source_label, known, neighbours or [])
    others = [
        reader.said(one["text"], source_label, known)
        for one in siblings or []
        if one["text"] and one["language"] == reader.language and one["task"] in _WHOLE
        and (one["task"], one["event_index"]) != (task, event)
    ]  # fmt: skip
    return (matches, contradicts, int(said.named), near, int(about_other), said.number, *_conflicts(said, others))


def _of_label(
    reader: Reader, given: str, label: str | None, hints: Hints, neighbours: list[str]
) -> tuple[int, int | None]:
    """Whether a teacher's label names the target, and whether it names something known to be another."""
    target = target_names(label, hints, reader.language)
    if reader.names(given, target):
        return 1, 0
    mine, theirs = target.classes, classes_of(given.strip(" .。").lower(), reader.language)
    if mine and theirs:
        return 0, int(not mine & theirs)
    others = (neighbour_names(name, reader.language) for name in neighbours)
    named = any(given.strip(" .。").lower() in other.all[:1] for other in others)
    return 0, 1 if named else None


def _conflicts(said: Said, others: list[Said]) -> tuple[float | None, float | None, float | None]:
    """The shares of other captions of a region that contradict one on colours, on how many there are, on what it is."""
    colours = [not said.colours & one.colours for one in others if said.colours and one.colours]
    counts = [
        (said.number > 1) != (one.number > 1) for one in others if said.number is not None and one.number is not None
    ]
    kinds = [not said.classes & one.classes for one in others if said.classes and one.classes]
    return _share(colours), _share(counts), _share(kinds)


def _share(clashes: list[bool]) -> float | None:
    return sum(clashes) / len(clashes) if clashes else None


def plain_label(label: pl.Expr) -> pl.Expr:
    """A source's label as people write it: lower case, no underscores, no remark in brackets."""
    bare = label.str.to_lowercase().str.replace_all(r"_?\([^)]*\)", "").str.replace_all(r"[_\-]+", " ")
    return bare.str.replace_all(r"\s+", " ").str.strip_chars()
