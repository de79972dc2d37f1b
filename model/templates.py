"""How a conversation becomes token ids, byte for byte as the released models were trained: Qwen2's chat template.

What PAM is asked is in `prompts.pam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prompts.pam import IMAGE_MARK
from schemas.caption import Task

IMAGE_PLACEHOLDER = -200
"""Stands in `input_ids` where the visual rows go; it is never embedded."""
IGNORE = -100
SYSTEM = "You are a helpful assistant."

PARAPHRASES: dict[Task, tuple[str, ...]] = {
    "label": ("What is this subject? Answer with its label.", "Name this subject."),
    "explain": ("Name this subject and define it.", "Say what this subject is and what it is for."),
    "brief": ("Describe this subject in one sentence.", "Give a short caption for this subject."),
    "detailed": ("Describe this subject in detail.", "Write a full description of this subject."),
}
"""Other English ways to ask, used by the `paraphrase` augmentation. They are ours, not PAM's."""


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
    pieces: Sequence[str] = text.split(IMAGE_MARK)
    if len(pieces) > 2:
        raise ValueError("a conversation has one <image>; this turn has more: remove it from the prompt or the history")
    ids: list[int] = []
    for at, piece in enumerate(pieces):
        if at:
            ids.append(IMAGE_PLACEHOLDER)
        ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids
