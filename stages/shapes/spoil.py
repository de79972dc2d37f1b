"""Spoils captions on purpose, in the ways teachers do, so that the text rules' precision and recall can be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np

from schemas.caption import Language
from schemas.keys import digest_value

CaptionDefect = Literal[
    "visual_prompt",
    "refusal",
    "wrong_language",
    "truncated",
    "stub",
    "rambling",
    "repetition",
    "hedging",
    "scene_opener",
]

RULE_OF: Final[dict[CaptionDefect, str]] = {
    "visual_prompt": "marks",
    "refusal": "refusals",
    "wrong_language": "language",
    "truncated": "schema",
    "stub": "length",
    "rambling": "length",
    "repetition": "repetition",
    "hedging": "hedges",
    "scene_opener": "openers",
}
"""The rule that should catch each defect, by its name in `stages.score.text`."""

CAPTION_DEFECTS: Final[tuple[CaptionDefect, ...]] = tuple(RULE_OF)

_MARKS: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "{rest}, inside the red bounding box.",
        "{rest}, highlighted with a yellow contour.",
        "The masked region shows this: {text}",
        "{rest}, outlined in green and marked with the number 1.",
        "As seen in panel 3 of the storyboard, {text}",
    ),
    "zh": ("红框中的物体：{text}", "{rest}，被黄色轮廓线标出。", "掩码区域内：{text}", "{rest}，用数字1标记。"),
}
_REFUSALS: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "I'm sorry, but I can't help with identifying this object.",
        "As an AI language model, I am unable to describe this object.",
        "I cannot determine what this object is from the picture provided.",
        "Sorry, the object is too small for me to describe.",
    ),
    "zh": ("抱歉，我无法描述该物体。", "作为一个AI模型，我不能识别这个目标。", "很抱歉，图片太小，无法确定这是什么。"),
}
_OTHER: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "画面左侧有一个红色的圆形物体，表面带有清晰的白色条纹，边缘光滑。",
        "这是一个蓝色的正方形，位于右下方，表面有格子图案，大小中等。",
        "Ein großes rotes Dreieck mit glatter Oberfläche, das in der Mitte der Szene steht und nicht verdeckt ist.",
        "Un grand cercle rouge avec des rayures sombres, qui se trouve dans le coin en bas à gauche de la scène.",
    ),
    "zh": (
        "A large red circle with clear white stripes on the left side and smooth edges all around.",
        "A blue square in the lower right with a checked surface, of medium size and not covered.",
    ),
}
_HEDGES: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "It appears to be something that is possibly this, or perhaps not: {text}",
        "{rest}, which seems to be some kind of toy, maybe, though it might be a sign.",
        "This might be, or could be, what looks like the following: {text}",
    ),
    "zh": ("这可能是，也许是：{text}", "{rest}，似乎是某种玩具，也可能是一个标志。", "看起来像是，大概是：{text}"),
}
_OPENERS: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "In this image, {text}",
        "The image shows {text}",
        "This picture depicts {text}",
        "In the photo, there is {text}",
    ),
    "zh": ("图中显示，{text}", "这张图片展示了{text}", "在这幅图像中，{text}"),
}
_FILLER: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "Its colour has been the subject of many conversations over the years.",
        "People often think of summer afternoons when they come across such a thing.",
        "Nobody remembers who first gave it this particular form.",
        "Craftsmen of several countries have tried to copy its proportions.",
        "A museum in the north keeps another one behind glass.",
        "Children draw it long before they learn to write their names.",
        "There is a song about it, although few can recall the words.",
        "Engineers prize the way in which its edges meet.",
        "Some collectors travel for weeks to look at one of them.",
        "Its history reaches back further than most written records.",
    ),
    "zh": (
        "多年来人们一直在谈论它的颜色。",
        "许多人看到它就会想起夏天的午后。",
        "没有人记得是谁最先做出这种形状。",
        "几个国家的工匠都尝试过模仿它的比例。",
        "北方的一座博物馆里还收藏着另一件。",
        "孩子们在学会写名字之前就会画它。",
        "有一首歌唱的就是它，只是很少有人记得歌词。",
        "工程师们很欣赏它边缘相接的方式。",
        "有些收藏家会旅行数周只为看它一眼。",
        "它的历史比大多数文字记录还要久远。",
    ),
}


def spoil(text: str, language: Language, defect: CaptionDefect, rng: np.random.Generator) -> str:
    """The caption with one defect, its wording drawn from `rng`. Raises `ValueError` for an unknown defect."""
    templates: dict[str, dict[Language, tuple[str, ...]]] = {
        "visual_prompt": _MARKS,
        "refusal": _REFUSALS,
        "wrong_language": _OTHER,
        "hedging": _HEDGES,
        "scene_opener": _OPENERS,
    }
    if defect in templates:
        choices = templates[defect][language]
        return choices[int(rng.integers(len(choices)))].format(text=_lowered(text, language), rest=_unfinished(text))
    shaped: dict[str, Callable[[str, Language, np.random.Generator], str]] = {
        "truncated": _truncated,
        "stub": _stub,
        "rambling": _rambling,
        "repetition": _repeated,
    }
    if defect not in shaped:
        raise ValueError(f"there is no caption defect {defect!r}; there are {', '.join(CAPTION_DEFECTS)}")
    return shaped[defect](text, language, rng)


def plant_caption_defect(
    text: str,
    language: Language,
    identity: bytes | int | str,
    seed: int,
    share: float,
    kinds: Sequence[CaptionDefect] = CAPTION_DEFECTS,
) -> tuple[str, CaptionDefect | None]:
    """One caption, spoilt with probability `share` by a defect that depends on (`identity`, `seed`) alone.

    Whether and how does not depend on the other captions or on order, so that workers can plant side by side.
    """
    rng = np.random.default_rng(int.from_bytes(digest_value([seed, identity]), "little"))
    if not kinds or rng.random() >= share:
        return text, None
    kind = kinds[int(rng.integers(len(kinds)))]
    return spoil(text, language, kind, rng), kind


def plant_caption_defects(
    captions: Sequence[str],
    languages: Sequence[Language],
    seed: int,
    share: float,
    kinds: Sequence[CaptionDefect] = CAPTION_DEFECTS,
) -> tuple[list[str], list[CaptionDefect | None]]:
    """Captions with about `share` of them spoilt, and beside each the name of its defect or None."""
    pairs = [
        plant_caption_defect(text, language, number, seed, share, kinds)
        for number, (text, language) in enumerate(zip(captions, languages, strict=True))
    ]
    return [text for text, _ in pairs], [kind for _, kind in pairs]


def _truncated(text: str, language: Language, rng: np.random.Generator) -> str:
    """Cut in the middle, where a token limit might fall."""
    if language == "zh":
        rest = _unfinished(text)
        return rest[: max(2, round(len(rest) * float(rng.uniform(0.5, 0.8))))] + "，以及"
    words = _unfinished(text).split()
    return " ".join(words[: max(2, round(len(words) * float(rng.uniform(0.5, 0.8))))]) + " and the"


def _stub(text: str, language: Language, rng: np.random.Generator) -> str:
    if language == "zh":
        return ("东西。", "物体。", "形状。")[rng.integers(3)]
    return ("A shape.", "An object.", "Something coloured.")[rng.integers(3)]


def _rambling(text: str, language: Language, rng: np.random.Generator) -> str:
    """Far beyond any task's limit, without a sentence said twice."""
    filler = list(_FILLER[language])
    order = rng.permutation(len(filler)).tolist()
    ordinals = ("First", "Second", "Third", "Fourth") if language == "en" else ("其一", "其二", "其三", "其四")
    sentences = []
    for ordinal in ordinals:
        for number in order:
            sentence = filler[number]
            begun = f"{ordinal}, {sentence[0].lower()}{sentence[1:]}" if language == "en" else f"{ordinal}，{sentence}"
            sentences.append(begun)
    return (" " if language == "en" else "").join([text, *sentences])


def _repeated(text: str, language: Language, rng: np.random.Generator) -> str:
    times = int(rng.integers(3, 6))
    if language == "zh":
        return text * times
    if rng.random() < 0.5:
        return " ".join([text] * times)
    return f"{_unfinished(text)}, " + ", ".join(["and it is very very round"] * times) + "."


def _lowered(text: str, language: Language) -> str:
    return text[:1].lower() + text[1:] if language == "en" else text


def _unfinished(text: str) -> str:
    return text.rstrip().rstrip(".!?。！？")
