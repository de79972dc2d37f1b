"""A small corpus of real picture files and the tables that a run would have of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from schemas.arrow import to_table
from schemas.caption import Caption, Decision
from schemas.event import Event
from schemas.geometry import FrameMask
from schemas.keys import digest_bytes, digest_value
from schemas.mask import Mask
from schemas.media import Media
from schemas.region import Region, Selection
from stages import masks as mask_algebra
from stages.base import checked, with_digest
from stages.media.probe import content_digest
from stages.pack import PackFrames, PackPlan, PackStage
from stages.shapes.clips import write_mp4

ZERO = bytes(16)


def _frame(rows, model) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(with_digest(to_table(rows, model), model)))


def _picture(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    return (
        np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )


def _encoded(pixels: np.ndarray, encoding: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, encoding, **options)
    return out.getvalue()


class Corpus:
    """Pictures in a folder and their rows; `frames()` are the tables as they stand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.media: list[Media] = []
        self.regions: list[Region] = []
        self.selection: list[Selection] = []
        self.masks: list[Mask] = []
        self.captions: list[Caption] = []
        self.decisions: list[Decision] = []
        self.events: list[Event] = []

    def add(
        self,
        seed: int,
        num_regions: int = 2,
        encoding: str = "JPEG",
        name: str | None = None,
        group: bytes | None = None,
        orientation: int = 1,
        exif: Image.Exif | None = None,
    ) -> bytes:
        """A picture with regions, each with an English and a Chinese brief caption, all kept."""
        options = {"exif": exif} if exif else {}
        name = name or f"picture-{seed}.{encoding.lower()}"
        return self.add_file(_picture(seed), name, encoding, num_regions, group, orientation, **options)

    def add_file(
        self,
        pixels: np.ndarray,
        name: str,
        encoding: str,
        num_regions: int = 1,
        group: bytes | None = None,
        orientation: int = 1,
        **options: object,
    ) -> bytes:
        """A picture of these pixels, encoded with these options of Pillow."""
        data = _encoded(pixels, encoding, **options)
        path = self.folder / name
        path.write_bytes(data)
        key = digest_bytes(data)
        self.media.append(
            Media(
                input_digest=ZERO,
                media_key=key,
                uri=str(path),
                kind="image",
                encoding=encoding.lower(),
                num_bytes=len(data),
                width=pixels.shape[1],
                height=pixels.shape[0],
                group_key=group or key,
                orientation=orientation,
            )
        )
        for index in range(num_regions):
            self.add_region(key, str(path), index)
        return key

    def add_clip(
        self, seed: int, num_frames: int = 40, folder: bool = False, languages: tuple[str, ...] = ("en", "zh")
    ):
        """A clip (MP4, or a folder of JPEG frames) at 10 fps of a square that moves right, in two events."""
        pixels = np.stack([self._clip_frame(seed, index) for index in range(num_frames)])
        path = self.folder / (f"clip-{seed}" if folder else f"clip-{seed}.mp4")
        if folder:
            path.mkdir()
            for index, frame in enumerate(pixels):
                (path / f"{index:05d}.jpg").write_bytes(_encoded(frame, "JPEG"))
        else:
            write_mp4(path, pixels, fps=10)
        uri = f"{path}/" if folder else str(path)
        key, size = content_digest(uri)
        same = {"input_digest": ZERO, "media_key": key}
        self.media.append(
            Media(
                **same,
                uri=uri,
                kind="video",
                encoding="frames" if folder else "mp4",
                num_bytes=size,
                width=64,
                height=48,
                group_key=key,
                num_frames=num_frames,
                fps=10.0,
                duration_s=num_frames / 10,
            )
        )
        region = digest_value([key, 0])
        self.regions.append(
            Region(
                **same,
                region_key=region,
                uri=uri,
                kind="video",
                source="sav",
                source_id="0",
                source_media_id="1",
                split="train",
                box=(2.0, 10.0, 14.0, 22.0),
                label="square",
            )
        )
        self.selection.append(Selection(input_digest=ZERO, region_key=region, source="sav"))
        frames = [self._frame_mask(index) for index in range(num_frames)]
        for segment in range(0, (num_frames + 63) // 64):
            part = frames[segment * 64 : (segment + 1) * 64]
            first = frames[0] if segment == 0 else None
            self.masks.append(
                Mask(
                    **same,
                    mask_key=digest_value([region, segment]),
                    region_key=region,
                    segment=segment,
                    num_segments=(num_frames + 63) // 64,
                    mask=first and first.mask,
                    box=first and first.box,
                    frames=part,
                    mask_source="source",
                    backend="sam2",
                )
            )
        half = num_frames // 2
        for index, (start, end) in enumerate([(0, half - 1), (half, num_frames - 1)]):
            self.events.append(
                Event(
                    **same,
                    event_key=digest_value([region, index]),
                    region_key=region,
                    event_index=index,
                    num_events=2,
                    start_frame=start,
                    end_frame=end,
                    start_s=start / 10,
                    end_s=(end + 1) / 10,
                    visible_share=1.0,
                    motion="moving right",
                    backend="motion",
                )
            )
        for language in languages:
            self.add_caption(region, key, language, f"whole clip {language}", "video")
            for index in range(2):
                self.add_caption(region, key, language, f"event {index} {language}", "stream", index)
        return key

    @staticmethod
    def _clip_frame(seed: int, index: int) -> np.ndarray:
        frame = _picture(seed)
        frame[10:22, 2 + index % 48 : 14 + index % 48] = (220, 30, 30)
        return frame

    @staticmethod
    def _frame_mask(index: int) -> FrameMask:
        pixels = np.zeros((48, 64), bool)
        pixels[10:22, 2 + index % 48 : 14 + index % 48] = True
        box = (2.0 + index % 48, 10.0, 14.0 + index % 48, 22.0)
        return FrameMask(
            frame_index=index,
            time_s=index / 10,
            visible=True,
            box=box,
            mask=mask_algebra.encode(pixels),
            area_share=0.05,
        )

    def add_region(self, media_key: bytes, uri: str, index: int, source: str = "coco") -> bytes:
        region = digest_value([media_key, index])
        box = (float(index), 2.0, index + 9.0, 12.0)
        pixels = np.zeros((48, 64), bool)
        pixels[2:12, index : index + 9] = True
        same = {"input_digest": ZERO, "region_key": region}
        self.regions.append(
            Region(
                **same,
                media_key=media_key,
                uri=uri,
                kind="image",
                source=source,
                source_id=f"{index}",
                split="val",
                source_media_id="1",
                licence="CC-BY-4.0",
                box=box,
                label="dog",
            )
        )
        self.selection.append(Selection(**same, source=source))
        self.masks.append(
            Mask(
                **same,
                mask_key=digest_value([region, 0]),
                media_key=media_key,
                mask=mask_algebra.encode(pixels),
                box=box,
                stability=0.9,
                seed_agreement=0.8,
                mask_source="refined",
                backend="grabcut",
                area_share=90 / 3072,
            )
        )
        for language, text in (("en", f"A dog {index}."), ("zh", f"一只狗{index}。")):
            self.add_caption(region, media_key, language, text)
        return region

    def add_caption(
        self,
        region: bytes,
        media_key: bytes,
        language: str,
        text: str,
        task: str = "brief",
        event: int = -1,
        kept: bool = True,
    ):
        key = digest_value([region, task, language, event])
        self.captions.append(
            Caption(
                input_digest=ZERO,
                caption_key=key,
                region_key=region,
                media_key=media_key,
                task=task,
                language=language,
                event_index=event,
                text=text,
                outcome="answer",
                teacher="measured",
                model="none",
                prompt_id=f"{task}-{language}",
                prompt_hash=digest_value(task),
            )
        )
        status, reason = ("ok", None) if kept else ("filtered", "too_short")
        self.decisions.append(
            Decision(
                input_digest=ZERO, caption_key=key, region_key=region, policy="default", status=status, reason=reason
            )
        )
        return key

    def reject(self, caption_key: bytes, reason: str = "too_short") -> None:
        """The policy changes its mind about one caption."""
        self.decisions = [
            row.model_copy(update={"status": "filtered", "reason": reason}) if row.caption_key == caption_key else row
            for row in self.decisions
        ]

    def frames(self) -> PackFrames:
        return PackFrames(
            media=_frame(self.media, Media),
            regions=_frame(self.regions, Region),
            selection=_frame(self.selection, Selection),
            masks=_frame(self.masks, Mask),
            captions=_frame(self.captions, Caption),
            decisions=_frame(self.decisions, Decision),
            events=_frame(self.events, Event),
        )


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Twelve JPEG pictures with two regions each."""
    made = Corpus(tmp_path / "pictures")
    for seed in range(12):
        made.add(seed)
    return made


@pytest.fixture
def new_corpus(tmp_path: Path) -> Callable[[str], Corpus]:
    return lambda name: Corpus(tmp_path / name)


def run_plan(plan: PackPlan, root: Path, packed: pl.DataFrame | None = None, retry: bool = False) -> pl.DataFrame:
    """Writes what is pending of a plan as the runner would; returns all rows of `packed`."""
    stage = PackStage(plan.config, str(root))
    rows = [] if packed is None else [packed]
    sizes = {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*.tar")}
    for batch in plan.pending(packed, retry, sizes).iter_slices(2):
        rows += [pl.DataFrame(pl.from_arrow(table)) for table in checked(stage, plan.fill(batch))]
    return pl.concat(rows)


@pytest.fixture
def write() -> Callable[..., pl.DataFrame]:
    return run_plan
