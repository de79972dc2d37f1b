"""Re-filtering: what a change of rules or policies makes again, by counts; what `perceive filter` says and leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.build import build, status
from pipeline.looking import open_corpus
from stages.score.text import Hedges

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[..., Any]) -> Any:
    built = make_world(tmp_path_factory.mktemp("requality"), images=4, seed=3)
    build(built.config())
    return built


def test_one_rule_of_a_group_changes_and_it_alone_is_scored_again(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_corpus(world.config()).score["text"].rows.sort("caption_key")
    captions = status(world.config())["distill"].ok
    with monkeypatch.context() as newer:
        newer.setattr(Hedges, "version", 2)
        changed = build(world.config())
        made = {name: rows for name, rows in changed.done.items() if name.startswith("score")}
        assert made == {"score/text/hedges": captions}
        assert not {name for name in changed.done if name.startswith(("refine", "distill", "chunk", "probe"))}
        after = open_corpus(world.config()).score["text"].rows.sort("caption_key")
        columns = [name for name in before.columns if name not in ("digest", "attempts")]
        assert after.select(columns).equals(before.select(columns))
        assert build(world.config()).rows == 0
        assert status(world.config())["score/text"].ok == captions
    assert "score/text" not in build(world.config()).done
