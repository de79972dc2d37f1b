"""A pack as the files from which PAM's public training code learns.

<out>/images/<media key>.<ext>                    original bytes, upright
<out>/frames/<media key>/<source frame>.jpg       the frames that records list
<out>/annotations/<image-obj-label|image-obj-caption|video-obj-caption>/<source>_..._<en|ch>_<split>.jsonl
<out>/finetune.yaml                               the training files, as PAM's `configs/finetune.yaml` lists them
<out>/provenance.parquet                          a row a record: keys, licence, source frames and times
<out>/files.txt                                   all of these, by which the next export here removes what it has not
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import polars as pl
import yaml
from pydantic import Field

from schemas.base import Record
from schemas.sample import Sample
from stages.base import UnitError
from stages.export.pam_files import ExportFiles
from stages.export.pam_records import Exportable, PromptKind, exportables
from stages.export.pam_text import FOLDER, file_name, source_names
from stages.export.pam_validate import Problem, validate_pam
from stages.pack.clips import clip_members
from stages.pack.members import image_member
from stages.pack.plan import PackPlan
from stages.pack.samples import samples_of
from stages.pack.shards import TRAIN
from stages.pack.slices import BODIES
from stages.pack.tar import placed, write_bytes


class PamExportConfig(Record):
    """How records are written.

    `prompt` gives each region its box, points drawn from its mask, or both (PAM then takes either, at random).
    `path_prefix` replaces the output folder in the records' paths, for training elsewhere; by default paths are
    absolute, since PAM takes them as written. `check_media` opens every exported file once more to validate it.
    """

    prompt: PromptKind = "boxNpoint"
    num_points: int = Field(8, ge=1, le=64)
    path_prefix: str | None = None
    jpeg_quality: int = Field(92, ge=1, le=100)
    check_media: bool = True


class ExcludedCount(Record):
    """Captions of one kind that could not become records."""

    source: str
    task: str
    language: str
    reason: str
    count: int


class PamExport(Record):
    """What was written: records by file (relative to the output folder), what was left out and why, problems found.

    `problems` are the validator's, by file; an export without any is one that PAM's loader takes whole. `removed`
    counts the files of earlier exports into the same folder that this one does not have, `strange` names files between
    its own that are of no export (they stay).
    """

    files: dict[str, int]
    excluded: list[ExcludedCount]
    problems: dict[str, list[Problem]]
    removed: int = 0
    strange: list[str] = []


def export_pam(
    plan: PackPlan, out: str | Path, config: PamExportConfig | None = None, options: dict[str, Any] | None = None
) -> PamExport:
    """Writes the captions of a pack plan as PAM's JSONL, with their pictures, into a local folder.

    Each media is read once. A media that cannot be read leaves its captions out, with its reason. Annotation files
    appear whole once everything is written; then what an earlier export wrote into the folder and this one did not is
    removed. Raises `OSError` where the folder cannot be written.
    """
    names = source_names(plan.sources)
    with ExportFiles(Path(out)) as files:
        writer = _Writer(files, config or PamExportConfig(), options)
        with ExitStack() as stack:
            for row, sample in _samples(plan):
                writer.media(row, sample, names, stack)
        return writer.finish()


def _samples(plan: PackPlan) -> Iterator[tuple[dict[str, Any], Sample]]:
    for ordinal in plan.members["ordinal"].unique(maintain_order=True):
        tables = plan.rows(ordinal)
        for row, sample in samples_of(*(tables[name] for name in BODIES)):
            if sample.regions:
                yield row, sample


class _Writer:
    """The open files of one export."""

    def __init__(self, files: ExportFiles, config: PamExportConfig, options: dict[str, Any] | None) -> None:
        self._files, self._config, self._options = files, config, options
        here = str(files.folder.resolve())
        self._prefix = config.path_prefix.rstrip("/") if config.path_prefix is not None else here
        self._streams: dict[str, IO[bytes]] = {}
        self._records: Counter[str] = Counter()
        self._excluded: Counter[tuple[str, str, str, str]] = Counter()
        self._provenance: list[dict[str, Any]] = []
        self._train: set[str] = set()

    def media(self, row: dict[str, Any], sample: Sample, names: dict[str, str], stack: ExitStack) -> None:
        """The pixels of one media, then its records."""
        found = list(exportables(sample, self._config.prompt, self._config.num_points))
        good = [each for each in found if each.reason is None]
        for each in found:
            if each.reason is not None:
                self._exclude(each, each.reason)
        if not good:
            return
        try:
            paths, times = self._pixels(row, sorted({frame for each in good for frame in each.frames}))
        except UnitError as error:
            for each in good:
                self._exclude(each, error.reason)
            return
        for each in good:
            caption, region = each.caption, each.region
            split = row["pack_split"]
            name = file_name(names[region.source], self._config.prompt, caption.task, caption.language, split)
            file = f"annotations/{FOLDER[caption.task]}/{name}"
            self._stream(file, stack).write(_line(each, paths))
            self._records[file] += 1
            if split == TRAIN:
                self._train.add(file)
            self._provenance.append(_provenance(each, sample, file, times))

    def _exclude(self, each: Exportable, reason: str) -> None:
        self._excluded[each.region.source, each.caption.task, each.caption.language, reason] += 1

    def _pixels(self, row: dict[str, Any], frames: list[int]) -> tuple[dict[str, Any], dict[int, float]]:
        key = row["media_key"].hex()
        if row["form"] != "clip":
            extension, data = image_member(row, self._config.jpeg_quality, self._options)
            _put(self._files.add(f"images/{key}.{extension}"), data)
            return {"image": f"{self._prefix}/images/{key}.{extension}"}, {}
        members, times = clip_members({**row, "clip_indices": frames}, self._config.jpeg_quality, self._options)
        for index, (_, data) in zip(frames, members, strict=True):
            _put(self._files.add(f"frames/{key}/{index:05d}.jpg"), data)
        return {"image_root": f"{self._prefix}/frames/{key}"}, dict(zip(frames, times, strict=True))

    def _stream(self, file: str, stack: ExitStack) -> IO[bytes]:
        if file not in self._streams:
            self._streams[file] = stack.enter_context(placed(str(self._files.add(file))))
        return self._streams[file]

    def finish(self) -> PamExport:
        """The files beside the annotations, and the validator's word on each."""
        frame = pl.DataFrame(self._provenance, schema=pl.Schema(_PROVENANCE), orient="row")
        with placed(str(self._files.add("provenance.parquet"))) as stream:
            frame.write_parquet(stream)
        datasets = [{"json_path": f"{self._prefix}/{file}", "sampling_strategy": "all"} for file in sorted(self._train)]
        listing = yaml.safe_dump({"datasets": datasets}, sort_keys=False, allow_unicode=True)
        write_bytes(str(self._files.add("finetune.yaml")), listing.encode())
        removed, out = self._files.sweep(), self._files.folder
        problems = {
            file: validate_pam(out / file, self._config.check_media, out, self._prefix)
            for file in sorted(self._records)
        }
        excluded = [
            ExcludedCount(source=source, task=task, language=language, reason=reason, count=count)
            for (source, task, language, reason), count in sorted(self._excluded.items())
        ]
        return PamExport(
            files=dict(sorted(self._records.items())),
            excluded=excluded,
            problems={file: found for file, found in problems.items() if found},
            removed=removed,
            strange=self._files.strange(),
        )


def _put(path: Path, data: bytes) -> None:
    """Media files are named by their content: one that is there and has this size is left alone."""
    if not path.is_file() or path.stat().st_size != len(data):
        write_bytes(str(path), data)


def _line(each: Exportable, paths: dict[str, Any]) -> bytes:
    listed = {"frames": [f"{frame:05d}.jpg" for frame in each.frames]} if each.frames else {}
    record = {"id": each.record["id"], "type": each.record["type"], **paths, **listed, **each.record}
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _provenance(each: Exportable, sample: Sample, file: str, times: dict[int, float]) -> dict[str, Any]:
    region, caption = each.region, each.caption
    return {
        "id": each.record["id"],
        "file": file,
        "media_key": sample.media.media_key.hex(),
        "region_key": region.region_key.hex(),
        "source": region.source,
        "source_id": region.source_id,
        "licence": region.licence,
        "teacher": caption.teacher,
        "model": caption.model,
        "prompt_id": caption.prompt_id,
        "prompt_hash": caption.prompt_hash.hex(),
        "frame_indices": each.frames,
        "frame_times_s": [times[frame] for frame in each.frames],
        "repeated_frames": len(each.frames) - len(set(each.frames)),
    }


_PROVENANCE: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "file": pl.String,
    "media_key": pl.String,
    "region_key": pl.String,
    "source": pl.String,
    "source_id": pl.String,
    "licence": pl.String,
    "teacher": pl.String,
    "model": pl.String,
    "prompt_id": pl.String,
    "prompt_hash": pl.String,
    "frame_indices": pl.List(pl.Int64),
    "frame_times_s": pl.List(pl.Float64),
    "repeated_frames": pl.Int64,
}
