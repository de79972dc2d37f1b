"""Rule 8: words about the picture instead of the target, and the openers that may be cut off."""

from __future__ import annotations

from typing import Any

import polars as pl

from schemas.caption import Language
from stages.score.base import Rule
from stages.score.lexicon import TOKEN, load_lexicon, settings_of

ROUNDS = 3
LEXICONS = ("openers", "strippable", "stranded", "meta")


class Openers(Rule):
    """Rule 8: a text that speaks of the picture ("In this image", "图中", "can be seen in this photo").

    `openers` is 1 where it begins so; `words_after_opener` is what stripping the opener would leave, null where there
    is nothing to strip or what is left would be no sentence. `meta_hits` counts words about the picture anywhere else.
    Source: FILTERS rule 8.
    """

    name = "openers"
    number = 8
    version = 2
    columns = ("openers", "words_after_opener", "meta_hits")

    def settings(self) -> dict[str, Any]:
        return settings_of(*LEXICONS)

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        known = pl.col("text").is_not_null()
        frame = units.select(
            "text", _opens=pl.when(known).then(opens(pl.col("_text"), language)), _known=known, _text=pl.col("_text")
        )
        rest = pl.when("_opens").then("text")
        left = without_opener(rest, language).str.count_matches(TOKEN[language]).cast(pl.Int64)
        meta = load_lexicon("meta").count(pl.col("_text"), language)
        return frame.select(
            openers=pl.col("_opens").cast(pl.Int64), words_after_opener=left, meta_hits=pl.when("_known").then(meta)
        )


def opens(text: pl.Expr, language: Language) -> pl.Expr:
    """Whether texts begin by speaking of the picture."""
    openers = load_lexicon("openers")
    return openers.without_exceptions(text, language).str.contains(openers.regex(language) or "$^")


def without_opener(text: pl.Expr, language: Language) -> pl.Expr:
    """Texts without their opener, the first letter a capital; null where what is left would be no sentence.

    An opener goes only by a list of its own (`strippable`), whose forms end with a comma or with a verb before its
    object; a second opener goes as well. What is left must have letters, must not be an opener still, and must not
    begin with what only an opener's middle begins with (`stranded`).
    """
    pattern = load_lexicon("strippable").regex(language) or "$^"
    rest = text
    for _ in range(ROUNDS):
        rest = rest.str.replace(pattern, "")
    rest = rest.str.strip_chars()
    stranded = load_lexicon("stranded").regex(language) or "$^"
    whole = (rest != text.str.strip_chars()) & rest.str.contains(r"\p{L}")
    whole &= ~rest.str.contains(stranded) & ~opens(rest, language)
    return pl.when(whole).then(pl.concat_str(rest.str.slice(0, 1).str.to_uppercase(), rest.str.slice(1)))
