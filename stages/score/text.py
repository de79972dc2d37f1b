"""Rules 1 to 8, and 20 by words: what a caption's text alone says of it, whole columns at a time."""

from __future__ import annotations

from typing import Any, ClassVar

import polars as pl

from schemas.base import Row
from schemas.caption import Language, Outcome, Task
from stages.score.base import LANGUAGES, Rule, ScoreRow, ScoreStage, ScoreUnit
from stages.score.lexicon import TOKEN, load_lexicon, settings_of
from stages.score.openers import Openers
from stages.score.repetition import repetition

SENTENCE_END = r"[.!?。！？…](?:[\"'”’）)\]]*)"
FINISHED = r"[.!?。！？…][\"'”’）)\]]*\s*$"
BROKEN = (
    r"(?:\.\.+|…|⋯|\[(?:…|\.\.+|truncated|cut off|continued|more|to be continued)\.?\]?|（未完.*|未完待续.*)"
    r"[\s\"'”’）)\]]*$"
)
UNQUOTED = r"^[^\"]*(?:\"[^\"]*\"[^\"]*)*\s\"[^\"]*$"
HEDGE_FLOOR = 25
SENTENCE_FROM = 6


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
    residue_hits: int | None = None
    mark_hits: int | None = None
    refusal_hits: int | None = None
    script_share: float | None = None
    foreign_share: float | None = None
    function_words: int | None = None
    words: int | None = None
    label_words: int | None = None
    definition_words: int | None = None
    repeated_4gram: int | None = None
    repeated_phrase: int | None = None
    repeated_words: int | None = None
    distinct_2: float | None = None
    duplicate_sentences: int | None = None
    doubled_words: int | None = None
    distinct_words: float | None = None
    hedges: int | None = None
    hedge_density: float | None = None
    speculation_hits: int | None = None
    openers: int | None = None
    words_after_opener: int | None = None
    meta_hits: int | None = None
    pii_hits: int | None = None
    unsafe_hits: int | None = None
    identity_hits: int | None = None


class Schema(Rule):
    """Rule 1: required fields that are empty, text that stops before its end, and what a machine left in it.

    `missing_fields` counts the task's required fields (text; label and definition for explain) without a letter in
    them, or that say nothing ("unknown", "object"). `cut_off` is 1 where the reply ran into its token limit or the text
    breaks off (other sentences end with a stop and the last does not; it ends with an ellipsis, a comma or a word that
    needs another; a bracket or quotation stays open; it begins in the middle of a sentence), 0.5 where a text without
    any stop leaves it open, 0 where it ends with a stop; null for labels. `residue_hits` counts JSON, code fences,
    Markdown and chat tokens.
    Source: FILTERS rule 1; `finish_reason` as in the OpenAI chat API.
    """

    name = "schema"
    number = 1
    version = 2
    columns = ("missing_fields", "cut_off", "residue_hits")

    def settings(self) -> dict[str, Any]:
        return settings_of("dangling", "headless", "residue", "fillers")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        fillers = load_lexicon("fillers").regex(language) or "$^"

        def empty(name: str) -> pl.Expr:
            said = pl.col(name).fill_null("")
            return (~said.str.contains(r"\p{L}|\p{N}") | said.str.contains(fillers)).cast(pl.Int64)

        explain = pl.col("task") == "explain"
        missing = empty("text") + pl.when(explain).then(empty("label") + empty("definition")).otherwise(0)
        residue = pl.when(pl.col("text").is_not_null()).then(_count("residue", language))
        return units.select(missing_fields=missing, cut_off=_cut_off(language), residue_hits=residue)


def _cut_off(language: Language) -> pl.Expr:
    stripped = pl.col("_text").str.strip_chars_end()
    many = stripped.str.contains(SENTENCE_END + (r"\s+\p{Lu}" if language == "en" else r"\s*\S"))
    limit = (pl.col("finish_reason").fill_null("") == "length") | (pl.col("outcome").fill_null("") == "truncated")
    unclosed = pl.any_horizontal(
        stripped.str.count_matches(opening) > stripped.str.count_matches(closing)
        for opening, closing in ((r"[(（]", r"[)）]"), (r"[\[【]", r"[\]】]"), ("“", "”"), ("《", "》"))
    )
    unclosed |= stripped.str.contains(UNQUOTED)
    broken = limit | unclosed | stripped.str.contains(BROKEN) | _begins_or_ends("dangling", stripped, language)
    broken |= _begins_or_ends("headless", stripped, language)
    cut = pl.when(broken).then(1.0).when(stripped.str.contains(FINISHED)).then(0.0).when(many).then(1.0).otherwise(0.5)
    return pl.when((pl.col("task") == "label") | (pl.col("_text") == "")).then(None).otherwise(cut)


def _begins_or_ends(name: str, text: pl.Expr, language: Language) -> pl.Expr:
    lexicon = load_lexicon(name)
    return lexicon.without_exceptions(text, language).str.contains(lexicon.regex(language) or "$^")


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
        return settings_of("marks", "mark_signs", "mark_nouns", "mark_labels")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        exempt = _looks_like_mark("label", "source_label")
        nouns = pl.when(exempt).then(0).otherwise(_count("mark_nouns", language))
        hits = _count("marks", language) + _count("mark_signs", language) + nouns
        return units.select(mark_hits=_known(hits))


class Refusals(Rule):
    """Rule 3: refusals, apologies and a model's words about itself. `refusal_hits` counts them.

    A reply that its server says was refused or filtered is one whatever it says.
    Source: FILTERS rule 3; refusals on tight crops are reported by DAM (arXiv 2504.16072), appendix A.
    """

    name = "refusals"
    number = 3
    columns = ("refusal_hits",)

    def settings(self) -> dict[str, Any]:
        return settings_of("refusals")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        refused = (pl.col("finish_reason").fill_null("") == "content_filter") | (
            pl.col("outcome").fill_null("") == "refused"
        )
        return units.select(refusal_hits=_known(_count("refusals", language) + refused.cast(pl.Int64)))


class Script(Rule):
    """Rule 4: text in another language than asked for.

    `script_share` is the share of letters in the language's script (Latin for en, Han for zh), the lowest of text,
    definition, function and the label of an explain caption. `foreign_share` is the share of words (en) that are
    function words of other languages and no English words, or are written with letters that English does not have; of
    Han characters (zh) that are traditional. `function_words` (en) counts English function words in a text of six words
    or more. Null where there are no letters.
    Source: FILTERS rule 4.
    """

    name = "language"
    number = 4
    version = 2
    columns = ("script_share", "foreign_share", "function_words")

    def settings(self) -> dict[str, Any]:
        return settings_of("foreign_words", "function_words", "traditional")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        script = r"\p{Latin}" if language == "en" else r"\p{Han}"

        def share(column: pl.Expr) -> pl.Expr:
            letters = column.str.count_matches(r"\p{L}")
            return pl.when(letters > 0).then(column.str.count_matches(script) / letters)

        label = pl.when(pl.col("task") == "explain").then(pl.col("label"))
        lowest = pl.min_horizontal(*(share(pl.col(name)) for name in ("text", "definition", "function")), share(label))
        count, function = pl.col("_words"), pl.lit(None, pl.Int64)
        foreign = _count("foreign_words", "en") if language == "en" else _count("traditional", "zh")
        if language == "en":
            function = pl.when(count >= SENTENCE_FROM).then(_count("function_words", "en"))
        share_of_words = pl.when(count > 0).then(foreign / count)
        return units.select(script_share=lowest, foreign_share=share_of_words, function_words=function)


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
    before in the same text, and in short English texts long clauses said before in nearly the same words.
    `doubled_words` (en) counts words written twice with no more than a blank between them; `distinct_words` (en) is the
    share of different words among those that are no function words, null for under four. Phrases that are meant to
    repeat (step by step, up and down, lists of motions) count once; "very" four times over does not.
    Source: FILTERS rule 6; distinct-n is Li et al., arXiv 1510.03055.
    """

    name = "repetition"
    number = 6
    version = 3
    columns = (
        "repeated_4gram", "repeated_phrase", "repeated_words", "distinct_2", "duplicate_sentences", "doubled_words",
        "distinct_words",
    )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        return settings_of("idioms", "overdone", "light_words")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        said, overdone = pl.col("_text"), _count("overdone", language) > 0
        spared = pl.when(overdone).then(said).otherwise(load_lexicon("idioms").without_exceptions(said, language))
        text = units.select(spared.alias("_text")).to_series()
        light = load_lexicon("light_words").patterns.get(language, [])
        return repetition(text, TOKEN[language], gram=4 if language == "en" else 8, light=light)


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


class Speculation(Rule):
    """Rule 7, speculation: what no picture shows, such as purposes, thoughts, pasts, and the mood of a scene.

    `speculation_hits` counts it.
    Source: FILTERS, among the failures reported of teachers.
    """

    name = "speculation"
    number = 7
    columns = ("speculation_hits",)

    def settings(self) -> dict[str, Any]:
        return settings_of("speculation")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        return units.select(speculation_hits=_known(_count("speculation", language)))


class Safety(Rule):
    """Rule 20, safety: what a caption must not carry.

    `pii_hits` counts addresses, numbers and accounts that point to a person, `unsafe_hits` sexual, gory and abusive
    words, `identity_hits` words that say who a person is instead of what he looks like.
    Source: FILTERS rule 20.
    """

    name = "safety"
    number = 20
    version = 2
    columns = ("pii_hits", "unsafe_hits", "identity_hits")

    def settings(self) -> dict[str, Any]:
        return settings_of("pii", "pii_signs", "unsafe", "identities")

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        return units.select(
            pii_hits=_known(_count("pii", language) + _count("pii_signs", language)),
            unsafe_hits=_known(_count("unsafe", language)),
            identity_hits=_known(_count("identities", language)),
        )


RULES: tuple[type[Rule], ...] = (
    Schema, Marks, Refusals, Script, Length, Repetition, Hedges, Speculation, Openers, Safety,
)  # fmt: skip


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
    return load_lexicon(name).count(pl.col("_text"), language)


def _looks_like_mark(*columns: str) -> pl.Expr:
    """Whether one of these labels, in either language, is a thing that looks like a mark."""
    patterns = [pattern for language in LANGUAGES if (pattern := load_lexicon("mark_labels").regex(language))]
    labels = [pl.col(column).fill_null("").str.replace_all("_", " ") for column in columns]
    return pl.any_horizontal(label.str.contains(pattern) for label in labels for pattern in patterns)


def _known(score: pl.Expr) -> pl.Expr:
    """A score of the text, null where there is no text."""
    return pl.when(pl.col("text").is_not_null()).then(score)
