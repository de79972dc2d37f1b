"""Rules 13 and 14 by image-text models: does the caption fit its region, and does it find it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.base import Box, Key, Row
from schemas.caption import Language, Task
from schemas.geometry import Rle
from schemas.media import MediaKind
from stages.base import UnitError
from stages.masks import box_iou
from stages.score.base import Need, Rule, ScoreRow, ScoreStage, ScoreUnit
from stages.score.encoder import ImageTextEncoder, ModelConfig, ModelMissing, device_of
from stages.score.pixels import load_frame

Pixels = npt.NDArray[np.uint8]
CONTEXT = 0.2


class RegionUnit(ScoreUnit):
    """A caption, its region on the prompt frame, and what captions of other regions of the media say.

    `neighbour_texts` are captions of other regions, of the same task, language and event.
    """

    media_key: Key
    task: Task
    text: str | None = None
    uri: str
    kind: MediaKind
    frame_index: int = 0
    fps: float | None = None
    mask: Rle | None = None
    box: Box | None = None
    neighbour_texts: list[str] | None = None


class _RegionStage(ScoreStage):
    """Decodes each frame once; `_frame` numbers the frames in `self.frames`, null where it could not be read."""

    unit: ClassVar[type[ScoreUnit]] = RegionUnit
    group_by: ClassVar[tuple[str, ...]] = ("media_key",)
    batch_groups: int = 32

    def __init__(
        self, rules: tuple[Rule, ...], frames: list[Pixels], storage_options: Mapping[str, Any] | None
    ) -> None:
        super().__init__(rules)
        self.frames = frames
        self.storage_options = dict(storage_options or {})

    def prepare(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        self.frames.clear()
        rows: list[tuple[str, int, int | None, str | None]] = []
        places = units.select("uri", "kind", "frame_index", "fps").unique(["uri", "frame_index"], maintain_order=True)
        for uri, kind, index, fps in places.iter_rows():
            try:
                self.frames.append(load_frame(uri, kind, index, fps, self.storage_options))
                rows.append((uri, index, len(self.frames) - 1, None))
            except UnitError as error:
                rows.append((uri, index, None, error.reason))
        kinds = {"uri": pl.String, "frame_index": pl.Int64, "_frame": pl.Int64, "_failure": pl.String}
        read = pl.DataFrame(rows, schema=kinds, orient="row")
        return units.join(read, on=["uri", "frame_index"], how="left", maintain_order="left")


class CropScores(ScoreRow):
    """Scores of rule 13."""

    crop_similarity: float | None = None
    crop_margin: float | None = None


class CropSimilarity(Rule):
    """Rule 13: a caption that does not fit its crop, or fits another region's caption less well than that one's.

    `crop_similarity` is the cosine of the crop about the target's box (a fifth of its side as context) and the text;
    `crop_margin` is that less the highest cosine of the crop with a caption of another region of the media, null where
    there is none. Similarities differ between classes: a policy ranks them (`rank_by: [source_label, task]`).
    English. Source: FILTERS rule 13; DAM rejects by SigLIP scores (arXiv 2504.16072), thresholds unpublished.
    """

    name = "crop_similarity"
    number = 13
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask", "pixels", "embeddings")
    languages: ClassVar[tuple[Language, ...]] = ("en",)
    columns = ("crop_similarity", "crop_margin")

    def __init__(self, encoder: ImageTextEncoder, frames: list[Pixels]) -> None:
        self.encoder = encoder
        self.frames = frames

    def settings(self) -> dict[str, Any]:
        return {**self.encoder.config.identity(), "context": CONTEXT}

    def open(self) -> None:
        self.encoder.open()

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        rows = [row for row in units.with_row_index("row").iter_rows(named=True) if _can_see(row)]
        regions = {row["region_key"]: row for row in rows}
        place = {key: i for i, key in enumerate(regions)}
        crops = self.encoder.images([crop(self.frames[row["_frame"]], row["box"]) for row in regions.values()])
        texts = sorted({text for row in rows for text in (row["text"], *(row["neighbour_texts"] or ()))})
        said = dict(zip(texts, self.encoder.texts(texts), strict=True))
        own: list[float | None] = [None] * len(units)
        margin: list[float | None] = [None] * len(units)
        for row in rows:
            vector = crops[place[row["region_key"]]]
            own[row["row"]] = fits = float(vector @ said[row["text"]])
            others = [float(vector @ said[text]) for text in row["neighbour_texts"] or () if text != row["text"]]
            margin[row["row"]] = fits - max(others) if others else None
        return _scores(self.columns, own, margin)


class CropStage(_RegionStage):
    """Rule 13; off until `score.crops` names a CLIP or SigLIP model."""

    group: ClassVar[str] = "crops"
    table: ClassVar[str] = "scores/crops"
    row: ClassVar[type[Row]] = CropScores

    def __init__(self, config: ModelConfig, storage_options: Mapping[str, Any] | None = None) -> None:
        frames: list[Pixels] = []
        super().__init__((CropSimilarity(ImageTextEncoder(config), frames),), frames, storage_options)


class GroundingScores(ScoreRow):
    """Scores of rule 14."""

    grounding_score: float | None = None
    grounding_iou: float | None = None


class Grounding(Rule):
    """Rule 14: a caption from which a detector finds another place than its region.

    An open-vocabulary detector (OWL-ViT, OWLv2, Grounding DINO) is asked for the text on the whole frame:
    `grounding_score` is the score of its best box, `grounding_iou` that box's IoU with the target's. English.
    Source: FILTERS rule 14.
    """

    name = "grounding"
    number = 14
    needs: ClassVar[tuple[Need, ...]] = ("text", "mask", "pixels", "embeddings")
    languages: ClassVar[tuple[Language, ...]] = ("en",)
    columns = ("grounding_score", "grounding_iou")

    def __init__(self, config: ModelConfig, frames: list[Pixels]) -> None:
        self.config = config
        self.frames = frames
        self._model: Any = None
        self._processor: Any = None

    def settings(self) -> dict[str, Any]:
        return self.config.identity()

    def open(self) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        config = self.config
        try:
            self._processor = AutoProcessor.from_pretrained(config.model, revision=config.revision)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(config.model, revision=config.revision)
        except (OSError, ValueError, ImportError) as error:
            raise ModelMissing(config, error) from error
        self._device = device_of(config.device)
        self._model = model.eval().to(self._device)

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        score: list[float | None] = [None] * len(units)
        overlap: list[float | None] = [None] * len(units)
        for row in units.with_row_index("row").iter_rows(named=True):
            if _can_see(row):
                found = self._best(self.frames[row["_frame"]], row["text"])
                if found is not None:
                    score[row["row"]], overlap[row["row"]] = found[0], box_iou(found[1], tuple(row["box"]))
        return _scores(self.columns, score, overlap)

    def _best(self, frame: Pixels, text: str) -> tuple[float, Box] | None:
        """The score and box (xyxy pixels of the frame) that answer the text best, None where there is no box."""
        import torch

        inputs = self._processor(text=[[text.lower()]], images=frame, truncation=True, return_tensors="pt")
        inputs = inputs.to(self._device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        size = [frame.shape[:2]]
        if "grounding" in str(self._model.config.model_type):
            (found,) = self._processor.post_process_grounded_object_detection(
                outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=size
            )
        else:
            (found,) = self._processor.post_process_grounded_object_detection(outputs, threshold=0.0, target_sizes=size)
        if not len(found["scores"]):
            return None
        best = int(found["scores"].argmax())
        x0, y0, x1, y1 = (float(edge) for edge in found["boxes"][best].tolist())
        return float(found["scores"][best]), (x0, y0, x1, y1)


class GroundingStage(_RegionStage):
    """Rule 14; off until `score.grounding` names a detector."""

    group: ClassVar[str] = "grounding"
    table: ClassVar[str] = "scores/grounding"
    row: ClassVar[type[Row]] = GroundingScores

    def __init__(self, config: ModelConfig, storage_options: Mapping[str, Any] | None = None) -> None:
        frames: list[Pixels] = []
        super().__init__((Grounding(config, frames),), frames, storage_options)


def crop(frame: Pixels, box: Box) -> Pixels:
    """The frame about a box (xyxy pixels) with `CONTEXT` of its sides around it, at least 8 pixels a side."""
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = box
    dx, dy = max(CONTEXT * (x1 - x0), 4 - (x1 - x0) / 2, 0), max(CONTEXT * (y1 - y0), 4 - (y1 - y0) / 2, 0)
    left, right = int(max(0, x0 - dx)), int(min(width, np.ceil(x1 + dx)))
    top, bottom = int(max(0, y0 - dy)), int(min(height, np.ceil(y1 + dy)))
    return frame[top : max(bottom, top + 1), left : max(right, left + 1)]


def _scores(names: tuple[str, ...], *columns: list[float | None]) -> pl.DataFrame:
    pairs = zip(names, columns, strict=True)
    return pl.DataFrame([pl.Series(name, values, dtype=pl.Float64) for name, values in pairs])


def _can_see(row: dict[str, Any]) -> bool:
    return row["_frame"] is not None and row["box"] is not None and bool(row["text"])
