"""What the adapters read with: streamed JSON, run lengths, listings, upright coordinates."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from stages.ingest import jsonstream, rle
from stages.ingest.base import SourceError, numbers, whole
from stages.ingest.listing import MediaRoots, clean
from stages.ingest.upright import turn_mask, turn_point

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]) | st.sampled_from('"\\[]{},: ')),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
QUIET = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(MASKS)
def test_run_lengths_agree_with_pycocotools_in_both_spellings(mask):
    height, width = mask.shape
    theirs = coco.encode(np.asfortranarray(mask, np.uint8))
    for counts in (theirs["counts"].decode(), theirs["counts"]):
        runs, *size = rle.runs_of({"size": [height, width], "counts": counts})
        assert size == [height, width]
        assert np.array_equal(rle.decode(runs, height, width), mask)
        assert rle.compress(runs) == theirs["counts"].decode()
        again, _, _ = rle.runs_of({"size": [float(height), width], "counts": [float(run) for run in runs]})
        assert np.array_equal(again, runs)
    rows, columns = np.nonzero(mask)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None
    assert rle.box_of_runs(runs, height) == expected


@QUIET
@given(MASKS, st.binary(max_size=12))
def test_damaged_run_lengths_are_refused_or_fill_their_size(mask, junk):
    height, width = mask.shape
    counts = rle.of_mask(mask)["counts"].encode()
    for damaged in (junk, counts + junk, counts[: len(counts) // 2] + junk):
        try:
            runs, _, _ = rle.runs_of({"size": [height, width], "counts": damaged})
        except ValueError:
            continue
        assert int(runs.sum()) == height * width


def test_impossible_run_lengths_are_refused():
    for segmentation in (
        None, {}, {"size": [2, 2]}, {"size": [2], "counts": [4]}, {"size": [2, 2], "counts": [5]},
        {"size": [2, 2], "counts": [-1, 5]}, {"size": [2, 2], "counts": [1.5, 2.5]}, {"size": [0, 0], "counts": []},
        {"size": [1e9, 1e9], "counts": [1e18]}, {"size": [2, 2], "counts": [True, 3]},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            rle.runs_of(segmentation)


@QUIET
@given(document=st.dictionaries(st.text(max_size=6), JSON, max_size=5), piece=st.integers(1, 40), indent=st.booleans())
def test_streamed_members_are_what_the_whole_document_holds(tmp_path, document, piece, indent):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(document, indent=2 if indent else None, ensure_ascii=False), encoding="utf-8")
    found: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonstream, "PIECE_BYTES", piece)
        for name, part in jsonstream.members(str(path)):
            if isinstance(document[name], dict):
                found.setdefault(name, {}).update(part)  # type: ignore[attr-defined]
            elif isinstance(document[name], list):
                found.setdefault(name, []).extend(part)  # type: ignore[attr-defined]
            else:
                found[name] = part
    assert found == document


def test_a_bad_item_leaves_its_neighbours_alone_and_nan_is_let_through(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('[{"a": 1}, {"a": oops}, {"a": NaN}, {"b": "x}]"}]')
    first, bad, third, last = jsonstream.items(str(path))
    assert first == {"a": 1}
    assert isinstance(bad, jsonstream.BadItem)
    assert third["a"] != third["a"]
    assert last == {"b": "x}]"}


def test_compressed_files_and_byte_order_marks_are_read(tmp_path):
    data = b'\xef\xbb\xbf{"a": [1, 2], "b": {}}'
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(data))
    assert list(jsonstream.members(str(tmp_path / "d.json.gz"))) == [("a", [1, 2]), ("b", [])]


@pytest.mark.parametrize("text", ["", "  ", "x", '{"a": [1, 2', '{"a": "x', '{"a" 1}', "[1] [2]", '{"a": [{"b": "}]'])
def test_what_is_no_document_is_one_error_that_names_the_file(tmp_path, text):
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"d\.json"):
        list(jsonstream.members(str(path)))


def test_a_missing_annotation_file_is_named():
    with pytest.raises(SourceError, match=r"gone\.json"):
        list(jsonstream.members("/nowhere/gone.json"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_turn_with_the_pixels_they_are_on(orientation):
    mask = np.zeros((5, 7), bool)
    mask[1, 5] = True
    (row,), (column,) = np.nonzero(turn_mask(mask, orientation))
    x, y = turn_point(5.5, 1.5, orientation, 7, 5)
    assert (int(x), int(y)) == (column, row)


def test_names_resolve_only_to_listed_files(tmp_path):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("x")
    for name in ("a.jpg", "sub/b.jpg", "sub/a.jpg"):
        (tmp_path / "root" / name).write_text("x")
    roots = MediaRoots((str(tmp_path / "root"),))
    assert roots.find("b.jpg").uri.endswith("root/sub/b.jpg")
    assert roots.find("a.jpg").uri.endswith("root/a.jpg")
    for name in ("../secret.txt", str(tmp_path / "secret.txt"), "sub/../../secret.txt", "", ".", "x\0"):
        assert roots.find(name) is None
        assert str(tmp_path / "root") in roots.missing_uri(name)
    assert clean("./sub//b.jpg") == "sub/b.jpg"


def test_an_archive_with_paths_that_leave_it_lists_only_its_own(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "a.txt", "in/a.txt")
        archive.add(tmp_path / "a.txt", "../../out.txt")
    assert sorted(MediaRoots((str(tmp_path / "x.tar"),)).files) == ["in/a.txt"]


def test_a_root_that_is_not_there_is_named(tmp_path):
    for name in ("gone", "gone.zip"):
        with pytest.raises(FileNotFoundError, match=name):
            _ = MediaRoots((str(tmp_path / name),)).files


def test_links_in_a_circle_are_listed_once(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg").write_text("x")
    Path(tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert sorted(MediaRoots((str(tmp_path),)).files) == ["sub/a.jpg"]


def test_numbers_are_numbers():
    assert numbers([1, 2.5]) == [1.0, 2.5]
    assert whole(3.0) == 3
    for value in (["1"], [True], [None], "12", None, [10**400]):
        with pytest.raises(ValueError):
            numbers(value)
    for value in (1.5, float("inf"), float("nan"), 1e300, "1"):
        with pytest.raises(ValueError):
            whole(value)
