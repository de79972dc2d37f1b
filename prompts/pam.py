"""What PAM is asked, byte for byte as the released models saw it; training, inference and export all ask by this.

Source: Perceive-Anything/PAM, notebooks (English and Chinese) and released annotation files (arXiv 2506.05302).
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.caption import Language, Task

IMAGE_MARK = "<image>"
"""Stands in a user turn where the visual tokens go."""
HISTORY = "{history}"
"""Stands in a prompt where the previous event's caption goes."""
NO_HISTORY: Mapping[Language, str] = {"en": "None", "zh": "无"}
"""What stands there at the start of a chain."""

PROMPTS: Mapping[Language, Mapping[Task, str]] = {
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


def user_text(task: Task, language: Language = "en", history: str | None = None, prompt: str | None = None) -> str:
    """The user turn: `<image>`, a newline and the prompt of the task (or `prompt` itself).

    `history` is the previous event's caption of a stream; None is written as PAM writes it.
    """
    text = prompt if prompt is not None else PROMPTS[language][task]
    # str.format would trip over braces in a history that a model wrote
    return f"{IMAGE_MARK}\n" + text.replace(HISTORY, history if history is not None else NO_HISTORY[language])
