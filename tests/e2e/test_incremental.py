"""A run goes on from where it is: nothing is made twice, nothing that depends on a change is left, all by counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build, status
from pipeline.tables import Run
from pipeline.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[..., Any]) -> Any:
    built = make_world(tmp_path_factory.mktemp("incremental"), images=5)
    result = build(built.config())
    assert result.started_ray
    return built


def captions_of(world: Any) -> int:
    return status(world.config())["distill"].ok


def test_every_stage_accounts_for_every_row(world: Any) -> None:
    counts = status(world.config())
    regions = len(json.loads(world.annotations.read_text())["annotations"])
    assert counts["ingest"].total == regions
    assert counts["refine"].total == counts["select"].ok
    assert counts["distill"].total == 2 * counts["refine"].ok
    groups = [name for name in counts if name.startswith("score/")]
    assert {"score/text", "score/mask"} <= set(groups)
    assert all(counts[group].total == counts["distill"].ok for group in groups)
    assert counts["score"].total == len(groups) * counts["distill"].ok
    assert counts["pack"].total == counts["decide"].ok == counts["pack"].ok
    assert all(count.balanced and not count.pending for count in counts.values())
    assert verify(Run.open(world.config().run)).ok


def test_a_second_build_does_nothing_and_starts_no_ray(world: Any) -> None:
    again = build(world.config())
    assert again.rows == 0
    assert not again.started_ray


def test_a_new_policy_decides_and_packs_only(world: Any, tmp_path: Path) -> None:
    policy = tmp_path / "two_words.yaml"
    policy.write_text(
        "name: two_words\nchecks:\n  - {reason: long, column: words, max: 2, action: drop}\n", encoding="utf-8"
    )
    changed = build(world.config(f"policy={policy}"))
    assert set(changed.done) == {"decide", "pack"}
    assert changed.done["decide"] == captions_of(world)
    back = build(world.config())
    assert back.rows == 0


def test_a_changed_prompt_makes_its_captions_and_their_scores_again(world: Any, tmp_path: Path) -> None:
    template = Path(__file__).parents[2] / "prompts" / "templates" / "brief.en.md"
    own = tmp_path / "prompts"
    own.mkdir()
    text = template.read_text(encoding="utf-8")
    (own / "brief.en.md").write_text(text + "\nWrite for a museum's catalogue.\n", encoding="utf-8")
    briefs = status(world.config())["distill/brief/en"].ok
    changed = build(world.config(f"captions.prompts={own}"))
    made = {name for name in changed.done if name.startswith(("distill", "refine", "chunk"))}
    assert made == {"distill/brief/en"}
    assert changed.done["distill/brief/en"] == briefs
    assert changed.done.get("score/text", 0) <= briefs
    assert build(world.config()).done.get("distill/brief/en", 0) == 0


def test_an_added_image_adds_its_rows_and_a_removed_one_takes_them_away(world: Any) -> None:
    original = world.annotations.read_text()
    before = status(world.config())
    document = json.loads(original)
    first = document["images"][0]
    copy = {**first, "id": 9000, "file_name": "added.jpg"}
    shutil.copy(world.media / first["file_name"], world.media / "added.jpg")
    with (world.media / "added.jpg").open("ab") as stream:
        stream.write(b"\0")  # another content, the same picture
    mine = [a for a in document["annotations"] if a["image_id"] == first["id"]]
    document["images"].append(copy)
    document["annotations"] += [{**a, "id": 90_000 + a["id"], "image_id": 9000} for a in mine]
    world.annotations.write_text(json.dumps(document))

    added = build(world.config())
    assert added.done["ingest"] == len(mine)
    assert added.done["probe"] == 1
    assert added.done["refine"] <= len(mine)
    after = status(world.config())
    assert after["ingest"].total == before["ingest"].total + len(mine)

    world.annotations.write_text(original)
    removed = build(world.config())
    assert not {name for name in removed.done if name.startswith(("probe", "refine", "distill", "score"))}
    assert status(world.config())["ingest"].total == before["ingest"].total
    assert status(world.config())["distill"] == before["distill"]


def test_a_setting_changed_back_is_current_again_without_work(world: Any) -> None:
    before = status(world.config())
    changed = build(world.config("refine.grabcut_side=64"))
    assert changed.done["refine"] == before["refine"].total
    assert build(world.config()).rows == 0
    assert status(world.config()) == before


def test_limit_and_where_run_a_slice(make_world: Callable[..., Any], tmp_path: Path) -> None:
    small = make_world(tmp_path, images=3, seed=7)
    first = build(small.config(), ("ingest", "select", "refine"), limit=1)
    assert 0 < first.done["refine"] < status(small.config())["refine"].total
    none = build(small.config(), ("ingest", "select", "refine"), where={"source": "elsewhere"})
    assert "refine" not in none.done
    rest = build(small.config(), ("refine",))
    assert rest.done["refine"] == status(small.config())["refine"].total - first.done["refine"]
