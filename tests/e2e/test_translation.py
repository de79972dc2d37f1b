"""Chinese by translation in a run: it follows the English captions, waits for them and is blocked with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build, status
from pipeline.looking import open_corpus
from pipeline.planning import plan_corpus
from pipeline.settings import ConfigError

pytestmark = pytest.mark.usefixtures("local_ray")


def answer(chat: Any) -> dict[str, str]:
    if "译成中文" in chat.text:
        return {"caption": "一个红色的小物体。"}
    return {"caption": "A small red thing."}


@pytest.mark.slow
def test_translations_follow_their_english_captions(
    make_world: Any, teacher_server: Callable[..., Any], tmp_path: Path
) -> None:
    refused_label: list[str] = []

    def verdict(chat: Any) -> str:
        return "refused" if any(f"call the target: {label}." in chat.text for label in refused_label) else "answer"

    server = teacher_server(answer=answer, verdict=verdict)
    world = make_world(tmp_path, images=5)
    world.settings["teacher"] = {"backend": "openai", "model": "m", "base_url": server.url}
    world.settings["captions"] = {"tasks": ["brief"], "languages": ["en", "zh"], "zh": "translate"}
    world.save()
    config = world.config()
    build(config, phases=("ingest", "select"))
    plans = [plan_corpus(open_corpus(config), sample=4)]
    build(config, phases=("refine", "chunk"))
    plans.append(plan_corpus(open_corpus(config), sample=4))
    regions = len(open_corpus(config).located)
    for made in plans:
        assert [(t.language, t.captions) for t in made.tasks if t.task == "brief"] == [("en", regions), ("zh", regions)]
        tokens = {t.language: t.prompt_tokens.likely for t in made.tasks}
        assert 0 < tokens["zh"] < tokens["en"], "texts are asked about without pictures"
    labels = open_corpus(config).located["label"]
    refused_label.append(labels.mode().sort()[0])
    refused = int((labels == refused_label[0]).sum())
    first = build(config, phases=("distill",))
    counts = status(config)
    english, chinese = counts["distill/brief/en"], counts["distill/brief/zh"]
    assert (english.failed, chinese.blocked) == (refused, refused)
    assert chinese.ok == english.ok
    assert first.reasons["distill/brief/zh"] == {"source_failed": refused}
    assert build(config, phases=("distill",)).rows == 0
    refused_label.clear()
    build(config, phases=("distill",), retry=True)
    assert status(config)["distill/brief/zh"].ok == english.total
    before = sum(server.billed.values())
    own = tmp_path / "prompts"
    own.mkdir()
    template = Path(__file__).parents[2] / "prompts" / "templates" / "brief.en.md"
    (own / "brief.en.md").write_text(template.read_text(encoding="utf-8") + "\nBe kind.\n", encoding="utf-8")
    changed = build(world.config(f"captions.prompts={own}"), phases=("distill",))
    assert changed.done["distill/brief/en"] == english.total
    assert "distill/brief/zh" not in changed.done, "the English texts came out as they were: nothing to translate anew"
    assert sum(server.billed.values()) == before, "only the repair turn has changed: the ledger has the answers"
    with pytest.raises(ConfigError, match="add en"):
        world.config("captions.languages=[zh]")
    with pytest.raises(ConfigError, match="cannot translate"):
        world.config("teacher.backend=measured")
