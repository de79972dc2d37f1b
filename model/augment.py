"""Augmentations by name, each a small function of an example and a random generator."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from pydantic import Field

from model.corpus import Example
from model.templates import PARAPHRASES
from model.vision import Prompt
from prompts.pam import user_text
from schemas.base import Box, Record
from schemas.caption import Language
from stages import masks

MOST_POINTS = {False: 4, True: 3}
"""PAM draws 1 to 4 points on images and 1 to 3 on clips."""

_SIDES = {
    "en": {"left": "right", "leftmost": "rightmost", "leftward": "rightward", "leftwards": "rightwards"}
    | {"right": "left", "rightmost": "leftmost", "rightward": "leftward", "rightwards": "leftwards"}
    | {"left-hand": "right-hand", "right-hand": "left-hand"}
    | {"clockwise": "counterclockwise", "counterclockwise": "clockwise", "counter-clockwise": "clockwise"}
    | {"anticlockwise": "clockwise", "anti-clockwise": "clockwise"},
    "zh": {"左": "右", "右": "左", "顺时针": "逆时针", "逆时针": "顺时针"},
}
_NO_SIDE = {
    "en": re.compile(
        r"\bright[ -](?:now|away|angle[ds]?|triangles?|after|before|behind|beside|next|there|here|in|at|on|above|below"
        r"|under|beneath|over|through|into|onto|up|down|back|out|off|around|along|against|by|size|amount|moment|time"
        r"|way|place|thing|order|direction)\b"
        r"|\b(?:all|just|quite|not|is|are|was|were|looks?|seems?) right\b(?! of\b)"
        r"|\bleft (?:the|an?|its?|his|hers?|him|them|their|this|that|behind|over|alone|open|out|off|on|in|at|empty"
        r"|blank|bare|untouched|unattended|unfinished|before|after|when|while|without|only)\b"
        r"|\b(?:ha[sd]|have|having|been|being|gets?|got|nothing|anything|little|much|who|he|she|it|they|then|just|never"
        r"|already) left\b(?! of\b)"
    ),
    "zh": re.compile("左右|右左|座右铭|相左|其右"),
}
"""Where left and right say no side: `right now`, `left the room`, 三米左右 (some three metres)."""
_READING = re.compile(
    r"[\"“”「」《》]|\b(?:letters?|words?|text|reads?|reading|number|digit|logo|sign|clock)\b|文字|字样|数字|字母"
)


class AugmentConfig(Record):
    """Which augmentations run, and how often.

    `points` is the share of examples prompted by points (drawn inside the mask, or from the annotation), `masks` by
    the mask itself, the rest by the box; PAM's own training is half and half where a record has both. `box_jitter`
    moves each edge by up to this fraction of its side. `flip` mirrors picture and prompt and swaps left and right in
    the words, and refuses where the text was read from the picture. `paraphrase` asks in other words (English).
    `hard_negatives` puts another region of the same picture with another label right behind this share of label
    examples.
    """

    points: float = Field(default=0.5, ge=0, le=1)
    masks: float = Field(default=0.0, ge=0, le=1)
    box_jitter: float = Field(default=0.05, ge=0, lt=0.5)
    flip: float = Field(default=0.0, ge=0, le=1)
    paraphrase: float = Field(default=0.0, ge=0, le=1)
    hard_negatives: float = Field(default=0.0, ge=0, le=1)


NO_AUGMENTATION = AugmentConfig(points=0.0, box_jitter=0.0)
"""The box as it is: what validation uses."""


def draw_prompt(example: Example, config: AugmentConfig, rng: np.random.Generator) -> Prompt:
    """What SAM 2 is shown of the target. Raises ValueError for an example without box, mask and points."""
    choice = rng.random()
    if choice < config.masks and example.mask is not None:
        return Prompt(mask=masks.decode(example.mask))
    by_points = choice < config.masks + config.points or example.box is None
    if by_points and (example.points or example.mask is not None):
        return _draw_points(example, rng)
    if example.box is None:
        raise ValueError(f"{example.key} has no box, no mask and no points")
    return Prompt(box=jitter_box(example.box, config.box_jitter, example.size, rng))


def jitter_box(box: Box, fraction: float, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box with each edge moved by up to `fraction` of its side, inside the picture (height, width), never empty."""
    x0, y0, x1, y1 = box
    moves = rng.uniform(-fraction, fraction, 4) * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    x0, y0, x1, y1 = np.array(box) + moves
    left, top = min(max(x0, 0.0), size[1] - 1.0), min(max(y0, 0.0), size[0] - 1.0)
    return float(left), float(top), float(max(min(x1, size[1]), left + 1)), float(max(min(y1, size[0]), top + 1))


def points_inside(mask: np.ndarray, count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """`count` pixel centres inside a mask (H, W), the same pixel twice only when there are too few.

    Raises ValueError for an empty mask.
    """
    spots = np.flatnonzero(mask)
    if not len(spots):
        raise ValueError("an empty mask has no points inside")
    chosen = rng.choice(spots, size=count, replace=count > len(spots))
    return [(float(at % mask.shape[1]) + 0.5, float(at // mask.shape[1]) + 0.5) for at in chosen]


def _draw_points(example: Example, rng: np.random.Generator) -> Prompt:
    count = int(rng.integers(1, MOST_POINTS[example.video] + 1))
    if example.points:
        picks = rng.permutation(len(example.points))[:count]
        some = [example.points[at] for at in picks]
        return Prompt(points=tuple((p.x, p.y) for p in some), point_labels=tuple(p.label for p in some))
    inside = points_inside(masks.decode(example.mask), count, rng) if example.mask is not None else []
    return Prompt(points=tuple(inside), point_labels=(1,) * len(inside))


def flip_text(text: str, language: Language) -> str | None:
    """The text with left and right, and the ways to turn, swapped; None where that might make it wrong.

    It might where the text was read from the picture, and where left or right say no side, before or after the swap.
    """
    if _READING.search(text.lower()):
        return None
    sides = _SIDES[language]
    pattern = "|".join(sorted(sides, key=len, reverse=True))
    pattern = rf"\b(?:{pattern})\b" if language == "en" else pattern

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        other = sides[word.lower()]
        return other.capitalize() if word[0].isupper() else other

    swapped = re.sub(pattern, swap, text, flags=re.IGNORECASE)
    no_side = _NO_SIDE[language]
    return None if no_side.search(text.lower()) or no_side.search(swapped.lower()) else swapped


def flip_example(example: Example) -> Example | None:
    """The mirrored example, or None where its words (or its history) refuse."""
    text = flip_text(example.text, example.language)
    history = flip_text(example.history, example.language) if example.history is not None else None
    if text is None or (example.history is not None and history is None):
        return None
    width = example.size[1]
    box = None
    if example.box is not None:
        x0, y0, x1, y1 = example.box
        box = (width - x1, y0, width - x0, y1)
    mask = example.mask and masks.encode(masks.decode(example.mask)[:, ::-1])
    points = [p.model_copy(update={"x": width - p.x}) for p in example.points]
    inner = example.read
    return dataclasses.replace(
        example,
        key=example.key + "-flip",
        picture=example.picture and example.picture + "-flip",
        read=lambda indices: [frame[:, ::-1] for frame in inner(indices)],
        text=text,
        history=history,
        box=box,
        mask=mask,
        points=points,
    )


def ask(example: Example, config: AugmentConfig, rng: np.random.Generator) -> str:
    """The user turn: PAM's own prompt, the data's own question, or now and then other English words for it."""
    ways = PARAPHRASES.get(example.task, ()) if example.language == "en" and example.question is None else ()
    prompt = example.question
    if ways and rng.random() < config.paraphrase:
        prompt = ways[int(rng.integers(len(ways)))]
    return user_text(example.task, example.language, example.history, prompt)
