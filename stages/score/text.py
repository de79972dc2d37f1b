"""Rules 1 to 8, and 20 by words: what a caption's text alone says of it, whole columns at a time."""

from __future__ import annotations

from typing import Any, ClassVar

import polars as pl

from schemas.base import Row
from schemas.caption import Language, Outcome, Task
from stages.score.base import LANGUAGES, Rule, ScoreRow, ScoreStage, ScoreUnit
from stages.score.lexicon import load_lexicon, settings_of
from stages.score.repetition import repetition

TOKEN = {"en": r"[\p{L}\p{N}]+(?:['’\-][\p{L}\p{N}]+)*", "zh": r"\p{Han}|\p{Latin}+|\p{N}+"}
SENTENCE_END = r"[.!?。！？…](?:[\"'”’）)\]]*)"
FINISHED = r"[.!?。！？…][\"'”’）)\]]*\s*$"
HEDGE_FLOOR = 25


class TextUnit(ScoreUnit):
    """The columns of a caption, and the source's label of its region."""

    task: Task
    text: str | None = None
    label: str | None = None
    definition: str | None = None
    function: str | None = None
    outcome: Outcome | None = None
    finish_reason: str | None = None
    source_label: str | None = None


class TextScores(ScoreRow):
    """Scores of rules 1 to 8, and of rule 20 by words."""

    missing_fields: int | None = None
    cut_off: float | None = None
    mark_hits: int | None = None
    refusal_hits: int | None = None
    script_share: float | None = None
    foreign_share: float | None = None
    words: int | None = None
    label_words: int | None = None
    definition_words: int | None = None
    repeated_4gram: int | None = None
    repeated_phrase: int | None = None
    repeated_words: int | None = None
    distinct_2: float | None = None
    duplicate_sentences: int | None = None
    hedges: int | None = None
    hedge_density: float | None = None
    openers: int | None = None
    words_after_opener: int | None = None
    pii_hits: int | None = None
    unsafe_hits: int | None = None
    identity_hits: int | None = None


class Schema(Rule):
    """Rule 1: required fields that are empty, and text that stops before its end.

    `missing_fields` counts the task's required fields without a letter in them (text; label and definition for
    explain). `cut_off` is 1 where the reply ran into its token limit or a sentence breaks off (other sentences end
    with a stop and the last does not, or it ends with a comma, an open bracket or a word that needs another), 0.5
    where a text without any stop leaves it open, 0 where it ends with a stop; null for labels.
    Source: FILTERS rule 1; `finish_reason` as in the OpenAI chat API.
    """

    name = "schema"
    number = 1
    columns = ("missing_fields", "cut_off")

    def settings(self) -> dict[str, Any]:
        return settings_of("dangling")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        def empty(name: str) -> pl.Expr:
            return (~pl.col(name).fill_null("").str.contains(r"\p{L}|\p{N}")).cast(pl.Int64)

        explain = pl.col("task") == "explain"
        missing = empty("text") + pl.when(explain).then(empty("label") + empty("definition")).otherwise(0)
        stripped = pl.col("_text").str.strip_chars_end()
        finished = stripped.str.contains(FINISHED)
        dangling = stripped.str.contains(load_lexicon("dangling").regex(language) or "$^")
        many = stripped.str.contains(SENTENCE_END + (r"\s+\p{Lu}" if language == "en" else r"\s*\S"))
        limit = (pl.col("finish_reason").fill_null("") == "length") | (pl.col("outcome").fill_null("") == "truncated")
        cut = pl.when(limit | dangling).then(1.0).when(finished).then(0.0).when(many).then(1.0).otherwise(0.5)
        cut = pl.when((pl.col("task") == "label") | (pl.col("_text") == "")).then(None).otherwise(cut)
        return units.select(missing_fields=missing, cut_off=cut)


class Marks(Rule):
    """Rule 2: words about the drawing by which the teacher was shown its target (box, outline, panel, mask).

    `mark_hits` counts them. A coloured box or frame is counted only where the label (the caption's own or the
    source's) is not itself such a thing: a mailbox may be called a red box.
    Source: FILTERS rule 2; DAM (arXiv 2504.16072), appendix A.
    """

    name = "marks"
    number = 2
    columns = ("mark_hits",)

    def settings(self) -> dict[str, Any]:
        return settings_of("marks", "mark_nouns", "mark_labels")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        exempt = _looks_like_mark("label", "source_label")
        nouns = pl.when(exempt).then(0).otherwise(_count("mark_nouns", language))
        return units.select(mark_hits=_known(_count("marks", language) + nouns))


class Refusals(Rule):
    """Rule 3: refusals, apologies and a model's words about itself. `refusal_hits` counts them.

    Source: FILTERS rule 3; refusals on tight crops are reported by DAM (arXiv 2504.16072), appendix A.
    """

    name = "refusals"
    number = 3
    columns = ("refusal_hits",)

    def settings(self) -> dict[str, Any]:
        return settings_of("refusals")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        return units.select(refusal_hits=_known(_count("refusals", language)))


class Script(Rule):
    """Rule 4: text in another language than asked for.

    `script_share` is the share of letters in the language's script (Latin for en, Han for zh), the lowest of text,
    definition and function. `foreign_share` (en) is the share of words that are function words of German, French,
    Spanish, Italian, Portuguese or Dutch and no English words. Null where there are no letters.
    Source: FILTERS rule 4.
    """

    name = "language"
    number = 4
    columns = ("script_share", "foreign_share")

    def settings(self) -> dict[str, Any]:
        return settings_of("foreign_words")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        script = r"\p{Latin}" if language == "en" else r"\p{Han}"

        def share(name: str) -> pl.Expr:
            letters = pl.col(name).str.count_matches(r"\p{L}")
            return pl.when(letters > 0).then(pl.col(name).str.count_matches(script) / letters)

        lowest = pl.min_horizontal(share("text"), share("definition"), share("function"))
        foreign = pl.lit(None, pl.Float64)
        if language == "en":
            count = pl.col("_words")
            foreign = pl.when(count > 0).then(_count("foreign_words", "en") / count)
        return units.select(script_share=lowest, foreign_share=foreign)


class Length(Rule):
    """Rule 5: stubs and rambling. Words in English; in Chinese characters, a Latin word or number counting as one.

    `words` is of the text, `label_words` of the label (the text of a label caption), `definition_words` of the
    definition; null where there is none.
    Source: FILTERS rule 5, with limits in the policy: of PAM's 945 human event captions a third has under 12 words,
    of LVIS's definitions a tenth under 6.
    """

    name = "length"
    number = 5
    columns = ("words", "label_words", "definition_words")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        def count(column: pl.Expr) -> pl.Expr:
            return column.str.count_matches(TOKEN[language]).cast(pl.Int64)

        label = pl.when(pl.col("task") == "label").then(pl.col("text")).otherwise(pl.col("label"))
        return units.select(
            words=_known(pl.col("_words")),
            label_words=count(label.str.replace_all("_", " ")),
            definition_words=count(pl.col("definition")),
        )


class Repetition(Rule):
    """Rule 6: loops.

    `repeated_4gram` is how often the most frequent run of four words occurs (Chinese: eight characters);
    `repeated_phrase` how often a phrase follows itself at once, and `repeated_words` how many words such repeats add;
    `distinct_2` the share of different word pairs, null under 40 words; `duplicate_sentences` counts sentences said
    before in the same text.
    Source: FILTERS rule 6; distinct-n is Li et al., arXiv 1510.03055.
    """

    name = "repetition"
    number = 6
    columns = ("repeated_4gram", "repeated_phrase", "repeated_words", "distinct_2", "duplicate_sentences")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        return repetition(units["_text"], TOKEN[language], gram=4 if language == "en" else 8)


class Hedges(Rule):
    """Rule 7: a teacher that does not know what it sees.

    `hedges` counts hedging words; `hedge_density` is their number per 50 words, with texts under 25 words counted as
    25, so that one hedge alone is two per 50 at most.
    Source: FILTERS rule 7.
    """

    name = "hedges"
    number = 7
    columns = ("hedges", "hedge_density")

    def settings(self) -> dict[str, Any]:
        return settings_of("hedges")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        count = _count("hedges", language)
        density = 50 * count / pl.max_horizontal(pl.col("_words"), pl.lit(HEDGE_FLOOR))
        return units.select(hedges=_known(count), hedge_density=_known(density))


class Openers(Rule):
    """Rule 8: a text that begins by speaking of the picture ("In this image", "图中").

    `openers` is 1 where it does; `words_after_opener` is what stripping the opener would leave, null where there is
    nothing to strip.
    Source: FILTERS rule 8.
    """

    name = "openers"
    number = 8
    columns = ("openers", "words_after_opener")

    def settings(self) -> dict[str, Any]:
        return settings_of("openers")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        pattern = load_lexicon("openers").regex(language) or "$^"
        opens = pl.col("_text").str.contains(pattern)
        rest = pl.col("_text").str.replace(pattern, "").str.count_matches(TOKEN[language]).cast(pl.Int64)
        return units.select(openers=_known(opens.cast(pl.Int64)), words_after_opener=pl.when(opens).then(rest))


class Safety(Rule):
    """Rule 20, safety: what a caption must not carry.

    `pii_hits` counts addresses, numbers and accounts that point to a person, `unsafe_hits` sexual, gory and abusive
    words, `identity_hits` words that say who a person is instead of what he looks like.
    Source: FILTERS rule 20.
    """

    name = "safety"
    number = 20
    columns = ("pii_hits", "unsafe_hits", "identity_hits")

    def settings(self) -> dict[str, Any]:
        return settings_of("pii", "unsafe", "identities")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        return units.select(
            pii_hits=_known(_count("pii", language)),
            unsafe_hits=_known(_count("unsafe", language)),
            identity_hits=_known(_count("identities", language)),
        )


RULES: tuple[type[Rule], ...] = (Schema, Marks, Refusals, Script, Length, Repetition, Hedges, Openers, Safety)


class TextStage(ScoreStage):
    """Rules 1 to 8, and 20 by words, over the caption's text."""

    group: ClassVar[str] = "text"
    table: ClassVar[str] = "scores/text"
    unit: ClassVar[type[ScoreUnit]] = TextUnit
    row: ClassVar[type[Row]] = TextScores

    def __init__(self) -> None:
        super().__init__(tuple(rule() for rule in RULES))

    def prepare(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        text = pl.col("text").fill_null("")
        words = text.str.count_matches(TOKEN[language]).cast(pl.Int64)
        return units.with_columns(_text=text, _words=words)


def _count(name: str, language: Language) -> pl.Expr:
    expression = load_lexicon(name).regex(language)
    return pl.col("_text").str.count_matches(expression).cast(pl.Int64) if expression else pl.lit(0, pl.Int64)


def _looks_like_mark(*columns: str) -> pl.Expr:
    """Whether one of these labels, in either language, is a thing that looks like a mark."""
    patterns = [pattern for language in LANGUAGES if (pattern := load_lexicon("mark_labels").regex(language))]
    labels = [pl.col(column).fill_null("").str.replace_all("_", " ") for column in columns]
    return pl.any_horizontal(label.str.contains(pattern) for label in labels for pattern in patterns)


def _known(score: pl.Expr) -> pl.Expr:
    """A score of the text, null where there is no text."""
    return pl.when(pl.col("text").is_not_null()).then(score)
