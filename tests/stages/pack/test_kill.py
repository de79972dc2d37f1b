"""Killed anywhere and started again, packing ends with the bytes of an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed.py")
REPOSITORY = Path(__file__).resolve().parents[3]


def packs(run: Path) -> dict[str, bytes]:
    folders = [run / "packs", run / "media_shards"]
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kills"), [("joined", 20), ("split", 20)])
def test_kills_change_nothing(corpus, killing_tools, tmp_path, layout, kills):
    corpus.add_clip(7, num_frames=20)
    (tmp_path / "frames").mkdir()
    (tmp_path / "runs").mkdir()
    for name, frame in corpus.frames():
        frame.write_parquet(tmp_path / "frames" / f"{name}.parquet")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "frames"), str(tmp_path / "runs"), layout, str(kills)]
    done = subprocess.run(command, cwd=REPOSITORY, env=killing_tools, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    points = {line.split()[0] for line in done.stdout.splitlines()}
    assert len(points) >= 4
    wanted = packs(tmp_path / "runs" / "undisturbed")
    assert any(name.endswith("manifest.json") for name in wanted)
    runs = sorted((tmp_path / "runs").glob("killed-*"))
    assert len(runs) == kills
    for run in runs:
        assert packs(run) == wanted, run.name
