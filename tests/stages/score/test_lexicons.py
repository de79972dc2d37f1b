"""Every lexicon hits its own examples, leaves the others alone, and reads the same to Python and to polars."""

from __future__ import annotations

import polars as pl
import pytest

from stages.score.lexicon import Lexicon, lexicon_names, load_lexicon

CASES = [(name, language) for name in lexicon_names() for language in load_lexicon(name).examples]


@pytest.mark.parametrize(("name", "language"), CASES)
def test_examples(name: str, language: str) -> None:
    lexicon = load_lexicon(name)
    examples = lexicon.examples[language]
    assert [text for text in examples.hit if not lexicon.hits(text, language)] == []
    assert [(text, hits) for text in examples.clean if (hits := lexicon.hits(text, language))] == []


@pytest.mark.parametrize(("name", "language"), CASES)
def test_columns_and_single_texts_agree(name: str, language: str) -> None:
    lexicon = load_lexicon(name)
    examples = lexicon.examples[language]
    texts = [*examples.hit, *examples.clean]
    counts = pl.DataFrame({"text": texts}).select(lexicon.count(pl.col("text"), language)).to_series()
    assert counts.to_list() == [len(lexicon.hits(text, language)) for text in texts]


def test_unknown_lexicon_names_those_that_exist() -> None:
    with pytest.raises(FileNotFoundError, match="marks"):
        load_lexicon("nosuch")


def test_a_list_without_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        Lexicon(name="x", about="", source="", patterns={"en": ["a"]}, examples={})
