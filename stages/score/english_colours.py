"""Which colours an English caption says of its target: before its name, behind it, and of the pronouns for it."""

from __future__ import annotations

from stages.score.english import (
    REACH,
    STOPS,
    Mention,
    Phrase,
    Words,
    breaks,
    mentions,
    modifies,
    singular,
    subject,
    third_person,
)
from stages.score.english_turns import loosely
from stages.score.names import Names, all_classes, is_person
from stages.score.words.tables import english


def colours_of(words: Words, target: Names) -> int:
    """The colours said of the target, as bits over the colour table."""
    if english().many_coloured.intersection(target.all):
        return 0
    person = is_person(target, "en")
    first = next(mentions(words, target), None)
    phrase = subject(words)
    if _is_food(target):
        tint = [0 if low in english().things else bit for low, bit in zip(words.low, words.tint, strict=True)]
        words = words._replace(tint=tint)
    spans = [first] if first else []
    if phrase and phrase.end > phrase.start and _stands_for(words, phrase, first, target):
        spans.append(Mention(phrase.end - 1, phrase.end, False))
    if not spans:
        known = any(word in all_classes("en").starts for word in words.low if word not in ("it", "its"))
        return loosely(words, []) if words.low[:1] in (["it"], ["its"]) and not known and not person else 0
    found = 0
    for span in spans:
        found |= _before(words, span, person)
        found |= _after(words, span.end, person)
    if again := list(mentions(words, target))[1:]:
        found |= _after(words, again[-1].end, person)
    found |= _of_pronouns(words, spans[0], person) | _ahead(words)
    return found if found or person else loosely(words, spans)


def _stands_for(words: Words, phrase: Phrase, first: Mention | None, target: Names) -> bool:
    """Whether the subject is the target by another word: a shape, a thing, a word that no table knows."""
    word = words.low[phrase.end - 1]
    if word in english().generic:
        return True
    known = word in all_classes("en").starts or word in ("it", "he", "she", "they")
    return first is None and not known and bool(target.all)


def _before(words: Words, span: Mention, person: bool) -> int:
    """Colours in the noun phrase before its noun, over adjectives and one noun ("a white paper cup")."""
    low, grammar, found, unknown = words.low, english(), 0, 0
    i = span.start - 1
    while i >= 0 and span.start - i <= REACH:
        word = low[i]
        if words.tint[i]:
            near = i + 1 == span.start or bool(words.tint[i + 1])
            if near or (word not in grammar.things and singular(low[i + 1]) not in grammar.contents):
                found |= _bit(words, i, person)
        elif word == "or" and found:
            return 0
        elif word in (",", "and", "or"):
            if not modifies(words, i - 1):
                break
        elif word in grammar.determiners or (word in breaks() and not words.joined[i]):
            break
        elif not modifies(words, i):
            unknown += not word.endswith("ed")
            if unknown > 1 or third_person(word):
                break
        i -= 1
    return found


def _bit(words: Words, i: int, person: bool) -> int:
    return 0 if person and words.low[i] in english().hair_and_skin else words.tint[i]


def _is_food(target: Names) -> bool:
    return bool(english().food.intersection(target.all))


def _after(words: Words, end: int, person: bool) -> int:
    """Colours said of a noun behind it: "is blue", ", which stays a deep blue", "in blue", "'s surface is blue"."""
    low, grammar, n = words.low, english(), len(words.low)
    i = end
    if i < n and low[i] == "'s":
        whole = i + 1
        while whole < n and low[whole] in grammar.surfaces | grammar.colour_nouns:
            whole += 1
        if whole == i + 1:
            return _run(words, whole, "is", person)
        i = whole
    i = _past(words, i)
    if i < n and low[i] == "," and i + 1 < n:
        if low[i + 1] in ("which", "that", "who"):
            return _linked(words, i + 2, person)
        if low[i + 1] in grammar.copulas:
            return _run(words, i + 2, "is", person)
        return _run(words, i + 1, "beside", person)
    if i < n and low[i] in ("which", "that", "who"):
        return _linked(words, i + 1, person)
    if i + 1 < n and low[i] == "whose" and low[i + 1] in grammar.surfaces | grammar.colour_nouns:
        return _linked(words, i + 2, person)
    return _linked(words, i, person) | _later(words, i, person)


def _past(words: Words, i: int) -> int:
    """Behind adverbs and one phrase of place, where a verb follows: "the circle on the lawn | is blue"."""
    low, grammar, n = words.low, english(), len(words.low)
    while i < n and (low[i] in grammar.adverbs or low[i].endswith("ly")):
        i += 1
    if i < n and low[i] in grammar.prepositions:
        for k in range(i + 2, min(i + 6, n)):
            if low[k] in grammar.copulas:
                return k
            if low[k] in breaks():
                break
    return i


def _linked(words: Words, i: int, person: bool) -> int:
    """Colours behind a verb that links ("is", "seems", "has a ... surface") or behind "in", "of", "painted"."""
    low, grammar, n = words.low, english(), len(words.low)
    while i < n and (low[i] in grammar.adverbs or low[i].endswith("ly")):
        i += 1
    if i >= n:
        return 0
    if low[i] in grammar.copulas:
        return _run(words, i + 1, "is", person)
    if low[i] in grammar.passives:
        return _run(words, i + 1, "is", person)
    if low[i] in ("has", "have", "had") and i + 1 < n and low[i + 1] in ("been", "turned", "become"):
        return _run(words, i + 2, "is", person)
    if low[i] in grammar.owns:
        return 0 if person else _run(words, i + 1, "in" if low[i] in ("in", "of") else "has", person)
    return 0


def _later(words: Words, i: int, person: bool) -> int:
    """Colours of a second verb of the same sentence: "lies there and is blue"."""
    low, grammar = words.low, english()
    for k in range(i, len(low) - 1):
        if low[k] in STOPS:
            break
        if low[k] in ("and", "but") and (low[k + 1] in grammar.copulas or low[k + 1] in ("has", "have", "had")):
            return _linked(words, k + 1, person)
    return 0


def _run(words: Words, start: int, link: str, person: bool) -> int:
    """The colours of a stretch behind a link, where they are said of what stands before it and not of the next noun.

    "is" takes colours with or without a noun behind them; "in" takes them alone or with "colour", "surface", ...;
    "beside" (behind a comma) as well, but before no verb; "has" takes them only with such a word.
    """
    low, grammar, n = words.low, english(), len(words.low)
    found: list[tuple[int, int]] = []
    group, article, made, i = 0, False, False, start
    while i < n and i - start < 10:
        word = low[i]
        if words.tint[i]:
            if low[i - 1] == "or":
                return 0
            found.append((group, _bit(words, i, person)))
        elif word in (",", "and", "or"):
            group += 1
        elif word in ("a", "an") and not found:
            article = True
        elif word in ("in", "of") and not found and (made or link != "has"):
            link, article = (link, True) if made and link == "is" else ("in", article)
        elif word in grammar.passives or (word in grammar.colour_nouns and not found):
            made, link = True, "is"
        elif not (modifies(words, i) or (word in ("to", "be") and not found)):
            break
        i += 1
    if not found:
        return 0
    next_word = low[i] if i < n else "."
    if next_word in grammar.colour_nouns | grammar.surfaces:
        return _any(found)
    if singular(next_word) in grammar.contents:
        return 0
    listed = low[i - 1] in (",", "and", "or")
    ends = listed or next_word in breaks() or next_word in grammar.determiners
    ends = ends or next_word.endswith(("ing", "ed")) or (link != "beside" and third_person(next_word))
    if ends:
        return _any(found) if link != "has" else 0
    if link == "is":
        return _any(found) if article or group == 0 else _any([pair for pair in found if pair[0] < group])
    return 0


def _any(found: list[tuple[int, int]]) -> int:
    bits = 0
    for _, bit in found:
        bits |= bit
    return bits


def _of_pronouns(words: Words, first: Mention, person: bool) -> int:
    """Colours of sentences and clauses that begin with "it" or "its surface", from the first mention on."""
    low, grammar, found = words.low, english(), 0
    for i, word in enumerate(low[:-2]):
        if word not in ("it", "its") or (i and low[i - 1] not in STOPS and low[i - 1] not in (",", "and")):
            continue
        if i == 0 and first.start == 0:
            continue
        if word == "it":
            found |= _linked(words, i + 1, person)
        elif low[i + 1] in grammar.surfaces | grammar.colour_nouns:
            found |= _linked(words, i + 2, person)
    return found


def _ahead(words: Words) -> int:
    """Colours before the subject: "Blue in colour, the circle ..."."""
    low = words.low
    if low and low[0] in english().passives | english().patterns:
        return _run(words, 1, "in", False)
    if words.tint and words.tint[0]:
        for i in range(1, min(6, len(low) - 1)):
            if low[i] == "in" and low[i + 1] in english().colour_nouns:
                return _any([(0, bit) for bit in words.tint[:i]])
            if not (words.tint[i] or low[i] == "and"):
                break
    return 0
