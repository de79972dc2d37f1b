"""The examples of docs/guides/read-the-shards.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.pack import PackConfig, finish_pack, plan_pack

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "read-the-shards.md"


def examples(title: str) -> list[str]:
    section = re.split(r"^## ", GUIDE.read_text("utf-8"), flags=re.M)
    return re.findall(r"```python\n(.*?)```", next(part for part in section if part.startswith(title)), re.S)


@pytest.fixture
def small_ray():
    """A Ray that the example connects to; other tests of the session may have started one."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    if mine:
        ray.shutdown()


@pytest.fixture
def pack(corpus, write, tmp_path, monkeypatch):
    """A finished pack, current folder; layout as the test asks by its parameter."""

    def made(layout: str) -> None:
        corpus.add_clip(1, num_frames=20)
        plan = plan_pack(corpus.frames(), PackConfig(layout=layout, max_shard_bytes="30kB", validation_fraction=0))
        finish_pack(str(tmp_path / "run"), plan, write(plan, tmp_path / "run"))
        monkeypatch.chdir(tmp_path / "run" / plan.folder)
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    return made


TITLES = ["webdataset", "wids", "Hugging Face", "Drawing captions", pytest.param("Ray Data", marks=pytest.mark.slow)]


@pytest.mark.parametrize("title", TITLES)
def test_examples_of_a_joined_pack(pack, title, capsys, request):
    if title == "Ray Data":
        request.getfixturevalue("small_ray")
    pack("joined")
    code = examples(title)
    assert code
    exec("\n".join(code), {})
    assert capsys.readouterr().out or title == "webdataset"


def test_examples_of_a_split_pack(pack):
    pack("split")
    (code,) = examples("Two layouts")
    names: dict = {}
    exec(code, names)
    assert names["record"]["json"]["media"]["media_key"] == names["media"]["__key__"]
