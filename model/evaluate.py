"""Validation: a PAM's answers on held-out references, scored, in a table and with examples.

Predicting and scoring are two functions, so that answers made on a GPU machine can be scored elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from model import metrics
from model.answers import Answer, read_answers, write_answers
from model.corpus import Corpus, CorpusError, ShardCorpus
from model.eval_files import AnnotationCorpus
from model.generate import GenerationConfig
from model.inference import PAM
from model.jsonl import JsonlCorpus
from model.judges import JudgeConfig, Judged, JudgeError, run_judges
from model.pam_stream import StreamCorpus, read_stream_answers
from model.predict import EvalConfig, answering, predict
from schemas.base import Record
from schemas.caption import Language, Task

__all__ = [
    "Answer", "EvalConfig", "References", "Report", "Scoring", "TaskScores", "answering", "evaluate", "predict",
    "read_answers", "score", "validate", "write_answers", "write_report",
]  # fmt: skip

Format = Literal["shards", "annotations", "pam_jsonl", "pam_stream"]
_EXAMPLES = 4
_MASKS = ("mask_iou", "mask_j", "mask_f")


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


class References(Record):
    """What is validated on: files or shards of a format, their pictures below `media`.

    `shards`: our packs. `annotations`: COCO-style files and those of RefCOCOg, Visual Genome, LVIS and PACO
    (`model.eval_files`), asked as `task`. `pam_jsonl`: PAM's training records. `pam_stream`: PAM's streaming
    evaluation (`model.pam_stream`).
    """

    data: list[str]
    kind: Format = "shards"
    media: Path = Path()
    task: Task | None = None
    clip_frames: int = Field(default=32, ge=1)
    storage_options: dict[str, Any] = {}

    def open(self) -> Corpus:
        """The references as a corpus. Raises CorpusError."""
        if not self.data:
            raise CorpusError("name the references to validate on: shards, or files of another format")
        files = [Path(name) for name in self.data]
        match self.kind:
            case "shards":
                return ShardCorpus(self.data, self.storage_options, self.clip_frames)
            case "annotations":
                return AnnotationCorpus(files, self.media, self.task)
            case "pam_jsonl":
                return JsonlCorpus(files, self.media)
            case "pam_stream":
                return StreamCorpus(files, self.media)


class Scoring(Record):
    """How answers are scored. `similarity` off leaves MiniLM out; `judge` asks a language model too.

    `published` is the behaviour of PAM's streaming script: the caption scorers get the texts as they are, without a
    tokenizer, and G-STDC takes all videos for one.
    """

    similarity: bool = True
    published: bool = False
    judge: JudgeConfig | None = None


def score(answers: Sequence[Answer], name: str = "pam", similarity: bool = True, published: bool = False) -> Report:
    """Scores answers by task and language, and over all of them as one set of captions; asks no judge.

    Answers without a reference are left to the judges.
    """
    groups: dict[tuple[Task, Language], list[Answer]] = {}
    for answer in answers:
        if answer.references:
            groups.setdefault((answer.task, answer.language), []).append(answer)
    tables, notices = [], []
    means: dict[str, list[float | None]] = {}
    by = metrics.semantic_similarity if similarity else None
    for (task, language), some in sorted(groups.items()):
        predicted, wanted = [a.predicted for a in some], [a.references for a in some]
        found = metrics.score_task(task, language, predicted, wanted, by, published)
        values = dict(found.values) | _mask_means(some)
        for key, each in found.each.items():
            means.setdefault(key, []).extend(each)
        tables.append(TaskScores(task=task, language=language, count=len(some), scores=values))
        notices += [notice for notice in found.notices if notice not in notices]
    if not similarity:
        notices.append("semantic similarity was not computed")
    if published:
        notices.append("published behaviour: the caption scorers got raw texts, without a tokenizer")
    known = [answer for some in groups.values() for answer in some]
    ranked = sorted(known, key=lambda a: max(metrics.semantic_iou(a.predicted, text) for text in a.references))
    return Report(
        name=name,
        tasks=tables,
        overall=tables[0].scores if len(tables) == 1 else _overall(known, means, published),
        notices=notices,
        best=ranked[::-1][:_EXAMPLES],
        worst=ranked[:_EXAMPLES],
    )


def _overall(answers: Sequence[Answer], each: dict[str, list[float | None]], published: bool) -> dict[str, float]:
    """Means over the captions, and the scores of a set computed anew over all: they are no means of the tasks'."""
    if not answers:
        return {}
    predicted, wanted = [a.predicted for a in answers], [a.references for a in answers]
    found = metrics.caption_scores(predicted, wanted, [a.language for a in answers], published)
    means = {key: metrics.mean(values) for key, values in each.items() if key not in metrics.CORPUS_SCORES}
    there = {key: value for key, value in means.items() if value is not None}
    return there | found.values | _mask_means(answers)


def _mask_means(answers: Sequence[Answer]) -> dict[str, float]:
    means = {key: metrics.mean([getattr(a, key) for a in answers]) for key in _MASKS}
    return _with_j_and_f({key: value for key, value in means.items() if value is not None})


def _with_j_and_f(values: dict[str, float]) -> dict[str, float]:
    if "mask_j" not in values:
        return values
    return values | {"j_and_f": (values["mask_j"] + values["mask_f"]) / 2}


def evaluate(
    answers: Sequence[Answer],
    name: str,
    scoring: Scoring | None = None,
    output: Path | None = None,
    corpus: Corpus | None = None,
) -> Report:
    """Scores answers, asks the judge where one is given, and writes everything below `output`.

    Judges need `output`: what they say costs money and is kept there (`judge/`, `verdicts.jsonl`). With the `corpus`
    the HTML page shows the examples' pictures. Raises JudgeError.
    """
    scoring = scoring or Scoring()
    if scoring.judge is not None and output is None:
        raise JudgeError("a judge's replies cost money and have to be kept: name a folder for the output")
    report = score(answers, name, scoring.similarity, scoring.published)
    if scoring.judge is not None and output is not None:
        judged = run_judges(scoring.judge, answers, output / "judge", scoring.published)
        report = _with_judged(report, judged, output)
    if output is not None:
        write_answers(output / "answers.jsonl", answers)
        write_report(output, report, corpus)
    return report


def _with_judged(report: Report, judged: Judged, output: Path) -> Report:
    lines = "".join(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in judged.details)
    (output / "verdicts.jsonl").write_text(lines, encoding="utf-8")
    update = {"overall": report.overall | judged.values, "notices": report.notices + judged.notices}
    return report.model_copy(update=update)


def validate(
    checkpoint: str | Path,
    references: References | None = None,
    *,
    config: EvalConfig | None = None,
    scoring: Scoring | None = None,
    sam: str | None = None,
    device: str = "auto",
    output: Path | None = None,
    max_new_tokens: int = 128,
) -> Report:
    """Validates a checkpoint on references; writes answers.jsonl, report.json, report.md and report.html to `output`.

    In place of a checkpoint, a file of answers is scored: an `answers.jsonl` of an earlier validation, or the output
    of PAM's streaming script where `references` say `pam_stream`. Raises CheckpointError, CorpusError and JudgeError.
    """
    own = Path(checkpoint)
    if own.is_file():
        streamed = references is not None and references.kind == "pam_stream"
        return evaluate(read_stream_answers(own) if streamed else read_answers(own), own.name, scoring, output)
    corpus = (references or References(data=[])).open()
    pam = PAM.from_pretrained(checkpoint, sam, device, generation=GenerationConfig(max_new_tokens=max_new_tokens))
    answers = predict(pam, corpus, config or EvalConfig())
    return evaluate(answers, str(checkpoint), scoring, output, corpus)


def write_report(folder: Path, report: Report, corpus: Corpus | None = None) -> None:
    """The report as JSON, Markdown and HTML; with the corpus the page shows the examples' pictures."""
    from model.render import as_html, as_markdown, pictures_of

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.model_dump(), indent=2, ensure_ascii=False) + "\n")
    (folder / "report.md").write_text(as_markdown([report]), encoding="utf-8")
    pictures = pictures_of(corpus, [*report.best, *report.worst]) if corpus is not None else {}
    (folder / "report.html").write_text(as_html([report], pictures), encoding="utf-8")
