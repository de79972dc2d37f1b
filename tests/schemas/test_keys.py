"""Keys and digests: the same everywhere for the same content, different for different content, fast for columns."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas.keys import (
    KEY_TYPE,
    digest_bytes,
    digest_columns,
    digest_stream,
    digest_value,
    encode_value,
    set_digest,
)

int64s = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=8)
scalars = st.none() | st.booleans() | int64s | floats | texts | st.binary(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def kinds() -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    """Arrow types as the records use them, each with a strategy of its Python values, nulls at every level."""
    leaves = st.sampled_from(
        [
            (pa.bool_(), st.booleans()),
            (pa.int64(), int64s),
            (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
            (pa.float64(), floats),
            (pa.string(), texts),
            (pa.large_string(), texts),
            (pa.binary(), st.binary(max_size=8)),
            (KEY_TYPE, st.binary(min_size=16, max_size=16)),
            (pa.dictionary(pa.int32(), pa.string()), texts),
        ]
    )

    def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists = inner.map(lambda item: (pa.list_(item[0]), st.lists(st.none() | item[1], max_size=4)))
        fixed = inner.map(lambda item: (pa.list_(item[0], 2), st.lists(st.none() | item[1], min_size=2, max_size=2)))
        structs = st.dictionaries(st.sampled_from(["x", "y", "counts"]), inner, min_size=1, max_size=3).map(
            lambda fields: (
                pa.struct([(name, kind) for name, (kind, _) in fields.items()]),
                st.fixed_dictionaries({name: st.none() | strategy for name, (_, strategy) in fields.items()}),
            )
        )
        return lists | fixed | structs

    plain = leaves.filter(lambda leaf: not pa.types.is_dictionary(leaf[0]))
    return leaves | st.recursive(plain, nest, max_leaves=4)


@st.composite
def columns(draw: st.DrawFn) -> tuple[dict[str, pa.Array], list[dict[str, Any]]]:
    """Columns of one length, and the same rows as Python values."""
    length = draw(st.integers(0, 6))
    names = draw(st.lists(st.sampled_from(["a", "b", "region_key", "text"]), min_size=1, max_size=3, unique=True))
    arrays, lists = {}, {}
    for name in names:
        kind, strategy = draw(kinds())
        lists[name] = draw(st.lists(st.none() | strategy, min_size=length, max_size=length))
        arrays[name] = pa.array(lists[name], kind)
    return arrays, [{name: lists[name][row] for name in names} for row in range(length)]


@given(columns())
def test_a_column_digest_is_the_digest_of_each_row(case: tuple[dict[str, pa.Array], list[dict[str, Any]]]) -> None:
    arrays, rows = case
    digests = digest_columns(arrays)
    assert digests.type == KEY_TYPE
    assert digests.to_pylist() == [digest_value(row) for row in rows]


@given(columns(), st.randoms(use_true_random=False))
def test_column_order_chunks_and_slices_do_not_matter(
    case: tuple[dict[str, pa.Array], list[dict[str, Any]]], random: Any
) -> None:
    arrays, rows = case
    length = len(rows)
    expected = digest_columns(arrays).to_pylist()
    shuffled = list(arrays)
    random.shuffle(shuffled)
    cut = random.randint(0, length)
    chunked = {name: pa.chunked_array([arrays[name][:cut], arrays[name][cut:]]) for name in shuffled}
    assert digest_columns(chunked).to_pylist() == expected
    sliced = {name: arrays[name][cut:] for name in shuffled}
    assert digest_columns(sliced).to_pylist() == expected[cut:]
    table = pa.table(arrays).slice(cut)
    assert digest_columns(dict(zip(table.column_names, table.columns, strict=True))).to_pylist() == expected[cut:]


@given(st.dictionaries(texts, scalars, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_fields_does_not_matter(mapping: dict[str, Any], random: Any) -> None:
    items = list(mapping.items())
    random.shuffle(items)
    assert digest_value(dict(items)) == digest_value(mapping)


@given(values, values)
def test_different_values_have_different_encodings(one: Any, other: Any) -> None:
    assume(_typed(one) != _typed(other))
    assert encode_value(one) != encode_value(other)
    assert digest_value(one) != digest_value(other)


def _typed(value: Any) -> Any:
    """The value with its types told apart (True is not 1, 1 is not 1.0), -0.0 as 0.0, field order dropped."""
    if isinstance(value, dict):
        return ("m", frozenset((name, _typed(item)) for name, item in value.items()))
    if isinstance(value, list):
        return ("l", tuple(_typed(item) for item in value))
    return (type(value).__name__, value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        ([["a"], "b"], [["a", "b"]]),
        ([], None),
        ([None], []),
        ("", b""),
        (1, 1.0),
        (True, 1),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ({}, []),
        ("n", None),
    ],
)
def test_values_that_look_alike_differ(one: Any, other: Any) -> None:
    assert digest_value(one) != digest_value(other)


def test_a_tuple_is_a_list_and_minus_zero_is_zero() -> None:
    assert digest_value((1, 2)) == digest_value([1, 2])
    assert digest_value(-0.0) == digest_value(0.0)
    assert digest_columns({"x": pa.array([-0.0])}) == digest_columns({"x": pa.array([0.0])})


def test_digests_are_the_same_in_another_process() -> None:
    """Whatever its hash seed; and the same tomorrow: these digests lie in people's runs."""
    value = {"b": [1, 2.5, None, True], "a": "höhe", "c": {"x": []}}
    program = "import json, sys; from schemas.keys import digest_value; print(digest_value(json.load(sys.stdin)).hex())"
    for seed in ("0", "1"):
        command = [sys.executable, "-c", program]
        out = subprocess.run(
            command, input=json.dumps(value), capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert out.stdout.strip() == digest_value(value).hex()
    assert digest_value(value).hex() == "b1a764820629a5df08a3419b749ca27a"
    assert digest_value(["coco", 17, 0.5]).hex() == "9903493085e05e17cacc6752397b8e44"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        digest_value({"x": [bad]})
    for array in (pa.array([1.0, bad]), pa.array([[1.0], [bad]]), pa.array([{"x": bad}])):
        with pytest.raises(ValueError, match="NaN or infinity"):
            digest_columns({"x": array})


def test_what_a_null_hides_is_not_looked_at() -> None:
    """Arrow may keep anything below a null; it is no part of the value."""
    child = pa.array([1.0, float("nan")])
    hidden = pa.StructArray.from_arrays([child], ["x"], mask=pa.array([False, True]))
    assert digest_columns({"p": hidden}).to_pylist() == [digest_value({"p": {"x": 1.0}}), digest_value({"p": None})]
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2]), child, mask=pa.array([False, True]))
    assert digest_columns({"p": lists}).to_pylist() == [digest_value({"p": [1.0]}), digest_value({"p": None})]


def test_what_has_no_encoding_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        digest_value(object())
    with pytest.raises(ValueError, match="64"):
        digest_value(2**63)
    with pytest.raises(ValueError):
        digest_columns({"x": pa.array([2**63], pa.uint64())})
    with pytest.raises(TypeError, match="timestamp"):
        digest_columns({"x": pa.array([0], pa.timestamp("s"))})
    with pytest.raises(ValueError, match="2 rows, others have 1"):
        digest_columns({"a": pa.array([1]), "b": pa.array([1, 2])})
    with pytest.raises(ValueError, match="at least one column"):
        digest_columns({})


@given(st.binary(max_size=64))
def test_a_stream_has_the_digest_of_its_bytes(data: bytes) -> None:
    assert digest_stream(io.BytesIO(data)) == digest_bytes(data)
    assert len(digest_bytes(data)) == 16


def test_a_long_stream_is_read_in_pieces() -> None:
    data = bytes(range(256)) * 9000
    assert digest_stream(io.BytesIO(data)) == digest_bytes(data)


keys = st.binary(min_size=16, max_size=16)


@given(st.lists(st.tuples(keys, keys), max_size=8), st.randoms(use_true_random=False))
def test_a_set_digest_ignores_order_and_chunks(rows: list[tuple[bytes, bytes]], random: Any) -> None:
    def of(pairs: list[tuple[bytes, bytes]]) -> bytes:
        cut = random.randint(0, len(pairs))
        return set_digest(
            *(
                pa.chunked_array([pa.array(column[:cut], KEY_TYPE), pa.array(column[cut:], KEY_TYPE)])
                for column in ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
            )
        )

    shuffled = random.sample(rows, len(rows))
    assert of(shuffled) == of(rows)
    if rows:
        assert of(rows[1:]) != of(rows)
        swapped = [(second, first) for first, second in rows]
        assert (of(swapped) == of(rows)) == (sorted(swapped) == sorted(rows))


def test_a_set_digest_needs_keys() -> None:
    with pytest.raises(ValueError, match="without nulls"):
        set_digest(pa.array([b"x" * 16, None], KEY_TYPE))
