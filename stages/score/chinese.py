"""What a Chinese caption says of its target, read by the small words of `words/grammar.yaml`: no parser, no model."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from stages.score.names import Names, all_classes, is_person
from stages.score.words.tables import chinese, colours


def find(text: str, thing: Names) -> tuple[int, int] | None:
    """Where the text first names the thing, the longest name at that place."""
    text = _blot(_shadows(thing.all), text)
    places = [(at, -len(name)) for name in thing.all if (at := text.find(name)) >= 0]
    if not places:
        return None
    at, length = min(places)
    return at, at - length


@lru_cache(20_000)
def _shadows(own: tuple[str, ...]) -> re.Pattern[str] | None:
    """Longer words that only look as if they held these names (床单 for 床, 斑马 for 马)."""
    longer = [word for word in chinese().compounds if word not in own and any(name in word for name in own)]
    return re.compile(_any_of(tuple(longer))) if longer else None


def _blot(pattern: re.Pattern[str] | None, text: str) -> str:
    """The text with what matches made unreadable; its length stays."""
    return pattern.sub(lambda found: "○" * len(found.group()), text) if pattern else text


@cache
def _any_of(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


@cache
def _bits() -> dict[str, int]:
    return {word: 1 << place for place, colour in enumerate(colours().values()) for word in colour.zh}


@cache
def _colour() -> str:
    """One colour: a sure sign with or without 色, an unsure one (黑, 金) with 色 or 的 or beside another colour."""
    grammar = chinese()
    sure = tuple(word for word in _bits() if word not in grammar.unsure)
    unsure = "|".join(grammar.unsure)
    signs = "".join(word[0] for word in sure)
    return (
        rf"(?:(?:{_any_of(sure)})色?|(?:{unsure})(?=[色的漆釉两三相，。、；{signs}])色?|(?:{unsure}){{2}}(?=[色相])色?"
        rf"|(?:{unsure})(?=澄澄|灿灿|闪闪|漆漆|黝黝|花花|茫茫|皑皑|晶晶|亮亮|沉沉|乎乎)|(?<=[全纯身])(?:{unsure})(?=$|毛[，。；])"
        rf"|(?<=[雪洁乌漆])(?:{unsure})(?=$|[，。；的]))"
    )


@cache
def _stretch() -> str:
    shades = _any_of(chinese().shades)
    return rf"(?:{shades})*{_colour()}(?:(?:{shades})*{_colour()})*(?:[两三双]?色)?(?:相间)?"


@cache
def _before() -> re.Pattern[str]:
    grammar = chinese()
    doubled = r"[^，。、；的]?([^，。、；的])\2的"
    adjectives = rf"(?:{_any_of(grammar.adjectives)}|(?:{_any_of(grammar.wholes)})的|{doubled}|的|、|，|相间)*"
    other = rf"(?!(?:{_any_of(grammar.parts)}))[^，。、；的\s]{{0,3}}"
    covering = rf"(?:{_any_of(grammar.covers)})了?着?(?:整个|整片|这个|该|全部)*"
    filled = rf"(?:(?:{_any_of(grammar.fills)})(?:而成|出来|起来|来)?的|{covering})?"
    beside = rf"的?(?:、|，|且|而|并且|又|同时)(?:(?!{_stretch()})[^。；的在]){{1,10}}的"
    return re.compile(rf"(?P<before>{_stretch()})(?:{filled}{adjectives}|{beside})(?:{other})?$")


@cache
def _after() -> re.Pattern[str]:
    grammar = chinese()
    wholes = rf"(?:的?(?:{_any_of(grammar.wholes)}))*"
    turned = rf"(?:都|均|也|则|主要|大部分|几乎|完全|整个)*被?(?:{_any_of(grammar.turns)})(?:了|一种|着|以)*"
    linked = rf"{wholes}{turned}(?P<linked>{_stretch()})"
    bare = rf"(?:的?(?:{_any_of(grammar.wholes)})|，)(?P<bare>{_stretch()})的?(?=[，。；]|$)"
    owned = rf"(?:{_any_of(grammar.owns)})(?:一层|一种|一个)?(?P<owned>{_stretch()})的?(?:{_any_of(grammar.wholes)})"
    stands = rf"的(?P<stands>{_stretch()})(?:{_any_of(grammar.generic)})"
    return re.compile(rf"^(?:{linked}|{bare}|{owned}|{stands})")


@cache
def _loose() -> re.Pattern[str]:
    """A colour behind words that are no thing, which ends its clause or stands before what fills or is a whole."""
    grammar = chinese()
    words = {*grammar.light, *grammar.wholes, *grammar.adjectives, *grammar.turns} - {"又", "的"}
    known = _any_of(tuple(words))
    small = rf"(?:{known}|的(?={known}|{_stretch()})|，(?=是|为|呈|整体|通体|属于|看))"
    unknown = rf"(?:(?!{_any_of((*grammar.set_off, *grammar.parts))})[^，。；的])"
    way = rf"(?:(?=[全纯])|{small}{{1,10}}?(?:{unknown}{{1,4}}?{small}{{0,8}}?)?|{unknown}{{1,3}}?{small}{{1,8}}?)"
    whole = _any_of((*grammar.fills, *grammar.wholes))
    ends = rf"(?:的?(?:整个|完全|全部|均匀地)?(?:{whole})|得|([^，。；的])\2的?(?=[，。；]|$)|的?(?=[，。；]|$))"
    vivid = rf"的?(?P<vivid>{_stretch()})(?:得|([^，。；的])\4)"
    return re.compile(rf"^(?:{way}(?P<loose>{_stretch()}){ends}|{vivid})")


def plain(text: str) -> str:
    """The text with the colours of set phrases (红酒, 金鱼, 青年) blotted out; its length stays."""
    return _blot(_set(), text)


@cache
def _set() -> re.Pattern[str]:
    return re.compile(_any_of(chinese().set_phrases))


def colours_of(text: str, target: Names) -> int:
    """The colours said of the target, as bits over the colour table."""
    grammar = chinese()
    if not target.all or grammar.many_coloured.intersection(target.all):
        return 0
    span = find(text, target)
    if span is None and (span := _generic(text)) is None:
        return 0
    shown, (start, end) = plain(text), span
    person = is_person(target, "zh")
    lead = _before().search(shown[max(0, start - 40) : start])
    of_part = lead is not None and shown[max(0, start - 40) : start][: lead.start(1)].endswith((*grammar.parts, "部"))
    found = 0 if of_part else _said(lead, person)
    wholes = _any_of(grammar.wholes)
    after = [end, text.rfind(text[start:end]) + end - start]
    after += [match.end() for match in re.finditer(rf"(?:^|[，。；])(?:它|其)|[，。；](?={wholes})", text)]
    behind = [shown[place : place + 30] for place in after]
    for rest in behind:
        found |= _said(_after().search(rest), person)
    for rest in behind if not (found or person) else ():
        found |= _said(_loose().search(rest), person)
    return found


def _generic(text: str) -> tuple[int, int] | None:
    """The thing that a text speaks of first where it does not name its target."""
    if any(name in text for name in all_classes("zh").all if name not in ("他", "她")):
        return None
    found = re.search(rf"^[它其]|{_any_of(chinese().generic)}", text)
    return found.span() if found else None


def _said(match: re.Match[str] | None, person: bool) -> int:
    if match is None:
        return 0
    told = next(group for group in match.groupdict().values() if group)
    bits = 0
    for word, bit in _bits().items():
        if word in told and not (person and word[0] in chinese().hair_and_skin):
            bits |= bit
    return bits


@cache
def _numbers() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    grammar = chinese()
    unit = _any_of(grammar.units)
    crowds = _any_of(tuple(grammar.crowds))
    digits = "".join(grammar.digits)
    before = re.compile(
        rf"(?:(?P<many>{crowds})|(?P<number>[{digits}]+多?|[0-9]+多?))(?P<unit>{unit})?(?P<rest>[^，。；！？]{{0,10}})$"
    )
    after = re.compile(
        rf"^(?:一共|共|总共)?有(?:(?P<number>[{digits}]+|[0-9]+)(?:{unit})|(?P<many>{crowds}))(?=[，。；]|$)"
    )
    single = re.compile(rf"(?:{_any_of(grammar.singular)})(?:{unit})")
    return before, after, single


def number_of(text: str, span: tuple[int, int]) -> int:
    """How many things the first mention speaks of: 1 where it names no number, or picks one out of several."""
    grammar, (start, end) = chinese(), span
    before, after, single = _numbers()
    clause = re.split(r"[，。；！？]", text[:start])[-1]
    if re.match(_any_of(grammar.partitives) + r"(?![央间心])", text[end:]) and not text[end:].startswith("里面"):
        return 1
    if text[end : end + 1] in grammar.collectives and text[end : end + 2] not in ("群中",):
        return 3
    if later := after.match(text[end:]):
        return _value(later["number"], later["many"])
    match = before.search(clause)
    if match is None or single.search(clause[: match.start()]):
        return 1
    lead, rest = clause[: match.start()], match["rest"]
    if lead.endswith("第") or (match["number"] and lead.endswith(("一", "十"))):
        return 1
    told = match["number"]
    if told and not match["unit"] and (rest or told not in ("两", "俩", "三", "二", "几", "数", "双")):
        return 1
    held = lead.endswith(tuple(grammar.holds)) or re.search(rf"(?:{_any_of(grammar.holds)})[着了]?$", lead)
    if "的" in rest:
        described = re.sub(rf"{_stretch()}|{_any_of(grammar.adjectives)}|的|、", "", rest)
        if described and (held or not match["many"]):
            return 1
    return _value(told, match["many"])


def _value(number: str | None, many: str | None) -> int:
    grammar = chinese()
    if many:
        return grammar.crowds[many]
    if not number:
        return 1
    bare = number.rstrip("多") or number
    if bare.isascii() and bare.isdigit():
        return int(bare)
    return max(2, max(grammar.digits.get(sign, 1) for sign in bare))


def subject(text: str, things: list[Names]) -> int | None:
    """Which of the things the first clause is about: the place of the first that is named as its subject, or None."""
    clause = re.split(r"[，。；！？]", text)[0]
    named = [
        (span, -len(clause[span[0] : span[1]]), place)
        for place, thing in enumerate(things)
        if (span := find(clause, thing))
    ]
    for (start, end), _, place in sorted(named, key=lambda one: (one[0][0], one[1])):
        if _is_subject(clause, start, end):
            return place
    return None


def _is_subject(clause: str, start: int, end: int) -> bool:
    grammar = chinese()
    lead = re.sub(rf"^(?:{_any_of(grammar.presents)})", "", clause[:start])
    lead = lead.rpartition("的")[2]
    if re.search(_any_of(grammar.verbs), lead):
        return False
    return re.match(rf"(?:{_any_of(grammar.places)})|的(?!{_stretch()})", clause[end:]) is None
