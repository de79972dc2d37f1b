"""What an English caption says of its target, read by the small words of `words/grammar.yaml`: no parser, no model.

A text is read once into words. Everything else is about spans of them: where a thing is named, what the first noun
phrase is about, which colours and which number are said of the target.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from stages.score.names import Names, all_classes
from stages.score.words.tables import colours, english

_TOKENS = re.compile(r"[^\W_]+(?=['’]s\b)|[^\W_]+(?:-(?=[^\W_]))?|['’][^\W_]+|[.!?;:,()…–—]")
STOPS = frozenset(".!?;:()…–—")
REACH = 8


class Words(NamedTuple):
    """A text's words in lower case, as they stood, whether a hyphen joins each to the next, and colours as bits."""

    low: list[str]
    raw: list[str]
    joined: list[bool]
    tint: list[int]


class Mention(NamedTuple):
    """Words `start` to before `end` name something; `plural` tells several."""

    start: int
    end: int
    plural: bool


class Phrase(NamedTuple):
    """The first noun phrase: words `start` to before `end`, the last of which is what it is about."""

    start: int
    end: int


@cache
def _bits() -> dict[str, int]:
    return {word: 1 << place for place, colour in enumerate(colours().values()) for word in colour.en}


@cache
def breaks() -> frozenset[str]:
    """Words that end a noun phrase."""
    words = english()
    return words.prepositions | words.others | words.verbs | words.copulas | STOPS


@cache
def _set_pairs() -> frozenset[tuple[str, str]]:
    return frozenset((first, second) for first, second in (phrase.split(" ") for phrase in english().set_phrases))


@cache
def _modifiers() -> frozenset[str]:
    words = english()
    return words.adjectives | words.adverbs | words.links - {"and", "or", "with", ","} | frozenset(words.numbers)


def read(text: str) -> Words:
    """The words of a text and the colours among them, but for those that speak of something else by themselves."""
    raw = _TOKENS.findall(text.replace("’", "'"))
    joined = [token[-1] == "-" for token in raw]
    raw = [token[:-1] if hyphen else token for token, hyphen in zip(raw, joined, strict=True)]
    low = [token.lower() for token in raw]
    bits = _bits()
    tint = [bits.get(word, 0) for word in low]
    words = Words(low, raw, joined, tint)
    for i, bit in enumerate(tint):
        if bit and not _is_colour(words, i):
            tint[i] = 0
    return words


def _is_colour(words: Words, i: int) -> bool:
    """Whether a colour word is one here: not in "blue-eyed", "golden retriever", "Red Sox", "green tea"."""
    low, grammar = words.low, english()
    last = i
    while words.joined[last] and last + 1 < len(low):
        last += 1
    if last > i and low[last] not in _bits() and low[last] not in grammar.patterns:
        return False
    if i + 1 >= len(low):
        return i == 0 or (low[i - 1], low[i]) not in _set_pairs()
    after = low[i + 1]
    if (low[i], after) in _set_pairs() or (low[i], singular(after)) in _set_pairs():
        return False
    if i and (low[i - 1], low[i]) in _set_pairs():
        return False
    return not (words.raw[i][0].isupper() and words.raw[i + 1][0].isupper() and after not in all_classes("en").starts)


def mentions(words: Words, thing: Names) -> Iterator[Mention]:
    """Where a text names the thing, from left to right, the longest name at each place."""
    low, starts, place = words.low, thing.starts, 0
    for i, word in enumerate(low):
        if i < place or word not in starts:
            continue
        for rest, plural in starts[word]:
            if not rest or tuple(low[i + 1 : i + 1 + len(rest)]) == rest:
                place = i + 1 + len(rest)
                yield Mention(i, place, plural)
                break


def subject(words: Words) -> Phrase | None:
    """The noun phrase that the first sentence is about, None where it begins with something else."""
    low, grammar = words.low, english()
    i = _begin(words)
    if i is None:
        return None
    if low[i] in grammar.parts:
        return Phrase(i, i + 1)
    start, noun, plural, j = i, False, False, i
    for j in range(i, min(i + 14, len(low))):
        word = low[j]
        if word in (",", "and", "or"):
            if not (modifies(words, j - 1) and j + 1 < len(low) and modifies(words, j + 1)):
                break
        elif word == "'s" and noun and not (j + 1 < len(low) and _predicative(words, j + 1)):
            start, noun, plural = j + 1, False, False
        elif word == "of" and not _noun_is_more(words, start, j):
            noun = plural = False
        elif word in breaks() or (noun and (plural or _verbal(word) or word in grammar.determiners)):
            break
        elif not modifies(words, j) and word not in grammar.determiners and not words.joined[j]:
            noun, plural = True, _plural(words, j, start)
    else:
        j += 1
    return Phrase(start, j) if j > start else None


def _noun_is_more(words: Words, start: int, place: int) -> bool:
    """Whether the words before "of" are a thing themselves ("the leg of"), not a number of them ("a group of")."""
    grammar = english()
    counts = (*grammar.crowds, *grammar.numbers, "one", "each", "all", "most", "any", "either", "kind", "type", "sort")
    return place == start or words.low[place - 1] not in counts


def _predicative(words: Words, i: int) -> bool:
    """Whether 's before this word is short for "is"."""
    return words.low[i] in english().determiners or words.low[i].endswith("ing")


def _begin(words: Words) -> int | None:
    """Where the subject begins: behind "there is", "this is", and behind a first "In front of many birds, "."""
    low, grammar, i = words.low, english(), 0
    if not low:
        return None
    participle = low[0].endswith(("ing", "ed", "en")) and len(low) > 1 and low[1] in grammar.prepositions
    coloured = words.tint[0] and len(low) > 1 and low[1] == "in"
    if low[0] in grammar.prepositions or participle or coloured:
        ends = [place for place, word in enumerate(low) if word in STOPS or word in (",", "there")]
        if not ends or low[ends[0]] in STOPS:
            return None
        i = ends[0] + (low[ends[0]] == ",")
    shown = ("there", "here", "this", "that", "it", "these")
    if i + 1 < len(low) and low[i] in shown and low[i + 1] in grammar.copulas:
        i += 2
    return i if i < len(low) else None


def modifies(words: Words, i: int) -> bool:
    if i < 0:
        return False
    word = words.low[i]
    return bool(words.tint[i]) or word in _modifiers() or word.endswith("ly") or (i > 0 and words.joined[i - 1])


def _verbal(word: str) -> bool:
    """Whether a word behind a noun goes on as a verb does: "stands", "leaning", "parked"."""
    return word.endswith(("ing", "ed")) or third_person(word)


def third_person(word: str) -> bool:
    return word.endswith("s") and not word.endswith(("ss", "us", "is"))


def singular(word: str) -> str:
    return word[:-1] if third_person(word) else word


def _plural(words: Words, i: int, start: int) -> bool:
    word = words.low[i]
    if words.low[start] in ("a", "an", "one", "this", "that"):
        return False
    return word in english().irregular.values() or third_person(word)


def about(words: Words, phrase: Phrase | None, thing: Names) -> bool:
    """Whether the phrase is about the thing: it names it last, or it begins with he or she for a person."""
    if phrase is None:
        return False
    ends = phrase.end
    while ends - 1 > phrase.start and words.low[ends - 1] in english().adverbs:
        ends -= 1
    return any(found.end == ends for found in mentions(words, thing) if phrase.start <= found.start)


def head_of(words: Words, phrase: Phrase | None) -> str:
    """The phrase's last two words, by which `names.classes_of` knows what it is about."""
    return " ".join(words.low[max(phrase.start, phrase.end - 2) : phrase.end]) if phrase else ""


def number_of(words: Words, found: Mention) -> int:
    """How many things this first mention speaks of: 1 where it names no number, or picks one out of several."""
    if not found.plural or singular(words.low[found.start]) in english().parts:
        return 1
    low, grammar = words.low, english()
    for k in range(found.end, min(found.end + REACH, len(low) - 3)):
        if low[k] == "," and low[k + 2 : k + 4] in (["of", "them"], ["in", "total"], ["in", "all"]):
            return max(1, _value(low[k + 1]))
    i, unknown = found.start - 1, 0
    while i >= 0 and found.start - i <= REACH:
        word = low[i]
        if (value := _value(word)) and not words.joined[i]:
            return 1 if _picked(words, i) else value
        if word == "of":
            return _of(words, i)
        if word in grammar.determiners:
            if i and low[i - 1] == "of":
                i -= 1
                return _of(words, i)
            return 1
        if word in breaks() - {","} and word not in ("and", "or"):
            return 1
        unknown += word not in (",", "and", "or") and not modifies(words, i)
        if unknown > 2:
            return 1
        i -= 1
    return 1


def _of(words: Words, i: int) -> int:
    """The number before "of": a crowd or a number."""
    low, grammar = words.low, english()
    if not i:
        return 1
    value = grammar.crowds.get(low[i - 1], 0) or _value(low[i - 1])
    return value if value and not _picked(words, i - 1) else 1


def _picked(words: Words, i: int) -> bool:
    """Whether a number, or a word for a crowd, at `i` is what one is picked from ("one of the two", "leads a ...")."""
    low, grammar = words.low, english()
    k = i - 1
    while k >= 0 and (low[k] in grammar.determiners or modifies(words, k)) and low[k] not in ("one", "each"):
        k -= 1
    if k > 0 and low[k] == "of" and low[k - 1] in grammar.crowds:
        return _picked(words, k - 1)
    return k >= 0 and (low[k] in grammar.prepositions or low[k] in ("one", "each"))


def _value(word: str) -> int:
    if word.isdigit():
        return int(word) if 1 < int(word) < 1000 else 0
    return english().numbers.get(word, 0)
