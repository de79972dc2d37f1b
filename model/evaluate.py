"""Validation: a PAM's answers on held-out shards, scored, in a table and with examples.

Predicting and scoring are two functions, so that answers made on a GPU machine can be scored elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model import metrics
from model.augment import NO_AUGMENTATION, AugmentConfig, ask, draw_prompt
from model.corpus import Corpus, ShardCorpus
from model.features import Sight, look
from model.generate import GenerationConfig
from model.inference import PAM
from model.vision import squares
from schemas.base import Record
from schemas.caption import Language, Task
from stages import masks

_EXAMPLES = 4


class Answer(Record):
    """One generated caption beside its reference. `mask_iou` is of SAM's mask with the record's, where it has one."""

    row: int
    media: str
    task: Task
    language: Language
    source: str
    label: str
    wanted: str
    predicted: str
    mask_iou: float | None = None


class TaskScores(Record):
    """The scores of one task in one language, over `count` captions."""

    task: Task
    language: Language
    count: int
    scores: dict[str, float]


class Report(Record):
    """What validation found. `best` and `worst` are examples by semantic IoU."""

    name: str
    tasks: list[TaskScores]
    overall: dict[str, float]
    notices: list[str]
    best: list[Answer]
    worst: list[Answer]

    def value(self, score: str) -> float | None:
        """An overall score by name."""
        return self.overall.get(score)


class EvalConfig(Record):
    """What is asked: at most `limit` captions a task and language, spread over the corpus; empty lists mean all.

    `prompt` is how targets are marked: by the box, or as the augmentation draws them with `seed`.
    """

    tasks: list[Task] = []
    languages: list[Language] = []
    limit: int | None = None
    batch: int = 32
    clip_frames: int = 32
    prompt: AugmentConfig = NO_AUGMENTATION
    seed: int = 0


def predict(pam: PAM, corpus: Corpus, config: EvalConfig) -> list[Answer]:
    """Greedy answers for the corpus's captions, images and clips in batches of one kind.

    Stream events are asked with the reference's history, so that each event is judged on its own.
    """
    index = corpus.index
    answers: dict[int, Answer] = {}
    rows = _chosen(corpus, config)
    for video in (False, True):
        # alike lengths side by side: a batch runs until its longest answer ends
        some = sorted((r for r in rows if bool(index["video"][r]) == video), key=lambda r: index["length"][r])
        for start in range(0, len(some), config.batch):
            for answer in _answer(pam, corpus, some[start : start + config.batch], video, config):
                answers[answer.row] = answer
    return [answers[row] for row in sorted(answers)]


def _chosen(corpus: Corpus, config: EvalConfig) -> list[int]:
    index = corpus.index.with_row_index("row")
    rows: list[int] = []
    for (task, language), group in index.group_by(["task", "language"], maintain_order=True):
        if (config.tasks and task not in config.tasks) or (config.languages and language not in config.languages):
            continue
        found = group["row"].to_list()
        count = min(config.limit or len(found), len(found))
        rows += [found[at * len(found) // count] for at in range(count)]
    return rows


def _answer(pam: PAM, corpus: Corpus, rows: Sequence[int], video: bool, config: EvalConfig) -> list[Answer]:
    examples = [corpus.load(row) for row in rows]
    sights, users = [], []
    for row, example in zip(rows, examples, strict=True):
        rng = np.random.default_rng([config.seed, row])
        frames = squares(example.read(range(example.count)), pam.sam.image_size)
        sights.append(Sight(frames, example.size, draw_prompt(example, config.prompt, rng), None))
        users.append(ask(example, config.prompt, rng))
    shown = look(pam.sam, sights, video, pam.pam.config.video_frames)
    texts = pam.answer(video, shown.embed, shown.tokens, users)
    found = [None] * len(rows) if video else _mask_ious(pam, sights, examples)
    index = corpus.index
    return [
        Answer(
            row=row,
            media=index["media"][row],
            task=example.task,
            language=example.language,
            source=index["source"][row],
            label=index["label"][row],
            wanted=example.text,
            predicted=text,
            mask_iou=iou,
        )
        for row, example, text, iou in zip(rows, examples, texts, found, strict=True)
    ]


def _mask_ious(pam: PAM, sights: Sequence[Sight], examples: Sequence[Any]) -> list[float | None]:
    frames = np.concatenate([s.frames for s in sights if s.frames is not None])
    features = pam.sam.encode(pam.sam.normalise(frames))
    sizes = [s.size for s in sights]
    taps = pam.sam.prompt(features, range(len(sights)), [s.prompt for s in sights], sizes)
    made = pam.sam.full_masks(taps, sizes)
    return [
        masks.iou(mask, masks.decode(e.mask)) if e.mask is not None else None
        for mask, e in zip(made, examples, strict=True)
    ]


def score(answers: Sequence[Answer], name: str = "pam", similarity: bool = True) -> Report:
    """Scores answers by task and language, and over all of them (captions weighted equally)."""
    groups: dict[tuple[Task, Language], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.task, answer.language), []).append(answer)
    tables, notices = [], []
    total: dict[str, list[float | None]] = {}
    for (task, language), some in sorted(groups.items()):
        by = metrics.semantic_similarity if similarity else None
        found = metrics.score_task(task, language, [a.predicted for a in some], [a.wanted for a in some], by)
        values = dict(found.values)
        ious = metrics.mean([a.mask_iou for a in some])
        if ious is not None:
            values["mask_iou"] = ious
            total.setdefault("mask_iou", []).extend(a.mask_iou for a in some)
        for key, each in found.each.items():
            total.setdefault(key, []).extend(each)
        tables.append(TaskScores(task=task, language=language, count=len(some), scores=values))
        notices += [notice for notice in found.notices if notice not in notices]
    if not similarity:
        notices.append("semantic similarity was not computed")
    overall = {key: value for key, values in total.items() if (value := metrics.mean(values)) is not None}
    ranked = sorted(answers, key=lambda a: metrics.semantic_iou(a.predicted, a.wanted))
    return Report(
        name=name,
        tasks=tables,
        overall=overall,
        notices=notices,
        best=ranked[::-1][:_EXAMPLES],
        worst=ranked[:_EXAMPLES],
    )


def validate(
    checkpoint: str | Path,
    shards: Sequence[str],
    *,
    sam: str | None = None,
    config: EvalConfig | None = None,
    device: str = "auto",
    output: Path | None = None,
    similarity: bool = True,
    storage_options: dict[str, Any] | None = None,
    max_new_tokens: int = 128,
) -> Report:
    """Validates a checkpoint on shards; with `output` writes answers.jsonl, report.json, report.md and report.html.

    Raises CheckpointError and CorpusError.
    """
    config = config or EvalConfig()
    pam = PAM.from_pretrained(checkpoint, sam, device, generation=GenerationConfig(max_new_tokens=max_new_tokens))
    corpus = ShardCorpus(shards, storage_options, config.clip_frames)
    answers = predict(pam, corpus, config)
    report = score(answers, str(checkpoint), similarity)
    if output is not None:
        write_answers(output / "answers.jsonl", answers)
        write_report(output, report)
    return report


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """One answer a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(a.model_dump_json() + "\n" for a in answers), encoding="utf-8")


def read_answers(path: Path) -> list[Answer]:
    """The inverse of `write_answers`."""
    return [Answer.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def write_report(folder: Path, report: Report) -> None:
    """The report as JSON, Markdown and HTML."""
    from model.render import as_html, as_markdown

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.model_dump(), indent=2, ensure_ascii=False) + "\n")
    (folder / "report.md").write_text(as_markdown([report]), encoding="utf-8")
    (folder / "report.html").write_text(as_html([report]), encoding="utf-8")
