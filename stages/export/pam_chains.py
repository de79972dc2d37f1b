"""Streams put together again: which records of PAM's video files follow each other about one target."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

_CLEARLY = 2.0
"""The nearest target is taken where the next one is at least this many times as far away."""

Item = dict[str, Any]
Chain = list[Item]
_Place = tuple[str, str, str]


def link(items: Iterable[Item]) -> tuple[list[Chain], Counter[str]]:
    """Chains of records, each in the order of its events, and how many records are in none, by reason.

    Records with our own ids (`own`: region and event) are linked by these, whatever their histories: an event that was
    not exported leaves a gap that is closed. All others continue the chain that ended with their history, in the same
    media and language. Where several chains did, or several records could go on, the boxes tell them apart; where they
    do not tell clearly, the record is an `ambiguous_chain`. A history that nothing ended with is `no_chain`, a record
    that came before word for word is `repeated`.
    """
    skipped: Counter[str] = Counter()
    numbered: dict[_Place, list[Item]] = {}
    others: dict[tuple[Any, ...], Item] = {}
    for item in items:
        if item["own"] is not None:
            numbered.setdefault((item["media"], item["language"], item["own"][0]), []).append(item)
        elif others.setdefault(_all_of(item), item) is not item:
            skipped["repeated"] += 1
    chains = [_in_order(found, skipped) for found in numbered.values()]
    return chains + _by_history(list(others.values()), skipped), skipped


def _all_of(item: Item) -> tuple[Any, ...]:
    names = ("media", "language", "start_frame", "end_frame", "history", "text", "streamed")
    return (*(item[name] for name in names), repr(item["box"]), repr(item["points"]))


def _in_order(items: Sequence[Item], skipped: Counter[str]) -> Chain:
    events: dict[int, Item] = {}
    for item in items:
        if events.setdefault(item["own"][1], item) is not item:
            skipped["repeated"] += 1
    return [events[number] for number in sorted(events)]


def _by_history(items: Sequence[Item], skipped: Counter[str]) -> list[Chain]:
    chains = [[item] for item in items if item["history"] is None]
    ends: dict[_Place, list[Chain]] = {}
    for chain in chains:
        ends.setdefault(_key(chain[0], chain[0]["text"]), []).append(chain)
    waiting = sorted(
        (item for item in items if item["history"] is not None), key=lambda item: (item["start_frame"], item["where"])
    )
    rivals: dict[_Place, list[Item]] = {}
    for item in waiting:
        rivals.setdefault(_key(item, item["history"]), []).append(item)
    while waiting:
        left = []
        for item in waiting:
            key = _key(item, item["history"])
            fitting = [each for each in ends.get(key, []) if each[-1]["start_frame"] <= item["start_frame"]]
            if not fitting:
                left.append(item)
                continue
            goes_on = _continued(item, fitting, rivals[key])
            if goes_on is None:
                skipped["ambiguous_chain"] += 1
                continue
            rivals[key] = [each for each in rivals[key] if each is not item]
            ends[key] = [each for each in ends[key] if each is not goes_on]
            goes_on.append(item)
            ends.setdefault(_key(item, item["text"]), []).append(goes_on)
        if len(left) == len(waiting):
            skipped["no_chain"] += len(left)
            break
        waiting = left
    return chains


def _key(item: Item, text: str) -> _Place:
    return item["media"], item["language"], text.strip()


def _continued(item: Item, chains: Sequence[Chain], waiting: Sequence[Item]) -> Chain | None:
    """The one of the chains that a record continues; None where another chain, or another record, is about as near.

    A whole clip's caption begins a chain only where nothing else does, and events that overlap follow each other only
    where no others do.
    """
    chains = [each for each in chains if each[0]["streamed"]] or chains
    chains = [each for each in chains if each[-1]["end_frame"] < item["start_frame"]] or chains
    nearest = min(chains, key=lambda each: _distance(each[-1], item))
    last = nearest[-1]
    away = _CLEARLY * _distance(last, item)
    elsewhere = [each[-1] for each in chains if _distance(each[-1], last)]
    beside = [each for each in waiting if _overlap(each, item) and _distance(each, item)]
    clear = all(_distance(each, item) >= away for each in elsewhere)
    return nearest if clear and all(_distance(each, last) >= away for each in beside) else None


def _overlap(one: Item, other: Item) -> bool:
    return bool(one["start_frame"] <= other["end_frame"] and other["start_frame"] <= one["end_frame"])


def _distance(one: Item, other: Item) -> float:
    """Pixels between two targets: between the corners of their boxes, between centres where one is given by points."""
    if one["box"] is not None and other["box"] is not None:
        return math.dist(one["box"], other["box"])
    return math.dist(_centre(one), _centre(other))


def _centre(item: Item) -> tuple[float, float]:
    if item["box"] is not None:
        x0, y0, x1, y1 = item["box"]
        return (x0 + x1) / 2, (y0 + y1) / 2
    inside = [point for point in item["points"] if point[2]]
    return sum(point[0] for point in inside) / len(inside), sum(point[1] for point in inside) / len(inside)
