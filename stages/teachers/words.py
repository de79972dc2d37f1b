"""From measurements to words, in English and Chinese: the sentences of the measured teacher. Pure functions."""

from __future__ import annotations

import functools
from pathlib import Path

from schemas.caption import Language
from schemas.region import Hint
from schemas.yaml import load_yaml
from stages.teachers.measure import Facts
from stages.teachers.protocol import Subject, SubjectEvent

_ZH_NAMES = Path(__file__).with_name("names_zh.yaml")
_DEFINITION_LIMIT = 400

_ZH_COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "cyan": "青色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "beige": "米色", "white": "白色", "grey": "灰色",
    "black": "黑色",
}  # fmt: skip
_ZH_SHAPES = {
    "round": "圆形", "oval": "椭圆形", "square": "方形", "rectangular": "长方形", "triangular": "三角形",
    "elongated": "细长", "compact": "紧凑", "branched": "有分叉", "irregular": "不规则",
}  # fmt: skip
_ZH_SIZES = {"small": "小", "medium": "中等大小的", "large": "大"}
_EN_TEXTURES = {
    "plain": "a smooth, even surface",
    "striped": "a striped surface",
    "patterned": "a boldly patterned surface",
    "textured": "a lightly textured surface",
}
_ZH_TEXTURES = {
    "plain": "表面平滑均匀",
    "striped": "表面带有条纹",
    "patterned": "表面有明显的花纹",
    "textured": "表面有细微的纹理",
}
_EN_ROWS = {"top": "upper", "middle": "middle", "bottom": "lower"}
_ZH_ROWS = {"top": "上", "middle": "中", "bottom": "下"}
_ZH_COLUMNS = {"left": "左", "centre": "中", "right": "右"}
_EN_MOTIONS = {
    "still": "stays still",
    "moving about": "moves about",
    "leaving": "leaves the view",
    "turning": "turns on the spot",
    "growing": "grows larger in view",
    "shrinking": "grows smaller in view",
    "changing colour": "changes its colour",
    "changing": "changes its look",
    "returning": "comes back into view",
    "absent": "is out of view",
}
_ZH_MOTIONS = {
    "still": "保持静止",
    "moving about": "来回移动",
    "leaving": "离开视野",
    "turning": "在原地转动",
    "growing": "逐渐变大",
    "shrinking": "逐渐变小",
    "changing colour": "改变了颜色",
    "changing": "外观发生了变化",
    "returning": "重新出现",
    "absent": "不在视野内",
}
_ZH_WAYS = {
    "right": "右", "left": "左", "up": "上", "down": "下", "up right": "右上方", "up left": "左上方",
    "down right": "右下方", "down left": "左下方",
}  # fmt: skip


def name_of(subject: Subject, facts: Facts | None) -> str:
    """The target's name: the source's label in the asked language, else a shape word and `object`.

    English labels lose underscores and bracketed remarks. A Chinese name comes from a Chinese hint or a short table of
    public labels; nothing is translated.
    """
    shape = facts.shape if facts else "irregular"
    if subject.language == "zh":
        hinted = _hint(subject.hints, "label", "zh") or _zh_names().get((subject.label or "").lower())
        return hinted or f"{_ZH_SHAPES[shape]}物体"
    label = (subject.label or "").split("_(")[0].split(" (")[0].replace("_", " ").strip()
    return label[:80] if label else f"{shape} object"


def definition_of(subject: Subject, name: str) -> str:
    """The source's definition in the asked language (LVIS `def`, V3Det descriptions), else an honest template."""
    given = _hint(subject.hints, "definition", subject.language)
    if given:
        return given if len(given) <= _DEFINITION_LIMIT else given[:_DEFINITION_LIMIT].rsplit(" ", 1)[0]
    if subject.language == "zh":
        return f"人们称为{name}的一类事物。"
    return f"A thing of the kind that is called {name}."


def function_of(facts: Facts, language: Language) -> str:
    """Where the target is and how much it covers: all that a measurement says of its role."""
    percent = _percent(facts.area_share, language)
    if language == "zh":
        return f"它位于场景的{_place_zh(facts)}，约占场景的{percent}。"
    return f"Here it lies {_place_en(facts)} of the scene and takes up about {percent} of it."


def brief(facts: Facts, name: str, language: Language) -> str:
    """One sentence: size, colours, name, place."""
    if language == "zh":
        return f"位于场景{_place_zh(facts)}的一个{_ZH_SIZES[facts.size]}{_colours_zh(facts)}{name}。"
    size = "medium-sized" if facts.size == "medium" else facts.size
    return f"{_article(size)} {size} {_colours_en(facts)} {name} {_place_en(facts)} of the scene."


def detailed(facts: Facts, name: str, language: Language) -> str:
    """Colours with their shares, surface, shape, place and size, a sentence each."""
    percent = _percent(facts.area_share, language)
    if language == "zh":
        parts = "，".join(f"{_ZH_COLOURS[c]}约占{_percent(share, 'zh')}" for c, share in facts.colours)
        edge = "它的一部分延伸到场景边缘。" if facts.touches_edge else ""
        return (
            f"这是一个{_ZH_SIZES[facts.size]}{_colours_zh(facts)}{name}。按面积计算，{parts}。"
            f"它的{_ZH_TEXTURES[facts.texture]}，整体形状{_shape_zh(facts)}。"
            f"它位于场景的{_place_zh(facts)}，约占整个场景的{percent}。{edge}"
        )
    size = "medium-sized" if facts.size == "medium" else facts.size
    tones = " and ".join(f"{colour} over about {_percent(share, 'en')}" for colour, share in facts.colours)
    edge = " Part of it reaches the edge of the view." if facts.touches_edge else ""
    return (
        f"{_article(size)} {size} {_colours_en(facts)} {name}. By area it is {tones} of its visible surface. "
        f"It has {_EN_TEXTURES[facts.texture]} and {_article(facts.shape).lower()} {facts.shape} overall shape. "
        f"It lies {_place_en(facts)} of the scene and takes up about {percent} of it.{edge}"
    )


def event(facts: Facts | None, name: str, happening: SubjectEvent, first: bool, language: Language) -> str:
    """What the target does in one event; its colours are told in the first one only."""
    motion = "absent" if happening.absent else happening.motion or "still"
    if language == "zh":
        who = f"一个{_colours_zh(facts)}{name}" if first and facts else f"这个{name}"
        return f"{who}{motion_zh(motion)}，从第{happening.start_s:.1f}秒持续到第{happening.end_s:.1f}秒。"
    named = f"{_colours_en(facts)} {name}" if first and facts else name
    who = f"{_article(named)} {named}" if first else f"The {named}"
    seconds = max(happening.end_s - happening.start_s, 0.0)
    return f"{who} {motion_en(motion)} for about {seconds:.1f} seconds."


def video(facts: Facts | None, name: str, events: tuple[SubjectEvent, ...], language: Language) -> str:
    """How the target looks and then, event by event, what it does."""
    motions = ["absent" if e.absent else e.motion or "still" for e in events] or ["still"]
    if language == "zh":
        look = f"{_ZH_SIZES[facts.size]}{_colours_zh(facts)}" if facts else ""
        told = "，然后".join(motion_zh(motion) for motion in motions)
        surface = f"它的{_ZH_TEXTURES[facts.texture]}，整体形状{_shape_zh(facts)}。" if facts else ""
        return f"一个{look}{name}出现在视频中。{surface}它先是{told}。"
    look = f"{'medium-sized' if facts.size == 'medium' else facts.size} {_colours_en(facts)} " if facts else ""
    surface = f" with {_EN_TEXTURES[facts.texture]} and a {facts.shape} overall shape" if facts else ""
    if facts and facts.shape[0] in "aeiou":
        surface = surface.replace(" a " + facts.shape, " an " + facts.shape)
    named = f"{look}{name}"
    told = ", then ".join(motion_en(motion) for motion in motions)
    return f"{_article(named)} {named}{surface} is followed through the whole video. Over that time it first {told}."


def motion_en(motion: str) -> str:
    """A measured motion (`moving up right`, `returning, still`, ...) as an English verb phrase."""
    return " and ".join(_one_en(part) for part in _split(motion))


def motion_zh(motion: str) -> str:
    """A measured motion as a Chinese verb phrase."""
    return "并".join(_one_zh(part) for part in _split(motion))


def _one_en(motion: str) -> str:
    if motion.startswith("moving ") and motion not in _EN_MOTIONS:
        way = motion.removeprefix("moving ")
        return f"moves {'to the ' + way if way in ('left', 'right') else way}"
    return _EN_MOTIONS.get(motion, motion)


def _one_zh(motion: str) -> str:
    if motion.startswith("moving ") and motion not in _ZH_MOTIONS:
        return f"向{_ZH_WAYS.get(motion.removeprefix('moving '), '一侧')}移动"
    return _ZH_MOTIONS.get(motion, "有变化")


def _split(motion: str) -> list[str]:
    return [part.strip() for part in motion.replace(" and ", ",").split(",") if part.strip()] or ["still"]


def _place_en(facts: Facts) -> str:
    if (facts.row, facts.column) == ("middle", "centre"):
        return "in the centre"
    if facts.column == "centre":
        return f"in the {_EN_ROWS[facts.row]} part"
    return f"in the {_EN_ROWS[facts.row]} {facts.column}"


def _place_zh(facts: Facts) -> str:
    if (facts.row, facts.column) == ("middle", "centre"):
        return "中央"
    if facts.column == "centre":
        return f"{_ZH_ROWS[facts.row]}方"
    if facts.row == "middle":
        return f"{_ZH_COLUMNS[facts.column]}侧"
    return f"{_ZH_COLUMNS[facts.column]}{_ZH_ROWS[facts.row]}方"


def _colours_en(facts: Facts) -> str:
    names = [colour for colour, _ in facts.colours]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _colours_zh(facts: Facts) -> str:
    return "、".join(_ZH_COLOURS[colour] for colour, _ in facts.colours) + ("相间的" if len(facts.colours) > 1 else "")


def _shape_zh(facts: Facts) -> str:
    word = _ZH_SHAPES[facts.shape]
    return f"呈{word}" if word.endswith("形") else word


def _article(word: str) -> str:
    return "An" if word[:1].lower() in "aeiou" else "A"


def _percent(share: float, language: Language) -> str:
    value = max(1, round(100 * share))
    return f"{value}%" if language == "zh" else f"{value} percent"


def _hint(hints: tuple[Hint, ...], kind: str, language: str) -> str | None:
    return next((h.text.strip() for h in hints if h.kind == kind and h.language == language and h.text.strip()), None)


@functools.cache
def _zh_names() -> dict[str, str]:
    names: dict[str, str] = load_yaml(_ZH_NAMES.read_text(encoding="utf-8"))
    return names
