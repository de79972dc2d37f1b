"""Every rule that PAM's loader imposes on an annotation file, checked before the loader can swallow it.

PAM's loader retries a bad record ten times and then silently takes another one, so that a bad file slows training
instead of failing. Source: `LazySupervisedDataset` of Perceive-Anything/PAM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from prompts.pam import IMAGE_MARK, user_text
from schemas.base import Record
from stages.chunk.streaming import LEAST_FRAMES
from stages.export.pam_geometry import ENOUGH_POINTS, whole_pixels
from stages.export.pam_text import read_turn

_KEYS = {"id", "type", "image", "image_root", "frames", "conversations", "bbox", "points", "labels"}
_MAX_TOKENS = 12_288
_VISUAL_TOKENS = {"image": 1042, "video": 5168}
_BYTES_A_TOKEN = 2.5


class Problem(Record):
    """One broken rule. `line` counts from 1 (position for a JSON list); errors break training, warnings may."""

    line: int
    rule: str
    message: str
    severity: Literal["error", "warning"] = "error"


Found = Iterator[tuple[str, str]]


def validate_pam(
    path: str | Path, check_media: bool = True, root: str | Path = ".", path_prefix: str | None = None
) -> list[Problem]:
    """The problems of a `.jsonl` file (a record a line) or `.json` file (a list); empty when PAM will read all of it.

    `check_media` also opens each image and each listed frame, relative paths taken from `root` (PAM takes them from
    where it is started). Paths that begin with `path_prefix` are looked for under `root` as well: so a file that was
    written for another machine is checked. Raises `FileNotFoundError` for a file that is not there.
    """
    problems: list[Problem] = []
    kinds: set[str] = set()
    pictures = _Pictures(Path(root), path_prefix)
    for line, record in _records(Path(path), problems):
        for rule, message in record_errors(record):
            problems.append(Problem(line=line, rule=rule, message=message))
        if isinstance(record, dict):
            kinds.add(str(record.get("type")))
            problems += [
                Problem(line=line, rule=rule, message=message, severity="warning") for rule, message in _doubts(record)
            ]
            if check_media:
                problems += [
                    Problem(line=line, rule=rule, message=message)
                    for rule, message in _media_problems(record, pictures)
                ]
    if len(kinds) > 1:
        message = f"the file mixes {sorted(kinds)}: a batch must be of one type, train with group_by_modality_length"
        problems.append(Problem(line=1, rule="mixed_types", message=message, severity="warning"))
    return sorted(problems, key=lambda problem: (problem.line, problem.rule, problem.message))


def _records(path: Path, problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".json":
        try:
            found = json.loads(path.read_text("utf-8"))
        except (UnicodeDecodeError, ValueError) as error:
            problems.append(Problem(line=1, rule="json", message=f"not JSON: {error}"))
            return
        if not isinstance(found, list):
            problems.append(Problem(line=1, rule="json", message="a .json file holds a list of records"))
            return
        yield from enumerate(found, 1)
        return
    with path.open("rb") as stream:
        for line, raw in enumerate(stream, 1):
            try:
                yield line, json.loads(raw.decode("utf-8"))
            except (UnicodeDecodeError, ValueError) as error:
                problems.append(Problem(line=line, rule="json", message=f"not a JSON record: {error}"))


def record_errors(record: Any) -> Found:
    """(rule, message) of each rule that a record breaks, as it lies in the file; pictures are not looked for."""
    if not isinstance(record, dict):
        yield "record", f"a record is an object, not {type(record).__name__}"
        return
    if record.get("type") not in ("image", "video"):
        yield "type", f"type is image or video, not {record.get('type')!r}"
        return
    for check in _CHECKS:
        yield from check(record)


def _conversations(record: dict[str, Any]) -> Found:
    turns = record.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
        yield "conversations", "conversations hold pairs of a human and a gpt turn"
        return
    for number, turn in enumerate(turns):
        role = ("human", "gpt")[number % 2]
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            yield "conversations", f"turn {number} needs `from` and `value`"
        elif turn["from"] != role:
            yield "roles", f"turn {number} must be from {role}, not {turn['from']!r}"
        elif not isinstance(turn["value"], str) or not turn["value"].strip():
            yield "value", f"turn {number} has no text"
    values = [turn["value"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
    marks = sum(value.count(IMAGE_MARK) for value in values)
    if marks != 1:
        yield "image_mark", f"a record has exactly one {IMAGE_MARK}, this one has {marks}"
    elif IMAGE_MARK not in values[0]:
        yield "image_mark", f"{IMAGE_MARK} belongs into the first turn"


def _source(record: dict[str, Any]) -> Found:
    if record["type"] == "image":
        if not isinstance(record.get("image"), str) or not record.get("image"):
            yield "image", f"image is one path, not {record.get('image')!r}"
        return
    if not isinstance(record.get("image_root"), str):
        yield "image_root", f"image_root is a folder, not {record.get('image_root')!r}"
    frames = record.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, str) and frame for frame in frames):
        yield "frames", "frames are a list of file names"
    elif len(frames) < LEAST_FRAMES:
        yield "frames", f"a video lists at least {LEAST_FRAMES} frames, this one {len(frames)}"


def _prompts(record: dict[str, Any]) -> Found:
    for name in ("bbox", "points", "labels"):
        if name not in record:
            yield name, f"{name} must be there; write null where it is not used"
        elif record[name] is not None and not (isinstance(record[name], list) and record[name]):
            yield name, f"{name} is a list with content or null: an empty list makes the loader fail"
    if record.get("bbox") is None and record.get("points") is None:
        yield "prompt", "neither bbox nor points"
    if (record.get("points") is None) != (record.get("labels") is None):
        yield "labels", "points and labels come together"


def _box(record: dict[str, Any]) -> Found:
    box = _first(record, "bbox")
    if box is None:
        return
    if not _numbers(box) or len(box) != 4:
        yield "bbox", f"a box is x, y, width, height in pixels{_nested(record)}, not {box!r}"
    elif not whole_pixels(box):
        yield "bbox", f"box {box} has no area once its corners are integers"
    elif box[0] < 0 or box[1] < 0:
        yield "bbox", f"box {box} begins outside the image"


def _points(record: dict[str, Any]) -> Found:
    points, labels = _first(record, "points"), _first(record, "labels")
    if points is None:
        return
    if not isinstance(points, list) or not all(_numbers(point) and len(point) == 2 for point in points):
        yield "points", f"points are [x, y] pairs in pixels{_nested(record)}"
        return
    least = ENOUGH_POINTS[record["type"]]
    if len(points) != 1 and len(points) < least:
        yield "points", f"{len(points)} points: the loader draws up to {least}, give exactly 1 or at least {least}"
    if not isinstance(labels, list) or len(labels) != len(points):
        yield "labels", f"{len(points)} points need as many labels"
    elif not all(label in (0, 1) and not isinstance(label, bool) for label in labels):
        yield "labels", "labels are 1 (inside) or 0 (outside)"
    elif 1 not in labels:
        yield "labels", "no point is inside the target"


_CHECKS: Sequence[Callable[[dict[str, Any]], Found]] = (_conversations, _source, _prompts, _box, _points)


def _nested(record: dict[str, Any]) -> str:
    return " inside one more list" if record["type"] == "video" else ""


def _first(record: dict[str, Any], name: str) -> Any:
    """The prompt as the loader takes it: for a video that of frame 0."""
    value = record.get(name)
    if not isinstance(value, list) or not value:
        return None
    return value[0] if record["type"] == "video" else value


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def _doubts(record: dict[str, Any]) -> Found:
    unknown = sorted(set(record) - _KEYS)
    if unknown:
        yield "unknown_keys", f"keys that PAM does not read: {unknown}"
    turns = record.get("conversations")
    if record.get("type") not in _VISUAL_TOKENS or not isinstance(turns, list):
        return
    values = [turn["value"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
    asked = read_turn(values[0], record["type"] == "video") if values else None
    if values and asked is None:
        yield "prompt_text", f"the question is none of PAM's prompts: {values[0][:80]!r}"
    elif asked is not None and values[0] != user_text(asked.task, asked.language, asked.history):
        yield "prompt_text", f"the question is not byte for byte PAM's prompt: {values[0][:80]!r}"
    text = sum(len(value.encode()) for value in values) / _BYTES_A_TOKEN
    if _VISUAL_TOKENS[record["type"]] + text > _MAX_TOKENS:
        yield "length", f"about {_VISUAL_TOKENS[record['type']] + text:.0f} tokens of {_MAX_TOKENS}: it will be cut"


class _Pictures:
    """Where the files of records lie and how large they are; each is opened once."""

    def __init__(self, root: Path, prefix: str | None) -> None:
        self._root, self._prefix = root, None if prefix is None else prefix.rstrip("/") + "/"
        self._sizes: dict[Path, tuple[int, int] | str] = {}

    def find(self, path: str) -> Path:
        """The file that a path of a record means here."""
        return self._root / (path if self._prefix is None else path.removeprefix(self._prefix))

    def size(self, path: str) -> tuple[int, int] | str:
        """Width and height as PAM's loader sees them (it ignores the EXIF orientation), or what is wrong with the
        file."""
        found = self.find(path)
        if found not in self._sizes:
            try:
                with Image.open(found) as image:
                    image.load()
                    self._sizes[found] = image.size
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                self._sizes[found] = f"{found} is no readable image: {error}"
        return self._sizes[found]


def _media_problems(record: dict[str, Any], pictures: _Pictures) -> Found:
    if record.get("type") == "image" and isinstance(record.get("image"), str):
        paths = [record["image"]]
    elif isinstance(record.get("image_root"), str) and isinstance(record.get("frames"), list):
        paths = [f"{record['image_root']}/{frame}" for frame in dict.fromkeys(map(str, record["frames"]))]
    else:
        return
    missing = [path for path in paths if not pictures.find(path).is_file()]
    if missing:
        yield "media", f"{len(missing)} of {len(paths)} files are not there, the first is {missing[0]}"
        return
    found = {path: pictures.size(path) for path in paths}
    unreadable = [size for size in found.values() if isinstance(size, str)]
    if unreadable:
        yield "media", f"{len(unreadable)} of {len(paths)} files cannot be read: {unreadable[0]}"
    sizes = {size: path for path, size in reversed(found.items()) if not isinstance(size, str)}
    if len(sizes) > 1:
        told = ", ".join(f"{path} {width} x {height}" for (width, height), path in sorted(sizes.items()))
        yield "frame_sizes", f"the frames are of {len(sizes)} sizes: {told}"
    first = found[paths[0]] if paths else ""
    if not isinstance(first, str):
        yield from _outside(record, *first)


def _outside(record: dict[str, Any], width: int, height: int) -> Found:
    box, points = _first(record, "bbox"), _first(record, "points")
    if _numbers(box) and len(box) == 4 and (box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1):
        yield "bbox", f"box {box} ends outside the image of {width} x {height}"
    for point in points if isinstance(points, list) else []:
        if _numbers(point) and len(point) == 2 and not (0 <= point[0] < width and 0 <= point[1] < height):
            yield "points", f"point {point} is outside the image of {width} x {height}"
