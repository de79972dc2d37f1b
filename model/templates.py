"""What PAM is asked and how a conversation becomes token ids, byte for byte as the released models were trained.

The prompts are those of the public notebooks (English and Chinese), the frame is Qwen2's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemas.caption import Language, Task

IMAGE_PLACEHOLDER = -200
"""Stands in `input_ids` where the visual rows go; it is never embedded."""
IGNORE = -100
SYSTEM = "You are a helpful assistant."
_MARK = "<image>"

PROMPTS: dict[Language, dict[Task, str]] = {
    "en": {
        "label": "Classify this subject and provide its label.",
        "explain": "Classify this subject and provide the label and its definition.",
        "brief": "Provide a concise caption for this subject.",
        "detailed": "Provide a comprehensive and detailed description for this subject.",
        "video": "Provide a caption for this subject in this video.\nPrevious caption: {history}",
        "stream": "Provide a caption for this subject in this video.\nPrevious caption: {history}",
    },
    "zh": {
        "label": "对该目标对象进行分类并提供标签",
        "explain": "对该目标对象进行分类并提供标签和名词功能解释",
        "brief": "对该目标对象提供一个概括的描述",
        "detailed": "对该目标对象提供一个全面且详细的描述",
        "video": "对该视频中的目标对象提供一个描述。\n历史描述：{history}",
        "stream": "对该视频中的目标对象提供一个描述。\n历史描述：{history}",
    },
}
NO_HISTORY: dict[Language, str] = {"en": "None", "zh": "无"}

PARAPHRASES: dict[Task, tuple[str, ...]] = {
    "label": ("What is this subject? Answer with its label.", "Name this subject."),
    "explain": ("Name this subject and define it.", "Say what this subject is and what it is for."),
    "brief": ("Describe this subject in one sentence.", "Give a short caption for this subject."),
    "detailed": ("Describe this subject in detail.", "Write a full description of this subject."),
}
"""Other English ways to ask, used by the `paraphrase` augmentation. They are ours, not PAM's."""


def user_text(task: Task, language: Language = "en", history: str | None = None, prompt: str | None = None) -> str:
    """The user turn: `<image>`, a newline and the prompt of the task (or `prompt` itself).

    `history` is the previous event's caption of a stream; None is written as PAM writes it.
    """
    text = prompt if prompt is not None else PROMPTS[language][task]
    # str.format would trip over braces in a history that a model wrote
    return f"{_MARK}\n" + text.replace("{history}", history if history is not None else NO_HISTORY[language])


@dataclass(frozen=True)
class Encoded:
    """Token ids with one `IMAGE_PLACEHOLDER`, and labels of the same length (`IGNORE` where there is no loss)."""

    ids: list[int]
    labels: list[int]


def encode_prompt(tokenizer: Any, user: str) -> list[int]:
    """System and user turn and the assistant's header, ready for generation."""
    turns = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n", f"<|im_start|>user\n{user}<|im_end|>\n"
    return [i for turn in turns for i in _ids(tokenizer, turn)] + _ids(tokenizer, "<|im_start|>assistant\n")


def encode_example(tokenizer: Any, user: str, answer: str, published_labels: bool = False) -> Encoded:
    """A training conversation of one question and its answer.

    The loss covers the answer and the `<|im_end|>` that closes it. With `published_labels` it is what PAM's public
    code does: also the assistant's header and the newline after the turn, and every newline, `<|im_start|>` and
    `<|im_end|>` wherever it stands, in the system and user turns too.
    """
    prompt = encode_prompt(tokenizer, user)
    reply = _ids(tokenizer, answer + "<|im_end|>\n")
    ids = prompt + reply
    if not published_labels:
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        stop = len(reply) - reply[::-1].index(end)
        labels = [IGNORE] * len(prompt) + reply[:stop] + [IGNORE] * (len(reply) - stop)
        return Encoded(ids, labels)
    always = {_ids(tokenizer, text)[0] for text in ("\n", "<|im_start|>", "<|im_end|>")}
    header = len(prompt) - len(_ids(tokenizer, "<|im_start|>assistant\n"))
    labels = [i if at >= header or i in always else IGNORE for at, i in enumerate(ids)]
    return Encoded(ids, labels)


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a turn, the placeholder in place of `<image>`. Raises ValueError for more than one."""
    pieces: Sequence[str] = text.split(_MARK)
    if len(pieces) > 2:
        raise ValueError("a conversation has one <image>; this turn has more: remove it from the prompt or the history")
    ids: list[int] = []
    for at, piece in enumerate(pieces):
        if at:
            ids.append(IMAGE_PLACEHOLDER)
        ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids
