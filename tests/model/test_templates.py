"""Prompts byte for byte, and which tokens carry loss."""

from __future__ import annotations

from typing import Any

import pytest

from model.templates import IGNORE, IMAGE_PLACEHOLDER, encode_example, encode_prompt
from prompts.pam import user_text


def test_prompts_are_those_that_the_released_models_saw() -> None:
    assert user_text("brief") == "<image>\nProvide a concise caption for this subject."
    assert user_text("video") == "<image>\nProvide a caption for this subject in this video.\nPrevious caption: None"
    assert user_text("stream", history="It {stops}.").endswith("\nPrevious caption: It {stops}.")
    assert user_text("stream", "zh") == "<image>\n对该视频中的目标对象提供一个描述。\n历史描述：无"
    assert user_text("explain", "zh") == "<image>\n对该目标对象进行分类并提供标签和名词功能解释"


def test_a_prompt_is_the_chat_frame_around_one_placeholder(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, user_text("label"))
    assert ids.count(IMAGE_PLACEHOLDER) == 1
    spot = ids.index(IMAGE_PLACEHOLDER)
    before, after = tokenizer.decode(ids[:spot]), tokenizer.decode(ids[spot + 1 :])
    assert before == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    assert after == "\nClassify this subject and provide its label.<|im_end|>\n<|im_start|>assistant\n"


def test_clean_loss_covers_the_answer_and_its_end_only(tokenizer: Any) -> None:
    example = encode_example(tokenizer, user_text("brief"), "a red square")
    assert tokenizer.decode([i for i in example.labels if i != IGNORE]) == "a red square<|im_end|>"
    assert len(example.ids) == len(example.labels)


def test_published_loss_adds_the_header_and_every_newline_and_turn_mark(tokenizer: Any) -> None:
    example = encode_example(tokenizer, user_text("brief"), "a red square", published_labels=True)
    shown = tokenizer.decode([i for i in example.labels if i != IGNORE])
    system, user = "<|im_start|>\n<|im_end|>\n", "<|im_start|>\n\n<|im_end|>\n"
    assert shown == system + user + "<|im_start|>assistant\na red square<|im_end|>\n"


def test_an_image_tag_in_a_history_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="one <image>"):
        encode_prompt(tokenizer, user_text("stream", history="<image>"))
