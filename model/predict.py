"""A PAM's answers for a corpus of references: what validation scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from model import checkpoint
from model.answers import Answer
from model.augment import NO_AUGMENTATION, AugmentConfig, ask, draw_prompt
from model.corpus import Corpus, Example
from model.features import Sight, look
from model.generate import GenerationConfig
from model.inference import PAM
from model.vision import FrozenSam, Taps, squares
from schemas.base import Record
from schemas.caption import NO_EVENT, Language, Task
from schemas.geometry import Rle
from stages import masks


class EvalConfig(Record):
    """What is asked: at most `limit` captions a task and language, spread over the corpus; empty lists mean all.

    `prompt` is how targets are marked: by the box, or as the augmentation draws them with `seed`. `history` is what
    the prompt of a stream's event says of the event before: the `reference` (each event is judged on its own), or the
    model's `own` answer, as in use and as PAM's streaming evaluation runs it; the limit then takes whole targets, but
    for the end of the last.
    """

    tasks: list[Task] = []
    languages: list[Language] = []
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=1)
    prompt: AugmentConfig = NO_AUGMENTATION
    history: Literal["reference", "own"] = "reference"
    seed: int = 0


def answering(folder: Path, sam: FrozenSam, max_new_tokens: int, device: str = "cpu") -> PAM:
    """A trained checkpoint that answers with a SAM 2 that is loaded already. Raises CheckpointError."""
    pam, tokenizer = checkpoint.load(folder, device)
    return PAM(pam, sam, tokenizer, GenerationConfig(max_new_tokens=max_new_tokens))


def predict(pam: PAM, corpus: Corpus, config: EvalConfig) -> list[Answer]:
    """Greedy answers for the corpus's captions, images and clips in batches of one kind. Raises CorpusError."""
    asking = _Asking(pam, corpus, config)
    for video, rows in asking.waves():
        # alike lengths side by side: a batch runs until its longest answer ends
        some = sorted(rows, key=lambda row: corpus.index["length"][row])
        for start in range(0, len(some), config.batch):
            asking.ask(some[start : start + config.batch], video)
    return [asking.said[row] for row in sorted(asking.said)]


class _Asking:
    """The rows to ask, which event each stream's event comes after, and what was said so far."""

    def __init__(self, pam: PAM, corpus: Corpus, config: EvalConfig) -> None:
        self.pam, self.corpus, self.config = pam, corpus, config
        self.rows = _chosen(corpus, config)
        self.before = _before(corpus) if config.history == "own" else {}
        self.said: dict[int, Answer] = {}

    def waves(self) -> Iterator[tuple[bool, list[int]]]:
        """Rows that can be asked together: with its own history, an event waits for the one before."""
        video = self.corpus.index["video"]
        yield False, [row for row in self.rows if not video[row]]
        waves: dict[int, list[int]] = {}
        depth: dict[int, int] = {}
        for row in sorted(row for row in self.rows if video[row]):
            depth[row] = depth.get(self.before.get(row, -1), -1) + 1
            waves.setdefault(depth[row], []).append(row)
        for number in sorted(waves):
            yield True, waves[number]

    def ask(self, rows: Sequence[int], video: bool) -> None:
        """Asks these captions, all of images or all of clips, in one batch."""
        pam, examples = self.pam, [self._example(row) for row in rows]
        sights, users = [], []
        for row, example in zip(rows, examples, strict=True):
            rng = np.random.default_rng([self.config.seed, row])
            frames = squares(example.read(range(example.count)), pam.sam.image_size)
            sights.append(Sight(frames, example.size, draw_prompt(example, self.config.prompt, rng), None))
            users.append(ask(example, self.config.prompt, rng))
        marks = MaskScores(pam.sam, examples)
        shown = look(pam.sam, sights, video, pam.pam.config.video_frames, seen=marks)
        texts = pam.answer(video, shown.embed, shown.tokens, users)
        for at, (row, example, text) in enumerate(zip(rows, examples, texts, strict=True)):
            self.said[row] = self._answer(row, example, text, marks.of(at))

    def _example(self, row: int) -> Example:
        example = self.corpus.load(row)
        if self.config.history == "reference" or example.task != "stream":
            return example
        last = self.said.get(self.before.get(row, -1))
        return replace(example, history=last.predicted if last else None)

    def _answer(self, row: int, example: Example, text: str, marks: dict[str, float | None]) -> Answer:
        index = self.corpus.index
        return Answer(
            row=row,
            media=index["media"][row],
            task=example.task,
            language=example.language,
            source=index["source"][row],
            label=index["label"][row],
            wanted=example.text,
            predicted=text,
            others=example.others,
            target=index["region"][row],
            # the events of a target lie in the corpus in their order
            event_index=row if example.task == "stream" else NO_EVENT,
            **marks,
        )


def _before(corpus: Corpus) -> dict[int, int]:
    """The row of the event before, for every event of a stream but the first."""
    found: dict[int, int] = {}
    last: dict[tuple[str, str], int] = {}
    index = corpus.index
    for row, (task, region, language) in enumerate(zip(index["task"], index["region"], index["language"], strict=True)):
        if task == "stream":
            if (region, language) in last:
                found[row] = last[region, language]
            last[region, language] = row
    return found


def _chosen(corpus: Corpus, config: EvalConfig) -> list[int]:
    """At most `limit` rows of each task and language, evenly over the corpus.

    With its own history a stream's targets are chosen evenly and asked from their first event on, the last of them
    until the limit: an event asked without the one before it would be told that nothing was.
    """
    index = corpus.index.with_row_index("row")
    rows: list[int] = []
    for (task, language), group in index.group_by(["task", "language"], maintain_order=True):
        if (config.tasks and task not in config.tasks) or (config.languages and language not in config.languages):
            continue
        if config.history == "own" and task == "stream":
            targets = group.group_by("region", maintain_order=True).agg("row")["row"].to_list()
            events = [row for at in _spread(len(targets)) for row in targets[at]]
            rows += events[: config.limit]
            continue
        found = group["row"].to_list()
        count = min(config.limit or len(found), len(found))
        rows += [found[at * len(found) // count] for at in range(count)]
    return rows


def _spread(count: int) -> list[int]:
    """The numbers below `count` in an order whose every beginning lies evenly among them: by their bits, reversed."""
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda at: f"{at:0{bits}b}"[::-1])


@dataclass
class MaskScores:
    """Compares SAM's masks with the records' as frames are tracked; full-size masks live for one frame only."""

    sam: FrozenSam
    examples: Sequence[Example]
    found: dict[int, list[tuple[int, float, float]]] = field(default_factory=dict)

    def __call__(self, which: Sequence[int], frame: int, taps: Taps) -> None:
        made = self.sam.full_masks(taps, [self.examples[at].size for at in which])
        for at, mask in zip(which, made, strict=True):
            truth = self._truth(at, frame)
            if truth is None:
                continue
            true = masks.decode(truth)
            if true.shape != mask.shape:
                true = masks.resize(true, *mask.shape)
            boundary = masks.boundary_f(mask, true) if self.examples[at].video else 0.0
            self.found.setdefault(at, []).append((frame, masks.jaccard(mask, true), boundary))

    def _truth(self, at: int, frame: int) -> Rle | None:
        example = self.examples[at]
        if not example.video:
            return example.mask
        return example.truth[frame] if frame < len(example.truth) else None

    def of(self, at: int) -> dict[str, float | None]:
        """`mask_iou` of an image; `mask_j` and `mask_f` of a clip, means over its known frames behind the first."""
        frames = self.found.get(at, [])
        if not self.examples[at].video:
            return {"mask_iou": frames[0][1] if frames else None}
        behind = [(j, f) for frame, j, f in frames if frame > 0]
        if not behind:
            return {}
        return {"mask_j": float(np.mean([j for j, _ in behind])), "mask_f": float(np.mean([f for _, f in behind]))}
