"""Colours that an English caption says of its target by any verb and in any turn, over words that are no thing."""

from __future__ import annotations

from functools import reduce
from operator import or_

from stages.score.english import STOPS, Mention, Words, breaks, modifies, singular, third_person
from stages.score.words.tables import english

_PARTLY = frozenset({"face", "skin", "feathers", "look", "hide"})


def loosely(words: Words, spans: list[Mention]) -> int:
    """Colours by any verb and in any turn, for texts that name none in a plainer one: "takes on a deep blue tone"."""
    low, grammar = words.low, english()
    found = _its(words) | _opening(words) | _filling(words, spans)
    for span in spans:
        found |= _predicate(words, span.end) | _apposed(words, span.end)
    for i, word in enumerate(low[:-1]):
        begins = i == 0 or low[i - 1] in STOPS | {",", "and", "but"}
        whole = i > 0 and low[i - 1] == "of" and any(before in STOPS for before in [".", *low][max(0, i - 4) : i])
        if (word == "it" and (begins or whole)) or (begins and word in grammar.generic):
            found |= _predicate(words, i + 1)
        elif word == "its" and begins and low[i + 1] in grammar.surfaces | grammar.colour_nouns:
            found |= _predicate(words, i + 2)
    return found


def _predicate(words: Words, start: int) -> int:
    """Colours behind a verb of any kind, over words that are no thing: "is completely filled with blue".

    What is no small word, modifier or surface may be one verb and the participles behind it; a preposition of place, a
    second thing, and words that set off the one from the other ("outlined", "contrasts with") end the search.
    """
    low, verbs, told = words.low, 0, ""
    for i in range(start, min(start + 12, len(low))):
        if words.tint[i]:
            return _ended(words, i, told)
        kind = _kind(words, i, bool(verbs) or told == "is")
        if kind == "end" or (kind == "verb" and verbs and not low[i].endswith(("ed", "en", "ing", "wn"))) or verbs > 1:
            return 0
        if kind == "link":
            told = "of" if low[i] == "from" else low[i]
        elif kind == "verb":
            verbs, told = verbs + (not words.joined[i]), "is"
        elif kind == "small verb":
            told = "is"
    return 0


def _kind(words: Words, i: int, said: bool) -> str:
    """What a word does between a thing and its colour: "link", "verb", "small verb", "" (nothing), or "end" it."""
    low, grammar, word, before = words.low, english(), words.low[i], words.low[i - 1] if i else ""
    after = low[i + 1] if i + 1 < len(low) else "."
    surfaces = grammar.surfaces | grammar.colour_nouns | {"part", "inch", "bit"}
    if word in grammar.apart or word in STOPS:
        return "end"
    if word in ("in", "with", "of", "as", "by", "for") or (word == "from" and before == "made"):
        return "link"
    if word in grammar.determiners:
        return "" if word in ("a", "an", "one", "its", "all", "every", "single") else "link"
    particle = word in ("up", "out", "off", "on") and said and after != "the"
    relative = word in ("that", "which") and before in surfaces
    if particle or relative or word in ("to", "itself", "there", "nothing") or (before, word) == ("nothing", "but"):
        return ""
    if word in grammar.verbs | grammar.copulas | grammar.passives | grammar.owns:
        return "small verb"
    if word in surfaces or _mild(words, i):
        return ""
    noun = before in grammar.determiners and not (before in ("a", "an", "one", "single") and after == "of")
    return "end" if word in breaks() or noun else "verb"


def _filling(words: Words, spans: list[Mention]) -> int:
    """Colours that are the subject of what they do to the target: "A solid blue fills the circle"."""
    low, grammar, found = words.low, english(), 0
    starts = {span.start for span in spans}
    for i, word in enumerate(low):
        if word in grammar.fills and i:
            k = i - 1 - (low[i - 1] in grammar.colour_nouns)
            while k > 0 and words.tint[k] and (words.tint[k - 1] or low[k - 1] == "and"):
                k -= 1
            near = range(i + 1, min(i + 7, len(low)))
            if any(place in starts or low[place] in grammar.surfaces | grammar.generic for place in near):
                found |= _all(words.tint[max(0, k) : i])
    return found


def _mild(words: Words, i: int) -> bool:
    """Whether a word tells of a colour what it is like: a modifier, a superlative, whatever stands right before it."""
    low, word = words.low, words.low[i]
    if modifies(words, i) or word in (",", "and") or word in english().adjectives:
        return True
    if i + 1 == len(low) or word in breaks() | english().determiners | english().passives | english().owns:
        return False
    return bool(words.tint[i + 1]) or (word.endswith("est") and word != "crest")


def _ended(words: Words, start: int, told: str) -> int:
    """The colours from `start` on, where they end their phrase or stand before "colour", "surface" and the like."""
    low, grammar, found, i, last = words.low, english(), 0, start, start
    while i < len(low) and (words.tint[i] or _mild(words, i)) and low[i] not in grammar.colour_nouns:
        if words.tint[i]:
            if low[i - 1] == "or" or (low[i - 1] in ("and", ",") and i > last + 2):
                break
            found, last = found | words.tint[i], i
        i += 1
    next_word = low[i] if i < len(low) else "."
    if next_word in grammar.colour_nouns | (grammar.surfaces - {"face", "skin"}):
        return found if told not in ("the", "this", "that") or low[start - 1].endswith("est") else 0
    if singular(next_word) in grammar.contents:
        return 0
    if i + 1 < len(low) and next_word not in breaks() and low[i + 1] in grammar.surfaces - _PARTLY:
        return found
    best = low[start - 1].endswith("est")
    plain = best or low[start - 1] in grammar.colour_nouns or not told or told in ("is", "in", "of", "as", "with", "by")
    ends = (
        next_word in breaks() | grammar.determiners or low[i - 1] in (",", "and") or (best and third_person(next_word))
    )
    return found if plain and ends and low[i - 1] not in ("sky", "light") else 0


def _its(words: Words) -> int:
    """Colours of "its bright blue colour" and "blue in colour", wherever they stand."""
    low, grammar, found = words.low, english(), 0
    for i, word in enumerate(low):
        if word == "in" and i and low[i + 1 : i + 2] and low[i + 1] in grammar.colour_nouns:
            found |= words.tint[i - 1]
        if word == "its":
            k = i + 1
            while k < len(low) and (modifies(words, k) or low[k] in ("and", ",")) and not words.tint[k]:
                k += 1
            if k < len(low) and words.tint[k]:
                last = k
                while last + 1 < len(low) and (words.tint[last + 1] or low[last + 1] in ("and", "to")):
                    last += 1
                if low[last + 1 : last + 2] and low[last + 1] in grammar.colour_nouns | (grammar.surfaces - _PARTLY):
                    found |= _all(words.tint[k : last + 1])
    return found


def _apposed(words: Words, start: int) -> int:
    """Colours put behind a comma for themselves: "stands there, a clear blue"; "lies there, blue and still"."""
    low = words.low
    for i in range(start, len(low) - 1):
        if low[i] in STOPS:
            break
        if (
            low[i] == ","
            and not words.tint[i - 1]
            and (low[i + 1] in ("a", "an", "all") or words.tint[i + 1] or modifies(words, i + 1))
        ):
            k = i + 1 + (low[i + 1] in ("a", "an", "all"))
            while k < len(low) and _mild(words, k) and not words.tint[k]:
                k += 1
            if k < len(low) and words.tint[k] and (bits := _ended(words, k, "is")):
                return bits
        if low[i] in (",", "and", "but") and third_person(low[i + 1]) and (bits := _predicate(words, i + 1)):
            return bits
        if low[i] in ("while", "with") and low[i + 1] == "its" and (bits := _predicate(words, i + 2)):
            return bits
    return 0


def _opening(words: Words) -> int:
    """Colours that stand before the subject and its comma: "With its blue fill, the", "Bright blue and round, the"."""
    low, grammar = words.low, english()
    comma = low.index(",") if "," in low else 0
    later = [i for i, word in enumerate(low) if word == "," and i + 1 < len(low) and low[i + 1] in grammar.determiners]
    if not later or any(word in STOPS for word in low[: later[0]]):
        return 0
    k = int(low[0] in ("a", "an", "all"))
    while k < later[0] and _mild(words, k) and not words.tint[k]:
        k += 1
    if k < later[0] and words.tint[k]:
        return _ended(words, k, "is")
    if low[0] in ("with", "in", "of", "having") or low[0].endswith(("ing", "ed", "wn")):
        return _predicate(words, 0) if comma else 0
    return 0


def _all(bits: list[int]) -> int:
    return reduce(or_, bits, 0)
