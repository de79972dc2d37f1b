"""Plants defects in captions of the shapes world, one of every kind that rules are there to find, worded by a file.

`spoil` knows the ways in which texts go wrong by themselves; here are also those that need the target, its neighbours,
its events or its history. What a planted caption says is drawn from phrasings: those of the package, on which rules may
be tuned, or others that are kept apart to measure them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from schemas.base import Record
from schemas.caption import Language
from schemas.yaml import load_yaml
from stages.score.words.tables import colours

Phrasings = Mapping[str, Mapping[str, Sequence[str]]]

PHRASINGS: Final = Path(__file__).with_name("phrasings.yaml")
RULES: Final[dict[str, tuple[int, tuple[str, ...]]]] = {
    "truncated": (1, ("truncated",)),
    "visual_prompt": (2, ("mark_leak",)),
    "refusal": (3, ("refusal",)),
    "wrong_language": (4, ("wrong_language", "foreign_words", "no_english_words")),
    "stub": (5, ("brief_length", "detail_length", "event_length")),
    "rambling": (5, ("brief_length", "detail_length", "event_length")),
    "repetition": (6, ("repeated_run", "repeated_phrase", "repeated_words", "repeated_sentence", "few_words")),
    "hedging": (7, ("hedging", "hedging_density", "hedging_often")),
    "scene_opener": (8, ("scene_opener", "speaks_of_image")),
    "wrong_label": (9, ("wrong_label",)),
    "neighbour": (15, ("wrong_subject",)),
    "wrong_colour": (16, ("wrong_colour",)),
    "wrong_count": (16, ("wrong_count",)),
    "broken_mask": (17, ("mask_off_seed", "mask_in_pieces", "mask_too_small", "mask_too_thin")),
    "wrong_motion": (18, ("wrong_motion",)),
    "motion_of_still": (18, ("motion_of_still",)),
    "stillness_of_moving": (18, ("stillness_of_moving",)),
    "absence_invented": (18, ("absence_invented",)),
    "absence_unsaid": (18, ("absence_unsaid",)),
    "wrong_order": (18, ("wrong_order",)),
    "history_copied": (19, ("history_copied",)),
    "personal_data": (20, ("personal_data",)),
    "identity": (20, ("names_a_person",)),
    "near_duplicate": (20, ("near_copy", "exact_copy")),
}
"""For each kind of planted defect its rule's number and the checks of the default policy that are there for it.

All of them drop: a defect that is only flagged is not found.
"""

_OPPOSITE: Final = {"left": "right", "right": "left", "up": "down", "down": "up"}
_SENTENCES: Final = frozenset({"brief", "detailed", "video", "stream"})
WORDED: Final = (
    "truncated", "visual_prompt", "refusal", "wrong_language", "stub", "rambling", "repetition", "hedging",
    "scene_opener", "personal_data", "identity",
)  # fmt: skip
_ORDINALS: Final[dict[str, tuple[str, ...]]] = {
    "en": ("First", "Second", "Third", "Fourth"),
    "zh": ("其一", "其二", "其三", "其四"),
}


class Said(Record):
    """A good caption with what a planter may use: the target's name in the language and colours it does not have.

    `motion` is the event's (stream), `motions` those of all events in order (video, their captions in `told`),
    `neighbour` a caption of another target with another name, `other_label` another class.
    """

    task: str
    language: Language
    text: str
    name: str
    colours: list[str] = []
    neighbour: str | None = None
    other_label: str | None = None
    history: str | None = None
    motion: str | None = None
    reordered: str | None = None


_ALIKE: Final = (
    ("red", "orange", "pink", "brown"), ("yellow", "orange", "beige", "brown"), ("green", "cyan"),
    ("blue", "cyan", "purple"), ("white", "grey", "beige"), ("black", "grey", "brown"),
)  # fmt: skip
_PLANTED: Final = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "black": "黑色", "white": "白色"}


def absent_colours(text: str, language: Language) -> list[str]:
    """Colours, in the language, that a text does not name and that look like none of those that it names."""
    named = {name for name, colour in colours().items() if any(word in text for word in getattr(colour, language))}
    near = {name: {name}.union(*(group for group in _ALIKE if name in group)) for name in _PLANTED}
    return [name if language == "en" else told for name, told in _PLANTED.items() if not named & near[name]]


def load_phrasings(path: Path = PHRASINGS) -> Phrasings:
    """Wordings by language and kind."""
    read: Phrasings = load_yaml(path.read_text("utf-8"))
    return read


def kinds_for(said: Said) -> list[str]:
    """The defects that can be planted in this caption."""
    kinds = [*WORDED] if said.task in _SENTENCES else []
    if said.task in ("detailed", "video"):  # two hedges in fifty words are allowed, and wordings hold two or three
        kinds.remove("hedging")
    if said.task == "label" and said.other_label:
        kinds.append("wrong_label")
    if said.task in ("brief", "detailed") and said.neighbour:
        kinds.append("neighbour")
    if said.task == "brief":
        kinds += ["wrong_colour", "wrong_count"] if said.colours else ["wrong_count"]
    if said.task == "video" and said.reordered:
        kinds.append("wrong_order")
    if said.task == "stream":
        kinds += ["history_copied"] if said.history else []
        kinds += _motion_kinds(said.motion or "still")
    return kinds


def _motion_kinds(motion: str) -> list[str]:
    if motion == "absent":
        return ["absence_unsaid"]
    if motion == "still":
        return ["motion_of_still", "absence_invented"]
    ways = [way for way in motion.replace("moving ", "").split() if way in _OPPOSITE]
    return ["wrong_motion", "stillness_of_moving"] if motion.startswith("moving ") and len(ways) == 1 else []


def plant(said: Said, kind: str, phrasings: Phrasings, rng: np.random.Generator) -> dict[str, Any]:
    """The columns of the caption that change: `text`, and `finish_reason` where the reply ran into its limit."""
    wordings = phrasings[said.language]
    if kind == "truncated":
        return _truncated(said, wordings["truncated"], rng)
    if kind == "rambling":
        return {"text": _rambling(said, wordings["rambling"], rng)}
    given = {"neighbour": said.neighbour, "wrong_label": said.other_label, "wrong_order": said.reordered,
             "history_copied": said.history}  # fmt: skip
    if kind in given:
        return {"text": given[kind]}
    name = f"moving_{_OPPOSITE[str(said.motion).split()[-1]]}" if kind == "wrong_motion" else kind
    rest = said.text.rstrip().rstrip(".!?。！？")
    lowered = said.text[:1].lower() + said.text[1:] if said.language == "en" else said.text
    colour = said.colours[int(rng.integers(len(said.colours)))] if said.colours else ""
    wording = wordings[name][int(rng.integers(len(wordings[name])))]
    return {"text": wording.format(text=lowered, rest=rest, name=said.name, colour=colour)}


def _truncated(said: Said, endings: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """Cut by its token limit, which the reply tells, or broken off before its end, which only the text tells."""
    rest = said.text.rstrip().rstrip(".!?。！？")
    units = list(rest) if said.language == "zh" else rest.split()
    kept = units[: max(2, round(len(units) * float(rng.uniform(0.5, 0.8))))]
    cut = "".join(kept) if said.language == "zh" else " ".join(kept)
    if rng.random() < 0.5:
        return {"text": cut, "finish_reason": "length"}
    return {"text": cut.rstrip("，, ") + endings[int(rng.integers(len(endings)))]}


def _rambling(said: Said, filler: Sequence[str], rng: np.random.Generator) -> str:
    """Far beyond any task's limit, without a sentence said twice."""
    sentences = [said.text]
    for ordinal in _ORDINALS[said.language]:
        for number in rng.permutation(len(filler)).tolist():
            sentence = filler[number]
            begun = (
                f"{ordinal}，{sentence}" if said.language == "zh" else f"{ordinal}, {sentence[0].lower()}{sentence[1:]}"
            )
            sentences.append(begun)
    return ("" if said.language == "zh" else " ").join(sentences)
