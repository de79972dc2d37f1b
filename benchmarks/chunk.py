"""Chunking: speed without pixels, memory, and event boundaries against the truth of drawn clips.

    python -m benchmarks.chunk                 # 10,000 masklets and 200 clips
    python -m benchmarks.chunk --masklets 1000 --clips 40
    python -m benchmarks.chunk --masklets 0 --clips 0 --refined 200    # masklets of the nano SAM 2; slow on a CPU

Masklets are 20 s at 6 fps. The baseline of the speed is the same decision by `ruptures` (PELT, linear cost) on the
same features; a subset of it is timed in the same run. Boundaries count as found within 0.3 s; a clip is read from its
H.264 file, so that colour and camera are measured, not given.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import ruptures

from schemas.arrow import from_table, to_table
from schemas.geometry import FrameMask
from schemas.keys import digest_value
from schemas.mask import Mask
from stages.base import checked
from stages.chunk import ChunkConfig, ChunkUnit, build_chunk
from stages.chunk.config import MotionConfig
from stages.chunk.features import read_masklets, turns
from stages.masks import box_of, encode
from stages.refine.config import RefineConfig
from stages.refine.seeds import RefineUnit
from stages.refine.stage import RefineStage, build_refine
from stages.shapes.clip import Clip, draw_clip
from stages.shapes.clips import write_mp4

TOLERANCE_S = 0.3
BATCH = 128


@dataclass
class Count:
    """Boundaries that were found, proposed and true; events named rightly, and events."""

    hits: int = 0
    proposed: int = 0
    true: int = 0
    named: int = 0
    events: int = 0

    def add(self, other: Count) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def line(self) -> str:
        precision, recall = self.hits / max(1, self.proposed), self.hits / max(1, self.true)
        f1 = 2 * self.hits / max(1, self.proposed + self.true)
        return (
            f"boundaries within {TOLERANCE_S} s: precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f} "
            f"({self.true} true); motion named rightly: {self.named / max(1, self.events):.3f} of {self.events} events"
        )


def units_of(clip: Clip, name: str, uri: str) -> list[ChunkUnit]:
    """One unit an object of a drawn clip."""
    height, width = clip.frames.shape[1:3]
    units = []
    for k in range(clip.masks.shape[1]):
        frames = [
            FrameMask(
                frame_index=i,
                time_s=float(time_s),
                visible=bool(mask.any()),
                box=box_of(mask),
                mask=encode(mask) if mask.any() else None,
                area_share=float(mask.mean()),
            )
            for i, (time_s, mask) in enumerate(zip(clip.times_s, clip.masks[:, k], strict=True))
        ]
        key = digest_value([name, k])
        shared = {"uri": uri, "width": width, "height": height, "fps": 6.0, "num_frames": len(frames)}
        units.append(ChunkUnit(region_key=key, media_key=digest_value(name), frames=frames, input_digest=key, **shared))
    return units


def masklet_tables(count: int) -> Iterator[pa.Table]:
    """Batches of `count` masklets of 20 s at 6 fps: some twenty drawn ones, each time under new keys."""
    units: list[ChunkUnit] = []
    for seed in range(8):
        clip = draw_clip((9, seed), frames=120, size=(480, 270), objects=(2, 3))
        units += units_of(clip, f"m{seed}", "memory://none.mp4")
    table = to_table(units, ChunkUnit)
    del units, clip
    made = 0
    while made < count:
        rows = [(made + i) % len(table) for i in range(min(BATCH, count - made))]
        keys = pa.array([digest_value([made, i]) for i in range(len(rows))], pa.binary(16))
        batch = table.take(rows)
        for name in ("region_key", "input_digest"):
            batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), keys)
        made += len(rows)
        yield batch


def chunk_masklets(count: int) -> tuple[int, float, list[int]]:
    """Events, CPU seconds of chunking, and the process's peak memory (MB) as it goes on."""
    stage = build_chunk(ChunkConfig(motion=MotionConfig(pixels=False)))
    stage.open()
    spent, events = 0.0, 0
    peaks = []
    for number, batch in enumerate(masklet_tables(count)):
        start = time.process_time()
        events += sum(len(rows) for rows in checked(stage, batch))
        spent += time.process_time() - start
        if number % max(1, count // BATCH // 4) == 0:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    return events, spent, peaks


def ruptures_rate(count: int) -> float:
    """Masklets a second of PELT by `ruptures` on the same masklets, on one core, reading of the masks included."""
    batch = next(iter(masklet_tables(count)))
    start = time.process_time()
    for found in read_masklets(batch["frames"], batch["width"].to_pylist(), batch["height"].to_pylist(), 8.0, 600):
        assert not isinstance(found, str)
        masklet = found[1]
        angle, _ = turns(masklet)
        values = np.stack([masklet.x, masklet.y, np.sqrt(masklet.area), 50 * angle], axis=1)
        ruptures.Pelt(model="clinear", min_size=4, jump=1).fit(values).predict(pen=200.0)
    return len(batch) / (time.process_time() - start)


def refined(units: list[ChunkUnit], refiner: RefineStage) -> list[ChunkUnit]:
    """The units with masklets made by a refiner from the box on the first frame on which each target is visible."""
    asked = []
    for unit in units:
        first = next(frame for frame in unit.frames or () if frame.visible)
        asked.append(
            RefineUnit(
                input_digest=unit.input_digest, region_key=unit.region_key, media_key=unit.media_key, uri=unit.uri,
                kind="video", width=unit.width, height=unit.height, num_frames=len(unit.frames or ()), fps=unit.fps,
                box=first.box, frame_index=first.frame_index, time_s=first.time_s,
            )
        )  # fmt: skip
    found: dict[bytes, list[FrameMask]] = {unit.region_key: [] for unit in units}
    for table in checked(refiner, to_table(asked, RefineUnit)):
        for row in from_table(table, Mask):
            found[row.region_key] += row.frames or []
    made = {key: sorted(frames, key=lambda frame: frame.frame_index) for key, frames in found.items()}
    return [unit.model_copy(update={"frames": made[unit.region_key]}) for unit in units if made[unit.region_key]]


@cache
def nano() -> RefineStage:
    """The small SAM 2 of the package, opened once a process."""
    stage = build_refine(RefineConfig(backend="sam2", checkpoint="nano", device="cpu", workers=1))
    stage.open()
    return stage


def score_clip(job: tuple[int, str, bool]) -> Count:
    """Boundaries and words of one drawn clip, read from its file, with true masklets or with refined ones."""
    seed, folder, refine = job
    clip = draw_clip((1, seed), frames=42)
    path = Path(folder) / f"{seed}.mp4"
    write_mp4(path, list(clip.frames), 6)
    stage = build_chunk(ChunkConfig())
    stage.open()
    units = units_of(clip, f"c{seed}", str(path))
    known = {unit.region_key: thing for unit, thing in zip(units, clip.objects, strict=True)}
    if refine:
        units = refined(units, nano())
    rows = pa.concat_tables(list(checked(stage, to_table(units, ChunkUnit)))).to_pylist()
    count = Count()
    for key, thing in known.items():
        mine = sorted((r for r in rows if r["region_key"] == key), key=lambda r: r["event_index"])
        truth = [event.start_s for event in thing.events[1:]]
        count.proposed += max(0, len(mine) - 1)
        count.true += len(truth)
        if not mine:
            continue
        for row in mine[1:]:
            near = [t for t in truth if abs(t - row["start_s"]) <= TOLERANCE_S]
            if near:
                truth.remove(min(near, key=lambda t: abs(t - row["start_s"])))
                count.hits += 1
        for event in thing.events:
            shared = [min(r["end_s"], event.end_s) - max(r["start_s"], event.start_s) for r in mine]
            row = mine[int(np.argmax(shared))]
            count.named += set(event.motion.split(", ")) == set((row["motion"] or "").split(", "))
            count.events += 1
    path.unlink()
    return count


def chunk_speed(masklets: int, workers: int) -> None:
    """Prints how fast masklets are cut without pixels, beside ruptures, and the memory of a process as it goes on."""
    with ProcessPoolExecutor(workers) as pool:
        start = time.perf_counter()
        share = [masklets // workers] * workers
        done = list(pool.map(chunk_masklets, share))
        wall = time.perf_counter() - start
    rate = sum(n / spent for n, (_, spent, _) in zip(share, done, strict=True))
    print(f"{sum(share)} masklets of 20 s at 6 fps, no pixels, {workers} processes (wall {wall:.1f} s):")
    print(f"  {rate:.0f} masklets/s by CPU time, {sum(events for events, _, _ in done)} events")
    print(f"  peak memory of a process as it goes on: {' '.join(str(mb) for mb in done[0][2])} MB")
    print(f"  baseline, ruptures PELT on the same features: {ruptures_rate(32):.1f} masklets/s on one core")


def score_clips(clips: int, refine: bool, workers: int) -> None:
    """Prints how well the events of drawn clips are found."""
    total = Count()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers) as pool:
        start = time.perf_counter()
        for count in pool.map(score_clip, [(seed, folder, refine) for seed in range(clips)]):
            total.add(count)
    of = "masklets of the nano SAM 2 from a box on one frame" if refine else "true masklets"
    print(f"{clips} drawn clips of 7 s with {of}, colour and camera from their H.264 files:")
    print(f"  {total.line()} ({time.perf_counter() - start:.0f} s with drawing and encoding)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masklets", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--refined", type=int, default=0, help="clips whose masklets the nano SAM 2 makes")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.masklets:
        chunk_speed(args.masklets, args.workers)
    for refine, clips in ((False, args.clips), (True, args.refined)):
        if clips:
            score_clips(clips, refine, args.workers)


if __name__ == "__main__":
    main()
