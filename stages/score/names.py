"""Under which names captions may speak of a thing, and which known class a name stands for."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

from schemas.caption import Language
from stages.score.words.tables import chinese, chinese_names, english, names

Hints = tuple[tuple[str, str, str], ...]
"""A region's hints as (kind, language, text)."""

_SIBILANTS = ("s", "x", "z", "ch", "sh")
_REMEMBERED = 20_000


class Names(NamedTuple):
    """Names of one thing, the classes of the table that it belongs to, and how its names begin.

    `starts` maps a first word to the ways in which a name goes on behind it, longest first, and whether that form is
    plural. It is empty in Chinese, where names are looked for as they stand.
    """

    all: tuple[str, ...]
    classes: frozenset[str]
    starts: dict[str, tuple[tuple[tuple[str, ...], bool], ...]]


def plain(label: str) -> str:
    """A source's label as people write it: lower case, no underscores, no remark in brackets."""
    bare = re.sub(r"_?\([^)]*\)", "", label.lower())
    return re.sub(r"[_\-\s]+", " ", bare).strip()


def plural_of(word: str) -> str:
    """The plural of an English noun or of a name's last word."""
    head, _, last = word.rpartition(" ")
    start = head + " " if head else ""
    irregular = english().irregular
    for ending in ("woman", "man", "child", "person"):
        if last.endswith(ending) and len(last) > len(ending):
            return start + last.removesuffix(ending) + irregular[ending]
    if last in irregular:
        return start + irregular[last]
    if last.endswith("y") and last[-2:-1] not in set("aeiou"):
        return start + last[:-1] + "ies"
    return start + last + ("es" if last.endswith(_SIBILANTS) else "s")


@lru_cache(_REMEMBERED)
def target_names(label: str | None, hints: Hints, language: Language) -> Names:
    """The source's label and its synonyms (label hints), common other names, wider names, in English the head noun.

    Without a label in the language there are none.
    """
    own = [plain(text) for kind, spoken, text in hints if kind == "label" and spoken == language]
    if label and (named := _in_language(plain(label), language)):
        own.insert(0, named)
    own = [name for name in own if name]
    wider = [kind for name in own for kind in sorted(_classes_by_name(language).get(name, ()))]
    others = [other for name in own for other in names(language).get(name, ())]
    heads = [name.split(" ")[-1] for name in own] if language == "en" else []
    return _names((*own, *wider, *others, *heads), _classes((*own, *heads), language), language)


@lru_cache(_REMEMBERED)
def neighbour_names(label: str, language: Language) -> Names:
    """The label of another region and its common other names, but for those of parts ("hand")."""
    own = _in_language(plain(label), language)
    if not own:
        return _names((), frozenset(), language)
    parts = english().parts - {"he", "she"} if language == "en" else frozenset()
    others = [other for other in names(language).get(own, ()) if other not in parts]
    return _names((own, *others), _classes((own,), language), language)


@cache
def all_classes(language: Language) -> Names:
    """Every name that the table knows, to see which class a word stands for."""
    return _names(tuple(_classes_by_name(language)), frozenset(), language)


def classes_of(name: str, language: Language) -> frozenset[str]:
    """The classes of the table that a name stands for, by itself or by its end ("police car", "大红圆形"), if any."""
    ends = [name, name.split(" ")[-1]] if language == "en" else [name[i:] for i in range(len(name))]
    return _classes(tuple(ends), language)


def is_person(thing: Names, language: Language) -> bool:
    """Whether the thing is a person, whose colours are those of hair, skin and clothes."""
    return bool(thing.classes & (english().people if language == "en" else chinese().people))


def _names(found: tuple[str, ...], classes: frozenset[str], language: Language) -> Names:
    kept = tuple(dict.fromkeys(name for name in found if name))
    starts: dict[str, dict[tuple[str, ...], bool]] = {}
    for name in kept if language == "en" else ():
        several = plural_of(name)
        for form, plural in ((name, several == name), (several, True), (name + "s", True)):
            first, *rest = form.split(" ")
            starts.setdefault(first, {}).setdefault(tuple(rest), plural)
    ordered = {first: tuple(sorted(ways.items(), key=lambda way: -len(way[0]))) for first, ways in starts.items()}
    return Names(kept, classes, ordered)


def _classes(found: tuple[str, ...], language: Language) -> frozenset[str]:
    known = _classes_by_name(language)
    first = next((known[name] for name in found if name in known), frozenset())
    return frozenset(first)


@cache
def _classes_by_name(language: Language) -> dict[str, frozenset[str]]:
    known: dict[str, set[str]] = {}
    labels = {plain(label): name for label, name in chinese_names().items()}
    for label in labels.values() if language == "zh" else labels:
        known.setdefault(label, set()).add(label)
    for label, others in names(language).items():
        for other in (label, *others):
            known.setdefault(other, set()).add(label)
    several = {plural_of(name): classes for name, classes in known.items()} if language == "en" else {}
    return {name: frozenset(classes) for name, classes in (several | known).items()}


def _in_language(label: str, language: Language) -> str | None:
    """The Chinese name of an English label, None where the table has none; a Chinese label as it is."""
    if language == "en" or re.search(r"[\u4e00-\u9fff]", label):
        return label
    return chinese_names().get(label)
