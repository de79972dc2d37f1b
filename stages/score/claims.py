"""What a text claims of its target's motion: directions, stillness, growth, absence, by lists of words."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Final

import polars as pl

from schemas.caption import Language
from stages.score.lexicon import load_lexicon, settings_of

WAYS: Final = ("left", "right", "up", "down")
LEXICONS: Final = {
    "left": "motion_left",
    "right": "motion_right",
    "up": "motion_up",
    "down": "motion_down",
    "still": "motion_still",
    "growing": "motion_grows",
    "shrinking": "motion_shrinks",
    "turning": "motion_turns",
    "changing colour": "motion_recolours",
    "absent": "motion_away",
    "returning": "motion_back",
}
"""What a text may claim, and the list of its words."""

MOVING: Final = "motion_any"
MANNER: Final = "motion_manner"
ASIDES: Final = "motion_asides"
OTHERS: Final = "motion_others"
_GAP: Final = "~"
"""Stands where words were taken out: patterns that join words do not reach across it unless they name it."""
_STILLNESS: Final = "="
"""Stands where a claim of stillness was: denied, it is one of motion."""
_AFTER: Final = re.compile(r"([^.!?;]*?)\b(?:after)\b([^.!?;]*)", re.IGNORECASE)


def claim_settings() -> dict[str, Any]:
    """What a fingerprint says of the lists that claims are read with."""
    return settings_of(MOVING, MANNER, ASIDES, OTHERS, *LEXICONS.values())


def said_of(texts: pl.Series, language: Language) -> pl.DataFrame:
    """What texts claim, row for row: a boolean column `_said <name>` for each name of `LEXICONS`, and besides

    `_said moving`, that the target changes its place in whatever way; `_away`, that anything at all is not in the
    picture; and `_bare`, the text without what is not about the target (camera, others, parts of bodies).
    """
    plain = pl.col("text").str.replace_all("’", "'", literal=True)
    frame = pl.DataFrame({"text": texts}).with_columns(plain)
    frame = frame.with_columns(_bare=_bare(frame["text"], language))
    rest = frame["_bare"].str.replace_all(_pattern(LEXICONS["still"], language), _STILLNESS)
    frame = frame.with_columns(_rest=rest, _away=pl.col("text").str.contains(_pattern(LEXICONS["absent"], language)))
    said = []
    for name, lexicon in (*LEXICONS.items(), ("moving", MOVING)):
        column = "_bare" if name == "still" else "_rest"  # "does not move" speaks of no motion
        said.append(pl.col(column).str.contains(_pattern(lexicon, language)).alias(f"_said {name}"))
    return frame.select("_bare", "_away", *said)


def claims(text: str, language: Language) -> list[str]:
    """What a text claims of its target's motion, in the order told: names of `LEXICONS`."""
    (bare,) = _bare(pl.Series([text.replace("’", "'")]), language)
    return in_turn(bare, LEXICONS, language)


def in_turn(bare: str, names: Collection[str], language: Language) -> list[str]:
    """Those of these claims that a text without asides makes, in the order told; `A after B` counts as B, A."""
    if language == "en":
        bare = _AFTER.sub(lambda found: f"{found.group(2)} , {found.group(1)}", bare)
    rest = _compiled(LEXICONS["still"], language).sub(lambda found: _STILLNESS * len(found.group()), bare)
    found = []
    for name in names:
        read = bare if name == "still" else rest
        found += [(match.start(), name) for match in _compiled(LEXICONS[name], language).finditer(read)]
    return [name for _, name in sorted(found)]


def _bare(texts: pl.Series, language: Language) -> pl.Series:
    """Texts without what is not about their target."""
    bare = texts.str.replace_all(_pattern(MANNER, language), "${1}${2}")
    for expression in load_lexicon(ASIDES).regexes(language):
        bare = bare.str.replace_all(expression, _GAP)
    others = bare.str.contains(_pattern(OTHERS, language))
    rows = others.arg_true()
    return bare.scatter(rows, [_without_others(text, language) for text in bare.gather(rows)]) if len(rows) else bare


def _without_others(text: str, language: Language) -> str:
    """A text without the clauses about a thing by a name (its first word after `the`) that was not said before."""

    def kept(found: re.Match[str]) -> str:
        name = found.group().lower().partition(" the ")[2].partition(" ")[0]
        return found.group() if re.search(rf"\b{name}\b", text[: found.start()].lower()) else _GAP

    return _compiled(OTHERS, language).sub(kept, text)


@lru_cache(maxsize=64)
def _pattern(lexicon: str, language: Language) -> str:
    """A list's expression; one that nothing matches where it has none for the language."""
    return load_lexicon(lexicon).regex(language) or r"[^\s\S]"


@lru_cache(maxsize=64)
def _compiled(lexicon: str, language: Language) -> re.Pattern[str]:
    return re.compile(_pattern(lexicon, language))
