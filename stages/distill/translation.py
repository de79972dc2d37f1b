"""Chinese captions out of English ones: translated by the teacher, then checked for what a translation must keep."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from schemas.caption import Caption
from stages.base import UnitError, all_or_error
from stages.distill.answers import Answer
from stages.distill.stage import DistillStage
from stages.distill.units import CaptionUnit, TranslationUnit
from stages.teachers.protocol import TeacherRequest

BLOCKED = "source_failed"

_COLOURS: dict[str, str] = {
    r"red|crimson|scarlet|maroon": "[红赤]",
    r"orange": "[橙橘]",
    r"yellow": "[黄金]",
    r"gold|golden": "[金黄]",
    r"green|olive": "[绿青]",
    r"cyan|turquoise|teal": "[青蓝绿]",
    r"blue|navy": "[蓝青]",
    r"purple|violet": "[紫]",
    r"pink": "[粉红]",
    r"brown": "[棕褐咖]",
    r"beige|tan|cream": "[米奶棕褐]|卡其",
    r"white": "[白]",
    r"gr[ae]y": "[灰]",
    r"silver": "[银]",
    r"black": "[黑乌]",
}
_NUMBER_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "twenty": 20, "thirty": 30, "hundred": 100,
}  # fmt: skip
_ZH_DIGITS = {"一": 1, "二": 2, "两": 2, "双": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_ZH_NUMBER = re.compile(r"[一二两双三四五六七八九十百]+")
_QUOTED = re.compile("[“\"'‘]([^“”\"'‘’]*[^\\s“”\"'‘’])[”\"'’](?![A-Za-z])")
_WRITTEN = re.compile(r"\b(?=[A-Z0-9-]*[A-Z])[A-Z0-9][A-Z0-9-]+\b")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")
_HAN = re.compile(r"[\u3400-\u9fff]")


class TranslateStage(DistillStage):
    """The captions of one task in Chinese, from the English captions of the same task.

    An answer that loses a number, a colour or writing, or that is not Chinese, counts as invalid: it is repaired once
    with a turn that says what was lost. Where there is no English caption the row is `blocked`.
    """

    unit: ClassVar[type[CaptionUnit]] = TranslationUnit

    async def captions(self, units: Sequence[CaptionUnit]) -> list[Caption]:
        return await all_or_error(self._translation(unit) for unit in units)

    def wrong(self, unit: CaptionUnit, answer: Answer) -> str | None:
        assert isinstance(unit, TranslationUnit)
        return "; ".join(losses(unit.source_parts(), answer.model_dump())) or None

    async def _translation(self, unit: CaptionUnit) -> Caption:
        assert isinstance(unit, TranslationUnit)
        if unit.source_status != "ok":
            message = f"the English caption is {unit.source_status}"
            made = self._made(unit, [])
            return Caption(**made, status="blocked", reason=BLOCKED, message=message, attempts=0)
        request = await asyncio.to_thread(self._requests, [unit])
        return await self._caption(unit, request[0])

    def _requests(self, units: Sequence[CaptionUnit]) -> list[TeacherRequest | UnitError]:
        made: list[TeacherRequest | UnitError] = []
        for unit in units:
            assert isinstance(unit, TranslationUnit)
            parts = unit.source_parts()
            wanted = self.recipe.answer.model_fields
            made.append(
                self.recipe.request(unit.media_key, [], {"parts": {name: parts[name] for name in wanted}}, None, ())
                if all(name in parts for name in wanted)
                else UnitError("no_source_text", "the English caption lacks a part that is to be translated")
            )
        return made

    def _requests_through(self, unit: CaptionUnit, views: Sequence[str]) -> TeacherRequest | None:
        """A text has no other view."""
        return None


def losses(source: Mapping[str, str], translated: Mapping[str, str]) -> list[str]:
    """What a translation of these parts lost, in words for the translator; empty for a faithful one.

    Kept must be: numbers (as digits or Chinese numerals), colours, writing (quoted, or in capitals) letter by letter.
    Every part must be Chinese but for such writing.
    """
    found = []
    for name, text in translated.items():
        english = source.get(name, "")
        missing = sorted(numbers_en(english) - numbers_zh(text))
        if missing:
            found.append(f"{name}: the number {missing[0]:g} is missing")
        found += [f"{name}: the colour {word} is missing" for word in lost_colours(english, text)[:1]]
        kept = writing(english)
        changed = sorted((word for word in kept if word not in text), key=len, reverse=True)
        found += [f"{name}: the writing {word!r} must stay as it is" for word in changed[:1]]
        if not is_chinese(text, kept):
            found.append(f"{name}: it is not written in Chinese")
    return found


def numbers_en(text: str) -> set[float]:
    """The numbers of an English text, digits and words; `one` is left out, which is more often a pronoun."""
    digits = {float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])", text)}
    return digits | {float(_NUMBER_WORDS[w]) for w in re.findall(r"[a-z]+", text.lower()) if w in _NUMBER_WORDS}


def numbers_zh(text: str) -> set[float]:
    """The numbers of a Chinese text, digits and numerals below a thousand."""
    digits = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)}
    return digits | {float(_value(numeral)) for numeral in _ZH_NUMBER.findall(text)}


def lost_colours(english: str, chinese: str) -> list[str]:
    """Basic colour words of the English text to which none in the Chinese text answers."""
    lost = []
    for words, signs in _COLOURS.items():
        named = re.search(rf"\b(?:{words})\b", english, re.IGNORECASE)
        if named and not re.search(signs, chinese):
            lost.append(named.group(0).lower())
    return lost


def writing(text: str) -> set[str]:
    """What stands written in a text: words in capitals, and what is quoted."""
    quoted = {found.strip() for found in _QUOTED.findall(text)}
    capitals = {word for word in _WRITTEN.findall(text) if not word.isdigit()}
    return {word for word in quoted | capitals if word}


def is_chinese(text: str, kept: set[str]) -> bool:
    """Whether a text is Chinese, writing that is to be kept aside."""
    for word in sorted(kept, key=len, reverse=True):
        text = text.replace(word, "")
    han, latin = len(_HAN.findall(text)), sum(map(len, _LATIN_WORD.findall(text)))
    return han > 0 and latin <= 0.25 * han


def _value(numeral: str) -> int:
    total, digit = 0, 0
    for sign in numeral:
        if sign in "十百":
            total += max(digit, 1) * (10 if sign == "十" else 100)
            digit = 0
        else:
            digit = _ZH_DIGITS[sign]
    return total + digit
