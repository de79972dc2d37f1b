"""Generated captions beside their references, as validation writes and reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from schemas.base import Record
from schemas.caption import NO_EVENT, Language, Task


class Answer(Record):
    """One generated caption beside its reference, and what SAM's masks are worth beside the record's.

    `wanted` is empty where there is no reference; `others` are further references. `target` names what is described:
    the events of one target are a stream, in the order of `event_index`. `mask_iou` is of an image's mask, `mask_j`
    and `mask_f` are DAVIS's means over the frames of a clip behind its first; null where the record has no mask.
    """

    row: int
    media: str
    task: Task
    language: Language
    source: str
    label: str
    wanted: str
    predicted: str
    others: tuple[str, ...] = ()
    target: str = ""
    event_index: int = NO_EVENT
    mask_iou: float | None = None
    mask_j: float | None = None
    mask_f: float | None = None

    @property
    def references(self) -> list[str]:
        """All references, the record's own first."""
        return [text for text in (self.wanted, *self.others) if text]


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """One answer a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(a.model_dump_json() + "\n" for a in answers), encoding="utf-8")


def read_answers(path: Path) -> list[Answer]:
    """The inverse of `write_answers`. Raises ValueError naming file and line for a line that is no answer."""
    answers = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                answers.append(Answer.model_validate_json(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not an answer of `perceive validate`: {error}") from error
    return answers


def streams(answers: Iterable[Answer]) -> dict[tuple[str, Language], list[Answer]]:
    """The events of each target in each language, in order; answers to other tasks are left out."""
    found: dict[tuple[str, Language], list[Answer]] = {}
    for answer in answers:
        if answer.task == "stream":
            found.setdefault((answer.target or answer.media, answer.language), []).append(answer)
    return {key: sorted(events, key=lambda a: (a.event_index, a.row)) for key, events in found.items()}
