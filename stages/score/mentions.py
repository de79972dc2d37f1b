"""What texts name: targets, their neighbours, and colours and numbers said of a target. Whole columns at a time."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from schemas.caption import Language
from stages.score.words.tables import chinese_names, colours, names

_PLURALS = ("", "s", "es", "'s")
_NUMBERS = {
    "en": {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
           "several": 3, "many": 5, "multiple": 3, "numerous": 5, "various": 3, "both": 2,
           "a group of": 3, "a bunch of": 3, "a row of": 3, "a couple of": 2, "a number of": 3, "a few": 3,
           "a pair of": 2, "a cluster of": 3, "a set of": 3, "a collection of": 3, "a pile of": 3, "a stack of": 3,
           "a handful of": 3, "dozens of": 12, "lots of": 5, "plenty of": 5, "a dozen": 12, "a crowd of": 5,
           "a flock of": 3, "a herd of": 3},
    "zh": {"两": 2, "二": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10, "几": 3, "多": 3,
           "许多": 5, "一群": 3, "一排": 3, "一些": 3, "数": 3},
}  # fmt: skip
_ZH_CROWDS = ("许多", "一群", "一排", "一些")
_ZH_UNITS = "个|只|条|辆|架|张|把|位|名|头|匹|件|块|座|艘|台|本|朵|棵|根|支|枝|杯|瓶|盘|碗|双|对|组|群|排"


def plain_label(label: pl.Expr) -> pl.Expr:
    """A source's label as people write it: lower case, no underscores, no remark in brackets."""
    bare = label.str.to_lowercase().str.replace_all(r"_?\([^)]*\)", "").str.replace_all(r"[_\-]+", " ")
    return bare.str.replace_all(r"\s+", " ").str.strip_chars()


def padded(text: pl.Expr, language: Language) -> pl.Expr:
    """A text in which a name is found as ` name `: lower case, punctuation as spaces. Chinese is left as it is."""
    if language == "zh":
        return text.fill_null("")
    flat = text.fill_null("").str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}']+", " ")
    return pl.concat_str(pl.lit(" "), flat.str.strip_chars(), pl.lit(" "))


def target_names(units: pl.DataFrame, language: Language) -> pl.DataFrame:
    """All names under which a caption may speak of its target: columns `row` (its number in units) and `name`.

    The source's label and its synonyms (label hints), common other names, in English also the head noun. Rows without
    a label in the language have none.
    """
    rows = units.select("source_label", "hints").with_row_index("row")
    labels = rows.select("row", name=plain_label(pl.col("source_label"))).drop_nulls()
    if language == "zh":
        labels = labels.with_columns(name=_translated(pl.col("name"))).drop_nulls()
    hinted = (
        rows.select("row", "hints")
        .explode("hints")
        .drop_nulls()
        .unnest("hints")
        .filter((pl.col("kind") == "label") & (pl.col("language") == language))
        .select("row", name=plain_label(pl.col("text")))
    )
    own = pl.concat([labels, hinted])
    table = [(label, other) for label, others in names(language).items() for other in others]
    known = pl.DataFrame(table, schema={"name": pl.String, "other": pl.String}, orient="row")
    others = own.join(known, on="name").select("row", name="other")
    found = [own, others]
    if language == "en":
        found.append(own.with_columns(name=pl.col("name").str.split(" ").list.last()))
    return pl.concat(found).filter(pl.col("name") != "").unique().sort("row", "name")


def neighbour_names(units: pl.DataFrame, language: Language, targets: pl.DataFrame) -> pl.DataFrame:
    """Names of other labelled regions of the media that are no names of the target: columns `row` and `name`."""
    rows = units.select("neighbours").with_row_index("row").explode("neighbours").drop_nulls()
    labels = rows.select("row", name=plain_label(pl.col("neighbours")))
    if language == "zh":
        labels = labels.with_columns(name=_translated(pl.col("name"))).drop_nulls()
    return labels.filter(pl.col("name") != "").unique().join(targets, on=["row", "name"], how="anti")


def mentioned(units: pl.DataFrame, found: pl.DataFrame, language: Language) -> pl.DataFrame:
    """How often each name occurs in its row's text: `found` with a column `times`. Units need `_padded`."""
    texts = units.select(text="_padded").with_row_index("row")
    pairs = found.join(texts, on="row", maintain_order="left")
    if language == "zh":
        times = _occurrences("text", pl.col("name"))
    else:
        times = pl.sum_horizontal(_occurrences("text", pl.format(" {}{} ", "name", pl.lit(end))) for end in _PLURALS)
    return pairs.with_columns(times=times).drop("text")


def _occurrences(text: str, name: pl.Expr) -> pl.Expr:
    return pl.col(text).str.split(name).list.len().cast(pl.Int64) - 1


def by_row(found: pl.DataFrame, values: Sequence[pl.Expr], height: int) -> pl.DataFrame:
    """`values` aggregated for each row number from 0 to `height`; null for rows that `found` does not name."""
    rows = pl.DataFrame({"row": pl.int_range(height, dtype=pl.UInt32, eager=True)})
    grouped = found.group_by("row").agg(*values)
    return rows.join(grouped, on="row", how="left", maintain_order="left").drop("row")


def said_of_target(units: pl.DataFrame, language: Language, targets: pl.DataFrame) -> pl.DataFrame:
    """What stands directly before the target's first mention, and what is said of it with a form of to be.

    One text a row (columns `row`, `before`, `after`, and `again`: what stands behind its last mention), for rows whose
    text names the target.
    """
    texts = units.select(text="_padded").with_row_index("row")
    pairs = targets.join(texts, on="row", maintain_order="left")
    name = pl.col("name") if language == "zh" else pl.format(" {}", "name")
    cut = pairs.with_columns(parts=pl.col("text").str.splitn(name, 2))
    parts = pl.col("parts").struct
    again = pl.col("text").str.split(name).list.last()
    cut = cut.select("row", before=parts.field("field_0"), after=parts.field("field_1"), again=again).drop_nulls(
        "after"
    )
    # Of several names the one that comes first, and of these the longest (the least is left behind it).
    earliest = cut.sort("row", pl.col("before").str.len_bytes(), pl.col("after").str.len_bytes())
    return earliest.unique("row", keep="first", maintain_order=True)


def colours_of_target(said: pl.DataFrame, language: Language) -> pl.DataFrame:
    """Colours said of the target as a bit mask over the colour table: columns `row` and `colours`; 0 says none."""
    table = colours()
    words = "|".join(word for colour in table.values() for word in (colour.en if language == "en" else colour.zh))
    if language == "en":
        link = "and|or|with|light|dark|bright|pale|deep|vivid|mostly|mainly|striped|spotted|checked|coloured|colored"
        before = rf"((?: (?:{words}|{link}))+)(?: [\p{{L}}\p{{N}}]+)?$"
        after = rf"^(?:s|es)? (?:is|are|was|were|looks|has turned|turns)((?: (?:{words}|{link}|in|colour|color|all))+) "
    else:
        link = "色|、|和|与|相间|的|浅|深|亮|暗|淡|大|小|鲜|，"
        before = rf"((?:{words}|{link})+)[^，。、；的]{{0,3}}$"
        after = rf"^(?:是|呈|为|呈现)((?:{words}|{link}|主要|以)+)"
    stretches = (("before", before), ("after", after), ("again", after))
    parts = [pl.col(name).str.extract(pattern).fill_null("") for name, pattern in stretches]
    stretch = pl.concat_str(parts, separator=" ")
    bits = []
    for place, colour in enumerate(table.values()):
        says = _says(pl.col("stretch"), colour.en if language == "en" else colour.zh, language)
        bits.append(says.cast(pl.Int64) * (1 << place))
    return said.select("row", stretch=stretch).select("row", colours=pl.sum_horizontal(bits))


def _says(text: pl.Expr, words: Sequence[str], language: Language) -> pl.Expr:
    body = "|".join(words)
    return text.str.contains(rf"\b(?:{body})\b" if language == "en" else f"(?:{body})")


def number_of_target(said: pl.DataFrame, language: Language) -> pl.DataFrame:
    """How many targets the text speaks of: columns `row` and `number` (1 where it names no number)."""
    before, number = pl.col("before"), pl.lit(1, pl.Int64)
    for word, value in _NUMBERS[language].items():
        if language == "en":
            pattern = rf" {word}(?: [\p{{L}}]+){{0,2}}$"
            plural = pl.col("after").str.contains(r"^(?:s|es) ")
            test = before.str.contains(pattern) & plural
        else:
            # A word for a crowd needs no measure word ("一群人"), a number does ("三个人").
            unit = f"(?:{_ZH_UNITS})?" if word in _ZH_CROWDS else f"(?:{_ZH_UNITS})"
            test = before.str.contains(rf"{word}{unit}[^，。]{{0,8}}$")
        number = pl.when(test).then(pl.lit(value, pl.Int64)).otherwise(number)
    return said.select("row", number=number)


def _translated(label: pl.Expr) -> pl.Expr:
    """The Chinese name of an English label, null where the table has none; a Chinese label as it is."""
    table = chinese_names()
    known = label.replace_strict(list(table), list(table.values()), default=None, return_dtype=pl.String)
    return pl.when(label.str.contains(r"\p{Han}")).then(label).otherwise(known)
