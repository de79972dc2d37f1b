"""How PAM's annotation files are named, how their turns are read and how answers are laid out in them.

Source: Perceive-Anything/PAM, notebooks and released annotation files (arXiv 2506.05302).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from prompts.pam import HISTORY, IMAGE_MARK, NO_HISTORY, PROMPTS
from schemas.caption import NO_EVENT, Language, Task
from schemas.keys import digest_value

LANGUAGE_SUFFIX: dict[Language, str] = {"en": "en", "zh": "ch"}

TASK_SUFFIX: dict[Task, str] = {
    "label": "obj_label",
    "explain": "obj_label_exp",
    "brief": "obj_briefCap",
    "detailed": "obj_detailCap",
    "video": "sampled_32f_video_obj_cap",
    "stream": "streaming_sampled_32f_video_obj_cap",
}
STREAMING = "streaming"
"""In the name of a file whose records are events of streams, in the released ones too."""
FOLDER: dict[Task, str] = {
    "label": "image-obj-label",
    "explain": "image-obj-label",
    "brief": "image-obj-caption",
    "detailed": "image-obj-caption",
    "video": "video-obj-caption",
    "stream": "video-obj-caption",
}


@dataclass(frozen=True)
class Asked:
    """What a human turn asks. `history` is None for tasks without one and at the start of a chain."""

    task: Task
    language: Language
    history: str | None = None


def read_turn(text: str, video: bool) -> Asked | None:
    """The meaning of a human turn; None for wording that is not PAM's.

    `video` and `stream` share their wording: a turn with a history is `stream`, one without is `video` until its
    successors are known.
    """
    body = text.replace(IMAGE_MARK, "", 1).strip("\n")
    for language, prompts in PROMPTS.items():
        for task, prompt in prompts.items():
            head, mark, _ = prompt.partition(HISTORY)
            if (task in ("video", "stream")) != video:
                continue
            if not mark and body == prompt:
                return Asked(task, language)
            if mark and body.startswith(head):
                history = body.removeprefix(head)
                first = history == NO_HISTORY[language]
                return Asked("video", language) if first else Asked("stream", language, history)
    return None


@dataclass(frozen=True)
class RecordId:
    """What the id of an exported record says; `region` is the region's key in hexadecimal."""

    region: str
    task: Task
    language: Language
    event_index: int = NO_EVENT

    def __str__(self) -> str:
        event = [str(self.event_index)] if self.event_index != NO_EVENT else []
        return "-".join([self.region, self.task, self.language, *event])


_ID = re.compile(r"([0-9a-f]{32})-([a-z]+)-([a-z]+)(?:-(\d+))?")


def read_id(text: object) -> RecordId | None:
    """An id that the export gave; None for any other."""
    found = _ID.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    region, named, spoken, event = found.groups()
    task = next((each for each in TASK_SUFFIX if each == named), None)
    language = next((each for each in LANGUAGE_SUFFIX if each == spoken), None)
    if task is None or language is None or (task == "stream") != (event is not None):
        return None
    return RecordId(region, task, language, int(event) if event is not None else NO_EVENT)


def explain_answer(language: Language, label: str | None, definition: str | None, function: str | None) -> str | None:
    """PAM's explain answer: label, definition, and the function after it where there is one; None without a label.

    The released files join the parts into one answer and document no separator. This is the one place that decides it.
    """
    if not label or not definition:
        return None
    stop, gap = ("。", "") if language == "zh" else (".", " ")
    parts = [part.strip() for part in (label, definition, function or "") if part and part.strip()]
    return gap.join(part if part[-1] in ".。!?！？" else part + stop for part in parts)


def file_name(source: str, prompt: str, task: Task, language: Language, split: str) -> str:
    """`<source>_<box|point|boxNpoint>_<task>_<en|ch>_<split>.jsonl`; video files name no prompt kind, as released."""
    kind = "" if task in ("video", "stream") else f"{prompt}_"
    return f"{source}_{kind}{TASK_SUFFIX[task]}_{LANGUAGE_SUFFIX[language]}_{split}.jsonl"


def source_names(sources: Iterable[str]) -> dict[str, str]:
    """A file name's part for each source: its own name where that is plain and like no other, else with a digest."""
    plain = {source: re.sub(r"[^A-Za-z0-9+-]+", "-", source).strip("-")[:64] for source in sorted(set(sources))}
    alike = Counter(name.casefold() for name in plain.values())
    return {
        source: name if name == source and alike[name.casefold()] == 1 else _marked(name, source)
        for source, name in plain.items()
    }


def _marked(name: str, source: str) -> str:
    return f"{name or 'source'}-{digest_value(source).hex()[:8]}"
