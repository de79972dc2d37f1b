"""Planted caption defects: reproducible, in the share asked for, and what their names say."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from schemas.caption import Language
from stages.score import text as rules
from stages.shapes.spoil import CAPTION_DEFECTS, RULE_OF, plant_caption_defects, spoil

SOUND: dict[Language, list[str]] = {
    "en": [
        "A large red circle with dark stripes in the upper left of the scene.",
        "A small blue hexagon, partly hidden, with a dotted surface.",
        "A yellow crescent of medium size near the centre.",
    ],
    "zh": [
        "左上方有一个带深色条纹的红色大圆形。",
        "一个蓝色的小六边形，部分被遮挡，表面有圆点。",
        "中央附近有一个中等大小的黄色月牙形。",
    ],
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_planting_is_reproducible_and_keeps_its_share(language: Language) -> None:
    captions = SOUND[language] * 200
    languages = [language] * len(captions)
    spoilt, kinds = plant_caption_defects(captions, languages, seed=7, share=0.2)
    assert (spoilt, kinds) == plant_caption_defects(captions, languages, seed=7, share=0.2)
    assert kinds != plant_caption_defects(captions, languages, seed=8, share=0.2)[1]
    assert 0.14 < sum(kind is not None for kind in kinds) / len(kinds) < 0.26
    assert {kind for kind in kinds if kind} == set(CAPTION_DEFECTS)
    for before, after, kind in zip(captions, spoilt, kinds, strict=True):
        assert (before == after) == (kind is None)


def test_a_defect_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no caption defect"):
        spoil("A circle.", "en", "typo", np.random.default_rng(0))  # type: ignore[arg-type]


def test_every_defect_names_a_rule_that_exists() -> None:
    assert set(RULE_OF.values()) <= {rule.name for rule in rules.RULES}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_defect_moves_the_score_of_its_rule(language: Language) -> None:
    stage = rules.TextStage()
    for kind in CAPTION_DEFECTS:
        texts = [spoil(t, language, kind, np.random.default_rng(n)) for t in SOUND[language] for n in range(6)]
        units = pl.DataFrame(
            {"text": texts, "task": ["brief"] * len(texts)},
        ).with_columns(
            pl.lit(None, pl.String).alias(name)
            for name in ("label", "definition", "function", "outcome", "finish_reason", "source_label")
        )
        ready = stage.prepare(units, language)
        scores = {rule.name: rule.scores(ready, language) for rule in stage.rules}
        caught = {
            "visual_prompt": scores["marks"]["mark_hits"] > 0,
            "refusal": scores["refusals"]["refusal_hits"] > 0,
            "wrong_language": (scores["language"]["script_share"] < 0.6)
            | (scores["language"]["foreign_share"].fill_null(0) > 0.2),
            "truncated": scores["schema"]["cut_off"] > 0.5,
            "stub": scores["length"]["words"] < 5,
            "rambling": scores["length"]["words"] > 300,
            "repetition": (scores["repetition"]["repeated_4gram"] > 2)
            | (scores["repetition"]["duplicate_sentences"] > 0),
            "hedging": scores["hedges"]["hedge_density"] > 2,
            "scene_opener": scores["openers"]["openers"] > 0,
        }[kind]
        assert caught.mean() > 0.9, (kind, [t for t, c in zip(texts, caught, strict=True) if not c])
